"""Virtual time: what is to happen, in order, and the random numbers of a simulation."""

import heapq
from collections.abc import Callable
from itertools import count

import numpy as np


class EventSchedule:
    """The events of a simulation, which happen in the order of their times.

    Those of the same time happen in the order in which they were planned. ``random`` is the one
    source of chance: the same ``seed`` gives the same simulation. It is a `dist_net.clock.Clock`.
    """

    def __init__(self, seed: int = 0) -> None:
        self.now_s = 0.0
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
