"""Batch normalisation as a layer: the batch's statistics in training, moving averages after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dist_net.autodiff import Expression, batch_normalize, maximum, sqrt
from dist_net.errors import ParameterError, ShapeError
from dist_net.nn.activations import Activation, linear
from dist_net.nn.initializers import ones, zeros
from dist_net.nn.parameters import Scope


@dataclass(frozen=True)
class BatchNorm:
    """activation((x - mean) · gamma / deviation + beta), by channel, which is the last axis.

    In training, mean and variance are those of the batch, and the buffers ``mean`` and
    ``variance`` move towards them: moving ← momentum·moving + (1-momentum)·batch. At inference
    the buffers are used (Ioffe and Szegedy 2015, arXiv 1502.03167). The batch's variance is its
    mean square, as in Keras; PyTorch's moving one is larger by rows / (rows - 1).

    ``epsilon`` is added to the variance, deviation = √(variance + ε), or, with ``epsilon_on``
    "deviation", to its root, √variance + ε, as Darknet computes on CPUs.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    epsilon_on: Literal["variance", "deviation"] = "variance"
    activation: Activation = linear

    def __post_init__(self) -> None:
        if not self.epsilon > 0 or self.epsilon_on not in ("variance", "deviation"):
            raise ParameterError(
                f"BatchNorm: epsilon {self.epsilon} on {self.epsilon_on!r}; expected a number "
                f"above 0, on 'variance' or 'deviation'"
            )

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        if x.ndim < 2:
            raise ShapeError(f"BatchNorm: expected (N, ..., channels), got {x.shape}")
        channels = x.shape[-1:]
        gamma = scope.parameter("gamma", channels, ones)
        beta = scope.parameter("beta", channels, zeros)
        mean = scope.buffer("mean", channels, zeros, self.momentum)
        variance = scope.buffer("variance", channels, ones, self.momentum)
        if not scope.training:
            scale = gamma / self._deviation(variance)
            return self.activation((x - mean) * scale + beta)
        normal, *batch = batch_normalize(x, gamma, beta, self._deviation_in_training)
        for buffer, seen in zip((mean, variance), batch, strict=True):
            scope.observe(buffer, seen)
        return self.activation(normal)

    def _deviation(self, variance: Expression) -> Expression:
        if self.epsilon_on == "variance":
            return sqrt(variance + self.epsilon)
        return sqrt(variance) + self.epsilon

    def _deviation_in_training(self, variance: Expression) -> Expression:
        if self.epsilon_on == "variance":
            return self._deviation(variance)
        # The slope of a root is infinite at 0, where a channel lies that is the same everywhere.
        return self._deviation(maximum(variance, self.epsilon**2))
