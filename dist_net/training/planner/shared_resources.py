"""Virtual time, and the resources shared in it: cores, network links and serial queues."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

import numpy as np

SLICE_S = 0.003
"""How long a thread keeps a core while others wait for it; about the time slice of Linux."""

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


class CoreThread:
    """A thread of a host: running, waiting for a core, or idle.

    ``had_s`` is its CPU time, including credit for sleep.
    """

    def __init__(self, cores: "SharedCores") -> None:
        self._cores = cores
        self.had_s = 0.0
        self.left_s = 0.0
        self.slice_left_s = 0.0
        self.since_s = 0.0
        self.plan = 0
        self.must_share = False
        self.then: Then | None = None

    def run(self, seconds: float, then: Then) -> None:
        """Call ``then`` after ``seconds`` of CPU time; only one call may be pending."""
        self.left_s, self.then = seconds, then
        self._cores.wake(self)


class SharedCores:
    """The cores of a host, shared among its threads approximately as Linux does.

    The thread with the least CPU time runs next, for ``slice_s`` if others wait. A thread that
    wakes preempts the thread with the most CPU time if the difference is clear. Sleeping works off
    an excess of CPU time over the other threads and earns at most half a slice. ``busy_s`` is the
    sum over all cores.
    """

    def __init__(self, schedule: EventSchedule, cores: int, slice_s: float = SLICE_S) -> None:
        self._schedule = schedule
        self._cores = cores
        self._slice_s = slice_s
        self._running: list[CoreThread] = []
        self._ready: list[CoreThread] = []
        self._between: CoreThread | None = None  # holds a core while its callback runs
        self.busy_s = 0.0

    def wake(self, thread: CoreThread) -> None:
        """Make the thread ready to run; preempt another thread if its turn has come."""
        if thread is self._between:
            return
        for each in self._running:
            self._account(each)
        awake = [each.had_s for each in (*self._running, *self._ready)]
        if awake:
            fair_s = sum(awake) / len(awake)
            thread.had_s = min(max(thread.had_s, fair_s - self._slice_s / 2), fair_s)
        self._ready.append(thread)
        others = [each for each in self._running if each is not self._between]
        if len(self._running) == self._cores and others:
            most = max(others, key=_had_s)
            if most.had_s - thread.had_s > self._slice_s / 4:
                self._stop(most)
                self._ready.append(most)
        self._give_cores()

    def _give_cores(self) -> None:
        while self._ready and len(self._running) < self._cores:
            thread = min(self._ready, key=_had_s)
            self._ready.remove(thread)
            thread.since_s = self._schedule.now_s
            thread.slice_left_s = self._slice_s
            self._running.append(thread)
            self._expect_end(thread)
        if self._ready:
            for each in self._running:
                if not (each.must_share or each is self._between):
                    self._account(each)
                    self._expect_end(each)

    def _account(self, thread: CoreThread) -> None:
        had_s = self._schedule.now_s - thread.since_s
        thread.since_s = self._schedule.now_s
        thread.had_s += had_s
        thread.left_s -= had_s
        thread.slice_left_s -= had_s
        self.busy_s += had_s

    def _stop(self, thread: CoreThread) -> None:
        thread.plan += 1
        self._running.remove(thread)

    def _expect_end(self, thread: CoreThread) -> None:
        """Schedule the end of the thread's work, or of its slice if others wait."""
        thread.plan += 1
        thread.must_share = bool(self._ready)
        is_last = not thread.must_share or thread.left_s <= thread.slice_left_s
        end_s = thread.left_s if is_last else thread.slice_left_s
        end = self._done if is_last else self._slice_over
        self._schedule.after(max(0.0, end_s), end, thread, thread.plan)

    def _done(self, thread: CoreThread, plan: int) -> None:
        """Call the thread's callback; keep its core if the callback starts new work."""
        if plan != thread.plan:
            return  # rescheduled in the meantime
        self._account(thread)
        then, thread.then = thread.then, None
        self._between = thread
        if then is not None:
            then()
        self._between = None
        if thread.then is None:
            self._stop(thread)
        else:
            self._expect_end(thread)
        self._give_cores()

    def _slice_over(self, thread: CoreThread, plan: int) -> None:
        if plan == thread.plan:
            self._account(thread)
            self._stop(thread)
            self._ready.append(thread)
            self._give_cores()


def _had_s(thread: CoreThread) -> float:
    return thread.had_s


class SharedLink:
    """One direction of a network interface, shared equally by all transfers, as with TCP."""

    def __init__(self, schedule: EventSchedule) -> None:
        self._schedule = schedule
        self._under_way: list[tuple[float, int, Then]] = []
        self._carried_s = 0.0  # by a transfer in progress since the beginning
        self._seen_s = schedule.now_s
        self._order = count()
        self._plan = 0
        self.busy_s = 0.0

    def carry(self, seconds: float, then: Then) -> None:
        """Start a transfer that would take ``seconds`` on an idle link."""
        self._account()
        heapq.heappush(self._under_way, (self._carried_s + seconds, next(self._order), then))
        self._expect_first()

    def _account(self) -> None:
        elapsed_s = self._schedule.now_s - self._seen_s
        self._seen_s = self._schedule.now_s
        if self._under_way:
            self._carried_s += elapsed_s / len(self._under_way)
            self.busy_s += elapsed_s

    def _expect_first(self) -> None:
        self._plan += 1
        if self._under_way:
            left_s = max(0.0, self._under_way[0][0] - self._carried_s)
            self._schedule.after(left_s * len(self._under_way), self._first_is_there, self._plan)

    def _first_is_there(self, plan: int) -> None:
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
