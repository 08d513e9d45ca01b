"""Virtual time, and the resources shared in it: cores, network links and serial queues."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

import numpy as np

Then = Callable[[], None]
RunFor = Callable[[float, Then], None]
"""Takes a duration in seconds and a callback to call at its end."""


class EventSchedule:
    """The events of a simulation, in order of time.

    Simultaneous events run in the order in which they were scheduled. ``random`` is the only
    source of randomness, so the same ``seed`` reproduces the simulation.
    """

    def __init__(self, seed: int = 0) -> None:
        self.now_s = 0.0
        self.random = np.random.default_rng(seed)
        self._events: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._order = count()

    def after(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Schedule ``call(*arguments)`` in ``seconds``."""
        moment_s = self.now_s + max(seconds, 0.0)
        heapq.heappush(self._events, (moment_s, next(self._order), call, arguments))

    def step(self) -> None:
        """Run the next event; raise ``IndexError`` if there is none."""
        self.now_s, _, call, arguments = heapq.heappop(self._events)
        call(*arguments)


class SharedResource:
    """Cores or one direction of a network, shared equally by all that use it.

    At most ``capacity`` users run at full speed. This is how Linux shares cores over many time
    slices, and TCP a link. ``busy_s`` is the sum over the capacity.
    """

    def __init__(self, schedule: EventSchedule, capacity: int = 1) -> None:
        self._schedule = schedule
        self._capacity = capacity
        self._under_way: list[tuple[float, int, Then]] = []
        self._served_s = 0.0  # to each user since the beginning
        self._seen_s = schedule.now_s
        self._order = count()
        self._plan = 0
        self.busy_s = 0.0

    def run(self, seconds: float, then: Then) -> None:
        """Call ``then`` at the end of work that takes ``seconds`` at full speed."""
        self._account()
        heapq.heappush(self._under_way, (self._served_s + seconds, next(self._order), then))
        self._expect_first()

    def _account(self) -> None:
        elapsed_s = self._schedule.now_s - self._seen_s
        self._seen_s = self._schedule.now_s
        if users := len(self._under_way):
            working = min(users, self._capacity)
            self._served_s += elapsed_s * working / users
            self.busy_s += elapsed_s * working

    def _expect_first(self) -> None:
        self._plan += 1
        if users := len(self._under_way):
            left_s = max(0.0, self._under_way[0][0] - self._served_s)
            slowdown = users / min(users, self._capacity)
            self._schedule.after(left_s * slowdown, self._first_is_done, self._plan)

    def _first_is_done(self, plan: int) -> None:
        if plan == self._plan:
            self._account()
            *_, then = heapq.heappop(self._under_way)
            self._expect_first()
            then()


class SerialQueue:
    """The work queue of one thread: first in, first out."""

    def __init__(self, schedule: EventSchedule, run: RunFor) -> None:
        self._schedule = schedule
        self._run = run
        self._waiting: deque[tuple[float, Then]] = deque()
        self._is_busy = False
        self._began_s = 0.0
        self.busy_s = 0.0

    def submit(self, seconds: float, then: Then) -> None:
        """Queue work that takes ``seconds``."""
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
