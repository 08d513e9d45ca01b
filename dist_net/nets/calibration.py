"""The temperature and the threshold of a classifier, as its run directory keeps them."""

from __future__ import annotations

from dataclasses import dataclass

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """What logits are divided by, and the probability below which the answer is unknown.

    ``precision`` is the share of answers that the threshold was chosen to get right.
    """

    temperature: float
    threshold: float
    precision: float

    def __post_init__(self) -> None:
        """Raise ValueError for values out of range, as a damaged file may have."""
        is_temperature = MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE
        if not (is_temperature and 0 <= self.threshold <= 1 and 0 < self.precision <= 1):
            raise ValueError(f"{self}: no calibration")
