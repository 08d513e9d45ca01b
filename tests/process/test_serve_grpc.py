"""Other people's clients of gRPC, unmodified, against ``dist-net serve --grpc``."""

import socket
import sys
import textwrap
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc_health", reason="grpcio is not installed (the extra `grpc`)")
pytest.importorskip("tritonclient")

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.served import TINY_SHAPE
from dist_net.serving.grpc.grpc_messages import MESSAGES
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
    pool = serve(net.source, "--workers", "1", "--grpc", "127.0.0.1:0", "--access-log")
    trace, parent = f"{7:032x}", f"{9:016x}"
    with grpc.insecure_channel(address_of(pool)) as channel:
        infer = channel.unary_unary(f"{CALL}ModelInfer")
        headers = [("traceparent", f"00-{trace}-{parent}-00"), ("x-request-id", "mine")]
        _, ended = channel.unary_unary(f"{CALL}ServerLive").with_call(
            b"", metadata=headers, timeout=60
        )
        assert ("x-request-id", "mine") in ended.trailing_metadata()
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
        ready = MESSAGES["ModelReadyRequest"](name="tiny").SerializeToString()
        assert channel.unary_unary(f"{CALL}ModelReady")(
            ready, timeout=60
        )  # none of them holds a place
        check = health_pb2_grpc.HealthStub(channel).Check
        found = check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    pool.command.process.terminate()
    assert pool.command.process.wait(60) == 0
    assert "Traceback" not in pool.command.stderr
    (logged,) = [line for line in pool.command.stderr.splitlines() if "request id=mine" in line]
    assert "client='127.0.0.1' code=200" in logged
    assert logged.endswith(f"request='gRPC ServerLive' trace={trace}")


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    head = len(content).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + content


def field(name: str, value: str) -> bytes:
    """A header field of HPACK, without compression (RFC 7541, 6.2.2)."""
    texts = (each.encode() for each in (name, value))
    return b"\0" + b"".join(bytes([len(each)]) + each for each in texts)


def calls_that_are_not_read(token: str, message: bytes, calls: int) -> bytes:
    """Calls whose client accepts no byte of their responses."""
    method = field(":method", "POST") + field(":scheme", "http") + field(":authority", "x")
    method += field(":path", f"{CALL}ModelInfer") + field("te", "trailers")
    method += field("content-type", "application/grpc")
    method += field("authorization", f"Bearer {token}")
    no_window = (4).to_bytes(2, "big") + bytes(4)
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, no_window) + frame(4, 1, 0)
    data = b"\0" + len(message).to_bytes(4, "big") + message
    for stream in range(1, 2 * calls, 2):
        sent += frame(1, 4, stream, method) + frame(0, 1, stream, data)
    return sent


def test_clients_that_do_not_read_or_exceed_a_quota_keep_no_others_from_an_answer(
    serve: Any, net: Any, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    others = {name: f"{name}-0123456789abcdef" for name in ("slow", "few")}
    tokens.write_text(f"{TOKEN}\n{others['slow']} name=slow\n{others['few']} name=few rate=1\n")
    where = "--grpc", "127.0.0.1:0", "--token-file", str(tokens)
    address = address_of(serve(net.source, "--workers", "1", *where))
    message = MESSAGES["ModelInferRequest"](model_name="tiny")
    message.inputs.add(name="input", datatype="FP32", shape=[1, *TINY_SHAPE])
    message.raw_input_contents.append(bytes(4 * np.prod(TINY_SHAPE)))
    content = message.SerializeToString()
    host, _, port = address.rpartition(":")
    with ExitStack() as opened:
        for _ in range(5):
            connection = opened.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(calls_that_are_not_read(others["slow"], content, 64))
        channel = opened.enter_context(grpc.insecure_channel(address))
        infer, ready = (
            channel.unary_unary(f"{CALL}{each}") for each in ("ModelInfer", "ModelReady")
        )
        for _ in range(100):
            assert infer(content, metadata=[("authorization", f"Bearer {TOKEN}")], timeout=60)
        few = MESSAGES["ModelReadyRequest"](name="tiny").SerializeToString()
        metadata = [("authorization", f"Bearer {others['few']}")]
        with pytest.raises(grpc.RpcError) as refused:
            [ready(few, metadata=metadata, timeout=60) for _ in range(100)]
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "few exceeds its quota" in refused.value.details()


def test_a_flood_of_calls_has_its_turns_while_others_call(
    serve: Any, net: Any, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\nflood-0123456789abcdef\n")
    where = "--grpc", "127.0.0.1:0", "--token-file", str(tokens)
    address = address_of(serve(net.source, "--workers", "1", *where))
    content = MESSAGES["ModelMetadataRequest"](name="tiny").SerializeToString()
    answered: list[Any] = []
    ended = threading.Event()
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with (
        grpc.insecure_channel(address, own_connection) as other,
        grpc.insecure_channel(address, own_connection) as channel,
    ):
        describe, flood_of = (each.unary_unary(f"{CALL}ModelMetadata") for each in (other, channel))

        def again(last: Any = None) -> None:
            answered.append(last)
            if not ended.is_set():
                flood = [("authorization", "Bearer flood-0123456789abcdef")]
                flood_of.future(content, metadata=flood, timeout=60).add_done_callback(again)

        own = [("authorization", f"Bearer {TOKEN}")]
        describe(content, metadata=own, timeout=60)
        began_s = time.monotonic()
        for _ in range(32):
            again()
        for _ in range(300):
            assert describe(content, metadata=own, timeout=60)
        took_s, count = time.monotonic() - began_s, len(answered)
        ended.set()
    assert count <= 32 + 4 + 300 * took_s
