"""Whether means rise above bounds: bets that may be looked at after each observation.

The wealth of a bet (Waudby-Smith and Ramdas 2024) grows on average only if the mean is above its
bound. The sum of the wealths of bets that begin at each observation (Shin, Ramdas and Rinaldo 2022,
arXiv 2203.03532) finds a change whenever it begins: while no mean exceeds its bound, the mean of
all sums reaches ``LIMIT`` once in ``LIMIT`` observations on average, or less often.
"""

import numpy as np
from numpy.typing import ArrayLike

LIMIT = 100_000.0
"""At most one false alarm in as many observations, on average."""
MAX_SUM = 100 * LIMIT
"""An alarm ends soon after the observations are as before."""
SHARES = np.array([0.1, 0.25, 0.5, 0.95])
"""Shares of the wealth that is bet on each observation."""


class Bets:
    """The sums of wealths that bet on each of ``count`` means.

    ``sums``: (count, shares).
    """

    def __init__(self, count: int) -> None:
        self.sums = np.zeros((count, len(SHARES)))

    def add(self, excesses: ArrayLike) -> None:
        """Observe each value's excess above its bound, (count,), at least -1: 0 on average."""
        sums = (self.sums + 1) * (1 + SHARES * np.asarray(excesses, np.float64)[:, None])
        self.sums = np.minimum(sums, MAX_SUM)

    @property
    def is_alarm(self) -> bool:
        return float(self.sums.mean()) >= LIMIT
