"""Other people's clients, unmodified, against the HTTP server in front of a fake gateway."""

import importlib.util
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

FAKE = Path(__file__).parents[1] / "fake_service.py"
TOKEN = "a-token-that-is-long"
PERF_ANALYZER = Path(sys.executable).with_name("perf_analyzer")

Serve = Callable[..., str]


@contextmanager
def served(**settings: object) -> Iterator[str]:
    """Where a server with these settings listens; it ends with the context."""
    arguments = [f"{name}={value}" for name, value in settings.items()]
    with subprocess.Popen(
        [sys.executable, str(FAKE), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.communicate()
    assert server.returncode == 0


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(served(**settings))


def run(*command: str | Path) -> str:
    """What a command says, on both its streams; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


TRITON_CLIENT = """
    import itertools, sys
    import numpy as np
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    client = http.InferenceServerClient(sys.argv[1].removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "3")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "dist_net"
    assert client.get_model_metadata("digits", "2")["inputs"][0]["shape"] == [-1, 4]
    assert client.get_model_config("digits")["max_batch_size"] == 8

    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    answers = set()
    outputs = {
        "default": None,
        "binary": [http.InferRequestedOutput("probabilities", binary_data=True)],
        "json": [http.InferRequestedOutput("probabilities", binary_data=False)],
    }
    for is_binary, kind, compression in itertools.product(
        (True, False), outputs, (None, "gzip", "deflate")
    ):
        tensor = http.InferInput("input", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows, binary_data=is_binary)
        result = client.infer(
            "digits",
            [tensor],
            outputs=outputs[kind],
            request_id="mine",
            response_compression_algorithm=compression,
            timeout=1_000_000,
        )
        assert result.get_response()["id"] == "mine"
        assert result.get_response()["model_version"] == "3"
        answers.add(result.as_numpy("probabilities").tobytes())
    assert len(answers) == 1 and len(answers.pop()) == 24

    for is_binary in (True, False):
        wanted = http.InferRequestedOutput("probabilities", is_binary, class_count=2)
        classes = client.infer("digits", [tensor], outputs=[wanted]).as_numpy("probabilities")
        assert classes.shape == (2, 2)

    image = http.InferInput("input", [1], "BYTES")
    image.set_data_from_numpy(np.array([bytes(range(256))], dtype=np.object_))
    assert client.infer("animals", [image]).as_numpy("probabilities").shape == (1, 3)

    assert len(client.get_model_repository_index()) == 3
    client.load_model("digits")
    client.unload_model("digits")
    assert client.get_inference_statistics("digits")["model_stats"][1]["inference_count"] == 40
    waiting = [client.async_infer("digits", [tensor]) for _ in range(4)]
    assert all(each.get_result().as_numpy("probabilities").shape == (2, 3) for each in waiting)
    for name in ("priority", "sequence_id"):
        try:
            client.infer("digits", [tensor], **{name: 1})
        except InferenceServerException as error:
            assert error.status() == "501" and name in error.message(), error
        else:
            raise AssertionError(name)
    try:
        client.infer("none", [tensor])
    except InferenceServerException as error:
        assert error.status() == "404" and "digits" in error.message(), error
    else:
        raise AssertionError("a model that is none was asked")
    print("all of it works")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None, reason="tritonclient is not installed"
)
def test_tritonclient(serve: Serve, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(textwrap.dedent(TRITON_CLIENT))
    assert "all of it works" in run(sys.executable, script, serve())


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason="perf_analyzer is not installed")
def test_perf_analyzer(serve: Serve) -> None:
    address = serve().removeprefix("http://")
    for model, more in (("digits", ()), ("digits", ("-b", "4")), ("animals", ())):
        said = run(
            *(PERF_ANALYZER, "-m", model, "-u", address, "--request-count", "200"),
            *("--concurrency-range", "2", *more),
        )
        throughput = re.search(r"Throughput: ([0-9.]+) infer/sec", said)
        assert throughput is not None
        assert float(throughput[1]) > 0, said
        # What it makes of the server's statistics before and after.
        assert re.search(r"Inference count: [1-9]", said), said


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_by_tls_with_a_token(serve: Serve, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", key, "-out", certificate),
    )
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    url = serve(certificate=certificate, private_key=key, token_file=tokens)
    assert url.startswith("https://")
    curl = ("curl", "--silent", "--show-error", "--cacert", certificate)
    authorized = (*curl, "--header", f"Authorization: Bearer {TOKEN}")
    assert "live" in run(*curl, f"{url}/v2/health/live")
    assert "token" in run(*curl, f"{url}/v2")
    assert "binary_tensor_data" in run(*authorized, f"{url}/v2")
    image = tmp_path / "image.jpg"
    image.write_bytes(b"\xff\xd8\xff" + bytes(100_000))
    classify = f"{url}/v1/models/animals/classify"
    assert "predictions" in run(*authorized, "--data-binary", f"@{image}", classify)
    forms = ("--form", f"a=@{image}", "--form", f"b=@{image};filename=other.png")
    assert "other.png" in run(*authorized, *forms, classify)
    raw = ("--header", "Inference-Header-Content-Length: 0", "--data-binary", f"@{image}")
    assert "probabilities" in run(*authorized, *raw, f"{url}/v2/models/animals/infer")
