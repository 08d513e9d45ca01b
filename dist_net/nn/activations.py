"""Activations: functions of expressions that make a network more than one linear map."""

from __future__ import annotations

from collections.abc import Callable

from dist_net.autodiff import Expression, clip, leaky_relu, sigmoid, softmax, tanh

Activation = Callable[[Expression], Expression]

__all__ = ["Activation", "leaky_relu", "linear", "relu", "relu6", "sigmoid", "softmax", "tanh"]


def linear(x: Expression) -> Expression:
    """x itself."""
    return x


def relu(x: Expression) -> Expression:
    """max(x, 0); its derivative at 0 is 0."""
    return leaky_relu(x, 0.0)


def relu6(x: Expression) -> Expression:
    """min(max(x, 0), 6); its derivative at both is 0."""
    return clip(x, 0.0, 6.0)
