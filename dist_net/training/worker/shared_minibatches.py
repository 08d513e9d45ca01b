"""Local steps of which processes of one host share every minibatch: synchronous SGD.

Each process computes the gradient of a part of the samples, averages a part of all gradients, and
updates a part of the state. The mean is the gradient of the minibatch, and the statistics of batch
norm are combined within the step, so that any number of processes takes the steps of one, up to
rounding.
"""

import mmap
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from dist_net.training.worker.local_steps import LocalSteps, Minibatch, MinibatchGradient
from dist_net.training.worker.step import TrainingStep
from dist_net.vector import Vector
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings

FEWEST_SAMPLES = 2  # of a part: batch norm takes a single one for a whole minibatch


def shared_memory(local: LocalSteps, count: int) -> NDArray[np.float32]:
    """Return two states, sums, a mean, and ``count`` gradients and twice as many values of parts.

    Forked processes share them.
    """
    width = (max(local.rule.state_size, 4 * count) + 15) // 16 * 16  # whole cache lines
    memory = mmap.mmap(-1, 4 * (4 + 3 * count) * width)  # allocated where it is written
    return np.frombuffer(memory, np.float32).reshape(-1, width, copy=False)


class SharedSteps(LocalSteps):
    """The steps of ``local``, whose gradients are of a ``TrainingStep``, of minibatches in parts.

    ``memory`` is shared. Process ``number`` computes one part of ``count`` and must ``wait``
    for the others; without a number, this process computes all parts, to the same bits.
    """

    def __init__(
        self,
        local: LocalSteps,
        memory: NDArray[np.float32],
        count: int,
        number: int | None = None,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        rule, step = local.rule, local.gradient_at
        assert isinstance(step, TrainingStep)
        super().__init__(self._mean_gradient, rule, local.batch_size, local.learning_rate_at)
        self._wait = wait
        self._states = [(each[: rule.state_size], each[: rule.size]) for each in memory[:2]]
        self._sums = memory[2, : 4 * count].view(np.float64).reshape(count, 2, copy=False)
        self._average, self._gradients = memory[3, : rule.size], memory[4 : 4 + count, : rule.size]
        # Two sets, in turn: the others may still read the last.
        self._values = memory[4 + count :].view(np.float64).reshape(2, count, -1, copy=False)
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
        shares = np.diff(edges) / samples
        own = {
            number: Minibatch(epoch, *edges[number : number + 2])
            for number in self._steps
            if number < used
        }
        self._wait()  # for the weights
        plans = {number: self._steps[number].bound(weights, part) for number, part in own.items()}
        with np.errstate(all="ignore"):  # as a plan's run does
            stages = zip(*(plan.stages() for plan in plans.values()), strict=True)
            for turn, stage in enumerate(stages):
                shared = self._values[turn % 2, :used, : len(stage[0][1])]
                for number, (_, value) in zip(plans, stage, strict=True):
                    shared[number] = value
                if used > 1:
                    self._wait()
                for mean, value in stage:
                    value[:] = mean.of(shared, shares)
        for number, plan in plans.items():
            loss, _, right = self._steps[number].result(plan, own[number])
            self._sums[number] = loss, right
        self._wait()
        place = self.rule.part
        gradients = shares.astype(np.float32), self._gradients[:used, place]
        np.einsum("i,ij->j", *gradients, out=self._average[place])
        if self.rule.clip_norm:
            self._wait()  # for the mean, whose norm counts
        loss, right = map(float, self._sums[:used].sum(axis=0))
        return MinibatchGradient(loss, self._average, right)


def sharing(local: LocalSteps, count: int) -> Callable[[int, StepSettings], LocalSteps]:
    """Return what ``count`` forked processes call with their numbers, to share their steps."""
    memory, fork = shared_memory(local, count), get_context("fork")
    semaphores = [fork.Semaphore(0) for _ in range(count)]

    def wait(number: int) -> None:
        """Return when all processes have called this."""
        for semaphore in (*semaphores[:number], *semaphores[number + 1 :]):
            semaphore.release()
        for _ in semaphores[1:]:
            semaphores[number].acquire()

    return lambda number, _: SharedSteps(local, memory, count, number, partial(wait, number))
