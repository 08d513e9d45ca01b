"""Starts a process again that has died: after growing pauses, and so many times."""

from __future__ import annotations

import time
from collections.abc import Callable

from dist_net.cluster.child import Child

RESTARTS = 3
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
HEALTHY_S = 60.0
"""A process that has run for so long may be started again as often as at first."""
SETTLED_S = 5.0
"""One that has run for so long did not die of its start: the next one need not wait for long."""


class RestartBudget:
    """How often, and when, a process is started again. No I/O."""

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._used = 0
        self._in_a_row = 0  # deaths, each soon after the start

    def pause_s(self, lived_s: float) -> float | None:
        """How long to wait for the next start of a process that lived so long; None: no more."""
        if lived_s >= HEALTHY_S:
            self._used = 0
        if self._used == self._restarts:
            return None
        self._used += 1
        self._in_a_row = 1 if lived_s >= SETTLED_S else self._in_a_row + 1
        return min(FIRST_PAUSE_S * 2.0 ** (self._in_a_row - 1), LONGEST_PAUSE_S)


class ReplacedChild:
    """A process, the newest of those that ``start`` gave; the caller looks after it often.

    One that ends for a reason of its own, such as bad input, is not started again: it would end for
    the same one.
    """

    def __init__(self, start: Callable[[], Child], restarts: int) -> None:
        self._start = start
        self._budget = RestartBudget(restarts)
        self._started_s = time.monotonic()
        self._again_at_s: float | None = None
        self.child = start()
        self.is_given_up = False

    def look(self) -> str | None:
        """Starts it again if it has died, when it is time; gives what to tell people, once."""
        now = time.monotonic()
        if self._again_at_s is not None:
            if now >= self._again_at_s:
                self._again_at_s, self._started_s = None, now
                self.child = self._start()
            return None
        if self.child.exit_code is None or self.is_given_up:
            return None
        pause_s = None
        if not self.child.has_said_why:
            pause_s = self._budget.pause_s(now - self._started_s)
        if pause_s is None:
            self.is_given_up = True
            return None
        self._again_at_s = now + pause_s
        return f"{self.child.failure()}; it is started again in {pause_s:.1f} s"
