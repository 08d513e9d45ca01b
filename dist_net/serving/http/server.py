"""uvicorn inside our process: our socket, limits and TLS, and no signal handlers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from dist_net.errors import KeyFileError, ListenError
from dist_net.serving.http.connection import limited_protocol
from dist_net.serving.http.settings import HttpSettings

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_ACCEPT_AGAIN_S = 1.0  # until a descriptor may be free


class HttpServer:
    """Listens from its creation; ``serve`` answers, in the event loop that runs it.

    ``url`` is its address, with the port that the system chose for port 0. Raises ListenError if it
    cannot listen, and KeyFileError for an unusable certificate or key.
    """

    def __init__(self, application: ASGIApp, settings: HttpSettings) -> None:
        self._server = _Server(_configuration(application, settings), settings)
        self._socket = _listening_socket(settings)
        host, port = self._socket.getsockname()[:2]
        scheme = "https" if settings.has_tls else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve(self) -> None:
        """Answers until ``stop``; then finishes open requests within the time limit."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Take no more connections, close the idle ones, and finish open requests."""
        self._server.should_exit = True

    def close(self) -> None:
        """Close the socket of a server that never ran ``serve``."""
        self._socket.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, settings: HttpSettings) -> None:
        super().__init__(config)
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if not self._settings.has_tls:
            await super().startup(sockets)
            return
        assert sockets is not None
        assert self.config.ssl is not None
        protocol: Any = self.config.http_protocol_class
        listener: Any = _TlsListener(
            sockets[0],
            self.config.ssl,
            partial(protocol, config=self.config, server_state=self.server_state, app_state={}),
            self.server_state.connections,
            self._settings,
        )
        self.servers = [listener]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _TlsListener:
    """Accepts connections and does their TLS handshakes, within the limit of connections.

    asyncio's own server reports a connection only after its handshake, so that it could not count
    or limit silent ones. When the limit is reached, a new connection replaces the one whose
    handshake has lasted longest; if all handshakes are done, the new one is closed.
    """

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        protocol: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        settings: HttpSettings,
    ) -> None:
        self._listener = listener
        self._context = context
        self._protocol = protocol
        self._connections = connections  # uvicorn's set of those whose handshake is done
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[asyncio.Protocol, asyncio.Task[None]] = {}  # oldest first
        self._accepting = self._loop.create_task(self._accept())
        listener.setblocking(False)

    def close(self) -> None:
        """Accepts nothing more, and cancels unfinished handshakes."""
        for task in (self._accepting, *self._handshakes.values()):
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self._accepting, *self._handshakes.values(), return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                logger.warning("event=not_accepted error=%s", error)
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            if self._has_room():
                protocol = self._protocol()
                handshake = self._shake_hands(connection, protocol)
                self._handshakes[protocol] = self._loop.create_task(handshake)
            else:
                connection.close()
            await asyncio.sleep(0)  # so that a flood of connections does not starve the rest

    def _has_room(self) -> bool:
        """Whether one more connection may be open, if necessary instead of the oldest handshake."""
        silent = [each for each in self._handshakes if each not in self._connections]
        if len(self._connections) + len(silent) < self._settings.connections:
            return True
        if silent:
            self._handshakes.pop(silent[0]).cancel()
        return bool(silent)

    async def _shake_hands(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        """Hands the connection to its protocol, or closes it."""
        timeout_s = self._settings.header_timeout_s
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=timeout_s,
            )
        except OSError as error:  # the client sent something else, or was too slow
            logger.debug("event=no_handshake error=%s", error)
        finally:
            self._handshakes.pop(protocol, None)


def _configuration(application: ASGIApp, settings: HttpSettings) -> uvicorn.Config:
    configuration = uvicorn.Config(
        application,
        http=limited_protocol(settings),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",  # below that it only reports connections and malformed requests
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=settings.shutdown_timeout_s,  # type: ignore[arg-type]
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )
    try:
        configuration.load()
    except (OSError, ssl.SSLError) as error:
        raise KeyFileError(
            f"TLS is not possible with {settings.certificate} and {settings.private_key}: {error}; "
            f"expected a certificate and its private key in PEM files"
        ) from error
    return configuration


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
        raise ListenError(
            f"cannot listen on {settings.address}: {error.strerror}; expected a free port of this "
            f"host, or 0 for any"
        ) from error
    return listener
