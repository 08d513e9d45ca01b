"""The measured time of batches of one model and kind of payload."""

from __future__ import annotations

NEWEST_WEIGHT = 0.15
"""The weight of a measurement in the moving means, which adapt within about ten batches."""
NO_ROWS_WEIGHT = 0.1
FIRST_FEW = 3
FIRST_DEVIATION = 0.2
LARGEST_STEP = 4.0
FRESH_FOR_S = 5.0


class ServiceTime:
    """Expected seconds of a batch by its rows; None while nothing was measured.

    The model is a straight line: a fixed cost for the batch, and a cost for each row. So every
    measurement informs all sizes, and a size that once seemed slow is tried again. The line is
    fitted by least squares to recent batches and, with a small weight, to an empty batch that takes
    no time: while all batches have one size, the estimate is proportional.
    """

    def __init__(self) -> None:
        self._means: tuple[float, ...] = ()  # of _terms
        self._batch_s = self._row_s = 0.0
        self._deviation = FIRST_DEVIATION
        self._count = 0
        self._measured_s = 0.0

    def observe(self, rows: int, seconds: float, now: float) -> None:
        """Add a measurement. A single outlier does not move the means by much."""
        if seconds <= 0:  # too short for the clock
            return
        expected_s = self.expected_s(rows)
        if expected_s is None or (self._count < FIRST_FEW and seconds < expected_s / 2):
            # The first batch builds its plan and touches its memory, so its time is discarded.
            self._means = _terms(rows, seconds)
            self._deviation = FIRST_DEVIATION
        else:
            seconds = min(seconds, LARGEST_STEP * expected_s)
            self._deviation += NEWEST_WEIGHT * (abs(seconds / expected_s - 1) - self._deviation)
            weight = max(NEWEST_WEIGHT, 1 / (self._count + 1))
            pairs = zip(self._means, _terms(rows, seconds), strict=True)
            self._means = tuple(mean + weight * (new - mean) for mean, new in pairs)
        self._batch_s, self._row_s = _line(*self._means)
        self._count += 1
        self._measured_s = now

    def expected_s(self, rows: int, batches: int = 1) -> float | None:
        """Return the recent mean for ``rows`` in ``batches``."""
        return batches * self._batch_s + rows * self._row_s if self._count else None

    def cautious_s(self, rows: int) -> float | None:
        """Return a time that few batches exceed: the mean plus four mean deviations."""
        expected_s = self.expected_s(rows)
        return None if expected_s is None else expected_s * (1 + 4 * self._deviation)

    def is_fresh(self, now: float) -> bool:
        """Return whether a batch was measured in the last few seconds."""
        return self._count > 0 and now - self._measured_s < FRESH_FOR_S


def _terms(rows: float, seconds: float) -> tuple[float, ...]:
    """Return the terms whose means least squares needs."""
    return rows, seconds, rows * rows, rows * seconds


def _line(rows: float, seconds: float, squares: float, products: float) -> tuple[float, float]:
    """Return the seconds per batch and per row, not below 0, from the means of ``_terms``."""
    count = 1 + NO_ROWS_WEIGHT
    row_s = (count * products - rows * seconds) / (count * squares - rows * rows)
    row_s = min(row_s, products / squares)
    return ((products - row_s * squares) / rows, row_s) if row_s > 0 else (seconds, 0.0)
