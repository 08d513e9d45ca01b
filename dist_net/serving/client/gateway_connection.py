"""Requests over HTTP to one gateway: kept connections, deadlines, cancellation, errors."""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError

from dist_net.errors import (
    AccessRefusedError,
    AddressError,
    BadRequestError,
    DistNetError,
    KeyFileError,
    ModelNotServedError,
    NoAnswerError,
    PoolUnavailableError,
    ProtocolError,
    QuotaExceededError,
    RequestCancelledError,
    RequestExpiredError,
    RequestFailedError,
    RequestTooLargeError,
)

CONNECT_AGAIN_S = 0.1  # until a gateway that restarts may listen again
ANSWER_LATE_S = 0.5  # in which the gateway's own answer to a deadline arrives

ERRORS: dict[int, Callable[[str], DistNetError]] = {
    401: AccessRefusedError,
    403: AccessRefusedError,
    404: ModelNotServedError,
    413: RequestTooLargeError,
    500: RequestFailedError,
    504: RequestExpiredError,
}
_RETRIABLE: dict[int, type[PoolUnavailableError]] = {
    429: QuotaExceededError,
    503: PoolUnavailableError,
}

_of_thread = threading.local()


class HttpAnswer(NamedTuple):
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise unexpected(self.body) from error


@dataclass(slots=True, eq=False)
class Exchange:
    """A call of ``timeout_s`` from now, one request after the other; threads may ``cancel`` it.

    The gateway cancels the requests of a connection that ends.
    """

    timeout_s: float
    began_s: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False
    connection: HTTPConnection | None = field(default=None, repr=False)

    @property
    def left_s(self) -> float:
        return self.began_s + self.timeout_s - time.monotonic()

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.connection is not None and self.connection.sock is not None:
            with suppress(OSError):  # the connection has ended meanwhile
                self.connection.sock.shutdown(socket.SHUT_RDWR)


class _Traced(HTTPConnection):
    """A connection that the exchange of its thread knows while it sends a request."""

    def request(self, *arguments: Any, **options: Any) -> None:
        _of_thread.exchange.connection = self
        super().request(*arguments, **options)


class _TracedTls(_Traced, HTTPSConnection):
    pass


class GatewayConnection:
    """Connections to the gateway at ``address``, ``http://HOST:PORT`` or ``https://HOST:PORT``.

    At most ``connections`` are kept for further requests. ``token`` is sent with each request.
    ``certificates`` is a PEM file with the authorities of an https address; by default the
    system's. Raise AddressError, and KeyFileError for an unusable token or file.
    """

    def __init__(
        self, address: str, token: str | None, certificates: Path | None, connections: int
    ) -> None:
        self.address = address = address.rstrip("/")
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        if token is not None and not (token.isascii() and token.isprintable()):
            raise KeyFileError("the token has characters that no token has; expected ASCII")
        _require_http(address)
        files: dict[str, Any] = {}
        if certificates is not None:
            if not certificates.is_file():
                raise KeyFileError(f"no file {certificates}; expected certificates in PEM")
            files = {"ca_certs": str(certificates)}
        secure = address.startswith("https:")
        self._pool = urllib3.connection_from_url(
            address, maxsize=connections, retries=False, **(files if secure else {})
        )
        self._pool.ConnectionCls = _TracedTls if secure else _Traced

    def close(self) -> None:
        self._pool.close()

    def send(
        self,
        method: str,
        path: str,
        exchange: Exchange,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """Send a request and return the answer; wait for a gateway that restarts.

        A request that was sent is not sent again. Raise the error of any status but 200,
        NoAnswerError without an answer before the deadline, and RequestCancelledError.
        """
        cause = ""
        while not exchange.is_cancelled:
            if exchange.left_s <= 0:
                raise self._no_answer(exchange, cause)
            _of_thread.exchange = exchange
            try:
                answer = self._pool.urlopen(
                    method,
                    path,
                    body,
                    {**self._headers, **(headers or {})},
                    redirect=False,
                    timeout=exchange.left_s + ANSWER_LATE_S,
                )
            except NewConnectionError as error:
                cause = str(error).partition(": ")[2]
                time.sleep(max(0.0, min(CONNECT_AGAIN_S, exchange.left_s)))
            except (HTTPError, OSError) as error:
                if not exchange.is_cancelled:
                    raise self._no_answer(exchange, str(error)) from error
            else:
                if answer.status == 200:
                    return HttpAnswer(answer.headers, answer.data)
                raise error_of(answer.status, answer.data)
            finally:
                exchange.connection = None
        raise RequestCancelledError("cancelled: it has no result")

    def _no_answer(self, exchange: Exchange, cause: str) -> NoAnswerError:
        return NoAnswerError(
            f"no answer from {self.address} to a request of {exchange.timeout_s:g} s"
            f"{f' ({cause})' if cause else ''}; expected the http= address of a pool that runs, "
            f"which dist-net serve printed; send the request again, or allow more time"
        )


def _require_http(address: str) -> None:
    """Raise AddressError unless the address is a URL of a host."""
    try:
        parts = urlsplit(address)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.path
        parts.port  # noqa: B018 - raises ValueError
    except (ValueError, LocationParseError):
        is_url = False
    if not is_url:
        hint = "; clients no longer connect over ZeroMQ" * address.startswith(("tcp:", "ipc:"))
        raise AddressError(
            f"{address[:200]!r} is not the address of a pool{hint}; expected http://HOST:PORT or "
            f"https://HOST:PORT, which dist-net serve prints as http="
        )


def error_of(status: int, body: bytes) -> DistNetError:
    try:
        content = json.loads(body)
        reason, retry_after_s = str(content["error"]), float(content.get("retry_after_s", 0.0))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return unexpected(body)
    if status in _RETRIABLE:
        return _RETRIABLE[status](reason, retry_after_s if math.isfinite(retry_after_s) else 0.0)
    if status in ERRORS:
        return ERRORS[status](reason)
    if 400 <= status < 502:
        return BadRequestError(reason, status)
    return unexpected(body)


def unexpected(body: bytes) -> ProtocolError:
    """Return the error for an answer that does not fit its request."""
    return ProtocolError(
        f"the answer does not fit the request: {body[:200]!r}; expected that of a gateway of the "
        f"same release of dist-net"
    )
