"""The time that clients may take of the gateway's event loop."""

from __future__ import annotations

import time
from collections.abc import Callable

TURN_S = 0.02
PEER_S = 0.005
_WINDOW_S = 0.025


class TurnBudget:
    """Shared by everything that works for clients on one event loop.

    In a window of 25 ms they may spend 20 ms: no turn of the loop takes much longer, and the rest
    is left to workers and answers. Who finds it spent continues in a later turn. ``now`` returns
    the time.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._began_s = self._spent_s = 0.0

    @property
    def is_spent(self) -> bool:
        return self._spent_s >= TURN_S and self.now() < self._began_s + _WINDOW_S

    def spend(self, began_s: float) -> None:
        """Count the time since ``began_s``, of ``now``."""
        now = self.now()
        if now >= self._began_s + _WINDOW_S:
            self._began_s, self._spent_s = now, 0.0
        self._spent_s += now - began_s
