"""Other people's clients, unmodified, against ``dist-net serve``: over HTTP, plain and by TLS."""

import http.client
import importlib.util
import json
import re
import shutil
import ssl
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.served import TINY, TINY_SHAPE, Net
from dist_net import Client
from dist_net.errors import AccessRefusedError, NoAnswerError
from dist_net.nets.darknet import DarknetNetwork
from dist_net.nets.darknet.configuration import read_configuration
from dist_net.nets.darknet.weights import read_weights
from dist_net.nn import Model
from dist_net.nn.inference import Inference, prepare
from process import test_serve

net, serve = test_serve.net, test_serve.serve

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], Any]], Any]

OUT_OF_TIME = 124  # what `timeout` makes of it
PERF_ANALYZER = Path(sys.executable).with_name("perf_analyzer")
TOKEN = "a-token-that-is-long"

TRITON_CLIENT = """
    import itertools, sys
    import numpy as np
    import tritonclient.http as http
    from tritonclient.utils import InferenceServerException

    address, directory = sys.argv[1:]
    rows, expected = (np.load(f"{directory}/{name}.npy") for name in ("rows", "expected"))
    image = open(f"{directory}/image.png", "rb").read()  # the last of the rows
    client = http.InferenceServerClient(address, concurrency=4)
    assert client.is_server_ready() and client.is_model_ready("tiny")
    assert not client.is_model_ready("none") and client.is_model_ready("tiny", "1")
    assert client.get_server_metadata()["name"] == "dist_net"
    assert client.get_model_metadata("tiny", "1")["inputs"][0]["shape"] == [-1, 28, 28, 1]
    assert client.get_model_config("tiny")["max_batch_size"] == 8

    def tensor(is_binary):
        tensor = http.InferInput("input", rows.shape, "FP32")
        return tensor.set_data_from_numpy(rows, binary_data=is_binary)

    def wanted(is_binary, classes=0):
        return [http.InferRequestedOutput("probabilities", is_binary, class_count=classes)]

    for asks_binary, answers_binary, compression in itertools.product(
        (True, False), (True, False), (None, "gzip", "deflate")
    ):
        result = client.infer(
            "tiny",
            [tensor(asks_binary)],
            outputs=wanted(answers_binary),
            request_id="mine",
            response_compression_algorithm=compression,
            timeout=60_000_000,
        )
        assert result.get_response()["id"] == "mine"
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    waiting = [client.async_infer("tiny", [tensor(True)]) for _ in range(20)]
    for each in waiting:
        found = each.get_result().as_numpy("probabilities")
        np.testing.assert_allclose(found, expected, atol=1e-6)

    likeliest = [f"class {index}" for index in expected.argmax(1)]
    for is_binary in (True, False):
        classes = client.infer("tiny", [tensor(True)], outputs=wanted(is_binary, 2))
        names = classes.as_numpy("probabilities").astype(str)
        assert names.shape == (len(rows), 2)
        assert [name.split(":", 2)[2] for name in names[:, 0]] == likeliest, names

    encoded = http.InferInput("input", [1], "BYTES")
    encoded.set_data_from_numpy(np.array([image], np.object_))
    found = client.infer("tiny", [encoded]).as_numpy("probabilities")
    np.testing.assert_allclose(found, expected[-1:], atol=1e-6)

    def require_refused(status, word, model="tiny", **options):
        try:
            client.infer(model, [tensor(True)], **options)
        except InferenceServerException as error:
            assert error.status() == status and word in error.message(), error
        else:
            raise AssertionError(f"{model} has answered")

    require_refused("404", "tiny", "none")
    require_refused("501", "priority", priority=1)
    require_refused("501", "sequence_id", sequence_id=1)
    client.unload_model("tiny")
    assert not client.is_model_ready("tiny") and client.is_server_live()
    require_refused("404", "unload")
    client.load_model("tiny")
    assert client.is_model_ready("tiny")
    result = client.infer("tiny", [tensor(True)])
    assert result.get_response()["model_version"] == "2"
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    (state,) = client.get_model_repository_index()
    assert (state["name"], state["version"], state["state"]) == ("tiny", "2", "READY"), state
    statistics = client.get_inference_statistics("tiny")["model_stats"]
    assert sum(each["inference_count"] for each in statistics) > 0, statistics
    print("all of it works")
"""


def of_rows(net: Net, rows: np.ndarray) -> np.ndarray:
    """What the net gives for the rows, computed here."""
    network = DarknetNetwork(read_configuration(net.directory / "net.cfg"))
    model = Model(network, network.input_shape, input_dtype=np.float32)
    (weights,) = net.directory.glob("*.weights")
    return Inference(model, prepare(model, read_weights(weights, network)))(rows)


def run(*command: str | Path) -> str:
    """What a command says, on both its streams; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None, reason="tritonclient is not installed"
)
def test_tritonclient(serve: Any, net: Net, tmp_path: Path) -> None:
    pool = serve(net.source, "--workers", "2")
    pixels = np.random.default_rng(1).integers(0, 256, (8, *TINY_SHAPE), np.uint8)
    rows = np.float32(pixels / 255)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "expected.npy", of_rows(net, rows))
    Image.fromarray(pixels[-1, ..., 0]).save(tmp_path / "image.png")
    script = tmp_path / "client.py"
    script.write_text(textwrap.dedent(TRITON_CLIENT))
    address = f"127.0.0.1:{pool.port}"
    assert "all of it works" in run(sys.executable, script, address, tmp_path)


@pytest.mark.skipif(not PERF_ANALYZER.exists(), reason="perf_analyzer is not installed")
@pytest.mark.parametrize("door", ["http", "grpc"])
def test_perf_analyzer(serve: Any, net: Net, door: str) -> None:
    pool = serve(net.source, "--workers", "2", "--grpc", "127.0.0.1:0")
    address = pool.command.stdout.split(f"{door}=")[1].split()[0].removeprefix("http://")
    command = (
        *("timeout", "30", PERF_ANALYZER, "-m", TINY, "-i", door, "-u", address),
        *("--request-count", "100", "--concurrency-range", "4", "-b", "2"),
    )
    for attempt in range(1, 4):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        (model,) = pool.get("/pool")[1]["models"]
        assert model["answered"] == model["admitted"] == 100 * attempt
        # On a busy machine about one run in 150 has all its answers, and does not end.
        if done.returncode != OUT_OF_TIME:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    throughput = re.search(r"Throughput: ([0-9.]+) infer/sec", done.stdout)
    assert throughput is not None, done.stdout
    assert float(throughput[1]) > 0, done.stdout
    # What it makes of the server's statistics before and after.
    assert re.search(r"Inference count: [1-9]", done.stdout), done.stdout


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that it has signed itself; its key lies beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "certificate.pem"
    run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", path.with_name("key.pem"), "-out", path),
    )
    return path


def test_beyond_this_host_by_tls_with_a_token(
    start: Start, net: Net, certificate: Path, eventually: Eventually, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    gateway = start(
        *("serve", net.source, "--workers", "1"),
        *("--http", "0.0.0.0:0", "--token-file", str(tmp_path / "token")),
        *(
            "--tls-certificate",
            str(certificate),
            "--tls-key",
            str(certificate.with_name("key.pem")),
        ),
    )
    port = eventually(lambda: re.search(r"READY http=https://0.0.0.0:(\d+)\n", gateway.stdout))[1]

    def get(path: str, token: str | None = None) -> tuple[int, Any]:
        """Status and JSON body, or None."""
        request = urllib.request.Request(f"https://127.0.0.1:{port}{path}")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        trusted = ssl.create_default_context(cafile=str(certificate))
        try:
            with urllib.request.urlopen(request, context=trusted, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    assert get("/v2/health/ready")[0] == 200
    for token in (None, "", TOKEN[:-1], f"{TOKEN}x"):
        status, answer = get("/pool", token)
        assert (status, "token" in answer["error"]) == (401, True), answer
    assert get("/pool", TOKEN)[1]["is_ready"] is True
    assert get(f"/v2/models/{TINY}", TOKEN)[1]["name"] == TINY
    with pytest.raises(http.client.HTTPException):  # who does not encrypt is not heard
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/live", timeout=60)
    with pytest.raises(urllib.error.URLError, match="self-signed"):  # nor trusted without reason
        urllib.request.urlopen(f"https://127.0.0.1:{port}/v2/health/live", timeout=60)
    assert get("/v2/health/ready")[0] == 200
    address = f"https://127.0.0.1:{port}"
    with Client(address, TOKEN, certificates=certificate) as client:
        assert client.models()[0].name == TINY
    with Client(address, TOKEN) as client, pytest.raises(NoAnswerError, match="self-signed"):
        client.models()
    with Client(address, certificates=certificate) as client, pytest.raises(AccessRefusedError):
        client.models()
    if shutil.which("curl"):
        image = tmp_path / "image.png"
        Image.fromarray(np.zeros(TINY_SHAPE[:2], np.uint8)).save(image)
        curl = ("curl", "--silent", "--show-error", "--cacert", certificate)
        curl = (*curl, "--header", f"Authorization: Bearer {TOKEN}")
        classify = f"{address}/v1/models/{TINY}/classify"
        assert "predictions" in run(*curl, "--data-binary", f"@{image}", classify)
        forms = ("--form", f"a=@{image}", "--form", f"b=@{image};filename=other.png")
        assert "other.png" in run(*curl, *forms, classify)
        raw = ("--header", "Inference-Header-Content-Length: 0", "--data-binary", f"@{image}")
        assert "probabilities" in run(*curl, *raw, f"{address}/v2/models/{TINY}/infer")
    trusting = "--token-file", str(tmp_path / "token"), "--certificates", str(certificate)
    assert start("status", address, *trusting, "--json").result()["is_ready"]
    reload = start("reload", TINY, "--connect", address, *trusting, "--json")
    assert reload.result() == {"model": TINY, "version": 2}
