"""When, and how often, a process that died is started again. Pure; no I/O."""

FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
HEALTHY_S = 60.0
"""A process that has run for so long may be started again as often as at first."""
SETTLED_S = 2.0
"""One that has run for so long did not die of its start: it is started again at once."""


class RestartBudget:
    """How often, and when, a process is started again. No I/O."""

    def __init__(self, restarts: float) -> None:
        self._restarts = restarts
        self._used = 0
        self._next_pause_s = FIRST_PAUSE_S

    def pause_s(self, lived_s: float) -> float | None:
        """How long to wait for the next start of a process that lived so long; None: no more."""
        if lived_s >= HEALTHY_S:
            self._used = 0
        if self._used >= self._restarts:
            return None
        self._used += 1
        if lived_s >= SETTLED_S:
            self._next_pause_s = FIRST_PAUSE_S
            return 0.0
        pause_s = self._next_pause_s
        self._next_pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return pause_s
