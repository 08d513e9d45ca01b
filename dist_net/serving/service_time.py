"""How long batches take, as measured; for one model and kind of payload. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

NEWEST_WEIGHT = 0.15
"""Of a measurement, in the moving mean: a new level is reached after about ten batches."""
FIRST_FEW = 3
FIRST_DEVIATION = 0.2
LARGEST_STEP = 4.0
FORGOTTEN_AFTER_S = 60.0
FRESH_FOR_S = 5.0


@dataclass(slots=True)
class _Measured:
    mean_s: float
    deviation_s: float
    count: int
    measured_s: float


class ServiceTime:
    """Expected seconds of a batch, by its rows; None while nothing was measured.

    A size that was not measured is taken to cost as much as the next larger one, or in proportion
    to the largest: rather too much than too little. Sizes that did not occur for a minute are
    forgotten, so that a wrong one cannot keep its size from being tried for ever.
    """

    def __init__(self) -> None:
        self._by_rows: dict[int, _Measured] = {}
        self._sizes: list[int] = []
        self._swept_s = 0.0

    def observe(self, rows: int, seconds: float, now: float) -> None:
        """Take in what one batch took. A single outlier does not move the mean by much."""
        entry = self._by_rows.get(rows)
        if entry is None:
            entry = self._by_rows[rows] = _Measured(seconds, seconds * FIRST_DEVIATION, 0, now)
            insort(self._sizes, rows)
        elif entry.count < FIRST_FEW and seconds < entry.mean_s / 2:
            # The first batch of a size builds its plan and touches its memory: it says nothing.
            entry.mean_s, entry.deviation_s = seconds, seconds * FIRST_DEVIATION
        else:
            step = min(seconds, entry.mean_s * LARGEST_STEP) - entry.mean_s
            weight = max(NEWEST_WEIGHT, 1 / (entry.count + 1))
            entry.deviation_s += NEWEST_WEIGHT * (abs(step) - entry.deviation_s)
            entry.mean_s += weight * step
        entry.count += 1
        entry.measured_s = now
        if now - self._swept_s > FORGOTTEN_AFTER_S / 4:
            self._forget(now)

    def expected_s(self, rows: int) -> float | None:
        """The mean of late."""
        found = self._nearest(rows)
        return None if found is None else found[0].mean_s * found[1]

    def cautious_s(self, rows: int) -> float | None:
        """What few batches exceed: the mean and four times the mean deviation."""
        found = self._nearest(rows)
        return None if found is None else (found[0].mean_s + 4 * found[0].deviation_s) * found[1]

    def is_fresh(self, rows: int, now: float) -> bool:
        """Whether just this size was, and within the last seconds."""
        entry = self._by_rows.get(rows)
        return entry is not None and now - entry.measured_s < FRESH_FOR_S

    def _nearest(self, rows: int) -> tuple[_Measured, float] | None:
        """What is known of the nearest size, and by what to multiply it."""
        entry = self._by_rows.get(rows)
        if entry is not None:
            return entry, 1.0
        if not self._sizes:
            return None
        place = bisect_left(self._sizes, rows)
        if place < len(self._sizes):
            return self._by_rows[self._sizes[place]], 1.0
        largest = self._sizes[-1]
        return self._by_rows[largest], rows / largest

    def _forget(self, now: float) -> None:
        self._swept_s = now
        self._by_rows = {
            rows: entry
            for rows, entry in self._by_rows.items()
            if now - entry.measured_s < FORGOTTEN_AFTER_S
        }
        self._sizes = sorted(self._by_rows)
