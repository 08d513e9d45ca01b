"""The lengths of leases of local steps, by the measured times of the workers. Pure.

Leases are proportional to speed, so that all workers of a round return at the same time (DyLU,
arXiv 2401.09135). A lease of H local steps takes a worker exchange_s + H · step_s.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

COMPUTING_TO_EXCHANGE = 10
"""With automatic lengths, workers compute for this multiple of the time of an exchange."""

MIN_ROUNDS = 70
"""Accuracy falls with fewer rounds in a run; see docs/cluster.md."""

AVERAGED_LEASES = 4
MIN_STEP_S = 1e-6
"""Workers report the time that they computed; a wrong one must not make lengths infinite."""


class LeaseTimes(NamedTuple):
    """A worker's time for a local step, and for the exchange of a difference and the weights.

    In a step, each of its ``parts`` processes computes a minibatch.
    """

    exchange_s: float
    step_s: float
    parts: float = 1

    def averaged(self, latest: "LeaseTimes") -> "LeaseTimes":
        """Return the moving average after ``latest``."""
        pairs = zip(self, latest, strict=True)
        return LeaseTimes(*(old + (new - old) / AVERAGED_LEASES for old, new in pairs))

    def steps_in(self, round_s: float) -> int:
        """Return the number of local steps, at least 1, for which a round leaves time."""
        return max(1, round((round_s - self.exchange_s) / self.step_s))

    def exchanges_too_long(self, steps: int) -> bool:
        """Whether the exchange after ``steps`` takes clearly more than its part of the time."""
        return steps * self.step_s < 0.9 * COMPUTING_TO_EXCHANGE * self.exchange_s


def measured(
    took_s: float, computed_s: float, minibatches: int, parts: int = 1
) -> LeaseTimes | None:
    """Return the times of a lease that took ``took_s``; None if they are unknown."""
    computed_s = min(computed_s, took_s)
    if computed_s <= 0:
        return None
    steps = max(1.0, minibatches / parts)
    return LeaseTimes(took_s - computed_s, max(computed_s / steps, MIN_STEP_S), parts)


def round_of(times: Sequence[LeaseTimes], steps: int) -> float:
    """Return the seconds of a round in which the fastest of the workers takes ``steps`` steps."""
    return min(each.exchange_s + steps * each.step_s for each in times)


def needed_round(times: Sequence[LeaseTimes]) -> float:
    """Return the seconds of a round of which exchanges take a small enough part."""
    return (1 + COMPUTING_TO_EXCHANGE) * max(each.exchange_s for each in times)


def longest_round(times: Sequence[LeaseTimes], minibatches: int) -> float:
    """Return the seconds of a round so that a run of ``minibatches`` has ``MIN_ROUNDS``."""
    exchanges = sum(each.parts * each.exchange_s / each.step_s for each in times)
    per_s = math.fsum(each.parts / each.step_s for each in times)
    return (minibatches / MIN_ROUNDS + exchanges) / per_s
