"""The source of time; tests and simulations replace it."""

import time
from typing import Protocol


class Clock(Protocol):
    """The clock of a process's loop."""

    def now(self) -> float:
        """Return the seconds of a clock that never goes backwards."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()
