"""The HTTP server: it accepts connections, divides them between clients, and ends them in order.

uvicorn's own server neither limits connections nor shares the event loop between clients, and
closes kept connections without notice when it stops; so only uvicorn's protocol is used.
"""

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Sequence
from email.utils import formatdate

from dist_net.errors import AddressError, KeyFileError
from dist_net.serving.http.exchange import Guard
from dist_net.serving.http.http_connection import HttpConnection, HttpConnections
from dist_net.serving.http.settings import HttpSettings

logger = logging.getLogger(__name__)

_BACKLOG = 4096  # the kernel may permit fewer
_ACCEPTED_A_TURN = 8  # connections, at 100 us each beyond the limit
_ACCEPT_AGAIN_S = 1.0  # until a descriptor may be free
_CHECK_EVERY_S = 0.25
_CHECKED_A_TURN = 32  # connections, at 8 us each
_CLOSE_EVERY_S = 0.01
_ANNOUNCED_S = 1.0  # for the next requests of kept connections


class HttpServer(HttpConnections):
    """Listens from its creation; ``url`` has the real port. Raise AddressError and KeyFileError."""

    def __init__(self, application: Guard) -> None:
        settings = application.settings
        super().__init__(application, settings, application.refusals, application.ledger)
        # Half of the descriptors are left to the workers' connections and to files.
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_open = min(settings.connections, descriptors // 2)
        self._stopped = asyncio.Event()
        self._context = _tls_context(settings) if settings.has_tls else None
        self._socket = _listening_socket(settings)
        host, port = self._socket.getsockname()[:2]
        scheme = "https" if settings.has_tls else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve(self) -> None:
        """Respond until ``stop``; then finish open requests within the time limit."""
        self._loop = asyncio.get_running_loop()
        checking = self._loop.create_task(self._check_all())
        self._listen()
        try:
            await self._stopped.wait()
            self._loop.remove_reader(self._socket)
            self._socket.close()
            await self._close_connections(self.settings.shutdown_timeout_s)
        finally:
            tasks = [checking, *self.state.tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close_connections(_ANNOUNCED_S)  # of cancelled requests, once answered
            for connection in self.open.all():
                connection.drop()

    async def announce_stop(self, is_urgent: asyncio.Event) -> None:
        """Close each connection with its next answer; wait for that at most a second."""
        self.is_stopping = True
        until_s = self._loop.time() + _ANNOUNCED_S
        while len(self.open) and self._loop.time() < until_s and not is_urgent.is_set():
            await asyncio.sleep(_CLOSE_EVERY_S)

    def stop(self) -> None:
        """Accept no more connections, close those without a request, and end ``serve``."""
        self.is_stopping = True
        self._stopped.set()

    def close(self) -> None:
        self._socket.close()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        """Add connections; beyond the limit, drop a connection of the client with the most.

        A connection at work is never dropped for another one of its client.
        """
        for _ in range(_ACCEPTED_A_TURN):
            try:
                accepted, (host, *_) = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                logger.warning("accept_failed error=%s", error)
                self._loop.remove_reader(self._socket)
                self._loop.call_later(_ACCEPT_AGAIN_S, self._listen)
                return
            connection = HttpConnection(self, accepted, host, self._context)
            self.open.assign(connection, connection.share)
            self.open.begin_wait(connection, self._loop.time())
            if len(self.open) > self._max_open:
                given_way, client = self.open.giving_way()
                is_own = client is self.ledger.share_of_address(host)
                is_at_work = not self.open.is_waiting(given_way)
                (connection if is_at_work and is_own else given_way).drop()
                self.refusals.note(503, "a connection", "the limit of connections is reached")

    async def _check_all(self) -> None:
        """Drop the connections that wait too long for their clients, until cancelled."""
        while True:
            self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            await asyncio.sleep(min(_CHECK_EVERY_S, self.settings.body_timeout_s / 4))
            connections = self.open.all()
            while connections:
                self._check(connections[-_CHECKED_A_TURN:])
                del connections[-_CHECKED_A_TURN:]
                await asyncio.sleep(0)

    def _check(self, connections: Sequence[HttpConnection]) -> None:
        # Not in ``_check_all``, whose variable would keep the last connection in memory.
        for connection in connections:
            if connection in self.open:
                connection.check(self._loop.time())

    async def _close_connections(self, timeout_s: float) -> None:
        """Close each connection once its requests are answered, until the timeout."""
        until_s = self._loop.time() + timeout_s
        while len(self.open) and self._loop.time() < until_s:
            for connection in self.open.all():
                connection.close_if_idle()
            await asyncio.sleep(_CLOSE_EVERY_S)


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
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise AddressError(
            f"cannot listen on {settings.address}: {error.strerror}; expected a free port of this "
            f"host, or 0 for any"
        ) from error
    return listener
