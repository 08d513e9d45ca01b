"""Other people's clients of gRPC, unmodified, against ``dist-net serve --grpc``."""

import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc_health", reason="grpcio is not installed (the extra `grpc`)")
pytest.importorskip("tritonclient")

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.served import TINY_SHAPE
from process import test_serve, test_serve_clients
from process.test_serve_clients import TOKEN, of_rows, run

net, serve = test_serve.net, test_serve.serve
certificate = test_serve_clients.certificate

CALL = "/inference.GRPCInferenceService/"
TRITON_CLIENT = """
    import queue, sys
    import numpy as np
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    address, directory, certificate, token = sys.argv[1:]
    rows, expected = (np.load(f"{directory}/{name}.npy") for name in ("rows", "expected"))
    client = triton.InferenceServerClient(address, ssl=True, root_certificates=certificate)
    headers = {"authorization": f"Bearer {token}"}
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny", headers=headers)
    assert client.get_server_metadata(headers=headers).name == "dist_net"
    (described,) = client.get_model_metadata("tiny", headers=headers).inputs
    assert (described.datatype, list(described.shape)) == ("FP32", [-1, 28, 28, 1])

    tensor = triton.InferInput("input", rows.shape, "FP32").set_data_from_numpy(rows)
    for compression in (None, "gzip", "deflate"):
        result = client.infer(
            "tiny", [tensor], request_id="mine", headers=headers, compression_algorithm=compression
        )
        assert result.get_response().id == "mine"
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    top = [triton.InferRequestedOutput("probabilities", class_count=2)]
    classes = client.infer("tiny", [tensor], outputs=top, headers=headers)
    assert classes.as_numpy("probabilities").shape == (len(rows), 2)

    found = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)), headers=headers)
    for name in ("first", "second"):
        client.async_stream_infer("tiny", [tensor], request_id=name)
    client.async_stream_infer("none", [tensor])
    assert [found.get(timeout=60)[0].get_response().id for _ in range(2)] == ["first", "second"]
    assert "none" in str(found.get(timeout=60)[1])
    client.stop_stream()

    for call in (lambda: client.infer("tiny", [tensor]), lambda: client.is_model_ready("tiny")):
        try:
            call()
        except InferenceServerException as error:
            assert "UNAUTHENTICATED" in error.status(), error
        else:
            raise AssertionError("no token is needed")
    print("all of it works")
"""


def address_of(pool: Any) -> str:
    return str(pool.command.stdout.split("grpc=")[1].split()[0])


def test_tritonclient_with_a_token_and_tls(
    start: Any, net: Any, certificate: Path, eventually: Any, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"client {TOKEN}\n")
    rows = np.random.default_rng(1).random((8, *TINY_SHAPE), np.float32)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "expected.npy", of_rows(net, rows))
    files = (
        "--tls-certificate",
        str(certificate),
        "--tls-key",
        str(certificate.with_name("key.pem")),
    )
    where = "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--token-file", str(tokens)
    command = start("serve", net.source, "--workers", "1", *where, *files)
    eventually(lambda: "READY" in command.stdout or command.process.poll() is not None)
    (tmp_path / "client.py").write_text(textwrap.dedent(TRITON_CLIENT))
    address = command.stdout.split("grpc=")[1].split()[0]
    printed = run(sys.executable, tmp_path / "client.py", address, tmp_path, certificate, TOKEN)
    assert "all of it works" in printed

    ended = threading.Event()
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(address, credentials) as channel:  # refused before a message is read
        for call in (
            channel.stream_unary(f"{CALL}ModelInfer"),
            channel.stream_unary(f"{CALL}ModelMetadata"),
            lambda *given, **of: next(
                channel.stream_stream(f"{CALL}ModelStreamInfer")(*given, **of)
            ),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(iter(lambda: ended.wait() and b"", None), timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        ended.set()


def test_messages_that_are_damaged_or_too_large_end_only_their_call(serve: Any, net: Any) -> None:
    pool = serve(net.source, "--workers", "1", "--grpc", "127.0.0.1:0")
    with grpc.insecure_channel(address_of(pool)) as channel:
        infer = channel.unary_unary(f"{CALL}ModelInfer")
        bomb = b"\x3a\x80\x80\x80\x40" + bytes(2**27)  # raw contents, of which gzip leaves a 1000th
        for content, compression, code in (
            (b"\xff\xff", None, grpc.StatusCode.INVALID_ARGUMENT),
            (bomb, None, grpc.StatusCode.RESOURCE_EXHAUSTED),
            (bomb, grpc.Compression.Gzip, grpc.StatusCode.RESOURCE_EXHAUSTED),
            (b"", None, grpc.StatusCode.NOT_FOUND),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                infer(content, compression=compression, timeout=60)
            assert refused.value.code() is code
        for call in [infer.future(b"") for _ in range(50)]:
            call.cancel()
        check = health_pb2_grpc.HealthStub(channel).Check
        found = check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    pool.command.process.terminate()
    assert pool.command.process.wait(60) == 0
    assert "Traceback" not in pool.command.stderr
