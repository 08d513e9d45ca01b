"""Bodies of requests, received within limits of size, rate and memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

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

Value = TypeVar("Value")

_IDENTITY = b"identity"
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
        # Incomplete bodies, each with the time of its last piece; longest stalled first.
        self.arriving: dict[Body, float] = {}

    def drop_stalled(self) -> bool:
        """Give up the body that has stalled longest; return False if none has stalled."""
        body, since_s = next(iter(self.arriving.items()), (None, 0.0))
        if body is None or asyncio.get_running_loop().time() - since_s < _STALLED_S:
            return False
        body.give_up()
        return True


class Body:
    """The body of one request; its memory is counted until the ``with`` block ends."""

    __slots__ = ("_all", "_is_late", "_size", "_task")

    def __init__(self, bodies: Bodies) -> None:
        self._all = bodies
        self._size = 0
        self._is_late = False
        self._task: asyncio.Task[Any] | None = None  # which receives the body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Count the memory of this body no longer."""
        self._all.held_bytes -= self._size
        self._size = 0

    def give_up(self) -> None:
        """Wait for the rest of this body no longer."""
        self._all.arriving.pop(self, None)
        self.release()
        self._is_late = True
        if self._task is not None:
            self._task.cancel()

    async def receive(self, headers: Mapping[bytes, bytes], receive: Receive) -> Payload | None:
        """Return the body, or None if the client went away before it was complete.

        Raise SlowRequestError for a body below the minimum rate, RequestTooLargeError beyond the
        limit, UnsupportedEncodingError for a compressed one, and PoolUnavailableError when other
        bodies leave no room for it.
        """
        encoding = headers.get(b"content-encoding", _IDENTITY)
        if encoding.lower() != _IDENTITY:
            raise UnsupportedEncodingError(
                f"a body's Content-Encoding is {encoding[:40].decode('latin-1')!r}; expected an "
                f"uncompressed body"
            )
        announced = size_header(headers, b"content-length")
        if announced is not None:
            self._check(announced)
        self._task = asyncio.current_task()
        try:
            return await self._pieces(receive)
        except asyncio.CancelledError as error:
            if not self._is_late or self._task is None:
                raise
            self._task.uncancel()
            settings = self._all.settings
            raise SlowRequestError(
                f"the body arrives too slowly; expected at least {settings.min_bytes_per_s:,} "
                f"bytes/s over any {settings.rate_window_s:g} s, and some bytes every second while "
                f"bodies fill the memory"
            ) from error
        finally:
            self._all.arriving.pop(self, None)

    async def off_loop(self, size: int, function: Callable[[], Value]) -> Value:
        """Return the result of ``function``, whose time grows with ``size``; in a thread if large.

        This helps even if the function holds the interpreter's lock: the loop runs next.
        """
        return function() if size <= _QUICK_BYTES else await self.in_thread(function)

    async def in_thread(self, function: Callable[[], Value]) -> Value:
        """Return the result of ``function``, run in a thread; few requests have one at once."""
        async with self._all.parsing:
            return await asyncio.to_thread(function)

    async def _pieces(self, receive: Receive) -> Payload | None:
        """Return the whole body; give up when it falls below the minimum rate."""
        loop = asyncio.get_running_loop()
        window_s = self._all.settings.rate_window_s
        window_bytes = due_bytes = self._all.settings.min_bytes_per_s * window_s
        body = bytearray()
        # A timer of its own, as `asyncio.timeout` would take longer than the rest of this function.
        timer = loop.call_later(window_s, self.give_up)
        try:
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
                self._all.arriving.pop(self, None)
                self._all.arriving[self] = loop.time()
                if len(body) >= due_bytes:
                    due_bytes = len(body) + window_bytes
                    timer.cancel()
                    timer = loop.call_later(window_s, self.give_up)
        finally:
            timer.cancel()

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
