"""The plan of a round: its workers, their minibatches, and their numbers of local steps. Pure.

M workers *share* each minibatch: each takes a part of its samples, and as many steps as one
process. In long runs, two groups *take turns* with whole minibatches: each takes half of the steps,
and the outer momentum makes up for that. The workers of a round return at the same time, whatever
their speeds and links (DyLU, arXiv 2401.09135): H local steps take exchange_s + H · step_s.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dist_net.training.server.consistency import WHOLE, Consistency, OuterStep
from dist_net.wire.lease_steps import FEWEST_SAMPLES, minibatches_in

NOISE = 24
"""The most noise that a worker may add between two averages; see ``plan_round``."""

FEWEST_OF_STATISTICS = 8
"""The fewest samples of a share, if a net uses their statistics. Shares of 4 raise the loss by 5 to
15 %, shares of 2 by half."""

MINIBATCHES = 5000
"""Two groups take turns in runs of as many minibatches: their momentum needs rounds to act."""

ROUNDS, FEWEST_ROUNDS = 128, 48
USUAL_STEPS, FEWEST_STEPS = 32, 2
"""Groups that take turns have ``ROUNDS`` rounds or leases of ``USUAL_STEPS``, and on slow links
``FEWEST_ROUNDS``, but leases of ``FEWEST_STEPS`` in any case."""

FIRST_STEPS = 8
"""Local steps of a worker's first lease at most: until its speed is known, others wait for it."""

COMPUTING_TO_EXCHANGE = 30
"""Workers compute for this multiple of the time of an exchange, if accuracy permits."""

LONGEST_WAIT_S = 5.0
"""A worker alone takes shorter leases than it could: a worker that joins waits for their end."""

AVERAGED_LEASES = 4
MIN_STEP_S = 1e-6
"""Workers report the time that they computed; a wrong one must not make lengths infinite."""


class LeaseTimes(NamedTuple):
    """A worker's time for a local step, 0 if unknown, and for the exchange of two states.

    In a step, each of its ``parts`` processes computes a minibatch. A lease has ``steps``.
    """

    exchange_s: float = 0.0
    step_s: float = 0.0
    parts: int = 1
    steps: float = 1.0

    def averaged(self, latest: "LeaseTimes") -> "LeaseTimes":
        """Return the moving average after ``latest``. First leases are short, and hardly count."""
        steps = self.steps + (latest.steps - self.steps) / AVERAGED_LEASES
        step_s = (latest.step_s - self.step_s) * latest.steps / (steps * AVERAGED_LEASES)
        exchange_s = (latest.exchange_s - self.exchange_s) / AVERAGED_LEASES
        return LeaseTimes(self.exchange_s + exchange_s, self.step_s + step_s, latest.parts, steps)

    def seconds_for(self, steps: float) -> float:
        """Return the seconds of a lease."""
        return self.exchange_s + steps * self.step_s

    def steps_in(self, seconds: float, most: float) -> int:
        """Return the number of local steps, 1 up to ``most``, of a lease of ``seconds``."""
        return max(1, round(min(most, (seconds - self.exchange_s) / self.step_s)))


def measured(
    took_s: float, computed_s: float, minibatches: float, parts: int = 1
) -> LeaseTimes | None:
    """Return the times of a lease that took ``took_s``; None if they are unknown."""
    computed_s = min(computed_s, took_s)
    if computed_s <= 0:
        return None
    steps = max(1.0, minibatches / parts)
    return LeaseTimes(took_s - computed_s, max(computed_s / steps, MIN_STEP_S), parts, steps)


class PlannedRun(NamedTuple):
    """The input of a plan, except the workers; ``minibatches`` of the run have ``batch_size``.

    With ``has_statistics``, the net uses means over a minibatch, as batch normalisation does.
    """

    consistency: Consistency
    minibatches: int
    batch_size: int
    has_statistics: bool = False
    local_steps: int | None = None


class Division(NamedTuple):
    """``workers`` take part, on minibatches of ``batch_size``; ``turns`` groups of them."""

    workers: int
    batch_size: int
    turns: float

    @property
    def takes_turns(self) -> bool:
        """Whether two groups take turns: whole samples leave a group 0.65 to 1.03 minibatches."""
        return self.turns > 1.2


class RoundPlan(NamedTuple):
    """The leases of a round: ``steps`` in each of the ``parts`` of each worker, 0 for a spare.

    Minibatches have ``batch_size``, ``outer`` applies the mean of the results. The round takes at
    most ``seconds``; accuracy permits ``longest_s``.
    """

    batch_size: int
    outer: OuterStep
    parts: tuple[int, ...]
    steps: tuple[int, ...]
    seconds: float
    longest_s: float

    @property
    def samples(self) -> int:
        """The samples of the round, if the epoch has as many left."""
        taken = zip(self.parts, self.steps, strict=True)
        return self.batch_size * sum(parts * steps for parts, steps in taken)


def divided_minibatch(run: PlannedRun, workers: int) -> Division:
    """Return the shares of minibatches for up to ``workers``, of ``FEWEST_SAMPLES`` or more.

    All shares together are hardly larger than a minibatch: a hundred steps that are 7 % larger, and
    as many fewer, end with 4 % more loss, while a little more noise costs nothing.
    """
    is_long = run.minibatches >= MINIBATCHES and run.consistency is not Consistency.BSP
    turns = 2 if is_long and workers > 1 else 1
    samples = turns * run.batch_size
    fewest = FEWEST_OF_STATISTICS if run.has_statistics else FEWEST_SAMPLES
    most = samples + samples // 32
    useful = min(workers, max(turns, most // fewest))
    batch_size = min(run.batch_size, most // useful)
    return Division(useful, batch_size, useful * batch_size / run.batch_size)


def plan_round(run: PlannedRun, workers: Sequence[LeaseTimes], ahead: int) -> RoundPlan:
    """Return the plan of the next round, which begins ``ahead`` samples before an epoch's end.

    The gradient of a share, 1 / s of a minibatch, has s times the variance of one process. The
    average over the workers removes the excess, but until then each walks away from their mean, and
    a loss is convex: the gradients are those of worse weights. So a worker's steps, times s - 1,
    are at most ``NOISE``, or one step. Whole minibatches have no such limit.
    """
    division = divided_minibatch(run, sum(each.parts for each in workers))
    parts: list[int] = []
    for each in workers:
        parts.append(min(each.parts, division.workers - sum(parts)))
    times = [each._replace(parts=n) for each, n in zip(workers, parts, strict=True) if n]
    usual, most = _step_limits(run, division)
    known = [each for each in times if each.step_s]
    longest_s = _seconds_of(known, most)
    shortest_s = min(_seconds_of(known, usual), LONGEST_WAIT_S if len(times) == 1 else math.inf)
    needed_s = (1 + COMPUTING_TO_EXCHANGE) * max((each.exchange_s for each in known), default=0.0)
    round_s = min(max(needed_s, shortest_s), longest_s)
    alone = run.local_steps or FEWEST_STEPS
    first = max(1, round(min(usual, FIRST_STEPS if len(workers) > 1 else alone)))
    limits = [each.steps_in(round_s, most) if each.step_s else first for each in times]
    minibatches = minibatches_in(ahead, division.batch_size)
    rounds = -(-minibatches // _taken(times, limits))  # of equal length, up to the epoch's end
    steps = _shortest(-(-minibatches // rounds), times, limits)
    steps += [0] * (len(workers) - len(times))
    seconds = max(map(LeaseTimes.seconds_for, times, steps))
    outer = outer_step(division)
    return RoundPlan(division.batch_size, outer, tuple(parts), tuple(steps), seconds, longest_s)


def outer_step(division: Division) -> OuterStep:
    """Return the outer step for workers that divide minibatches like this.

    Workers that share each minibatch compute, on average, the steps of one process. Groups that
    take turns would move the weights ``turns`` times as far as the mean of their changes: over many
    rounds, momentum multiplies a change by ``rate / (1 - momentum)``.
    """
    if not division.takes_turns:
        return WHOLE
    fade = 0.3 / math.sqrt(division.turns)
    return OuterStep(fade * division.turns, 1 - fade, 1.0)


def _step_limits(run: PlannedRun, division: Division) -> tuple[float, float]:
    """Return the usual and the most local steps of a worker."""
    if run.consistency is Consistency.BSP:
        return 1, 1
    shares = run.batch_size / division.batch_size
    steps = run.minibatches * shares / division.workers  # of a worker, in the whole run
    if run.local_steps is not None:
        return min(run.local_steps, steps), min(run.local_steps, steps)
    most = max(1.0, NOISE / (shares - 1)) if shares > 1 else steps
    usual = float(USUAL_STEPS)
    if division.takes_turns:
        usual, longest = (max(steps / rounds, FEWEST_STEPS) for rounds in (ROUNDS, FEWEST_ROUNDS))
        most = min(most, longest)
    return min(usual, USUAL_STEPS, most), most


def _taken(times: Sequence[LeaseTimes], steps: Sequence[int]) -> int:
    """Return the minibatches of all workers."""
    return sum(each.parts * taken for each, taken in zip(times, steps, strict=True))


def _seconds_of(times: Sequence[LeaseTimes], most: float) -> float:
    """Return the seconds of a round in which the first, or the last, takes ``most`` steps.

    The last worker's is better if an exchange takes longer than the steps of the others.
    """

    def minibatches_per_s(seconds: float) -> float:
        steps = [each.steps_in(seconds, most) for each in times]
        return _taken(times, steps) / max(map(LeaseTimes.seconds_for, times, steps))

    seconds = [each.seconds_for(most) for each in times]
    ends = [min(seconds), max(seconds)] if times else []
    return max(ends, key=minibatches_per_s, default=0.0)


def _shortest(minibatches: int, times: Sequence[LeaseTimes], most: Sequence[int]) -> list[int]:
    """Return the local steps of each worker, 1 up to ``most``, in the shortest round."""
    times = [each._replace(step_s=each.step_s or MIN_STEP_S) for each in times]
    exchanges = sum(each.parts * each.exchange_s / each.step_s for each in times)
    round_s = (minibatches + exchanges) / math.fsum(each.parts / each.step_s for each in times)
    steps = [
        max(1, min(limit, int((round_s - each.exchange_s) / each.step_s)))
        for each, limit in zip(times, most, strict=True)
    ]
    while _taken(times, steps) < minibatches:
        able = (index for index, limit in enumerate(most) if steps[index] < limit)
        steps[min(able, key=lambda each: times[each].seconds_for(steps[each] + 1))] += 1
    return steps
