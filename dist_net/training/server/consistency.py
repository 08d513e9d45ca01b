"""When the results of workers enter the server's state, and with which weight. Pure.

Every worker takes the local steps of a lease from the server's state, and pushes the state that it
arrived at. The modes differ only in when the server applies the results:

rounds: once all leases of a round have arrived, by one step of an *outer optimizer* along the mean
    change (local SGD: Stich 2019, arXiv 1805.09767; DiLoCo: arXiv 2311.08105). The optimizer's
    vectors and the buffers become the workers' mean, so that a lease is a function of the server's
    state and its samples, whichever worker computes it.
async: each at once, divided by the number of workers, since so many change the same state. Workers
    never wait. With one local step to a lease, this is a parameter server's asynchronous SGD.
bsp: rounds of one local step, whose results are averaged (bulk synchronous parallel).
"""

import math
from enum import StrEnum
from typing import NamedTuple

from dist_net.errors import SettingError


class Consistency(StrEnum):
    """The mode of a run; its value is the text in options and checkpoints."""

    ROUNDS = "rounds"
    ASYNC = "async"
    BSP = "bsp"

    @classmethod
    def parse(cls, text: str) -> "Consistency":
        """Return the mode of this name; raise ``SettingError`` for any other text."""
        try:
            return cls(text)
        except ValueError:
            raise SettingError(f"consistency={text!r}: expected one of {', '.join(cls)}") from None


class OuterStep(NamedTuple):
    """How the mean result of a round, or a single result, moves the server's state.

    With w the weights, r those of the result: Δ = w - r; m ← ``momentum`` m + Δ;
    w ← w - ``rate`` (Δ + ``momentum`` m), which is Nesterov's rule. All else moves by ``share`` of
    the way towards the result, and so stays between the values of the workers: a variance never
    becomes negative. With a rate and a share of 1 and no momentum, the result is the new state.
    """

    rate: float
    momentum: float
    share: float


WHOLE = OuterStep(1.0, 0.0, 1.0)


ROUNDS, FEWEST_ROUNDS, FEWEST_SHARED_ROUNDS = 128, 48, 8
USUAL_STEPS, FEWEST_STEPS = 32, 2
"""Local steps of a worker; see ``step_limits``."""

MINIBATCHES = 2500
FEWEST_SAMPLES = 2
"""See ``local_batch_size``. Batch norm needs the variance of two samples."""


class StepLimits(NamedTuple):
    """The local steps that all leases of a round may have together, for the sake of accuracy."""

    fewest: float
    most: float


def local_batch_size(
    consistency: Consistency, workers: int, minibatches: int, batch_size: int
) -> int:
    """Return the number of samples of a worker's minibatches in a run of ``minibatches``.

    M workers could take turns with whole minibatches, and then the run has one step in turn for M
    steps of one process; or share each minibatch, and then each worker takes as many steps as one
    process. With more workers, and in shorter runs, a minibatch is shared by more of them: each
    half of the number of workers, on a logarithmic scale, and by all if the run has fewer than
    ``MINIBATCHES`` for each. A share has ``FEWEST_SAMPLES`` or more. In ``bsp`` all share one.
    """
    if consistency is Consistency.BSP:
        return max(-(-batch_size // workers), min(batch_size, FEWEST_SAMPLES))
    sharing = 1
    while (
        workers > sharing * min(2 * sharing, minibatches / MINIBATCHES)
        and sharing < workers
        and batch_size >= 2 * sharing * FEWEST_SAMPLES
    ):
        sharing *= 2
    return -(-batch_size // sharing)


def step_limits(
    consistency: Consistency, workers: int, minibatches: float, turns: float = 1.0
) -> StepLimits:
    """Return the limits for a round of ``workers`` in a run of ``minibatches`` of their size.

    The momentum of the outer steps needs rounds to act. Each worker takes ``USUAL_STEPS`` steps if
    the run then has ``ROUNDS`` rounds, and more on slow links, as far as ``FEWEST_ROUNDS`` permit;
    but ``FEWEST_STEPS`` in any case. Without that momentum (at most 1 of ``turns``), it takes up to
    ``USUAL_STEPS`` if the run then has ``FEWEST_SHARED_ROUNDS``. One worker alone needs no round.
    """
    if consistency is Consistency.BSP:
        return StepLimits(workers, workers)
    if workers == 1:
        return StepLimits(min(USUAL_STEPS, minibatches), minibatches)
    usual = USUAL_STEPS * workers
    fewest, most = (
        max(minibatches / rounds, FEWEST_STEPS * workers) for rounds in (ROUNDS, FEWEST_ROUNDS)
    )
    if turns <= 1:
        most = max(most, min(minibatches / FEWEST_SHARED_ROUNDS, usual))
    return StepLimits(min(usual, fewest), most)


def outer_step(consistency: Consistency, workers: float, turns: float = 1.0) -> OuterStep:
    """Return the outer step for ``workers``, of which ``turns`` have minibatches of their own.

    One worker alone computes what one process computes, and so do, on average, workers that share
    each minibatch. M workers that took turns would move the weights about M times as far as the
    mean of their changes: over many rounds, momentum multiplies a change by
    ``rate / (1 - momentum)``, which is ``turns``.
    """
    if consistency is Consistency.ASYNC:
        return OuterStep(1 / workers, 0.0, 1 / workers)
    if turns <= 1 or consistency is Consistency.BSP:
        return WHOLE
    share = 0.3 / math.sqrt(turns)
    return OuterStep(share * turns, 1 - share, 1.0)
