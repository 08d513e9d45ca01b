"""Steps that a worker takes by itself, from the server's weights; no I/O."""

from typing import Protocol

import numpy as np

from dist_net.optim import UpdateRule
from dist_net.vector import Vector


class MinibatchStep(Protocol):
    """What computes a minibatch; see ``dist_net.training.worker.step.TrainingStep``."""

    def gather(self, epoch: int, start: int, stop: int) -> None:
        """Gather the minibatch."""
        ...

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        """Fill ``gradient``; return the summed loss and the number of right answers."""
        ...

    def unbind(self) -> None:
        """Let go of every vector that it was given."""
        ...


class LocalSteps:
    """The local steps of one lease after the other, by ``rule``, which starts afresh for each.

    ``step`` computes the gradients; the last ``buffers`` elements of the weights are not trained.
    Allocates three vectors, and none in the steady state.
    """

    def __init__(self, step: MinibatchStep, rule: UpdateRule) -> None:
        self._step = step
        self._rule = rule
        self.buffers = rule.size - rule.trained_size
        # Compiled loops need the results apart from the weights.
        self._weights, self._next, self._gradient = np.empty((3, rule.size), np.float32)
        self._base = self._weights
        self._steps = 0

    def begin(self, base: Vector) -> None:
        """Begin a lease from ``base``, borrowed up to ``difference``."""
        self._base = base
        np.copyto(self._weights, base)
        self._rule.reset()
        self._steps = 0

    def step(self, learning_rate: float) -> tuple[float, int]:
        """Take a step on the gathered minibatch; return its summed loss and number of right."""
        result = self._step.run(self._weights, self._gradient)
        self._steps += 1
        update = self._weights, [self._gradient], self._next, [learning_rate], self._steps
        self._rule.update(*update)
        self._weights, self._next = self._next, self._weights
        return result

    def difference(self, out: Vector) -> None:
        """Write the weights before minus the weights now, which descends as a gradient does."""
        np.subtract(self._base, self._weights, out=out)
