"""Starts a process again that has died: after growing pauses, and so many times."""

from __future__ import annotations

import time
from collections.abc import Callable

from dist_net.processes.child import RunningChild
from dist_net.processes.restart_budget import RestartBudget

RESTARTS = 3


class ReplacedChild:
    """A process, the newest of those that ``start`` gave; the caller looks after it often.

    One that ends for a reason of its own, such as bad input, is not started again: it would end for
    the same one.
    """

    def __init__(self, start: Callable[[], RunningChild], restarts: float) -> None:
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
        when = f"in {pause_s:.1f} s" if pause_s else "now"
        return f"{self.child.failure()}; it is started again {when}"
