"""A model whose weights count how often each sample was applied, and from which weights."""

from collections.abc import Callable

import numpy as np

from dist_net.training.server.settings import RunSettings
from dist_net.vector import Vector

MIXED = 4
"""The number of further parameters, whose gradients depend on the weights."""

PULL = np.float32(0.01)


class CountingStep:
    """A `MinibatchStep` of the worker's loop with one parameter per sample of each epoch.

    The gradient is -1 at the samples of the minibatch. With a learning rate of 1, the weights
    therefore count how often each sample was applied. A round averages its gradients with equal
    shares: then the learning rate must be the number of gradients. With ``weights_are_torn`` the
    gradient is invalid and must not be applied. ``is_broken`` decides for each gradient whether it
    is not finite.
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
        """Do nothing: the step holds no resources."""


def counts(settings: RunSettings, weights: Vector) -> Vector:
    """Return how often each sample of each epoch was applied; as int8, differences are rounded."""
    counted = weights[: settings.samples_total]
    return np.round(counted, 1) if settings.takes_local_steps else counted
