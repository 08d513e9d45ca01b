"""uvicorn with the project's limits on loopback, in front of a fake gateway, in this process."""

import asyncio
import gc
import json
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dist_net.errors import AddressError, KeyFileError
from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.http.application import application
from dist_net.serving.http.http_connection import HttpConnection
from dist_net.serving.http.server import HttpServer
from dist_net.serving.http.settings import HttpSettings
from fake_service import FakeService
from naming import naming

INFER = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()
HEAD = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(INFER) + INFER
# What a loaded machine may take; a test that passes does not wait for it.
DEADLINE_S = 30.0
MAX_ROWS = 1_000_000  # of a request

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Client = Callable[[HttpServer], Awaitable[Any]]


def while_serving(
    client: Client,
    service: FakeService | None = None,
    run_loop: Callable[[Any], Any] = uvloop.run,
    **settings: Any,
) -> Any:
    """Runs ``client`` against a server, which is stopped then; gives what ``client`` gave."""

    async def run() -> Any:
        chosen = HttpSettings(**{"address": "127.0.0.1:0"} | settings)
        ledger = ClientLedger(chosen.queue_bytes)
        fake = service or FakeService(max_batch_size=MAX_ROWS)
        app = application(fake, chosen, ledger=ledger)
        server = HttpServer(app)
        serving = asyncio.create_task(server.serve())
        try:
            return await asyncio.wait_for(client(server), DEADLINE_S)
        finally:
            server.stop()
            await asyncio.wait_for(serving, DEADLINE_S)

    return run_loop(run())


async def connected(server: HttpServer) -> Connection:
    return await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))


async def asked(server: HttpServer, service: FakeService) -> Connection:
    """A connection whose request has reached the service."""
    connection = await connected(server)
    connection[1].write(REQUEST)
    while not service.futures:
        await asyncio.sleep(0.001)
    return connection


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


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"


@pytest.mark.parametrize("pieces", [1, 2, 40])
def test_a_request_to_upgrade_is_ignored_and_its_body_read(pieces: int) -> None:
    """Java's HttpClient sends one with its first request."""
    service = FakeService()

    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        request = HEAD + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(INFER) + INFER
        if pieces == 2:  # a body in a segment of its own, which looks like a request
            connection[1].write(HEAD + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(REQUEST))
            await asyncio.sleep(0.05)
            connection[1].write(REQUEST)
            assert (await said(connection))[0] == 400  # no JSON
            assert not service.requests
        for start in range(0, len(request), len(request) // pieces):
            connection[1].write(request[start : start + len(request) // pieces])
            await asyncio.sleep(0.001)
        assert (await said(connection))[0] == 200
        upgraded = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE + b"\r\n"
        connection[1].write(upgraded + REQUEST + upgraded)
        assert [(await said(connection))[0] for _ in range(3)] == [200, 200, 200]
        connection[1].close()

    while_serving(client, service)
    assert len(service.requests) == 2


def test_a_tunnel_is_refused_and_its_content_is_no_request() -> None:
    service = FakeService()

    async def client(server: HttpServer) -> tuple[int, str]:
        return await answer_to(server, b"CONNECT localhost:80 HTTP/1.1\r\n\r\n" + REQUEST)

    assert while_serving(client, service)[0] == 501
    assert not service.requests


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_sends_no_more_is_answered(requests: int) -> None:
    """As by ``nc -N``; the answers come when the end of the client's side is known."""
    service = FakeService(is_silent=True)

    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        connection[1].write(REQUEST * requests)
        connection[1].write_eof()
        for number in range(requests):
            while len(service.futures) <= number:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.3)  # until the server has seen the end
            service.futures[number].set_result(service._answer(service.requests[number]))
            assert (await said(connection))[0] == 200
        assert await end(connection) == b""

    while_serving(client, service)


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
        connection = await asked(server, service)
        connection[1].close()
        while not service.futures[0].cancelled():
            await asyncio.sleep(0.001)

    while_serving(client, service, half_closed_s=0.1)


def test_a_server_that_stops_answers_what_was_asked() -> None:
    service = FakeService(is_silent=True)

    async def client(server: HttpServer) -> None:
        asking, idle = await asked(server, service), await connected(server)
        server.stop()
        assert await end(idle) == b""
        service.futures[0].set_result(service._answer(service.requests[0]))
        code, headers, _ = await said(asking)
        assert (code, headers[b"connection"]) == (200, b"close")
        assert await end(asking) == b""

    while_serving(client, service)


def test_a_server_that_will_stop_answers_once_more_on_each_connection() -> None:
    """Beyond a second, a client that sends nothing is not awaited."""

    async def client(server: HttpServer) -> None:
        asking = [await connected(server) for _ in range(3)]
        for each in asking:
            each[1].write(REQUEST)
            assert b"connection" not in (await said(each))[1]
        announcing = asyncio.create_task(server.announce_stop(asyncio.Event()))
        await asyncio.sleep(0)
        for each in asking[:2]:
            each[1].write(REQUEST)
            code, headers, _ = await said(each)
            assert (code, headers[b"connection"]) == (200, b"close")
            assert await end(each) == b""
        await announcing
        server.stop()
        assert await end(asking[2]) == b""

    while_serving(client)


def test_half_of_the_descriptors_are_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 10))

    async def client(server: HttpServer) -> None:
        open_ones = [await connected(server) for _ in range(6)]
        assert await end(open_ones[0]) == b""
        open_ones[5][1].write(REQUEST)
        assert (await said(open_ones[5]))[0] == 200
        for each in open_ones:
            each[1].close()

    while_serving(client)


def test_a_server_that_stops_does_not_wait_for_ever() -> None:
    service = FakeService(is_silent=True)

    async def client(server: HttpServer) -> None:
        connection = await asked(server, service)
        server.stop()
        assert (await said(connection))[0] == 503
        await end(connection)

    while_serving(client, service, shutdown_timeout_s=0.1)
    assert service.futures[0].cancelled()


def test_signals_are_left_to_the_process() -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def client(server: HttpServer) -> None:
        await connected(server)
        assert signal.getsignal(signal.SIGTERM) == before

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


@pytest.mark.parametrize("count", [1, 17, 18, 2000])
def test_requests_that_do_not_await_answers_are_limited(count: int) -> None:
    """Beyond the limit the connection ends, but not before the others are answered."""

    async def client(server: HttpServer) -> bytes:
        connection = await connected(server)
        request = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection[1].write(request * count)
        if count > 17:
            return await end(connection)
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < count:
            answers += await connection[0].read(1000)
        connection[1].close()
        return answers

    answers = while_serving(client, pipelined=16)
    assert answers.count(b"HTTP/1.1 200 OK") == min(count, 17)
    assert answers.count(b"HTTP/1.1 ") == min(count, 17)


@pytest.mark.parametrize(
    "nonsense", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\na: " + b"b" * 1_000_000]
)
def test_what_is_no_request_does_not_cost_the_one_before_its_answer(nonsense: bytes) -> None:
    service = FakeService(is_silent=True)

    async def client(server: HttpServer) -> None:
        connection = await asked(server, service)
        connection[1].write(nonsense)
        while not server.refusals.counts:
            await asyncio.sleep(0.001)
        service.futures[0].set_result(service._answer(service.requests[0]))
        assert (await said(connection))[0] == 200
        assert await end(connection) == b""

    while_serving(client, service)


def test_a_body_beyond_the_limit_is_refused_before_it_came() -> None:
    async def client(server: HttpServer) -> int:
        connection = await connected(server)
        connection[1].write(HEAD + b"Content-Length: 1000000000000\r\n\r\n" + bytes(1000))
        code, _, _ = await said(connection)
        await end(connection)
        return code

    assert while_serving(client, client_timeout_s=0.2) == 413


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

    while_serving(client, body_timeout_s=0.1, client_timeout_s=0.1)


def test_a_slow_body_is_received_if_it_keeps_the_rate() -> None:
    """It takes longer than a window, and enough arrives within each."""

    async def client(server: HttpServer) -> int:
        connection = await connected(server)
        started = asyncio.get_running_loop().time()
        pieces = 0
        connection[1].write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while asyncio.get_running_loop().time() < started + 1.5 * window_s:
            connection[1].write(b"a\r\n" + bytes(10) + b"\r\n")
            pieces += 1
            await asyncio.sleep(0.01)
        connection[1].write(b"0\r\n\r\n")
        code, _, body = await said(connection)
        assert code == 400, body  # received, and no JSON
        connection[1].close()
        return pieces

    window_s = 3.0
    assert while_serving(client, body_timeout_s=window_s, min_bytes_per_s=1) > 4


def chunked(body: bytes, size: int) -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"


LONG = INFER.replace(b"[1, 4]", b"[30000, 4]").replace(
    b"[1, 2, 3, 4]", b"[%b4]" % (119_999 * b"3, ")
)


@pytest.mark.parametrize(
    ("body", "size", "code"),
    [
        (INFER, 1, 200),
        (LONG, 100, 200),  # longer than a turn of the loop parses
        (LONG, 1, 400),
    ],
)
def test_a_body_may_come_in_chunks_that_are_not_too_small(
    body: bytes, size: int, code: int
) -> None:
    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        connection[1].write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, size))
        found, _, answer = await said(connection)
        assert found == code, answer
        assert (b"chunks are too small" in answer) is (code == 400)
        connection[1].close()

    while_serving(client)


def test_requests_that_fill_many_turns_of_the_loop_are_answered_in_order() -> None:
    """Each write is longer than what is parsed in a turn, and more is sent meanwhile."""

    async def client(server: HttpServer) -> None:
        connection = await connected(server)
        padded = INFER.ljust(30_000)
        request = HEAD + b"X-Request-Id: %d\r\nContent-Length: %d\r\n\r\n"
        for first in range(0, 40, 4):
            numbers = range(first, first + 4)
            for number in numbers:
                connection[1].write(request % (number, len(padded)) + padded)
            for number in numbers:
                code, headers, _ = await said(connection)
                assert (code, headers[b"x-request-id"]) == (200, b"%d" % number)
        connection[1].close()

    while_serving(client)


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/v1/models/animals/classify"])
def test_a_body_below_the_minimum_rate_is_refused(path: str) -> None:
    async def client(server: HttpServer) -> int:
        connection = await connected(server)
        connection[1].write(b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % path.encode())
        connection[1].write(b"Content-Length: 1000000\r\n\r\n")
        answer = asyncio.create_task(said(connection))
        while not answer.done():
            connection[1].write(b"x")
            await asyncio.sleep(0.01)
        code, headers, body = await answer
        assert headers[b"connection"] == b"close"
        assert "1,000,000 bytes/s" in json.loads(body)["error"]
        connection[1].close()
        assert server.refusals.counts[408] == 1
        return code

    assert while_serving(client, body_timeout_s=0.2, min_bytes_per_s=10**6) == 408


def test_bodies_that_stand_still_give_way_to_others() -> None:
    async def client(server: HttpServer) -> None:
        body = bytes(1000)
        head = HEAD + b"Content-Length: 1000\r\n\r\n"
        short_ones = [await connected(server) for _ in range(4)]
        for _, writer in short_ones:
            writer.write(head + body[:-1])
        codes, padded = [], INFER.ljust(700)  # more than a client may hold beside the others
        while 200 not in codes:  # until they have stood still for a second
            asking = await connected(server)
            asking[1].write(HEAD + b"Content-Length: %d\r\n\r\n" % len(padded) + padded)
            codes.append((await said(asking))[0])
            asking[1].close()
            await asyncio.sleep(0.01)
        assert set(codes) <= {200, 503}
        answers = [asyncio.create_task(said(each)) for each in short_ones]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        for (_, writer), answer in zip(short_ones, answers, strict=True):
            if not answer.done():
                writer.write(b"x")
        codes = [(await answer)[0] for answer in answers]
        assert sorted(codes) == [400, 400, 400, 408]  # the others are received, and no JSON
        for _, writer in short_ones:
            writer.close()

    while_serving(client, queue_bytes=8500, body_timeout_s=600)


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

    while_serving(client, client_timeout_s=0.3)


def large_answers(count: int) -> bytes:
    """Requests, each of which is answered with 16 MB, more than waits in the kernel."""
    body = bytes(16 * 500_000)
    head = HEAD + b"Inference-Header-Content-Length: 0\r\nContent-Length: %d\r\n\r\n"
    return count * (head % len(body) + body)


async def at_leisure(server: HttpServer, context: ssl.SSLContext | None) -> socket.socket:
    """A connected socket, from which nothing is read until the test does."""
    loop, port = asyncio.get_running_loop(), int(server.url.rpartition(":")[2])

    def connect() -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", port))
        return plain if context is None else context.wrap_socket(plain)

    return await loop.run_in_executor(None, connect)


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_a_slow_reader_is_answered_if_it_keeps_the_rate(
    request: pytest.FixtureRequest, is_encrypted: bool
) -> None:
    """Reading takes longer than the timeout."""
    timeout_s = 3.0

    async def client(server: HttpServer) -> int:
        connection = await at_leisure(server, trusting() if is_encrypted else None)
        read = partial(asyncio.get_running_loop().run_in_executor, None, connection.recv)
        with connection:
            asked = large_answers(1).replace(b"Host", b"Connection: close\r\nHost", 1)
            await asyncio.get_running_loop().run_in_executor(None, connection.sendall, asked)
            if not is_encrypted:
                connection.shutdown(socket.SHUT_WR)  # and reads on
            answer = bytearray(await read(1000))
            size = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
            started = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() < started + 2 * timeout_s:
                answer += await read(2**14)
                await asyncio.sleep(0.02)
            while piece := await read(2**20):
                answer += piece
            assert len(answer.partition(b"\r\n\r\n")[2]) == size
        return size

    files = request.getfixturevalue("tls") if is_encrypted else {}
    limits = {"client_timeout_s": timeout_s, "half_closed_s": timeout_s, "min_bytes_per_s": 1}
    while_serving(client, **limits, **files)


LOOPS = pytest.mark.parametrize("run_loop", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])


@LOOPS
@pytest.mark.parametrize("beginning", [b"", b"GET / HTTP/1.1\r\n", REQUEST])
def test_beyond_the_limit_the_connection_that_is_idle_longest_is_dropped(
    beginning: bytes, run_loop: Callable[[Any], Any]
) -> None:
    async def client(server: HttpServer) -> None:
        open_ones = [await connected(server) for _ in range(20)]
        for connection in open_ones:
            connection[1].write(beginning)
        for _ in range(20):
            probe = await connected(server)
            probe[1].write(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await said(probe))[0] == 200
            probe[1].close()
        for connection in open_ones[:15]:
            await end(connection)
        for connection in open_ones:
            connection[1].close()
        assert server.refusals.counts[503] >= 16

    while_serving(client, run_loop=run_loop, connections=4)


UNFINISHED = HEAD + b"Content-Length: 1000\r\n\r\nx"
# Answered at once, and connected still.
REFUSED = UNFINISHED.replace(b"digits", b"nothing").replace(b"POST", b"PUT")


@LOOPS
@pytest.mark.parametrize(
    "sent",
    [UNFINISHED, REFUSED, large_answers(1), large_answers(1) + UNFINISHED],
    ids=["unfinished body", "refused body", "unread answers", "both"],
)
def test_connections_that_wait_for_their_clients_give_way(
    sent: bytes, run_loop: Callable[[Any], Any]
) -> None:
    async def client(server: HttpServer) -> None:
        slow_ones = [await at_leisure(server, None) for _ in range(4)]
        for each in slow_ones:
            await asyncio.get_running_loop().run_in_executor(None, each.sendall, sent)
        await asyncio.sleep(1)  # until the answers are stuck
        for _ in range(20):
            asking = await connected(server)
            asking[1].write(REQUEST)
            assert (await said(asking))[0] == 200
            asking[1].close()
        for each in slow_ones:
            each.close()

    while_serving(client, run_loop=run_loop, connections=4)


def test_a_connection_whose_request_is_not_answered_is_not_dropped() -> None:
    service = FakeService(is_silent=True)

    async def client(server: HttpServer) -> None:
        asking = [await connected(server) for _ in range(2)]
        for connection in asking:
            connection[1].write(REQUEST)
        while len(service.futures) < 2:
            await asyncio.sleep(0.001)
        assert await end(await connected(server)) == b""  # all others are busy
        for future, request in zip(service.futures, service.requests, strict=True):
            future.set_result(service._answer(request))
        for connection in asking:
            assert (await said(connection))[0] == 200
            connection[1].close()

    while_serving(client, service, connections=2)


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


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def encrypted(server: HttpServer) -> Connection:
    port = int(server.url.rpartition(":")[2])
    return await asyncio.open_connection("127.0.0.1", port, ssl=trusting())


@LOOPS
def test_connections_without_a_handshake_are_limited_and_give_way(
    tls: dict[str, Path], run_loop: Callable[[Any], Any]
) -> None:
    async def client(server: HttpServer) -> None:
        ends = [asyncio.create_task(end(await connected(server))) for _ in range(10)]
        connection = await encrypted(server)
        connection[1].write(REQUEST)
        assert (await said(connection))[0] == 200
        while sum(each.done() for each in ends) < 7:  # the limit, less the one that was answered
            await asyncio.sleep(0.001)
        assert not ends[-1].done()  # the longest idle go first
        connection[1].close()
        for each in ends:
            each.cancel()

    while_serving(client, run_loop=run_loop, connections=4, **tls)


def test_a_handshake_is_not_awaited_for_ever(tls: dict[str, Path]) -> None:
    async def client(server: HttpServer) -> None:
        for piece in (b"", b"\x16\x03\x01\x02\x00\x01"):
            connection = await connected(server)
            connection[1].write(piece)
            assert await end(connection) == b""

    while_serving(client, client_timeout_s=0.1, **tls)


@LOOPS
def test_large_bodies_and_answers_come_through_tls(
    tls: dict[str, Path], run_loop: Callable[[Any], Any]
) -> None:
    async def client(server: HttpServer) -> None:
        connection = await encrypted(server)
        body = bytes(1_280_000)
        head = HEAD + b"Inference-Header-Content-Length: 0\r\nContent-Length: %d\r\n\r\n"
        for _ in range(3):
            connection[1].write(head % len(body) + body)
            code, headers, answer = await said(connection)
            assert (code, len(answer) > 1_000_000) == (200, True), headers
        connection[1].close()

    while_serving(client, run_loop=run_loop, **tls)


def test_a_server_that_stops_gives_handshakes_up(tls: dict[str, Path]) -> None:
    async def client(server: HttpServer) -> asyncio.Task[bytes]:
        silent = await connected(server)
        connection = await encrypted(server)  # so that the one before was accepted
        connection[1].close()
        return asyncio.create_task(end(silent))

    assert while_serving(client, **tls).done()


def test_an_address_in_use_is_refused() -> None:
    settings = HttpSettings(address="127.0.0.1:0")
    first = HttpServer(application(FakeService(), settings))
    try:
        taken = HttpSettings(address=first.url.removeprefix("http://"))
        with pytest.raises(AddressError, match=naming("Address already in use")):
            HttpServer(application(FakeService(), taken))
    finally:
        first.close()


def test_tls_needs_files_that_are_some(tmp_path: Any) -> None:
    (tmp_path / "key").write_text("none")
    for path in (tmp_path / "missing", tmp_path / "key"):
        settings = HttpSettings(address="127.0.0.1:0", certificate=path, private_key=path)
        with pytest.raises(KeyFileError, match="PEM"):
            HttpServer(application(FakeService(), settings))


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
    return sum(issubclass(type(each), HttpConnection) for each in gc.get_objects())
