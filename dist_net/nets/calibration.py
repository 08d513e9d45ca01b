"""When to believe a classifier: probabilities that hold, and below which of them to say unknown.

All is chosen on images that the net was not trained on. Rows of ``logits`` and
``probabilities`` are (N, classes) float32; ``targets`` are (N,) class indices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.nn.inference import softmax

Scores = NDArray[np.float32]
Targets = NDArray[np.integer]

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
BINS = 15
KNOWN_SHARE = 0.99


@dataclass(frozen=True)
class Calibration:
    """What logits are divided by, and the probability below which the answer is unknown.

    ``precision`` of the answers that are given were right where they were chosen.
    """

    temperature: float
    threshold: float
    precision: float

    def __post_init__(self) -> None:
        """Raises ValueError for what is no calibration, as a file may hold."""
        is_temperature = LOWEST_TEMPERATURE <= self.temperature <= HIGHEST_TEMPERATURE
        if not (is_temperature and 0 <= self.threshold <= 1 and 0 < self.precision <= 1):
            raise ValueError(f"{self}: no calibration")


def calibrate(logits: Scores, targets: Targets, precision: float) -> Calibration:
    """The calibration by which ``precision`` of the answers given are right, if that can be."""
    temperature = temperature_of(logits, targets)
    probabilities = softmax(logits / np.float32(temperature))
    threshold = threshold_of(probabilities, targets, precision)
    return Calibration(temperature, threshold, precision)


def temperature_of(logits: Scores, targets: Targets) -> float:
    """The temperature with the least cross-entropy (Guo et al. 2017, arXiv 1706.04599).

    One more sample, which may be of any class, keeps it finite where all answers are right
    (Platt 1999).
    """
    rows = np.asarray(logits, np.float64)
    others = 1 / (len(rows) + 1)
    wanted = (1 - others) * rows[np.arange(len(rows)), targets] + others * rows.mean(1)

    def slope(inverse: float) -> float:
        """Of the cross-entropy over 1 / temperature, in which it is convex."""
        powers = np.exp(inverse * (rows - rows.max(1, keepdims=True)))
        return float(((powers * rows).sum(1) / powers.sum(1) - wanted).mean())

    low, high = np.log(1 / HIGHEST_TEMPERATURE), np.log(1 / LOWEST_TEMPERATURE)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(np.exp(middle)) > 0 else (middle, high)
    return float(np.clip(np.exp(-low), LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE))


def threshold_of(probabilities: Scores, targets: Targets, precision: float) -> float:
    """The lowest probability at and above which ``precision`` of the answers are right.

    At least what 99 % of the right answers reach: else a net that is always right on these
    images would know everything. 1 if no threshold is high enough.
    """
    confidence = probabilities.max(1)
    is_right = probabilities.argmax(1) == targets
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    shares = is_right[order].cumsum() / np.arange(1, len(order) + 1)
    is_last_of_equals = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)
    enough = np.flatnonzero((shares >= precision) & is_last_of_equals)
    if not len(enough):
        return 1.0
    usual = np.quantile(confidence[is_right], 1 - KNOWN_SHARE, method="lower")
    return float(max(sorted_confidence[enough[-1]], usual))


def calibration_error(probabilities: Scores, targets: Targets) -> float:
    """The expected calibration error: how far confidence and accuracy differ, over 15 bins."""
    confidence = probabilities.max(1).astype(np.float64)
    is_right = probabilities.argmax(1) == targets
    bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    gaps = np.bincount(bins, confidence - is_right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))
