"""Activations: nonlinear functions of expressions."""

from __future__ import annotations

from collections.abc import Callable

from dist_net.autodiff import Expression, clip, leaky_relu, sigmoid, softmax, tanh
from dist_net.errors import ParameterError
from dist_net.spelling import suggestion

Activation = Callable[[Expression], Expression]

__all__ = [
    "Activation",
    "leaky_relu",
    "linear",
    "relu",
    "relu6",
    "sigmoid",
    "softmax",
    "tanh",
]


def linear(x: Expression) -> Expression:
    """Return x."""
    return x


def relu(x: Expression) -> Expression:
    """Return max(x, 0); the derivative at 0 is 0."""
    return leaky_relu(x, 0.0)


def relu6(x: Expression) -> Expression:
    """Return min(max(x, 0), 6); the derivative at 0 and at 6 is 0."""
    return clip(x, 0.0, 6.0)


ACTIVATIONS: dict[str, Activation] = {
    "leaky_relu": leaky_relu,
    "linear": linear,
    "relu": relu,
    "relu6": relu6,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "tanh": tanh,
}


def activate(x: Expression, activation: Activation | str | None) -> Expression:
    """Return ``activation(x)``, or x for None; raise ``ParameterError`` for anything else.

    A name is one of ``ACTIVATIONS``.
    """
    if activation is None:
        return x
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ParameterError(
                f"unknown activation {activation!r}; {suggestion(activation, ACTIVATIONS)}"
            )
        activation = ACTIVATIONS[activation]
    activated = activation(x) if callable(activation) else activation
    if not isinstance(activated, Expression):
        raise ParameterError(
            f"the activation {activation!r:.80} is no function of an expression that returns one; "
            f"expected one of {', '.join(ACTIVATIONS)}, such a function, or None"
        )
    return activated
