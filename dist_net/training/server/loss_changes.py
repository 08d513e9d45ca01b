"""Comparisons of losses, which may be negative or near zero. Pure."""

import math

NOISE = 0.02
"""Losses below this share of a run's first one are equal but for noise."""


def loss_change(before: float, after: float, first: float) -> float:
    """Return the rise from one loss of a run to another (a fall is negative) as a share of both.

    It is relative to the size of ``before``, or to ``NOISE`` times the ``first`` loss if that is
    larger: a share of 0, or of a negative number, means nothing.
    """
    if not math.isfinite(before):
        return -math.inf if math.isfinite(after) else 0.0
    scale = max(abs(before), NOISE * abs(first))
    return (after - before) / scale if scale else math.copysign(math.inf, after) * (after != 0)
