"""Bodies of requests, received and decompressed within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from starlette.types import Receive, Scope

from dist_net.errors import BadRequestError, PoolUnavailableError, RequestTooLargeError
from dist_net.serving.http.open_inference.compression import decompress
from dist_net.serving.http.settings import HttpSettings
from dist_net.serving.pool.requests import Payload

Result = TypeVar("Result")

_BUSY_S = 1.0
_THREADS = 2
_QUICK_BYTES = 2**16  # about what a millisecond is enough for, whatever they are


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
    """What the bodies of all requests occupy that have no answer yet, and the turns at threads.

    The event loop must not stand still for one request, however large: what takes time in
    proportion to a body is done by threads, for few requests at once.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self.held_bytes = 0
        # Two queues: a body that is decompressed goes on before others take up room as well.
        self.decompressing = asyncio.Semaphore(_THREADS)
        self.parsing = asyncio.Semaphore(_THREADS)

    def next(self) -> Body:
        """For the next request."""
        return Body(self)


class Body:
    """The body of one request, held from ``with`` on until the request is answered."""

    __slots__ = ("_all", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._all = bodies
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._all.held_bytes -= self._size

    async def receive(self, headers: Mapping[bytes, bytes], receive: Receive) -> Payload | None:
        """The body, decompressed; None when its client went meanwhile.

        Raises RequestTooLargeError for more than a body may have, PoolUnavailableError when those
        that are held already leave no room for it, and what ``decompress`` raises.
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
        self._hold(len(body))
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        return body if encoding == "identity" else await self._decompressed(body, encoding)

    async def off_loop(self, size: int, function: Callable[[], Result]) -> Result:
        """What ``function`` gives, whose time grows with ``size`` bytes: by a thread if it is long.

        One that holds the interpreter's lock gains as well: the loop has its turn after it.
        """
        if size <= _QUICK_BYTES:
            return function()
        async with self._all.parsing:
            return await asyncio.to_thread(function)

    async def _rest(self, body: bytearray, receive: Receive) -> memoryview | None:
        """The body that begins with ``body``."""
        more = True
        while more:
            self._check(len(body))
            self._hold(len(body))
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return memoryview(body)

    async def _decompressed(self, compressed: Payload, encoding: str) -> memoryview:
        pieces = decompress(compressed, encoding, self._all.settings.decompressed_bytes)
        body = bytearray()
        async with self._all.decompressing:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                body += piece
                self._hold(len(compressed) + len(body))
        self._hold(len(body))
        return memoryview(body)

    def _check(self, size: int) -> None:
        limit = min(self._all.settings.body_bytes, self._all.settings.queue_bytes)
        if size > limit:
            raise RequestTooLargeError(
                f"a body of {size:,} bytes or more; expected at most {limit:,}"
            )

    def _hold(self, size: int) -> None:
        """Counts ``size`` bytes for this request from now on."""
        self._all.held_bytes += size - self._size
        self._size = size
        limit = self._all.settings.queue_bytes
        if self._all.held_bytes > limit:
            raise PoolUnavailableError(
                f"the bodies of requests without an answer would have more than {limit:,} bytes; "
                f"expected fewer or smaller ones; try again in {_BUSY_S:.0f} s",
                _BUSY_S,
            )
