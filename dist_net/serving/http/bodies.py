"""Bodies of requests, received within the limits."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Receive, Scope

from dist_net.errors import BadRequestError, PoolUnavailableError, RequestTooLargeError
from dist_net.serving.http.settings import HttpSettings
from dist_net.serving.open_inference.compression import decompress
from dist_net.serving.requests import Payload

_BUSY_S = 1.0


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """A request's headers by their names in lower case; of equal ones the last."""
    return dict(scope["headers"])


def size_header(headers: Mapping[bytes, bytes], name: bytes) -> int | None:
    """A header that is a number of bytes; None if it is absent. Raises BadRequestError."""
    value = headers.get(name)
    if value is None:
        return None
    if not (value.isdigit() and len(value) < 16):
        raise BadRequestError(
            f"{name.decode('latin-1')} is {value[:40].decode('latin-1')!r}; expected a number of "
            f"bytes"
        )
    return int(value)


class Bodies:
    """Receives bodies, and keeps count of the bytes of those that are being received."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._received_bytes = 0

    async def receive(self, headers: Mapping[bytes, bytes], receive: Receive) -> Payload | None:
        """A request's body, decompressed; None when its client went meanwhile.

        Raises RequestTooLargeError for more than a body may have, PoolUnavailableError when too
        much is being received already, and what ``decompress`` raises.
        """
        announced = size_header(headers, b"content-length")
        if announced is not None:
            self._check(announced)
        message = await receive()
        body: Payload | None = message.get("body", b"")
        if message.get("more_body", False):
            body = await self._rest(bytearray(body or b""), receive)
        if body is None or message["type"] == "http.disconnect":
            return None
        self._check(len(body))
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        if encoding == "identity":
            return body
        return decompress(body, encoding, self._settings.decompressed_bytes)

    async def _rest(self, body: bytearray, receive: Receive) -> memoryview | None:
        """The body that begins with ``body``."""
        counted = 0
        try:
            more = True
            while more:
                self._received_bytes += len(body) - counted
                counted = len(body)
                self._check(counted)
                self._check_all()
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                more = message.get("more_body", False)
        finally:
            self._received_bytes -= counted
        return memoryview(body)

    def _check(self, size: int) -> None:
        limit = self._settings.body_bytes
        if size > limit:
            raise RequestTooLargeError(
                f"a body of {size:,} bytes or more; expected at most {limit:,}"
            )

    def _check_all(self) -> None:
        limit = self._settings.received_bytes
        if self._received_bytes > limit:
            raise PoolUnavailableError(
                f"bodies of more than {limit:,} bytes are being received at once; expected fewer "
                f"or smaller ones; try again in {_BUSY_S:.0f} s",
                _BUSY_S,
            )
