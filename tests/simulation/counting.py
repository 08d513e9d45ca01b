"""A model whose weights count how often each sample was applied, and show from which weights."""

from collections.abc import Callable

import numpy as np

from dist_net.training.server.settings import RunSettings
from dist_net.vector import Vector

MIXED = 4
"""Parameters beside those that count: their gradients depend on the weights."""

PULL = np.float32(0.01)


class CountingStep:
    """A `MinibatchStep` of the worker's loop with one parameter for each sample of each epoch.

    The gradient is -1 at the samples of the minibatch. With a learning rate of 1 the weights are
    therefore how often each was applied. A round averages its gradients, of which each has the same
    share: then the learning rate is the number of them. With ``weights_are_torn`` the gradient is
    one that nobody may apply. ``is_broken`` says, each time, whether it is not finite.
    """

    def __init__(
        self, settings: RunSettings, is_broken: Callable[[], bool] = lambda: False
    ) -> None:
        self._is_broken = is_broken
        self._samples = settings.samples
        self._counted = settings.samples_total
        self._minibatch = 0, 0, 0
        self.weights_are_torn = False

    def gather(self, epoch: int, start: int, stop: int) -> None:
        self._minibatch = epoch, start, stop

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        epoch, start, stop = self._minibatch
        first = epoch * self._samples
        gradient.fill(0)
        gradient[first + start : first + stop] = -1000 if self.weights_are_torn else -1
        mixed = weights[self._counted :]
        np.multiply(mixed - np.float32(first + start), PULL, out=gradient[self._counted :])
        if self._is_broken():
            gradient[-1] = np.nan
        return 1.0, 1

    def unbind(self) -> None:
        """It holds nothing."""


def counts(settings: RunSettings, weights: Vector) -> Vector:
    """How often each sample of each epoch is in the weights; as int8, differences are rounded."""
    counted = weights[: settings.samples_total]
    return np.round(counted, 1) if settings.takes_local_steps else counted
