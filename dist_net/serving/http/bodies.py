"""Bodies of requests, received within limits of size, rate and memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from starlette.types import Receive, Scope

from dist_net.errors import (
    BadRequestError,
    PoolUnavailableError,
    RequestTooLargeError,
    SlowRequestError,
    UnsupportedEncodingError,
)
from dist_net.serving.http.settings import HttpSettings
from dist_net.serving.pool.requests import Payload

Result = TypeVar("Result")

_BUSY_S = 1.0
_STALLED_S = 1.0  # a body stalled for longer is dropped when memory runs out
_THREADS = 2
_QUICK_BYTES = 2**16  # handled within about a millisecond, whatever they hold


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Return a request's headers by their lower-case names; of repeated ones, the last."""
    return dict(scope["headers"])


def size_header(headers: Mapping[bytes, bytes], name: bytes) -> int | None:
    """Return a header's number of bytes, or None without that header. Raise BadRequestError."""
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
    """Limits the memory of all unanswered requests, and their use of threads.

    No request may block the event loop, however large: work that grows with a body runs in a
    thread, for few requests at once.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self.held_bytes = 0
        self.parsing = asyncio.Semaphore(_THREADS)
        # Incomplete bodies, each with the time of its last piece; the longest idle first.
        self._arriving: dict[Body, tuple[float, asyncio.Timeout]] = {}

    def arrived(self, body: Body, deadline: asyncio.Timeout | None) -> None:
        """Note that a piece of ``body`` arrived; without a deadline, that nothing more will."""
        self._arriving.pop(body, None)
        if deadline is not None:
            self._arriving[body] = asyncio.get_running_loop().time(), deadline

    def drop_stalled(self) -> bool:
        """Give up the body that has stalled longest; return False if none has stalled."""
        now = asyncio.get_running_loop().time()
        body, (idle_since_s, deadline) = next(iter(self._arriving.items()), (None, (now, None)))
        if body is None or deadline is None or now - idle_since_s < _STALLED_S:
            return False
        del self._arriving[body]
        body.release()
        if not deadline.expired():
            deadline.reschedule(now)
        return True


class Body:
    """The body of one request; its memory is counted until the ``with`` block ends."""

    __slots__ = ("_all", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._all = bodies
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Count the memory of this body no longer."""
        self._all.held_bytes -= self._size
        self._size = 0

    async def receive(self, headers: Mapping[bytes, bytes], receive: Receive) -> Payload | None:
        """Return the body, or None if the client went away before it was complete.

        Raise SlowRequestError for a body below the minimum rate, RequestTooLargeError beyond the
        limit, UnsupportedEncodingError for a compressed one, and PoolUnavailableError when other
        bodies leave no room for it.
        """
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.lower() != "identity":
            raise UnsupportedEncodingError(
                f"a body's Content-Encoding is {encoding[:40]!r}; expected an uncompressed body"
            )
        announced = size_header(headers, b"content-length")
        if announced is not None:
            self._check(announced)
        window_s, rate = self._all.settings.rate_window_s, self._all.settings.min_bytes_per_s
        try:
            async with asyncio.timeout(window_s) as deadline:
                return await self._pieces(receive, deadline)
        except TimeoutError as error:
            raise SlowRequestError(
                f"the body arrives too slowly; expected at least {rate:,} bytes/s over any "
                f"{window_s:g} s, and some bytes every second while bodies fill the memory"
            ) from error
        finally:
            self._all.arrived(self, None)

    async def off_loop(self, size: int, function: Callable[[], Result]) -> Result:
        """Return the result of ``function``, whose time grows with ``size``; in a thread if large.

        This helps even if the function holds the interpreter's lock: the loop runs next.
        """
        return function() if size <= _QUICK_BYTES else await self.in_thread(function)

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Return the result of ``function``, run in a thread; few requests have one at once."""
        async with self._all.parsing:
            return await asyncio.to_thread(function)

    async def _pieces(self, receive: Receive, deadline: asyncio.Timeout) -> Payload | None:
        """Return the whole body; postpone ``deadline`` while it keeps the minimum rate."""
        window_s = self._all.settings.rate_window_s
        window_bytes = due_bytes = self._all.settings.min_bytes_per_s * window_s
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece: bytes = message.get("body", b"")
            self._check(len(body) + len(piece))
            self._hold(len(body) + len(piece))
            is_whole = not message.get("more_body", False)
            if is_whole and not body:
                return piece  # as most bodies: not copied
            body += piece
            if is_whole:
                return memoryview(body)
            self._all.arrived(self, deadline)
            if len(body) >= due_bytes:
                due_bytes = len(body) + window_bytes
                deadline.reschedule(asyncio.get_running_loop().time() + window_s)

    def _check(self, size: int) -> None:
        limit = min(self._all.settings.body_bytes, self._all.settings.queue_bytes)
        if size > limit:
            raise RequestTooLargeError(
                f"the body has {size:,} bytes or more; expected at most {limit:,}"
            )

    def _hold(self, size: int) -> None:
        """Count ``size`` bytes for this request from now on; raise PoolUnavailableError."""
        self._all.held_bytes += size - self._size
        self._size = size
        limit = self._all.settings.queue_bytes
        while self._all.held_bytes > limit:
            if self._all.drop_stalled():
                continue
            raise PoolUnavailableError(
                f"unanswered requests would hold more than {limit:,} bytes; expected fewer or "
                f"smaller ones; try again in {_BUSY_S:.0f} s",
                _BUSY_S,
            )
