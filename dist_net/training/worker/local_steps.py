"""Local steps: a worker's own updates from the server's weights; no I/O."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from dist_net.optim import UpdateRule
from dist_net.vector import Vector


class MinibatchStep(Protocol):
    """A source of gradients; see ``dist_net.training.worker.step.TrainingStep``."""

    def gather(self, epoch: int, start: int, stop: int) -> None:
        """Gather samples ``start`` to ``stop`` of the shuffled order of ``epoch``."""
        ...

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        """Fill ``gradient``; return the summed loss and the number of correct predictions."""
        ...

    def unbind(self) -> None:
        """Release all borrowed vectors."""
        ...


class LeaseSteps(NamedTuple):
    """The local steps of a lease, on samples ``start`` to ``stop`` of the order of ``epoch``.

    The lease has ``parts`` parts. Each begins from the same weights, with a fresh optimizer. As a
    frame, an element of the difference has ``bits``.
    """

    epoch: int
    start: int
    stop: int
    learning_rate: float
    parts: int = 1
    bits: int = 8

    def split(self, batch_size: int) -> list["LeaseSteps"]:
        """Return the parts, of whole minibatches and as equal as possible, in the samples' order.

        A lease has at least as many minibatches as parts.
        """
        minibatches = -(-(self.stop - self.start) // batch_size)
        ends = [
            min(self.start + part * minibatches // self.parts * batch_size, self.stop)
            for part in range(self.parts + 1)
        ]
        return [self._replace(start=start, stop=stop, parts=1) for start, stop in pairwise(ends)]


class LocalSteps:
    """The local steps of leases, by ``rule``, which is reset at the beginning of each part.

    ``step`` computes the gradients; the last ``buffers`` elements of the weights are not trained.
    ``loss_sum`` and ``correct`` are sums over the last lease. Allocate three vectors at first, and
    none afterwards.
    """

    def __init__(self, step: MinibatchStep, rule: UpdateRule, batch_size: int) -> None:
        self._step = step
        self._rule = rule
        self._batch_size = batch_size
        self.buffers = rule.size - rule.trained_size
        # Compiled loops must not write the results into the weights.
        self._weights, self._next, self._gradient = np.empty((3, rule.size), np.float32)
        self.loss_sum, self.correct = 0.0, 0

    def take(self, base: Vector, lease: LeaseSteps, out: Vector) -> Iterator[None]:
        """Take the steps of ``lease`` from ``base``; yield before each minibatch.

        Write to ``out`` the mean of its parts' differences: the initial minus the last weights, a
        descent direction like a gradient.
        """
        self.loss_sum, self.correct = 0.0, 0
        for number, part in enumerate(lease.split(self._batch_size)):
            yield from self._take_part(base, part)
            if number:
                np.subtract(base, self._weights, out=self._gradient)
                out += self._gradient
            else:
                np.subtract(base, self._weights, out=out)
        if lease.parts > 1:
            out *= np.float32(1 / lease.parts)

    def _take_part(self, base: Vector, part: LeaseSteps) -> Iterator[None]:
        np.copyto(self._weights, base)
        self._rule.reset()
        loss_sum = 0.0
        for steps, start in enumerate(range(part.start, part.stop, self._batch_size), 1):
            yield
            self._step.gather(part.epoch, start, min(start + self._batch_size, part.stop))
            loss, correct = self._step.run(self._weights, self._gradient)
            update = self._weights, [self._gradient], self._next, [part.learning_rate], steps
            self._rule.update(*update)
            self._weights, self._next = self._next, self._weights
            loss_sum += loss
            self.correct += correct
        self.loss_sum += loss_sum
