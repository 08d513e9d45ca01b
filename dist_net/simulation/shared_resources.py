"""What is shared in virtual time: the cores of a host, and what does one thing at a time."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

from dist_net.simulation.schedule import EventSchedule

Then = Callable[[], None]
RunFor = Callable[[float, Then], None]
"""Takes seconds, and what to call when they are over."""


class SharedCores:
    """The cores of a host, shared fairly: with more threads than cores all become slower.

    ``busy_s`` is how long cores were busy, as seconds of all of them together.
    """

    def __init__(self, schedule: EventSchedule, cores: int) -> None:
        self._schedule = schedule
        self._cores = cores
        self._running: list[tuple[float, int, int, Then]] = []
        self._threads = 0
        self._served_s = 0.0  # what a thread that ran from the beginning would have had by now
        self._seen_s = schedule.now_s
        self._order = count()
        self._newest = 0
        self.busy_s = 0.0

    def run(self, seconds: float, then: Then, threads: int = 1) -> None:
        """Run for so long on ``threads`` cores, or for longer if there are too few."""
        self._serve()
        until_s = self._served_s + seconds
        heapq.heappush(self._running, (until_s, next(self._order), threads, then))
        self._threads += threads
        self._expect_next()

    @property
    def _speed(self) -> float:
        return min(1.0, self._cores / self._threads)

    def _serve(self) -> None:
        """Give those that run what they had since the last time."""
        elapsed_s = self._schedule.now_s - self._seen_s
        self._seen_s = self._schedule.now_s
        if self._threads:
            self._served_s += elapsed_s * self._speed
            self.busy_s += elapsed_s * min(self._cores, self._threads)

    def _expect_next(self) -> None:
        self._newest += 1
        if self._running:
            left_s = max(0.0, self._running[0][0] - self._served_s)
            self._schedule.after(left_s / self._speed, self._end_first, self._newest)

    def _end_first(self, expected: int) -> None:
        if expected != self._newest:
            return  # others have come or gone since
        self._serve()
        *_, threads, then = heapq.heappop(self._running)
        self._threads -= threads
        self._expect_next()
        then()


class SerialQueue:
    """A thread, or one direction of a network interface: one thing at a time, in turn."""

    def __init__(self, schedule: EventSchedule, run: RunFor) -> None:
        self._schedule = schedule
        self._run = run
        self._waiting: deque[tuple[float, Then]] = deque()
        self._is_busy = False
        self._began_s = 0.0
        self.busy_s = 0.0

    def submit(self, seconds: float, then: Then) -> None:
        """Do what takes so long, when it is its turn."""
        self._waiting.append((seconds, then))
        if not self._is_busy:
            self._begin()

    def _begin(self) -> None:
        seconds, then = self._waiting.popleft()
        self._is_busy, self._began_s = True, self._schedule.now_s
        self._run(seconds, lambda: self._end(then))

    def _end(self, then: Then) -> None:
        self.busy_s += self._schedule.now_s - self._began_s
        self._is_busy = False
        if self._waiting:
            self._begin()
        then()
