"""The HTTP server: uvicorn on our own socket, with TLS and limits for slow clients.

uvicorn limits neither the head of a request, nor idle connections, nor the time in which a client
reads its response. So a subclass of its connection does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dist_net.errors import AddressError, KeyFileError
from dist_net.serving.http.replies import Refusals, error_content
from dist_net.serving.http.settings import HttpSettings

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_ACCEPT_AGAIN_S = 1.0  # until a descriptor may be free


class HttpServer:
    """Listens from its creation; ``serve`` responds, in the event loop that runs it.

    ``url`` is its address, with the port that the system chose for port 0. Raise AddressError
    if the address is unusable, and KeyFileError for an unusable certificate or key.
    """

    def __init__(
        self, application: ASGIApp, settings: HttpSettings, refusals: Refusals | None = None
    ) -> None:
        self._connections = _Connections(settings, refusals or Refusals())
        self._context = _tls_context(settings) if settings.has_tls else None
        protocol: Any = partial(_HttpConnection, self._connections, None)
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
            timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]
            timeout_graceful_shutdown=settings.shutdown_timeout_s,  # type: ignore[arg-type]
        )
        self._server = _Server(configuration)
        self._socket = _listening_socket(settings)
        host, port = self._socket.getsockname()[:2]
        scheme = "https" if settings.has_tls else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve(self) -> None:
        """Respond until ``stop``; then finish open requests within the time limit."""
        tasks = [self._connections.drop_idle()]
        if self._context is not None:
            tasks.append(self._accept(self._context))
        self._server.tasks = [asyncio.create_task(task) for task in tasks]
        try:
            await self._server.serve(sockets=[] if self._context else [self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Accept no more connections, close the idle ones, and finish open requests."""
        self._server.should_exit = True

    def close(self) -> None:
        """Close the socket of a server that never ran ``serve``."""
        self._socket.close()

    async def _accept(self, context: ssl.SSLContext) -> None:
        """Accept connections and do their TLS handshakes, until cancelled.

        asyncio's own TLS server reports a connection only after its handshake, too late to count
        and drop silent connections.
        """
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
            _HttpConnection,
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
                ssl_handshake_timeout=settings.idle_timeout_s,
                ssl_shutdown_timeout=settings.rate_window_s,
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
    """Every open connection. Beyond the limit, drops the connection idle longest.

    A connection is idle while none of its requests is being answered: during a TLS handshake, an
    incomplete head, or the silence between requests. Its key is its transport, or the task of its
    handshake.
    """

    def __init__(self, settings: HttpSettings, refusals: Refusals) -> None:
        self.settings = settings
        self.refusals = refusals
        self._open: dict[object, Callable[[], object]] = {}  # the function that drops each
        self._idle_since_s: dict[object, float] = {}  # longest idle first

    def opened(self, connection: object, drop: Callable[[], object]) -> None:
        """Add a connection, which is idle; it is dropped itself if all others are busy."""
        self._open[connection] = drop
        self.idle(connection)
        if len(self._open) > self.settings.connections:
            self._drop(next(iter(self._idle_since_s)))
            self.refusals.note(503, "a connection", "the limit of connections is reached")

    def busy(self, connection: object) -> None:
        self._idle_since_s.pop(connection, None)

    def idle(self, connection: object) -> None:
        if connection in self._open:
            self._idle_since_s[connection] = asyncio.get_running_loop().time()

    def closed(self, connection: object) -> None:
        self._open.pop(connection, None)
        self.busy(connection)

    async def drop_idle(self) -> None:
        """Drop connections that were idle for too long, until cancelled."""
        timeout_s = self.settings.idle_timeout_s
        while True:
            await asyncio.sleep(timeout_s / 4)
            idle_since_s = asyncio.get_running_loop().time() - timeout_s
            for connection in [
                c for c, since in self._idle_since_s.items() if since < idle_since_s
            ]:
                self._drop(connection)

    def _drop(self, connection: object) -> None:
        drop = self._open[connection]
        self.closed(connection)
        drop()


class _HttpConnection(HttpToolsProtocol):
    """uvicorn's connection, with bounded memory and a time limit for unread responses.

    The parser buffers a head or a trailer until it is complete, so this class counts the bytes that
    the parser has not reported yet. uvicorn buffers at most 64 KiB of a body until the application
    receives them. asyncio and httptools call the overridden methods, except for the reply to
    malformed requests.
    """

    def __init__(self, connections: _Connections, handshake: object, **given: Any) -> None:
        super().__init__(**given | {"app_state": {"connection": self}})
        self._connections = connections
        self._handshake = handshake
        self._unparsed_bytes = 0
        self._unanswered = 0
        self._awaited = ""  # the incomplete part of a request: "head" or "body"
        self._is_ending = False  # once the requests before a refused one are answered
        self._unread: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connections.closed(self._handshake)
        self._connections.opened(transport, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self.transport)
        self._stop_timer()
        super().connection_lost(None)  # given an error, uvicorn would leave its timer running

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)
        limit = self._connections.settings.header_bytes
        if self._unparsed_bytes > limit and self._awaited:
            self._refuse(431, f"the request's head is too large; expected at most {limit:,} bytes")

    def pause_writing(self) -> None:
        """Limit the time in which a client may leave its response unread."""
        super().pause_writing()
        timeout_s = self._connections.settings.rate_window_s
        self._unread = asyncio.get_running_loop().call_later(timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_timer()

    def on_message_begin(self) -> None:
        limit = self._connections.settings.pipelined
        if self._unanswered > limit:
            self._refuse(400, f"more than {limit} requests are pending; expected fewer")
            raise OverflowError  # which stops the parser
        self._unparsed_bytes, self._awaited = 0, "head"
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._unparsed_bytes, self._awaited = 0, "body"
        self._unanswered += 1
        self._connections.busy(self.transport)

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._awaited = ""
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self._is_ending:
            self._refuse(400, "this is not an HTTP/1.1 request")

    def answered(self) -> None:
        """Note that the application has answered a request of this connection."""
        self._unanswered -= 1
        if self._unanswered == 0:
            self._connections.idle(self.transport)
            if self._is_ending:
                self.transport.close()

    def _refuse(self, code: int, reason: str) -> None:
        """HttpReply and close; but if earlier requests are unanswered, close once they are."""
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

    def _stop_timer(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


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
