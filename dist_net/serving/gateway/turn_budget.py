"""The time that clients may take of one turn of the gateway's event loop."""

from __future__ import annotations

import asyncio
import time

TURN_S = 0.02
PEER_S = 0.005


class TurnBudget:
    """Shared by everything that works for clients on one event loop.

    Who has used up the turn continues in the next: ``call_soon`` runs it there.
    """

    def __init__(self) -> None:
        self._spent_s = 0.0
        self._will_end = False

    @property
    def is_spent(self) -> bool:
        return self._spent_s >= TURN_S

    def spend(self, began_s: float) -> None:
        """Count the time since ``began_s``, of ``time.monotonic``."""
        self._spent_s += time.monotonic() - began_s
        if not self._will_end:
            self._will_end = True
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._spent_s, self._will_end = 0.0, False
