"""Activations: functions of expressions that make a network more than one linear map."""

from __future__ import annotations

from collections.abc import Callable

from dist_net.autodiff import Expression, leaky_relu, mask, softmax, tanh

Activation = Callable[[Expression], Expression]

__all__ = ["Activation", "leaky_relu", "linear", "relu", "sigmoid", "softmax", "tanh"]


def linear(x: Expression) -> Expression:
    """x itself."""
    return x


def relu(x: Expression) -> Expression:
    """max(x, 0), as a mask, which the gradient then shares; its derivative at 0 is 0."""
    return mask(x, x > 0.0)


def sigmoid(x: Expression) -> Expression:
    """1 / (1 + exp(-x)), by the hyperbolic tangent, which cannot overflow."""
    return tanh(x * 0.5) * 0.5 + 0.5
