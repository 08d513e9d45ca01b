"""The lengths of leases, by the measured times of the workers. Pure.

Leases are proportional to speed, so that all workers of a round return at the same time (DyLU,
arXiv 2401.09135). A lease of H local steps takes a worker exchange_s + H · step_s.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dist_net.training.server.consistency import StepLimits

COMPUTING_TO_EXCHANGE = 20
"""Workers compute for this multiple of the time of an exchange, if accuracy permits."""

FIRST_STEPS = 8
"""Local steps of a worker's first lease at most: until its speed is known, others wait for it."""

LONGEST_WAIT_S = 5.0
"""A worker alone takes shorter leases than it could: a worker that joins waits for their end."""

AVERAGED_LEASES = 4
MIN_STEP_S = 1e-6
"""Workers report the time that they computed; a wrong one must not make lengths infinite."""


class LeaseTimes(NamedTuple):
    """A worker's time for a local step, and for the exchange of two states.

    In a step, each of its ``parts`` processes computes a minibatch.
    """

    exchange_s: float = 0.0
    step_s: float = MIN_STEP_S
    parts: int = 1

    def averaged(self, latest: "LeaseTimes") -> "LeaseTimes":
        """Return the moving average after ``latest``."""
        exchange_s, step_s = (
            old + (new - old) / AVERAGED_LEASES
            for old, new in ((self.exchange_s, latest.exchange_s), (self.step_s, latest.step_s))
        )
        return LeaseTimes(exchange_s, step_s, latest.parts)

    def seconds_for(self, steps: int) -> float:
        """Return the seconds of a lease."""
        return self.exchange_s + steps * self.step_s

    def steps_in(self, round_s: float) -> int:
        """Return the number of local steps, at least 1, for which a round leaves time."""
        return max(1, round((round_s - self.exchange_s) / self.step_s))


def measured(
    took_s: float, computed_s: float, minibatches: float, parts: int = 1
) -> LeaseTimes | None:
    """Return the times of a lease that took ``took_s``; None if they are unknown."""
    computed_s = min(computed_s, took_s)
    if computed_s <= 0:
        return None
    steps = max(1.0, minibatches / parts)
    return LeaseTimes(took_s - computed_s, max(computed_s / steps, MIN_STEP_S), parts)


def round_s(times: Sequence[LeaseTimes], limits: StepLimits) -> float:
    """Return the seconds of a round: as many as the exchanges need, within the limits."""
    shortest_s, longest_s = (_seconds_of(times, steps) for steps in limits)
    if len(times) == 1:
        shortest_s = min(shortest_s, LONGEST_WAIT_S)
    return min(max(needed_round_s(times), shortest_s), longest_s)


def divided(minibatches: int, times: Sequence[LeaseTimes], most: Sequence[int]) -> list[int]:
    """Return the local steps of each worker, 1 up to ``most``, in a round of ``minibatches``.

    The round ends as early as possible. ``most`` must suffice for all minibatches.
    """
    round_s = _seconds_of(times, minibatches)
    steps = [
        max(1, min(limit, int((round_s - each.exchange_s) / each.step_s)))
        for each, limit in zip(times, most, strict=True)
    ]
    while sum(each.parts * taken for each, taken in zip(times, steps, strict=True)) < minibatches:
        able = (index for index, limit in enumerate(most) if steps[index] < limit)
        steps[min(able, key=lambda each: times[each].seconds_for(steps[each] + 1))] += 1
    return steps


def needed_round_s(times: Sequence[LeaseTimes]) -> float:
    """Return the seconds of a round of which exchanges take a small enough part."""
    return (1 + COMPUTING_TO_EXCHANGE) * max(each.exchange_s for each in times)


def longest_round_s(times: Sequence[LeaseTimes], limits: StepLimits) -> float:
    """Return the seconds of the longest round that accuracy permits."""
    return _seconds_of(times, limits.most)


def _seconds_of(times: Sequence[LeaseTimes], steps: float) -> float:
    """Return the seconds of a round in which the workers take ``steps`` steps together."""
    exchanges = sum(each.parts * each.exchange_s / each.step_s for each in times)
    per_s = math.fsum(each.parts / each.step_s for each in times)
    return (steps + exchanges) / per_s
