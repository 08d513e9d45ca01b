"""What is shared in virtual time: the cores of a host, and what does one thing at a time."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

from dist_net.planner.schedule import EventSchedule

SLICE_S = 0.003
"""How long a thread keeps a core that others wait for; about what Linux gives."""

Then = Callable[[], None]
RunFor = Callable[[float, Then], None]
"""Takes seconds, and what to call when they are over."""


class CoreThread:
    """A thread of a host: it has a core, waits for one, or has nothing to do.

    ``had_s`` is for how long it has had a core, or would have had if it had not slept.
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
        """Call ``then`` when the thread has had a core for so long; one thing at a time."""
        self.left_s, self.then = seconds, then
        self._cores.wake(self)


class SharedCores:
    """The cores of a host, which its threads get about as Linux gives them.

    Who has had least goes first, for ``slice_s`` if others wait. Who wakes takes the core of the
    thread that has had most, if that is clearly more. Time asleep makes good what a thread has had
    above the others, and gives it half a slice at most. ``busy_s`` is the time of all cores
    together.
    """

    def __init__(self, schedule: EventSchedule, cores: int, slice_s: float = SLICE_S) -> None:
        self._schedule = schedule
        self._cores = cores
        self._slice_s = slice_s
        self._running: list[CoreThread] = []
        self._ready: list[CoreThread] = []
        self._between: CoreThread | None = None  # has a core, and is about to say what it does next
        self.busy_s = 0.0

    def wake(self, thread: CoreThread) -> None:
        """Find a core for the thread."""
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
        """Plan for when the thread is done, or its slice is over if others wait."""
        thread.plan += 1
        thread.must_share = bool(self._ready)
        is_last = not thread.must_share or thread.left_s <= thread.slice_left_s
        end_s = thread.left_s if is_last else thread.slice_left_s
        end = self._done if is_last else self._slice_over
        self._schedule.after(max(0.0, end_s), end, thread, thread.plan)

    def _done(self, thread: CoreThread, plan: int) -> None:
        """Let the thread say what it does next."""
        if plan != thread.plan:
            return  # others have come since
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
    """One direction of a network interface: all that is under way shares it, as TCP has it."""

    def __init__(self, schedule: EventSchedule) -> None:
        self._schedule = schedule
        self._under_way: list[tuple[float, int, Then]] = []
        self._carried_s = 0.0  # of what was under way from the beginning on
        self._seen_s = schedule.now_s
        self._order = count()
        self._plan = 0
        self.busy_s = 0.0

    def carry(self, seconds: float, then: Then) -> None:
        """Carry what would take so long if nothing else were under way."""
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
    """What one thread does: one thing at a time, in turn."""

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
