"""The HTTP server: uvicorn on our own socket, with TLS and limits for slow clients.

uvicorn limits neither a request's head nor waits for a client; a subclass of its connection does.
"""

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from asyncio import Transport
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
import orjson
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dist_net.errors import AddressError, KeyFileError
from dist_net.serving.gateway.client_ledger import ClientShare, TurnBudget
from dist_net.serving.http.replies import Refusals, error_content
from dist_net.serving.http.settings import HttpSettings
from dist_net.serving.http.waiting_clients import WaitingClients
from dist_net.wire.connections import transferred_bytes

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_ACCEPT_AGAIN_S = 1.0  # until a descriptor may be free
_CHECK_EVERY_S = 0.25  # 4 us a connection
_PARSED_A_TURN = 16 * 1024  # bytes of a connection
_QUICK_BYTES = 4 * 1024  # parsed within 2 ms, whatever the content
_BYTES_A_CHUNK = 64  # on average; each chunk takes about 3 us
_SMALL_CHUNKS = 1024


class HttpServer:
    """Listens from its creation; ``url`` has the real port. Raise AddressError and KeyFileError."""

    def __init__(
        self,
        application: ASGIApp,
        settings: HttpSettings,
        refusals: Refusals | None = None,
        turn: TurnBudget | None = None,
    ) -> None:
        self._connections = _Connections(settings, refusals or Refusals(), turn or TurnBudget())
        self._context = _tls_context(settings) if settings.has_tls else None
        protocol: Any = partial(HttpConnection, self._connections, None)
        configuration = uvicorn.Config(
            _answering(application),
            http=protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # lower levels only report connections and malformed requests
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.client_timeout_s,  # type: ignore[arg-type]
            timeout_graceful_shutdown=settings.shutdown_timeout_s,  # type: ignore[arg-type]
        )
        self._server = _Server(configuration)
        self._socket = _listening_socket(settings)
        host, port = self._socket.getsockname()[:2]
        scheme = "https" if settings.has_tls else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve(self) -> None:
        """Respond until ``stop``; then finish open requests within the time limit."""
        tasks = [self._connections.check_all()]
        if self._context is not None:
            tasks.append(self._accept(self._context))
        self._server.tasks = [asyncio.create_task(task) for task in tasks]
        try:
            await self._server.serve(sockets=[] if self._context else [self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Accept no more connections, close those without a request, and finish open requests."""
        self._server.should_exit = True

    def close(self) -> None:
        """Close the socket of a server that never ran ``serve``."""
        self._socket.close()

    async def _accept(self, context: ssl.SSLContext) -> None:
        """Accept connections and do TLS handshakes: asyncio reports silent ones too late."""
        self._socket.setblocking(False)
        async with asyncio.TaskGroup() as handshakes:
            while True:
                try:
                    accepted, _ = await asyncio.get_running_loop().sock_accept(self._socket)
                except ConnectionAbortedError:
                    continue
                except OSError as error:
                    logger.warning("accept_failed error=%s", error)
                    await asyncio.sleep(_ACCEPT_AGAIN_S)
                    continue
                task = handshakes.create_task(self._shake_hands(accepted, context))
                task.add_done_callback(partial(self._handshake_ended, accepted))
                self._connections.opened(task, task.cancel)
                await asyncio.sleep(0)  # a flood of connections must not starve the rest

    async def _shake_hands(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        connection = partial(
            HttpConnection,
            self._connections,
            asyncio.current_task(),
            config=self._server.config,
            server_state=self._server.server_state,
        )
        settings = self._connections.settings
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=settings.client_timeout_s,
                ssl_shutdown_timeout=math.inf,  # ``check`` limits it
            )
        except Exception as error:  # the client sent something else, or has gone
            logger.debug("handshake_failed error=%s", error)

    def _handshake_ended(self, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        self._connections.closed(task)
        if task.cancelled():
            accepted.close()


def _answering(application: ASGIApp) -> ASGIApp:
    """Wrap the application: notify the connection after each request."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await application(scope, receive, send)
        finally:
            scope["state"]["connection"].answered()

    return answer


class _Server(uvicorn.Server):
    tasks: Sequence[asyncio.Task[None]] = ()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self.tasks:
            task.cancel()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connections:
    """Open connections, or TLS handshakes by task; drops the longest waiting beyond the limit."""

    def __init__(self, settings: HttpSettings, refusals: Refusals, turn: TurnBudget) -> None:
        self.settings = settings
        self.refusals = refusals
        self.waiting = WaitingClients(settings.min_bytes_per_s)
        self.turn = turn
        self._open: dict[object, Callable[[], object]] = {}  # the function that drops each

    def opened(self, connection: object, drop: Callable[[], object]) -> None:
        """Add a connection, which is dropped itself if no other waits for its client."""
        self._open[connection] = drop
        self.await_client(connection, True)
        if len(self._open) > self.settings.connections:
            longest = self.waiting.longest()
            drop = self._open[longest]
            self.closed(longest)
            drop()
            self.refusals.note(503, "a connection", "the limit of connections is reached")

    def await_client(self, connection: object, is_awaited: bool) -> None:
        """Note whether a connection waits for its client, or else for the server."""
        if is_awaited and connection in self._open:
            self.waiting.begin(connection, asyncio.get_running_loop().time())
        else:
            self.waiting.end(connection)

    def closed(self, connection: object) -> None:
        self._open.pop(connection, None)
        self.waiting.end(connection)

    async def check_all(self) -> None:
        """Drop the connections that wait too long for their clients, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_CHECK_EVERY_S, self.settings.body_timeout_s / 4))
            self._check(loop.time())

    def _check(self, now: float) -> None:
        # A function of its own: a variable of the task would keep the last connection in memory.
        for connection in list(self._open):  # asyncio limits the time of handshakes
            if isinstance(connection, HttpConnection):
                connection.check(now)


class _Flow(FlowControl):
    """uvicorn's, which resumes reading only once everything that was read is parsed."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._is_unwanted = self._has_backlog = False

    def pause_reading(self) -> None:
        self._is_unwanted = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._is_unwanted = False
        self._resume()

    def set_backlog(self, has_backlog: bool) -> None:
        self._has_backlog = has_backlog
        if has_backlog:
            super().pause_reading()
        else:
            self._resume()

    def _resume(self) -> None:
        if not (self._is_unwanted or self._has_backlog):
            super().resume_reading()


class HttpConnection(HttpToolsProtocol):
    """uvicorn's connection, with bounded memory, and bounded waits for its client.

    The parser buffers a head or a trailer until it is complete, so this class counts the bytes that
    the parser has not reported yet. uvicorn buffers at most 64 KiB of a body until the application
    receives them. asyncio and httptools call the overridden methods.
    """

    def __init__(self, connections: _Connections, handshake: object, **given: Any) -> None:
        super().__init__(**given | {"app_state": {"connection": self}})
        self._connections = connections
        self._handshake = handshake
        self.share: ClientShare | None = None
        self._descriptor = -1
        self._received_bytes = 0
        self._transferred_bytes = 0  # received, and read by the client, at the last check
        self._unparsed_bytes = 0
        self._backlog = bytearray()  # received, and passed to the parser in later turns
        self._chunks = 0  # of the body
        self._body_bytes = 0
        self._unanswered = 0
        self._awaited = ""  # the incomplete part of a request: "head" or "body"
        self._is_ending = False  # once the complete requests are answered
        self._half_closed_s = math.inf  # when the client ended its side

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._connections.closed(self._handshake)
        self._connections.opened(self, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self)
        super().connection_lost(None)  # given an error, uvicorn would leave its timer running

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        self._unset_keepalive_if_required()
        # A callback for each chunk and each request may be in it; a body of known length is one.
        if self._backlog or (len(data) > _PARSED_A_TURN and len(data) > self._body_bytes_left()):
            if not self._backlog:  # read nothing more until it is parsed, in later turns
                self.flow.set_backlog(True)
                self.loop.call_soon(self._parse_backlog)
            self._backlog += data
        else:
            self._parse_piece(data)

    def _body_bytes_left(self) -> int:
        """Return how many bytes of a body are to come, 0 if its length is unknown."""
        if self._awaited != "body":
            return 0
        lengths = [int(value) for name, value in self.headers if name == b"content-length"]
        return lengths[0] - self._body_bytes if lengths else 0

    def _parse_backlog(self) -> None:
        if not self._connections.turn.is_spent:
            piece = bytes(self._backlog[:_PARSED_A_TURN])
            del self._backlog[:_PARSED_A_TURN]
            self._parse_piece(piece)
        if self._is_ending or self.transport.is_closing():
            self._backlog.clear()
        if self._backlog:
            self.loop.call_soon(self._parse_backlog)
        else:
            self.flow.set_backlog(False)

    def _parse_piece(self, data: bytes) -> None:
        if self._is_ending:
            return
        began_s = self._connections.turn.now() if len(data) > _QUICK_BYTES else 0.0
        self._unparsed_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            if not self._is_ending:
                self._refuse(400, "this is not an HTTP/1.1 request")
        limit = self._connections.settings.header_bytes
        if self._unparsed_bytes > limit and self._awaited:
            self._refuse(431, f"the request's head is too large; expected at most {limit:,} bytes")
        if began_s:
            self._connections.turn.spend(began_s)

    def _parse(self, data: bytes) -> None:
        """Parse a piece. Ignore requests to upgrade, as RFC 9110 (7.8) permits.

        The parser takes what follows such a head for another protocol, so it parses the head again
        without the request to upgrade. CONNECT is refused: it has no other meaning.
        """
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
        limit = self._connections.settings.pipelined
        if self._unanswered > limit:
            self._refuse(400, f"more than {limit} requests are pending; expected fewer")
            raise OverflowError  # which stops the parser
        self._unparsed_bytes, self._awaited = 0, "head"
        super().on_message_begin()

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

    def answered(self) -> None:
        """Note that the application has answered a request of this connection."""
        self._unanswered -= 1
        self._note_wait()
        if self._unanswered == 0 and self._is_ending:
            self.transport.close()

    @property
    def _is_at_work(self) -> bool:
        """Whether the server works on a complete request; only the last one may be incomplete."""
        return self._unanswered > (self._awaited == "body") and not self.flow.write_paused

    async def until_read(self) -> None:
        """Wait until the client has read most of its answers, or has gone."""
        await self.flow.drain()

    def _note_wait(self) -> None:
        self._connections.await_client(self, not self._is_at_work)

    def check(self, now: float) -> None:
        """Measure the progress of the client, and end the connection if it is too slow."""
        read_bytes, _ = transferred_bytes(self._descriptor)
        before, self._transferred_bytes = self._transferred_bytes, read_bytes + self._received_bytes
        waiting, settings = self._connections.waiting, self._connections.settings
        waiting.transferred(self, self._transferred_bytes - before, now)
        is_body = self._awaited == "body" and not self.flow.write_paused
        limit_s = settings.body_timeout_s if is_body else settings.client_timeout_s
        is_gone = self._is_at_work and now - self._half_closed_s > settings.half_closed_s
        if is_gone or self.waited_s() > limit_s:
            self.time_out()

    def waited_s(self) -> float:
        """Return how long the client has kept this connection waiting."""
        return self._connections.waiting.waited_s(self, self.loop.time())

    def time_out(self) -> None:
        """End the connection of a slow client; respond if its body is incomplete."""
        settings = self._connections.settings
        if self._is_ending or self._awaited != "body" or self.cycle.response_started:
            self.transport.abort()
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
        self._connections.refusals.note(code, "not read", reason)
        if self._unanswered > (self._awaited == "body"):
            return
        content = orjson.dumps(error_content(reason))
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s"
            % (code, HTTPStatus(code).phrase.encode(), len(content), content)
        )
        self.transport.close()


def _tls_context(settings: HttpSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.certificate or "", settings.private_key)
    except OSError as error:
        raise KeyFileError(
            f"TLS is not possible with {settings.certificate} and {settings.private_key}: {error}; "
            f"expected a certificate and its private key in PEM files"
        ) from error
    return context


def _listening_socket(settings: HttpSettings) -> socket.socket:
    address = settings.listen_address
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that name TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressError(
            f"cannot listen on {settings.address}: {error.strerror}; expected a free port of this "
            f"host, or 0 for any"
        ) from error
    return listener
