"""Local steps: updates that a process takes by itself, from a given training state; no I/O.

Everything that trains takes its steps here: a worker of a cluster, a replay, and ``fit``.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dist_net.ground.vector import Vector
from dist_net.optim import UpdateRule
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings


class Minibatch(NamedTuple):
    """Samples ``start`` to ``stop`` of the shuffled order of ``epoch``."""

    epoch: int
    start: int
    stop: int


class MinibatchGradient(NamedTuple):
    """The summed loss, the mean gradient, and the number of samples predicted right.

    In the places of buffers, ``gradient`` has observations: see ``dist_net.optim.rule``.
    """

    loss_sum: float
    gradient: Vector
    correct: float = 0.0


GradientFunction = Callable[[Vector, Minibatch], MinibatchGradient]
"""Return the gradient at these weights; it is borrowed until the next call.

It must be a function of the weights, the minibatch and the run's seed alone, so that any worker and
any replay computes it again. The weights are borrowed as long as the function exists.
"""


class LocalSteps:
    """Take the local steps of leases by ``rule``, with the gradients of ``gradient_at``.

    ``learning_rate_at`` returns the learning rate after a number of samples of the run, for
    minibatches of ``batch_size``; ``rate_factor`` scales it, and ``learning_rate`` is the last.
    ``state`` is the training state after the last step, or the mean of the parts after a lease of
    several; it is valid until the next step. ``loss_sum`` and ``correct`` are sums over the last
    lease. ``due`` has the weights and the minibatch of the next step. ``digest_of`` returns a
    digest of a minibatch's samples as this process reads them. Allocate two vectors at first, and a
    third with the first lease of several parts.
    """

    def __init__(
        self,
        gradient_at: GradientFunction,
        rule: UpdateRule,
        batch_size: int,
        learning_rate_at: Callable[[float], float],
        digest_of: Callable[[Minibatch], str] = str,
    ) -> None:
        self.rule = rule
        self.digest_of = digest_of
        self.learning_rate_at = learning_rate_at
        self.rate_factor, self.learning_rate = 1.0, 0.0
        self.gradient_at = gradient_at
        self.batch_size = batch_size
        # A step reads one state and writes the other.
        states: list[Vector] = [np.zeros(rule.state_size, np.float32) for _ in range(2)]
        self._latest, self._other = ((state, state[: rule.size]) for state in states)
        self._mean: Vector | None = None
        self.state = self._latest[0]
        self.loss_sum, self.correct = 0.0, 0
        self.due = self._latest[1], Minibatch(0, 0, 0)

    def close(self) -> None:
        """Release what other processes use."""

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of ``lease`` from ``base``; yield before each minibatch."""
        self.loss_sum, self.correct, self.state = 0.0, 0, base
        if lease.parts == 1:
            yield from self._take_part(base, lease)
            return
        if self._mean is None:
            self._mean = np.empty(self.rule.state_size, np.float32)
        for number, part in enumerate(lease.split()):
            yield from self._take_part(base, part)
            if number:
                self._mean += self._latest[0]
            else:
                np.copyto(self._mean, self._latest[0])
        self._mean *= np.float32(1 / lease.parts)
        self.state = self._mean

    def _take_part(self, base: Vector, part: LeaseSteps) -> Iterator[None]:
        if base is not self._latest[0]:
            np.copyto(self._latest[0], base)
        loss_sum = right = 0.0
        share = part.batch_size / self.batch_size
        for number, (start, stop) in enumerate(pairwise(part.edges)):
            state, weights = self._latest
            self.due = weights, Minibatch(part.epoch, start, stop)
            yield
            loss, gradient, correct = self.gradient_at(*self.due)
            scheduled = self.learning_rate_at(part.progress + number * part.pace)
            self.learning_rate = self.rate_factor * scheduled
            self.rule.step(state, gradient, self.learning_rate, self._other[0], share)
            self._latest, self._other = self._other, self._latest
            self.state = self._latest[0]
            loss_sum += loss
            right += correct
        self.loss_sum += loss_sum
        self.correct += round(right)


LocalStepsOf = Callable[[StepSettings], LocalSteps]
"""Return the local steps for the settings of a run."""
