"""The one source of time; tests and simulations substitute it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time to the loops of processes."""

    def now(self) -> float:
        """Seconds on a clock that never goes backwards."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()
