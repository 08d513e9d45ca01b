"""The temperature and the threshold of a classifier, as stored in its run directory."""

from __future__ import annotations

from dataclasses import dataclass

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Calibration:
    """The divisor of the logits, and the probability below which the answer is "unknown".

    ``precision`` is the share of correct answers for which the threshold was chosen.
    """

    temperature: float
    threshold: float
    precision: float

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for values out of range, as in a damaged file."""
        is_temperature = MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE
        if not (is_temperature and 0 <= self.threshold <= 1 and 0 < self.precision <= 1):
            raise ValueError(f"{self}: no calibration")
