"""The exponential moving average of the weights, often more accurate than the final weights."""

from __future__ import annotations

import numpy as np

from dist_net.optim.ranges import Floats, require_fraction
from dist_net.optim.rule import strips_of


class WeightAverage:
    """a ← a + (1 - d)(w - a) after each update; a starts as a copy of the initial weights.

    d = min(``decay``, (1 + t) / (10 + t)) at update t, so that a short run's average is not
    dominated by its initial weights. Training never reads the average, which depends on the
    updates alone (Polyak & Juditsky 1992).
    """

    def __init__(self, weights: Floats, decay: float) -> None:
        require_fraction("average_decay", decay)
        self.weights = weights.copy()
        self._decay = decay
        self._strips = strips_of(weights.size)
        self._scratch = np.empty(max(each.stop - each.start for each in self._strips), np.float32)

    def update(self, weights: Floats, version: int, steps: int) -> None:
        """Add the weights after update ``version``, the last of ``steps`` applied together."""
        decay = min(self._decay, (1 + version) / (10 + version))
        for strip in self._strips:
            average = self.weights[strip]
            difference = self._scratch[: average.size]
            np.subtract(weights[strip], average, out=difference)
            difference *= 1 - decay**steps
            average += difference
