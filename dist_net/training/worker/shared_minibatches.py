"""Local steps of which processes of one host share every minibatch: synchronous SGD.

Each process computes the gradient of a part of the samples, averages a part of all gradients, and
updates a part of the state. Batch norm has the statistics of all parts, so that the mean is the
gradient of the minibatch: any number of processes takes the steps of one, up to rounding.
"""

import mmap
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise, repeat
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from dist_net.ground.vector import Vector
from dist_net.training.worker.local_steps import LocalSteps, Minibatch, MinibatchGradient
from dist_net.training.worker.step import TrainingStep
from dist_net.wire.lease_steps import FEWEST_SAMPLES, LeaseSteps
from dist_net.wire.messages import StepSettings

SPINS = 2000  # 40 us, about what it takes to sleep and to be woken


def shared_memory(local: LocalSteps, count: int) -> NDArray[np.float32]:
    """Return what ``count`` processes share: states, sums, a mean, gradients, statistics twice."""
    width = (max(local.rule.state_size, 4 * count) + 15) // 16 * 16  # whole cache lines
    memory = mmap.mmap(-1, 4 * (4 + 3 * count) * width)  # allocated where it is written
    return np.frombuffer(memory, np.float32).reshape(-1, width, copy=False)


class SharedSteps(LocalSteps):
    """The steps of ``local``, which has a ``TrainingStep``, with minibatches in parts.

    ``memory`` has room for each part. Process ``number`` computes one part and must ``wait``
    for the others; without a number, this process computes all parts, to the same bits.
    """

    def __init__(
        self,
        local: LocalSteps,
        memory: NDArray[np.float32],
        number: int | None = None,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        rule, step, count = local.rule, local.gradient_at, len(memory[4:]) // 3
        assert isinstance(step, TrainingStep)  # as in ``fit``
        facts = local.batch_size, local.learning_rate_at, local.digest_of
        super().__init__(self._mean_gradient, rule, *facts)
        self._wait = wait
        self._states = [(each[: rule.state_size], each[: rule.size]) for each in memory[:2]]
        self._sums = memory[2, : 4 * count].view(np.float64).reshape(count, 2, copy=False)
        self._average, self._gradients = memory[3, : rule.size], memory[4 : 4 + count, : rule.size]
        # Two sets, in turn: other processes may still read the last.
        self._statistics = memory[4 + count :].view(np.float64).reshape(2, count, -1, copy=False)
        if number is not None:
            rule.keep_part(number, count)
        numbers = range(count) if number is None else [number]
        self._steps = {each: step.of_part(self._gradients[each]) for each in numbers}

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of a lease of one part; see ``LocalSteps.take``."""
        self._latest, self._other = self._states
        yield from super().take(base, lease)
        self._wait()

    def _mean_gradient(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        """Return the mean gradient; its norm and the part that this process updates are valid."""
        epoch, first, last = minibatch
        count, samples = len(self._gradients), last - first
        used = count if samples >= FEWEST_SAMPLES * count else 1
        edges = [first + samples * part // used for part in range(used + 1)]
        parts = [Minibatch(epoch, *each) for each in pairwise(edges)]
        shares = np.diff(edges) / samples
        self._wait()  # for the weights
        plans = {n: step.bound(weights, parts[n]) for n, step in self._steps.items() if n < used}
        with np.errstate(all="ignore"):
            stages = zip(*(plan.stages() for plan in plans.values()), strict=True)
            for turn, stage in enumerate(stages):
                (mean, *_), values = zip(*stage, strict=True)
                shared = self._statistics[turn % 2, :used, : len(values[0])]
                for number, value in zip(plans, values, strict=True):
                    shared[number] = value
                if used > 1:
                    self._wait()  # for those of the others
                for value in values:
                    value[:] = mean.of(shared, shares)
        for number, plan in plans.items():
            self._sums[number] = plan.outputs[:2]
        self._wait()
        place = self.rule.part
        gradients = shares.astype(np.float32), self._gradients[:used, place]
        np.einsum("i,ij->j", *gradients, out=self._average[place])
        if self.rule.clip_norm:
            self._wait()  # for the whole mean: its norm decides
        loss, right = self._sums[:used].T
        return MinibatchGradient(samples * float(shares @ loss), self._average, float(right.sum()))


def sharing(local: LocalSteps, count: int) -> Callable[[int, StepSettings], LocalSteps]:
    """Return what ``count`` forked processes call with their numbers, to share their steps."""
    memory, fork = shared_memory(local, count), get_context("fork")
    semaphores = [fork.Semaphore(0) for _ in range(count)]

    def wait(number: int) -> None:
        """Return when all processes have called this."""
        for semaphore in (*semaphores[:number], *semaphores[number + 1 :]):
            semaphore.release()
        for _ in semaphores[1:]:
            if not any(map(semaphores[number].acquire, repeat(False, SPINS))):
                semaphores[number].acquire()

    return lambda number, _: SharedSteps(local, memory, number, partial(wait, number))
