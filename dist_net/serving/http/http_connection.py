"""A connection over HTTP: uvicorn's protocol, with bounded memory and bounded waits.

uvicorn limits neither a request's head nor waits for a client; this subclass does.
"""

import asyncio
import logging
import math
import socket
import ssl
from asyncio import Transport
from collections.abc import Callable, Coroutine, Hashable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import httptools
import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from dist_net.serving.gateway.client_ledger import ClientLedger, ClientShare, LoopShare
from dist_net.serving.http.replies import Refusals, error_content
from dist_net.serving.http.settings import HttpSettings
from dist_net.wire.connections import transferred_bytes

logger = logging.getLogger(__name__)

_PARSED_A_TURN = 16 * 1024  # bytes of a connection
_READ_S_PER_BYTE = 4e-10
_BYTES_A_CHUNK = 64  # on average; each chunk takes about 3 us
_SMALL_CHUNKS = 1024


Connection = TypeVar("Connection", bound=Hashable)


class OpenConnections(Generic[Connection]):
    """The open connections: their clients, their waits, and which to drop first. Pure.

    A connection waits for the server from the end of a request until its answer is written.
    Otherwise it waits for its client: for a first byte, the rest of a handshake, a head or a body,
    for the next request, or until the client has read its answer. Bytes that the client sends or
    reads count against the wait, at the minimum rate: a client that keeps the rate has no wait.
    ``now`` is in seconds, of any one clock.
    """

    def __init__(self, min_bytes_per_s: float) -> None:
        self._min_bytes_per_s = min_bytes_per_s
        self._clients: dict[Connection, Hashable] = {}
        self._by_client: dict[Hashable, dict[Connection, None]] = {}  # oldest first
        self._since_s: dict[Connection, float] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._clients

    def all(self) -> list[Connection]:
        return list(self._clients)

    def assign(self, connection: Connection, client: Hashable) -> None:
        self._leave(connection)
        self._clients[connection] = client
        self._by_client.setdefault(client, {})[connection] = None

    def close(self, connection: Connection) -> None:
        self._leave(connection)
        self.end_wait(connection)

    def begin_wait(self, connection: Connection, now: float) -> None:
        """Begin to wait for the client, unless that has begun."""
        if connection in self._clients:
            self._since_s.setdefault(connection, now)

    def end_wait(self, connection: Connection) -> None:
        self._since_s.pop(connection, None)

    def is_waiting(self, connection: Connection) -> bool:
        return connection in self._since_s

    def transferred(self, connection: Connection, count: int, now: float) -> None:
        """Count bytes that the client sent or read since the last call."""
        if connection in self._since_s:
            since_s = self._since_s[connection] + count / self._min_bytes_per_s
            self._since_s[connection] = min(since_s, now)

    def waited_s(self, connection: Connection, now: float) -> float:
        return now - self._since_s.get(connection, now)

    def giving_way(self) -> tuple[Connection, Hashable]:
        """Return a connection of the client that has most, and the client.

        It is the connection that waits longest, the oldest of several; or else the newest, which
        has cost least. Raise ValueError without connections.
        """
        client, most = max(self._by_client.items(), key=lambda each: len(each[1]))
        waiting = [each for each in most if each in self._since_s]
        longest = min(waiting, key=self._since_s.__getitem__, default=next(reversed(most)))
        return longest, client

    def _leave(self, connection: Connection) -> None:
        client = self._clients.pop(connection, None)
        if client is not None:
            del self._by_client[client][connection]
            if not self._by_client[client]:
                del self._by_client[client]


class HttpConnections:
    """The shared state of a server's connections: its settings, and the time of the event loop."""

    def __init__(
        self, application: ASGIApp, settings: HttpSettings, refusals: Refusals, ledger: ClientLedger
    ) -> None:
        self.settings = settings
        self.refusals = refusals
        self.ledger = ledger
        self.turns = ledger.turns
        self.open: OpenConnections[HttpConnection] = OpenConnections(settings.min_bytes_per_s)
        self.is_stopping = False
        self.state = ServerState()
        self.configuration = uvicorn.Config(
            application,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # lower levels only report connections and malformed requests
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=settings.client_timeout_s,  # type: ignore[arg-type]
        )

    def start(
        self, turns: LoopShare, work: Coroutine[Any, Any, None]
    ) -> "asyncio.Task[None] | None":
        """Run the first step of a coroutine, in a job, and return the rest as a task, if any."""
        rest = self.turns.begin(turns, work)
        if rest is None:
            return None
        task = asyncio.get_running_loop().create_task(rest)
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)
        return task


class HttpConnection(HttpToolsProtocol):
    """uvicorn's connection, with bounded memory, and bounded waits for its client.

    It is a stranger until its first request, apart from the clients at its address, and costs
    little until its first byte. All its work on the event loop is done in jobs of ``turns``, its
    part of its client's ``share``. The parser buffers a head or a trailer until it is complete, so
    this class counts the bytes that the parser has not reported yet. uvicorn buffers at most 64 KiB
    of a body until the application receives them. Asyncio and httptools call what is overridden.
    """

    def __init__(
        self,
        server: HttpConnections,
        accepted: socket.socket,
        host: str,
        context: ssl.SSLContext | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport = None  # type: ignore[assignment]
        self.host = host
        self.share = server.ledger.share_of_address(host, "strangers at ")
        self.turns = LoopShare(self.share.loop)
        self._server = server
        self._socket, self._context = accepted, context
        self._opening: asyncio.Task[None] | None = None
        self._descriptor = -1
        self._received_bytes = 0
        self._transferred_bytes = 0  # received, and read by the client, at the last check
        self._unparsed_bytes = 0
        self._backlog = b""  # received, and not yet passed to the parser
        self._is_parsing = False
        self._start_parsed: Callable[[], None] | None = None  # the first request of a piece
        self._chunks = 0  # of the body
        self._body_bytes = 0
        self._unanswered = 0
        self._answering: RequestResponseCycle | None = None
        self._head_bytes = 0
        self._awaited = ""  # the incomplete part of a request: "head" or "body"
        self._is_ending = False  # once the complete requests are answered
        self._half_closed_s = math.inf  # when the client ended its side
        accepted.setblocking(False)
        self.loop.add_reader(accepted, self._await_first_byte)

    def _await_first_byte(self) -> None:
        is_open = False
        with suppress(OSError):
            is_open = bool(self._socket.recv(1, socket.MSG_PEEK))
        if is_open:
            self.loop.remove_reader(self._socket)
            self._server.turns.run(self.turns, self._begin)
        else:
            self.drop()

    def _begin(self) -> None:
        if self in self._server.open:
            super().__init__(self._server.configuration, self._server.state, {"connection": self})
            self._opening = self._server.start(self.turns, self._open())

    async def _open(self) -> None:
        """Create the transport; with a context, after a TLS handshake."""
        try:
            await self.loop.connect_accepted_socket(lambda: self, self._socket, ssl=self._context)
        except Exception as error:  # the client sent something else, or has gone
            logger.debug("handshake_failed error=%s", error)
            self._server.open.close(self)
        except asyncio.CancelledError:
            self._socket.close()
            raise

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        if self not in self._server.open:
            transport.abort()  # it gave way meanwhile

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.close(self)
        super().connection_lost(None)  # given an error, uvicorn would leave its timer running
        # Without circles of references nothing is left to the garbage collector, which would hold
        # the loop for 10 ms after a thousand connections.
        self.app_state, self.scope = {}, {}  # type: ignore[typeddict-item]
        if self._answering is not None:  # uvicorn notifies the last request of several only
            self._answering.disconnected = True
            self._answering.message_event.set()
        self.cycle = None  # type: ignore[assignment]

    def belong_to(self, share: ClientShare) -> None:
        """Move the connection to the client that sent the last request."""
        if share is not self.share and self in self._server.open:
            self.share, self.turns = share, LoopShare(share.loop)
            self._server.open.assign(self, share)

    def drop(self) -> None:
        self._server.open.close(self)
        if self.transport is not None:
            self.transport.abort()
        elif self._opening is not None:
            self._opening.cancel()
        elif self._socket.fileno() >= 0:
            self.loop.remove_reader(self._socket)
            self._socket.close()

    def close_if_idle(self) -> None:
        """Close the connection unless a request was read."""
        if self.transport is None:
            self.drop()
        elif not (self._unanswered or self._backlog):
            self.transport.close()

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with the answer to the only request that was read."""
        return self._server.is_stopping and self._unanswered == 1 and not self._backlog

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        self._unset_keepalive_if_required()
        will_parse, self._backlog = bool(self._backlog), self._backlog + data
        if not will_parse:
            # Much data may be followed by more: other clients have their turn before it is read.
            is_long = len(data) > _PARSED_A_TURN
            self._server.turns.run(self.turns, self._parse_backlog, is_long=is_long)
        if self._backlog:
            self.transport.pause_reading()

    def _parse_backlog(self) -> None:
        """Parse a piece: it may contain a callback for each chunk, or one for a part of a body."""
        if self._is_ending or self.transport.is_closing():
            self._backlog = b""
            return
        size = max(_PARSED_A_TURN, self._body_bytes_left())
        piece, self._backlog = self._backlog[:size], self._backlog[size:]
        self._server.turns.charge(self.turns, _READ_S_PER_BYTE * len(piece))
        self._is_parsing = True
        self._parse(piece)
        self._is_parsing = False
        if self._start_parsed is not None:
            start, self._start_parsed = self._start_parsed, None
            start()
        if self._backlog:
            self._server.turns.run(self.turns, self._parse_backlog)
        elif not (self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _body_bytes_left(self) -> int:
        """Return the number of missing bytes of a body, 0 if its length is unknown."""
        if self._awaited != "body":
            return 0
        lengths = [int(value) for name, value in self.headers if name == b"content-length"]
        return lengths[0] - self._body_bytes if lengths else 0

    def _parse(self, data: bytes) -> None:
        """Parse a piece. Ignore requests to upgrade, as RFC 9110 (7.8) permits.

        The parser takes what follows such a head for another protocol, so it parses the head again
        without the request to upgrade. CONNECT is refused: it has no other meaning.
        """
        self._unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            if method == b"CONNECT":
                self._refuse(501, "CONNECT is not supported")
                return
            lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
            lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self._parse(b"\r\n".join([*lines, b"", data[upgrade.args[0] :]]))
            return
        except httptools.HttpParserError:
            if not self._is_ending:
                self._refuse(400, "this is not an HTTP/1.1 request")
        if self._unparsed_bytes > self._server.settings.header_bytes and self._awaited:
            self._refuse(431, self._server.settings.expected_head)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Close the connection once the client's complete requests are answered, if that is soon.

        The client may still read, or be gone. TLS connections cannot be half closed in asyncio.
        """
        if self._awaited or not self._unanswered or self.scheme == "https":
            return False
        self._is_ending = True
        self._half_closed_s = self.loop.time()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._note_wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_wait()

    def on_message_begin(self) -> None:
        limit = self._server.settings.pipelined
        if self._unanswered > limit:
            self._refuse(400, f"more than {limit} requests are pending; expected fewer")
            raise OverflowError  # which stops the parser
        self._unparsed_bytes, self._awaited = 0, "head"
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(name + value)
        super().on_header(name, value)

    def _count_head(self, part: bytes) -> None:
        """Refuse a head as soon as it is too large: each header costs a microsecond."""
        settings = self._server.settings
        self._head_bytes += len(part)
        if self._head_bytes > settings.header_bytes or len(self.headers) >= settings.headers:
            self._refuse(431, self._server.settings.expected_head)
            raise OverflowError  # which stops the parser

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self._unparsed_bytes, self._awaited = 0, "body"
        self._chunks = self._body_bytes = 0
        self._unanswered += 1

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        self._body_bytes += len(body)
        self._chunks += 1
        if self.cycle.response_complete and self._body_bytes > self._server.settings.body_bytes:
            self.transport.abort()  # the client sends on after a refusal
        if self._chunks > _SMALL_CHUNKS + self._body_bytes // _BYTES_A_CHUNK:
            self._refuse(400, f"the body's chunks are too small; expected {_BYTES_A_CHUNK} bytes")
            raise OverflowError  # which stops the parser
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._awaited = ""
        self._note_wait()
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        start = partial(self._start, cycle, app)
        if self._is_parsing:
            self._start_parsed = start
        else:
            self._server.turns.run(self.turns, start)

    def _start(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:
        if not self.transport.is_closing():
            self._server.start(self.turns, self._answer(cycle, app))

    async def _answer(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:
        self._answering = cycle
        try:
            await cycle.run_asgi(app)  # type: ignore[arg-type]
        finally:
            if self._answering is cycle:
                self._answering = None
            self._unanswered -= 1
            self._note_wait()
            if self._unanswered == 0 and self._is_ending:
                self.transport.close()

    @property
    def _is_at_work(self) -> bool:
        """Whether the server works on a complete request; only the last one may be incomplete."""
        return self._unanswered > (self._awaited == "body") and not self.flow.write_paused

    def _note_wait(self) -> None:
        if self._is_at_work:
            self._server.open.end_wait(self)
        else:
            self._server.open.begin_wait(self, self.loop.time())

    def check(self, now: float) -> None:
        """Measure the progress of the client, and end the connection if it is too slow."""
        read_bytes, _ = transferred_bytes(self._descriptor) if self._descriptor >= 0 else (0, 0)
        before, self._transferred_bytes = self._transferred_bytes, read_bytes + self._received_bytes
        settings = self._server.settings
        self._server.open.transferred(self, self._transferred_bytes - before, now)
        is_body = self._awaited == "body" and not self.flow.write_paused
        limit_s = settings.body_timeout_s if is_body else settings.client_timeout_s
        is_gone = self._is_at_work and now - self._half_closed_s > settings.half_closed_s
        if is_gone or self.waited_s() > limit_s:
            self.time_out()

    def waited_s(self) -> float:
        return self._server.open.waited_s(self, self.loop.time())

    def time_out(self) -> None:
        """End the connection of a slow client; respond if its body is incomplete."""
        settings = self._server.settings
        if self._is_ending or self._awaited != "body" or self.cycle.response_started:
            self.drop()
            return
        self._refuse(
            408,
            f"the body arrives too slowly; expected at least {settings.min_bytes_per_s:,} bytes/s "
            f"over any {settings.body_timeout_s:g} s, and some bytes every second while memory is "
            f"short",
        )

    def _refuse(self, code: int, reason: str) -> None:
        """Respond and close; but if earlier requests are unanswered, close once they are."""
        self._is_ending = True
        self._server.refusals.note(code, "not read", reason)
        if self._unanswered > (self._awaited == "body"):
            return
        self.transport.write(refusal(code, reason))
        self.transport.close()


def refusal(code: int, reason: str) -> bytes:
    """Return a response without a request, after which the connection ends."""
    content = orjson.dumps(error_content(reason))
    return (
        b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n%s"
        % (code, HTTPStatus(code).phrase.encode(), len(content), content)
    )
