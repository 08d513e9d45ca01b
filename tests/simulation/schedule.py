"""The schedule of a simulation: its events, its clock, and a trace."""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np


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


class TracedSchedule(EventSchedule):
    """An event schedule that is also a ``dist_net.ground.clock.Clock`` and records a trace.

    The last ``trace_length`` notes are kept; None: all. ``rate``: see ``HostClock``.
    """

    rate = 1.0

    def __init__(self, seed: int = 0, trace_length: int | None = 40) -> None:
        super().__init__(seed)
        self._notes: deque[tuple[float, str, str, tuple[object, ...]]] = deque(maxlen=trace_length)

    def now(self) -> float:
        """Return the seconds since the simulation began."""
        return self.now_s

    def at(self, moment_s: float, call: Callable[..., object], *arguments: object) -> None:
        """Schedule ``call(*arguments)`` at ``moment_s``, or now if that has passed."""
        event = max(moment_s, self.now_s), next(self._order), call, arguments
        heapq.heappush(self._events, event)

    def repeat(self, seconds_apart: float, until_s: float, call: Callable[[], object]) -> None:
        """Schedule ``call()`` at random moments before ``until_s``, so far apart on average."""
        moment_s = float(self.random.exponential(seconds_apart))
        while moment_s < until_s:
            self.at(moment_s, call)
            moment_s += float(self.random.exponential(seconds_apart))

    def run(self, until_s: float) -> None:
        """Run all events up to and including ``until_s``."""
        while self._events and self._events[0][0] <= until_s:
            self.step()
        self.now_s = max(self.now_s, until_s)

    def note(self, who: str, what: str, *details: object) -> None:
        """Add a note to the trace; the caller must not modify ``details`` afterwards.

        ``what % details`` is formatted only when the trace is read.
        """
        self._notes.append((self.now_s, who, what, details))

    def trace(self) -> str:
        """Return the notes in order of time, one per line."""
        return "\n".join(
            f"{moment_s:10.4f}  {who:<10} {what % details if details else what}"
            for moment_s, who, what, details in self._notes
        )


@dataclass(frozen=True)
class HostClock:
    """The clock of a host that began at ``offset_s``, and shows ``rate`` seconds per second."""

    schedule: TracedSchedule
    offset_s: float
    rate: float

    def now(self) -> float:
        return self.offset_s + self.rate * self.schedule.now_s
