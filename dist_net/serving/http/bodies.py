"""Bodies of requests, received and decompressed within limits; and compression of answers."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Self, TypeVar

from starlette.types import Receive, Scope

from dist_net.errors import (
    BadRequestError,
    PoolUnavailableError,
    RequestTooLargeError,
    UnsupportedEncodingError,
)
from dist_net.serving.http.settings import HttpSettings
from dist_net.serving.pool.requests import Payload

Result = TypeVar("Result")

_BUSY_S = 1.0
_THREADS = 2
_QUICK_BYTES = 2**16  # handled within about a millisecond, whatever they hold
# A shorter answer fits in one packet anyway, so compressing it only costs time.
WORTHWHILE_BYTES = 1024
# zlib's window bits: 15 with its own header (which HTTP calls deflate), 16 more with gzip's.
_WINDOW_BITS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS + 16}
_FASTEST = 1
# Decompressing a piece takes about ten milliseconds; the compressed body is read in small steps,
# because zlib copies what it has not used.
PIECE_BYTES = 2**22
_READ_BYTES = 2**16


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """A request's headers by their lower-case names; the last of repeated ones."""
    return dict(scope["headers"])


def size_header(headers: Mapping[bytes, bytes], name: bytes) -> int | None:
    """A header that holds a number of bytes; None if it is absent. Raises BadRequestError."""
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
    """Limits the memory of all requests that have no answer yet, and their use of threads.

    No request may block the event loop, however large: whatever takes time in proportion to a body
    runs in a thread, for few requests at once.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self.held_bytes = 0
        # Two queues: a decompressed body does not wait behind bodies still to be decompressed.
        self.decompressing = asyncio.Semaphore(_THREADS)
        self.parsing = asyncio.Semaphore(_THREADS)


class Body:
    """The body of one request; its memory is counted until the ``with`` block ends."""

    __slots__ = ("_all", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._all = bodies
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._all.held_bytes -= self._size

    async def receive(self, headers: Mapping[bytes, bytes], receive: Receive) -> Payload | None:
        """The body, decompressed; None if the client went away before it was complete.

        Raises RequestTooLargeError for a body beyond the limit, PoolUnavailableError when the other
        bodies leave no room for it, and what ``decompress`` raises.
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
        """The result of ``function``, whose time grows with ``size`` bytes; in a thread if large.

        This helps even if the function holds the interpreter's lock: the loop runs next.
        """
        return function() if size <= _QUICK_BYTES else await self.in_thread(function)

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """The result of ``function``, in a thread; few requests have one at once."""
        async with self._all.parsing:
            return await asyncio.to_thread(function)

    async def _rest(self, body: bytearray, receive: Receive) -> memoryview | None:
        """The whole body, which begins with ``body``; None if the client went away."""
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
                f"the body has {size:,} bytes or more; expected at most {limit:,}"
            )

    def _hold(self, size: int) -> None:
        """Counts ``size`` bytes for this request from now on; raises PoolUnavailableError."""
        self._all.held_bytes += size - self._size
        self._size = size
        limit = self._all.settings.queue_bytes
        if self._all.held_bytes > limit:
            raise PoolUnavailableError(
                f"requests that wait for an answer would hold more than {limit:,} bytes; expected "
                f"fewer or smaller ones; try again in {_BUSY_S:.0f} s",
                _BUSY_S,
            )


def decompress(body: Payload, encoding: str, limit_bytes: int) -> Iterator[bytes]:
    """The content of ``body``, piece by piece, each decompressed when it is asked for.

    ``encoding`` is that of the header Content-Encoding. Raises UnsupportedEncodingError unless it
    is gzip or deflate, RequestTooLargeError beyond ``limit_bytes``, and BadRequestError for a
    damaged body.
    """
    window_bits = _WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise UnsupportedEncodingError(
            f"a body's Content-Encoding is {encoding[:40]!r}; expected gzip, deflate or none"
        )
    decompressor = zlib.decompressobj(window_bits)
    left_bytes = limit_bytes
    for start in range(0, len(body), _READ_BYTES):
        compressed: Payload = body[start : start + _READ_BYTES]
        may_go_on = True
        while may_go_on:
            try:
                piece = decompressor.decompress(compressed, PIECE_BYTES)
            except zlib.error as error:
                raise BadRequestError(f"the body is damaged: not {encoding} ({error})") from error
            left_bytes -= len(piece)
            if left_bytes < 0:
                raise RequestTooLargeError(
                    f"the body decompresses to more than {limit_bytes:,} bytes; expected no more"
                )
            yield piece
            compressed = decompressor.unconsumed_tail
            may_go_on = bool(compressed) or len(piece) == PIECE_BYTES
        if decompressor.eof and (decompressor.unused_data or start + _READ_BYTES < len(body)):
            raise BadRequestError(f"the body is damaged: it goes on after its {encoding}")
    if not decompressor.eof:
        raise BadRequestError(f"the body is damaged: its {encoding} is cut short")


def compress(content: bytes, encoding: str) -> bytes:
    """``content`` compressed; ``encoding`` is one from ``accepted_encoding``."""
    compressor = zlib.compressobj(_FASTEST, wbits=_WINDOW_BITS[encoding])
    return compressor.compress(content) + compressor.flush()


def accepted_encoding(header: str) -> str | None:
    """The first compression that a client takes and we know; None: do not compress.

    ``header`` is its Accept-Encoding; ``q=0`` in it refuses one.
    """
    for choice in header.split(","):
        name, _, weight = choice.replace(" ", "").lower().partition(";q=")
        is_refused = weight != "" and weight.strip("0.") == ""
        if name in _WINDOW_BITS and not is_refused:
            return name
    return None
