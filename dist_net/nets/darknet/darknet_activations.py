"""Darknet's activations, by their names in a .cfg file.

The formulas follow the program's ``activations.h``. The program treats an unknown name as relu;
this project rejects it.
"""

from __future__ import annotations

from dist_net.autodiff import Expression, clip, expm1, minimum, tanh, where
from dist_net.nn import leaky_relu, linear, relu, sigmoid
from dist_net.nn.activations import Activation

SELU_SCALE = 1.0507
SELU_NEGATIVE_SCALE = 1.0507 * 1.6732


def loggy(x: Expression) -> Expression:
    """2 / (1 + exp(-x)) - 1."""
    return tanh(x * 0.5)


def elu(x: Expression) -> Expression:
    """x if x > 0, else exp(x) - 1."""
    return where(x >= 0.0, x, expm1(minimum(x, 0.0)))


def selu(x: Expression) -> Expression:
    """elu with a scale for each side, rounded as in Darknet."""
    negative = expm1(minimum(x, 0.0)) * SELU_NEGATIVE_SCALE
    return where(x >= 0.0, x * SELU_SCALE, negative)


def relie(x: Expression) -> Expression:
    """Return a leaky relu of slope 0.01."""
    return leaky_relu(x, 0.01)


def ramp(x: Expression) -> Expression:
    """relu(x) + x / 10."""
    return relu(x) + x * 0.1


def plse(x: Expression) -> Expression:
    """Return a sigmoid in three straight pieces."""
    outside = where(x < 0.0, (x + 4.0) * 0.01, (x - 4.0) * 0.01 + 1.0)
    inside = x * 0.125 + 0.5
    return where(x < -4.0, outside, where(x > 4.0, outside, inside))


def hardtan(x: Expression) -> Expression:
    """x clipped to -1 and 1."""
    return clip(x, -1.0, 1.0)


def lhtan(x: Expression) -> Expression:
    """x from 0 to 1, with a slope of 0.001 outside."""
    below = x * 0.001
    return where(x < 0.0, below, where(x > 1.0, below + 0.999, x))


ACTIVATIONS: dict[str, Activation] = {
    "elu": elu,
    "hardtan": hardtan,
    "leaky": leaky_relu,
    "lhtan": lhtan,
    "linear": linear,
    "loggy": loggy,
    "logistic": sigmoid,
    "plse": plse,
    "ramp": ramp,
    "relie": relie,
    "relu": relu,
    "selu": selu,
    "tanh": tanh,
}
