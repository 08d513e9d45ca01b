"""uvicorn with the project's limits on loopback, in front of a fake gateway, in this process."""

import asyncio
import contextlib
import gc
import json
import shutil
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dist_net.errors import KeyFileError, ListenError
from dist_net.serving.http.application import application
from dist_net.serving.http.connection import LimitedProtocol
from dist_net.serving.http.server import HttpServer
from dist_net.serving.http.settings import HttpSettings
from dist_net.serving.pool.requests import Outcome, Status
from fake_service import FakeService

INFER = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()
HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(INFER) + INFER
# What a loaded machine may take; a test that passes does not wait for it.
DEADLINE_S = 30.0

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Client = Callable[[HttpServer], Awaitable[Any]]


def while_serving(client: Client, service: FakeService | None = None, **settings: Any) -> Any:
    """Runs ``client`` against a server, which is stopped then; gives what ``client`` gave."""

    async def run() -> Any:
        chosen = HttpSettings(**{"address": "127.0.0.1:0"} | settings)
        server = HttpServer(application(service or FakeService(), chosen), chosen)
        serving = asyncio.create_task(server.serve())
        try:
            return await asyncio.wait_for(client(server), DEADLINE_S)
        finally:
            server.stop()
            await asyncio.wait_for(serving, DEADLINE_S)

    return uvloop.run(run())


async def connected(server: HttpServer) -> Connection:
    return await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))


async def said(connection: Connection) -> tuple[int, dict[bytes, bytes], bytes]:
    """The next response: its status code, headers and body."""
    reader, _ = connection
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
    headers = dict(line.split(b": ", 1) for line in lines)
    return int(first.split()[1]), headers, await reader.readexactly(int(headers[b"content-length"]))


async def end(connection: Connection) -> bytes:
    """What is still said until the server closes; the connection is closed on this side, too."""
    reader, writer = connection
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def answer_to(server: HttpServer, *pieces: bytes) -> tuple[int, str]:
    """The status code and the error that a connection is closed with, after these pieces."""
    connection = await connected(server)
    for piece in pieces:
        connection[1].write(piece)
        await connection[1].drain()
        await asyncio.sleep(0)
    code, _, body = await said(connection)
    assert await end(connection) == b""
    return code, json.loads(body)["error"]


def test_requests_are_answered_one_after_the_other_and_in_order() -> None:
    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        connection[1].write(REQUEST)
        assert (await said(connection))[0] == 200
        metadata = b"GET /v2/models/digits HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection[1].write(REQUEST[:30])
        await asyncio.sleep(0)
        connection[1].write(REQUEST[30:] + metadata + REQUEST)
        answers = [await said(connection) for _ in range(3)]
        assert [b"outputs" in body and b"inputs" not in body for *_, body in answers] == [
            True,
            False,
            True,
        ]
        connection[1].close()

    while_serving(client)


def test_a_client_is_told_to_go_on_with_its_body() -> None:
    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        expecting = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(INFER)
        connection[1].write(HEAD + expecting)
        assert b" 100 " in await connection[0].readuntil(b"\r\n\r\n")
        connection[1].write(INFER)
        assert (await said(connection))[0] == 200
        connection[1].close()

    while_serving(client)


def test_what_a_client_asked_that_goes_is_cancelled() -> None:
    service = FakeService(is_silent=True)

    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        connection[1].write(REQUEST)
        while not service.futures:
            await asyncio.sleep(0.001)
        connection[1].close()
        while not service.futures[0].cancelled():
            await asyncio.sleep(0.001)

    while_serving(client, service)


def test_a_server_that_stops_answers_what_was_asked() -> None:
    service = FakeService(is_silent=True)

    async def client(server: HttpServer) -> None:
        asking, idle = await connected(server), await connected(server)
        asking[1].write(REQUEST)
        while not service.futures:
            await asyncio.sleep(0.001)
        server.stop()
        assert await end(idle) == b""
        service.futures[0].set_result(service._answer(service.questions[0]))
        code, headers, _ = await said(asking)
        assert (code, headers[b"connection"]) == (200, b"close")
        assert await end(asking) == b""

    while_serving(client, service)


def test_a_server_that_stops_does_not_wait_for_ever() -> None:
    service = FakeService(is_silent=True)

    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        connection[1].write(REQUEST)
        while not service.futures:
            await asyncio.sleep(0.001)
        server.stop()
        assert (await said(connection))[0] == 503
        await end(connection)

    while_serving(client, service, shutdown_timeout_s=0.1)
    assert service.futures[0].cancelled()


def test_signals_are_left_to_the_process() -> None:
    async def client(server: HttpServer) -> None:
        await connected(server)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    while_serving(client)


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([b"nonsense\r\n\r\n"], 400),
        ([b"\x16\x03\x01\x02\x00"], 400),
        ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], 400),
        ([b"GET http://[ HTTP/1.1\r\n\r\n"], 400),
        ([b"GET /\xff HTTP/1.1\r\n\r\n"], 400),
        ([HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"], 400),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"], 400),
        ([b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 65 + b"\r\n"], 431),
        ([b"GET / HTTP/1.1\r\na: " + b"b" * 20_000 + b"\r\n\r\n"], 431),
        ([b"GET /" + b"b" * 20_000 + b" HTTP/1.1\r\n\r\n"], 431),
        ([b"GET / HTTP/1.1\r\na: "] + [b"b" * 8_000] * 99, 431),
        ([b"GET /"] + [b"b" * 8_000] * 99, 431),
        ([b"GET / HTTP/1.1\r\n"] + [b"a: b\r\n" * 1000] * 99, 431),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\na: "] + [b"b" * 8_000] * 99, 431),
    ],
)
def test_what_is_no_request_or_too_large_is_refused(pieces: list[bytes], code: int) -> None:
    async def client(server: HttpServer) -> tuple[int, str]:
        try:
            return await answer_to(server, *pieces)
        except (ConnectionResetError, BrokenPipeError):
            return code, ""  # refused before all was sent, and the answer lost with the rest

    assert while_serving(client)[0] == code


@pytest.mark.parametrize("count", [17, 18])
def test_requests_that_do_not_await_answers_are_limited(count: int) -> None:
    async def client(server: HttpServer) -> bytes:
        connection = await connected(server)
        connection[1].write(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * count)
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < count:
            if not (more := await connection[0].read(1000)):
                break
            answers += more
        connection[1].close()
        return answers

    answers = while_serving(client, pipelined=16)
    assert answers.count(b"HTTP/1.1 200 OK") == (17 if count == 17 else 0)


def test_a_body_beyond_the_limit_is_refused_before_it_came() -> None:
    async def client(server: HttpServer) -> int:
        connection = await connected(server)
        connection[1].write(HEAD + b"Content-Length: 1000000000000\r\n\r\n" + bytes(1000))
        code, _, _ = await said(connection)
        await end(connection)
        return code

    assert while_serving(client, body_timeout_s=0.2) == 413


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        b"GET / HTTP/1.1\r\na:",
        REQUEST[:-1],
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n",
        REQUEST,  # and then nothing: the connection is idle
        REQUEST + REQUEST[:40],
    ],
)
def test_a_client_is_not_awaited_for_ever(piece: bytes) -> None:
    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        connection[1].write(piece)
        await end(connection)

    while_serving(client, header_timeout_s=0.1, body_timeout_s=0.1, idle_timeout_s=0.1)


class OwnTime:
    """An event loop whose timers are due by a clock that goes on only when `pass_s` is called."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now_s = 0.0
        self._timers: list[tuple[float, asyncio.Handle]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay_s: float, callback: Callable[..., Any], *given: Any) -> Any:
        timer = asyncio.Handle(callback, given, self._loop)
        self._timers.append((self._now_s + delay_s, timer))
        return timer

    def pass_s(self, seconds: float) -> None:
        self._now_s += seconds
        due = [each for each in self._timers if each[0] <= self._now_s]
        self._timers = [each for each in self._timers if each not in due]
        for _, timer in due:
            if not timer.cancelled():
                timer._run()


def test_a_client_is_given_time_as_long_as_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request has its own time: a connection may take longer than any of them."""
    times: list[OwnTime] = []

    class Protocol(LimitedProtocol):
        def connection_made(self, transport: Any) -> None:
            self.loop: Any = OwnTime(self.loop)
            times.append(self.loop)
            super().connection_made(transport)

    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        for beginning in (REQUEST, *[REQUEST[20:]] * 7):
            # Every piece ends in the midst of a request, and begins with the rest of another.
            connection[1].write(beginning + REQUEST[:20])
            assert (await said(connection))[0] == 200
            times[0].pass_s(7)
        times[0].pass_s(4)  # it has begun a request 11 seconds ago
        assert await end(connection) == b""

    monkeypatch.setattr("dist_net.serving.http.connection.LimitedProtocol", Protocol)
    while_serving(client, header_timeout_s=10, idle_timeout_s=10)


def test_a_client_that_does_not_read_is_not_awaited_for_ever() -> None:
    async def client(server: HttpServer) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(server.url.rpartition(":")[2]), limit=1
        )
        rows = 100_000
        body = bytes(16 * rows)
        head = HEAD + b"Inference-Header-Content-Length: 0\r\n"
        for _ in range(8):
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await reader.readexactly(1)
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        writer.close()

    while_serving(client, body_timeout_s=0.3, idle_timeout_s=0.3)


def test_connections_are_limited() -> None:
    async def client(server: HttpServer) -> None:
        open_ones = [await connected(server) for _ in range(2)]
        for connection in open_ones:
            connection[1].write(REQUEST)
            assert (await said(connection))[0] == 200
        one_more = await connected(server)
        code, headers, _ = await said(one_more)
        assert (code, headers[b"retry-after"]) == (503, b"1")
        assert await end(one_more) == b""
        open_ones.pop()[1].close()
        await asyncio.sleep(0.05)
        again = await connected(server)
        again[1].write(REQUEST)
        assert (await said(again))[0] == 200
        for connection in (again, *open_ones):
            connection[1].close()

    while_serving(client, connections=2)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Settings with a certificate that it has signed itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    files = {name: directory / name for name in ("certificate", "private_key")}
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
            *("-keyout", files["private_key"], "-out", files["certificate"]),
        ],
        check=True,
        capture_output=True,
    )
    return files


async def encrypted(server: HttpServer) -> Connection:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    port = int(server.url.rpartition(":")[2])
    return await asyncio.open_connection("127.0.0.1", port, ssl=trusting)


def test_connections_without_a_handshake_are_limited_and_give_way(tls: dict[str, Path]) -> None:
    async def client(server: HttpServer) -> None:
        ends = [asyncio.create_task(end(await connected(server))) for _ in range(10)]
        connection = await encrypted(server)
        connection[1].write(REQUEST)
        assert (await said(connection))[0] == 200
        while sum(each.done() for each in ends) < 7:  # the limit, less the one that was answered
            await asyncio.sleep(0.001)
        connection[1].close()
        for each in ends:
            each.cancel()

    while_serving(client, connections=4, **tls)


def test_a_handshake_is_not_awaited_for_ever(tls: dict[str, Path]) -> None:
    async def client(server: HttpServer) -> None:
        for piece in (b"", b"\x16\x03\x01\x02\x00\x01"):
            connection = await connected(server)
            connection[1].write(piece)
            assert await end(connection) == b""

    while_serving(client, header_timeout_s=0.1, **tls)


def test_connections_by_tls_are_limited(tls: dict[str, Path]) -> None:
    async def client(server: HttpServer) -> None:
        open_ones = [await encrypted(server) for _ in range(2)]
        for connection in open_ones:
            connection[1].write(REQUEST)
            assert (await said(connection))[0] == 200
        assert await end(await connected(server)) == b""
        open_ones.pop()[1].close()
        again = None
        while again is None:  # until the server has heard of it
            with contextlib.suppress(OSError):
                again = await encrypted(server)
        again[1].write(REQUEST)
        assert (await said(again))[0] == 200
        for connection in (again, *open_ones):
            connection[1].close()

    while_serving(client, connections=2, **tls)


def test_a_server_that_stops_gives_handshakes_up(tls: dict[str, Path]) -> None:
    async def client(server: HttpServer) -> asyncio.Task[bytes]:
        silent = await connected(server)
        connection = await encrypted(server)  # so that the one before was accepted
        connection[1].close()
        return asyncio.create_task(end(silent))

    assert while_serving(client, **tls).done()


def test_refusals_come_through() -> None:
    service = FakeService()
    service.scripted = [Outcome(Status.UNAVAILABLE, reason="full", retry_after_s=3.2)]

    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        connection[1].write(REQUEST)
        code, headers, body = await said(connection)
        assert (code, headers[b"retry-after"]) == (503, b"4")
        assert json.loads(body) == {"error": "full", "retry_after_s": 3.2}
        connection[1].close()

    while_serving(client, service)


def test_an_address_in_use_is_refused() -> None:
    settings = HttpSettings(address="127.0.0.1:0")
    first = HttpServer(application(FakeService(), settings), settings)
    try:
        taken = HttpSettings(address=first.url.removeprefix("http://"))
        with pytest.raises(ListenError, match="expected a free port"):
            HttpServer(application(FakeService(), taken), taken)
    finally:
        first.close()


def test_tls_needs_files_that_are_some(tmp_path: Any) -> None:
    (tmp_path / "key").write_text("none")
    for path in (tmp_path / "missing", tmp_path / "key"):
        settings = HttpSettings(address="127.0.0.1:0", certificate=path, private_key=path)
        with pytest.raises(KeyFileError, match="PEM"):
            HttpServer(application(FakeService(), settings), settings)


def test_a_client_that_breaks_off_leaves_nothing_of_its_request() -> None:
    async def broken_off(server: HttpServer) -> int:
        for _ in range(3):
            _, writer = connection = await connected(server)
            writer.write(REQUEST)
            await connection[0].readexactly(12)
            # Closed without waiting for what is still to come: the server is sent a reset.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        left = open_connections()
        for _ in range(50):  # until the server has heard of it
            if not left:
                break
            await asyncio.sleep(0.1)
            left = open_connections()
        return left

    assert while_serving(broken_off) == 0


def open_connections() -> int:
    gc.collect()
    return sum(issubclass(type(each), LimitedProtocol) for each in gc.get_objects())
