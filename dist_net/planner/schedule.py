"""Virtual time: what is to happen, in order, and the random numbers of a simulation."""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

import numpy as np


class EventSchedule:
    """The events of a simulation, which happen in the order of their times.

    Those of the same time happen in the order in which they were planned. ``random`` is the one
    source of chance: the same ``seed`` gives the same simulation. It is a `dist_net.clock.Clock`.
    The last ``trace_length`` notes are kept; None: all.
    """

    def __init__(self, seed: int = 0, trace_length: int | None = 40) -> None:
        self.now_s = 0.0
        self._notes: deque[tuple[float, str, str, tuple[object, ...]]] = deque(maxlen=trace_length)
        self.random = np.random.default_rng(seed)
        self._events: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._order = count()

    def now(self) -> float:
        """Seconds since the simulation began."""
        return self.now_s

    @property
    def next_s(self) -> float | None:
        """When the next event happens; None: there is none."""
        return self._events[0][0] if self._events else None

    def at(self, moment_s: float, call: Callable[..., object], *arguments: object) -> None:
        """Have ``call(*arguments)`` happen then; what is past happens now."""
        event = max(moment_s, self.now_s), next(self._order), call, arguments
        heapq.heappush(self._events, event)

    def after(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Have ``call(*arguments)`` happen so many seconds from now."""
        self.at(self.now_s + seconds, call, *arguments)

    def step(self) -> None:
        """Let the next event happen; raises IndexError if there is none."""
        self.now_s, _, call, arguments = heapq.heappop(self._events)
        call(*arguments)

    def run(self, until_s: float) -> None:
        """Let everything happen until then."""
        while self._events and self._events[0][0] <= until_s:
            self.step()
        self.now_s = max(self.now_s, until_s)

    def note(self, who: str, what: str, *details: object) -> None:
        """Note for the trace what somebody does; ``details`` are put into ``what`` if it is read.

        They must stay as they are.
        """
        self._notes.append((self.now_s, who, what, details))

    def trace(self) -> str:
        """The notes, one a line, in the order of their times."""
        return "\n".join(
            f"{moment_s:10.4f}  {who:<10} {what % details if details else what}"
            for moment_s, who, what, details in self._notes
        )
