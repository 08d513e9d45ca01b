"""The load of ``scripts/bench serving`` over HTTP, from a process of its own.

``python -m benchmarks.http_load`` reads a `Task` as JSON on stdin and prints what became
of the requests as JSON on stdout. It shares the processors with what it measures, so that
requests are bytes that were made before, and answers are hardly looked at.
"""

from __future__ import annotations

import asyncio
import json
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np

TICK_S = 0.001
REPLACE_S = 0.05
MAX_CONNECTIONS = 500
GRACE_S = 30.0  # for what is under way at the end
LARGEST_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class Task:
    """``connections`` that each send the next request when they have an answer; or, if ``rate``
    is not 0, so many requests a second whatever becomes of them.

    ``requests``: files of the bytes to send, in turn. ``deadline_s``: what an answer has to take
    at most to be in time. ``compares``: each answer's outputs must be those of the first one to
    the same request; if it ``is_exact``, to the last bit. ``ramp_s``: how long it sends before the
    ``seconds`` begin whose answers are the throughput.
    """

    port: int
    requests: list[str]
    seconds: float
    connections: int = 1
    rate: float = 0.0
    deadline_s: float = 60.0
    compares: bool = False
    is_exact: bool = False
    ramp_s: float = 0.0


class Connection(asyncio.Protocol):
    """One request at a time; ``answered`` is told the status and the body, and 0 for a loss."""

    def __init__(self, answered: Callable[[Connection, int, bytes], None]) -> None:
        self._answered = answered
        self._received = b""
        self.is_waiting = False
        self.began = 0.0
        self.request = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The protocol's beginning."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def send(self, content: bytes, request: int, began: float) -> None:
        """Sends the request of that number, which was due at ``began``."""
        self.request, self.began, self.is_waiting = request, began, True
        self.transport.write(content)

    def data_received(self, data: bytes) -> None:
        """A piece of an answer, or all of it."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        _, _, length = head.lower().partition(b"content-length: ")
        if len(body) >= int(length.partition(b"\r")[0]):
            self._received = b""
            self.is_waiting = False
            self._answered(self, int(head[9:12]), body)

    def connection_lost(self, error: Exception | None) -> None:
        """The server, or this side, has hung up."""
        if self.is_waiting:
            self.is_waiting = False
            self._answered(self, 0, b"")


@dataclass
class Results:
    """What became of the requests: status 0 is a lost connection, seconds are by status.

    ``stop`` is when sending ends. An answer after it has its time like any other, but is none of
    the throughput: else the shorter the run, the more of them would be counted. Nor is one before
    ``start``: if batches take long, those that are half done at the end are made up for by those
    that were half done then.
    """

    task: Task
    counts: Counter[int] = field(default_factory=Counter)
    seconds: dict[int, array[float]] = field(default_factory=dict)
    expected: dict[int, Any] = field(default_factory=dict)
    wrong: int = 0
    start: float = 0.0
    stop: float = float("inf")
    answered: int = 0
    answered_in_time: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def note(self, status: int, began: float, now: float, request: int, body: bytes) -> None:
        """One answer that came now to what was due when it began."""
        self.counts[status] += 1
        self.seconds.setdefault(status, array("d")).append(now - began)
        if status != 200:
            self.errors[f"{status} {body[:120].decode(errors='replace')}"] += 1
            return
        if self.start <= now <= self.stop:
            self.answered += 1
            self.answered_in_time += now - began <= self.task.deadline_s
        if self.task.compares:
            found = outputs_in(body)
            expected = self.expected.setdefault(request, found)
            tolerance = 0.0 if self.task.is_exact else LARGEST_DIFFERENCE
            self.wrong += not np.allclose(found, expected, 0.0, tolerance)

    def summary(self, seconds: float) -> dict[str, Any]:
        """As JSON has it; a refusal is a 503."""
        good = self.seconds.get(200, array("d"))
        late = sum(each > self.task.deadline_s for each in good)
        return {
            "seconds": seconds,
            "statuses": {str(status): count for status, count in sorted(self.counts.items())},
            "requests_per_s": self.answered / seconds,
            "in_time_per_s": self.answered_in_time / seconds,
            "late": late,
            "wrong": self.wrong,
            "p50_ms": percentile_ms(good, 50),
            "p99_ms": percentile_ms(good, 99),
            "refusal_p50_ms": percentile_ms(self.seconds.get(503, ()), 50),
            "refusal_p99_ms": percentile_ms(self.seconds.get(503, ()), 99),
            "errors": dict(self.errors.most_common(3)),
        }


def outputs_in(body: bytes) -> Any:
    """The numbers in an answer of the Open Inference Protocol."""
    return np.array(json.loads(body)["outputs"][0]["data"])


def percentile_ms(seconds: Any, percent: float) -> float | None:
    """None if there are none."""
    return round(1e3 * float(np.percentile(seconds, percent)), 3) if len(seconds) else None


class Load:
    """Requests to one server, of one task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._requests = [Path(path).read_bytes() for path in task.requests]
        self._results = Results(task)
        self._sent = 0
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._stop = float("inf")

    async def run(self) -> dict[str, Any]:
        """Sends for the task's time, waits for the last answers, and sums up."""
        connections = [await self._connect() for _ in range(self._task.connections)]
        began = perf_counter()
        self._results.start = began + self._task.ramp_s
        self._results.stop = self._stop = self._results.start + self._task.seconds
        if self._task.rate:
            self._idle = connections
            await self._at_a_rate(began)
        else:
            for each in connections:
                self._send(each, perf_counter())
            await self._replace_lost()
        ended = perf_counter()
        while any(each.is_waiting for each in self._open) and perf_counter() < ended + GRACE_S:
            await asyncio.sleep(TICK_S)
        for each in list(self._open):
            each.transport.abort()
        await asyncio.sleep(TICK_S)  # those that never had an answer note their loss
        return self._results.summary(self._task.seconds)

    async def _replace_lost(self) -> None:
        while perf_counter() < self._stop:
            for _ in range(self._task.connections - len(self._open)):
                self._send(await self._connect(), perf_counter())
            await asyncio.sleep(REPLACE_S)

    async def _at_a_rate(self, began: float) -> None:
        while (now := perf_counter()) < self._stop:
            while (due := began + self._sent / self._task.rate) <= now:
                while self._idle and self._idle[-1].transport.is_closing():
                    self._open.discard(self._idle.pop())
                if not self._idle and len(self._open) < MAX_CONNECTIONS:
                    self._idle.append(await self._connect())
                if not self._idle:  # counted as lost, since a client got no answer
                    self._sent += 1
                    self._results.note(0, due, now, 0, b"all connections are waiting")
                    continue
                self._send(self._idle.pop(), due)
            await asyncio.sleep(max(TICK_S, due - now))

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._answered), "127.0.0.1", self._task.port
        )
        self._open.add(connection)
        return connection

    def _send(self, connection: Connection, began: float) -> None:
        request = self._sent % len(self._requests)
        self._sent += 1
        connection.send(self._requests[request], request, began)

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        now = perf_counter()
        self._results.note(status, connection.began, now, connection.request, body)
        if connection.transport.is_closing():
            self._open.discard(connection)
        elif self._task.rate or now >= self._stop:
            self._idle.append(connection)
        else:
            self._send(connection, now)


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's if the extra "web" is installed: it takes half the time."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop()
    return new_event_loop()


def main() -> None:
    """Carries out the task on stdin."""
    task = Task(**json.loads(sys.stdin.readline()))
    with asyncio.Runner(loop_factory=new_loop) as runner:
        print(json.dumps(runner.run(Load(task).run())))


if __name__ == "__main__":
    main()
