"""Local steps of which processes of one host share every minibatch: synchronous SGD.

Each process computes the gradient of a part of the samples, averages a part of all gradients, and
updates a part of the state. The mean is the gradient of the minibatch, so that any number of
processes takes the steps of one; rounding and the statistics of batch norm, of a part, differ.
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


def shared_memory(local: LocalSteps, count: int) -> NDArray[np.float32]:
    """Return two states, sums, a mean and ``count`` gradients, which forked processes share."""
    width = (max(local.rule.state_size, 4 * count) + 15) // 16 * 16  # whole cache lines
    memory = mmap.mmap(-1, 4 * (count + 4) * width)  # allocated where it is written
    return np.frombuffer(memory, np.float32).reshape(count + 4, width, copy=False)


class SharedSteps(LocalSteps):
    """The steps of ``local``, of minibatches in parts of ``fewest`` samples or more, or none.

    ``memory`` has a gradient for each part. Process ``number`` computes one part and must ``wait``
    for the others; without a number, this process computes all parts, to the same bits.
    """

    def __init__(
        self,
        local: LocalSteps,
        memory: NDArray[np.float32],
        fewest: int,
        number: int | None = None,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        rule, count = local.rule, len(memory) - 4
        super().__init__(self._mean_gradient, rule, local.batch_size, local.learning_rate_at)
        self._own_gradient_at, self._numbers = local.gradient_at, range(count)
        self._fewest, self._wait = fewest, wait
        self._states = [(each[: rule.state_size], each[: rule.size]) for each in memory[:2]]
        self._sums = memory[2, : 4 * count].view(np.float64).reshape(count, 2, copy=False)
        self._average, self._stacked = memory[3, : rule.size], memory[4:, : rule.size]
        self._gradients = [*self._stacked]
        if number is not None:
            self._numbers = range(number, number + 1)
            rule.keep_part(number, count)
            if isinstance(local.gradient_at, TrainingStep):
                local.gradient_at.gradient = self._gradients[number]  # needs no copy

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of a lease of one part; see ``LocalSteps.take``."""
        self._latest, self._other = self._states
        yield from super().take(base, lease)
        self._wait()

    def _mean_gradient(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        """Return the mean gradient; its norm and the part that this process updates are valid."""
        epoch, first, last = minibatch
        count, samples = len(self._gradients), last - first
        used = max(1, min(count, samples // self._fewest))
        edges = [first + samples * min(part, used) // used for part in range(count + 1)]
        self._wait()  # for the weights
        for number in self._numbers:
            own, (start, stop) = self._gradients[number], edges[number : number + 2]
            if start == stop:
                own[:] = self._sums[number] = 0
                continue
            loss, gradient, right = self._own_gradient_at(weights, Minibatch(epoch, start, stop))
            self._sums[number] = loss, right
            if gradient is not own:
                np.copyto(own, gradient)
        self._wait()
        shares = np.diff(edges).astype(np.float32) / np.float32(samples)
        place = self.rule.part
        np.einsum("i,ij->j", shares, self._stacked[:, place], out=self._average[place])
        if self.rule.clip_norm:
            self._wait()  # for the mean, whose norm counts
        loss, right = map(float, self._sums.sum(axis=0))
        return MinibatchGradient(loss, self._average, right)


def sharing(
    local: LocalSteps, count: int, fewest: int
) -> Callable[[int, StepSettings], LocalSteps]:
    """Return what ``count`` forked processes call with their numbers, to share their steps."""
    memory, fork = shared_memory(local, count), get_context("fork")
    semaphores = [fork.Semaphore(0) for _ in range(count)]

    def wait(number: int) -> None:
        """Return when all processes have called this."""
        for semaphore in (*semaphores[:number], *semaphores[number + 1 :]):
            semaphore.release()
        for _ in semaphores[1:]:
            semaphores[number].acquire()

    return lambda number, _: SharedSteps(local, memory, fewest, number, partial(wait, number))
