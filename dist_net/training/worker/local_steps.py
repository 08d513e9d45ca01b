"""Local steps: a worker's own updates from the server's weights; no I/O."""

from typing import Protocol

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


class LocalSteps:
    """The local steps of each lease, by ``rule``, which is reset at the beginning of a lease.

    ``step`` computes the gradients; the last ``buffers`` elements of the weights are not trained.
    Allocate three vectors at first, and none afterwards.
    """

    def __init__(self, step: MinibatchStep, rule: UpdateRule) -> None:
        self._step = step
        self._rule = rule
        self.buffers = rule.size - rule.trained_size
        # Compiled loops must not write the results into the weights.
        self._weights, self._next, self._gradient = np.empty((3, rule.size), np.float32)
        self._base = self._weights
        self._steps = 0

    def begin(self, base: Vector) -> None:
        """Begin a lease from ``base``, which is borrowed until ``difference``."""
        self._base = base
        np.copyto(self._weights, base)
        self._rule.reset()
        self._steps = 0

    def step(self, learning_rate: float) -> tuple[float, int]:
        """Take a step on the gathered minibatch; return its loss and its correct predictions."""
        result = self._step.run(self._weights, self._gradient)
        self._steps += 1
        update = self._weights, [self._gradient], self._next, [learning_rate], self._steps
        self._rule.update(*update)
        self._weights, self._next = self._next, self._weights
        return result

    def difference(self, out: Vector) -> None:
        """Write the initial minus the current weights, a descent direction like a gradient."""
        np.subtract(self._base, self._weights, out=out)
