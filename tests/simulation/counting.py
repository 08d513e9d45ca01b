"""A model whose weights show which samples were applied, and from which weights."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dist_net.ground.vector import ArrayShapes, Vector
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.local_steps import LocalSteps, Minibatch, MinibatchGradient
from dist_net.wire.messages import StepSettings

MIXED, OBSERVED = 4, 2
"""The numbers of further parameters, and of buffers, which depend on the weights."""

MOMENTA = (0.9,)
PULL = np.float32(0.01)


def counting_layout(epochs: int, samples: int) -> ArrayShapes:
    """Return a layout with one parameter for each sample of each epoch; the rest is mixed."""
    return ("applied", (epochs, samples)), ("mixed", (MIXED,)), ("observed", (OBSERVED,))


class CountingStep:
    """A `GradientFunction` with the gradient -1 at the samples of the minibatch, and 0 at others.

    ``is_broken`` decides for each gradient whether it is not finite.
    """

    def __init__(
        self, settings: RunSettings, is_broken: Callable[[], bool] = lambda: False
    ) -> None:
        self._is_broken = is_broken
        self._samples = settings.samples
        self._counted = settings.samples_total

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        epoch, start, stop = minibatch
        first = epoch * self._samples
        gradient = np.zeros_like(weights)
        gradient[first + start : first + stop] = -1
        mixed = weights[self._counted :]
        np.multiply(mixed - np.float32(first + start), PULL, out=gradient[self._counted :])
        if self._is_broken():
            gradient[-1] = np.nan
        return MinibatchGradient(1.0, gradient, 1)


def counting_steps(
    settings: RunSettings, steps: StepSettings, is_broken: Callable[[], bool] = lambda: False
) -> LocalSteps:
    """Return a worker's local steps for the settings of a server that it has joined."""
    joined = settings
    if steps != settings.step_settings:  # checking changed settings takes long
        joined = replace(settings, batch_size=steps.batch_size, learning_rate=steps.learning_rate)
    step, rule = CountingStep(joined, is_broken), joined.start_rule()
    return LocalSteps(step, rule, joined.batch_size, joined.learning_rate_at)
