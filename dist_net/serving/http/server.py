"""uvicorn as a part of a process: it has its own socket, limits and TLS, and no signal handlers."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from dist_net.errors import KeyFileError, ListenError
from dist_net.serving.http.protocol import limited_protocol
from dist_net.serving.http.settings import HttpSettings

_BACKLOG = 1024


class HttpServer:
    """Listens from the moment that it is made; ``serve`` answers, in the loop that runs it.

    ``url`` is where, with the port that the system chose for port 0. Raises ListenError where it
    cannot listen, and KeyFileError for a certificate or key that is none.
    """

    def __init__(self, application: ASGIApp, settings: HttpSettings) -> None:
        self._server = _Server(_configuration(application, settings))
        self._socket = _listening_socket(settings)
        host, port = self._socket.getsockname()[:2]
        scheme = "https" if settings.has_tls else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve(self) -> None:
        """Answers until ``stop``, and then until what was asked is answered, or time is up."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Take no more connections, close the idle ones, and finish the rest."""
        self._server.should_exit = True

    def close(self) -> None:
        """Ends listening, for one that was never asked to ``serve``."""
        self._socket.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the process."""
        yield


def _configuration(application: ASGIApp, settings: HttpSettings) -> uvicorn.Config:
    configuration = uvicorn.Config(
        application,
        http=limited_protocol(settings),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",  # beside errors it only tells of connections and malformed requests
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
    # The protocol must be named: asyncio turns Nagle's delay off only where it is.
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
