"""Elementwise arithmetic and comparisons, with NumPy's broadcasting.

The table has a row for each NumPy ufunc: the ufunc, its derivatives, and the dtypes it accepts. A
row is an operation and also the function that applies it: ``exp(x)`` is a node of ``exp``.
"""

# ruff: noqa: ARG005 - all derivatives take the same arguments: y, g and each input

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import (
    FLOATS,
    NUMBERS,
    Expression,
    Operand,
    Operation,
    apply,
    broadcast_shape,
    operands,
    same_dtype,
)
from dist_net.autodiff.operations.reduction import sum_to_shape

Derivatives: TypeAlias = "Sequence[Expression | None]"


class Elementwise(Operation):
    """A function of each element of inputs that broadcast to the result's shape."""

    kinds: str = NUMBERS
    overwrites_inputs = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", self.label).lower()
        dtype = same_dtype(name, *inputs, kinds=self.kinds)
        return broadcast_shape(name, *inputs), dtype

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        derivatives = self.derivatives(node, cotangent, *node.inputs)
        return [
            None if derivative is None else sum_to_shape(derivative, each.shape)
            for derivative, each in zip(derivatives, node.inputs, strict=True)
        ]

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        """Return g · df/dx for y = f(x) and the cotangent g of y, before undoing broadcasting."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Ufunc(Elementwise):
    """A row of the table: ``derivatives`` is a function of y, g and each input."""

    ufunc: np.ufunc
    derivatives: Callable[..., Derivatives]
    kinds: str = NUMBERS

    @property
    def label(self) -> str:
        return self.ufunc.__name__.title().replace("_", "")

    def __repr__(self) -> str:
        return f"{self.label}()"

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(self.ufunc, *inputs, out=out)


class UnaryUfunc(Ufunc):
    """A ufunc with one input."""

    def __call__(self, x: Expression) -> Expression:
        return apply(self, x)


class BinaryUfunc(Ufunc):
    """A ufunc with two inputs, one of which may be a number or an array."""

    def __call__(self, first: Operand, second: Operand) -> Expression:
        return apply(self, *operands(first, second))


class Comparison(BinaryUfunc):
    """A ufunc with a boolean result, which has no gradient."""

    overwrites_inputs = False

    def __init__(self, ufunc: np.ufunc) -> None:
        super().__init__(ufunc, lambda *_: (None, None))

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return super().result(*inputs)[0], np.dtype(np.bool_)


def _of_quotient(y: Expression, g: Expression, _: Expression, x: Expression) -> Derivatives:
    share = g / x
    return share, -(share * y)


add = BinaryUfunc(np.add, lambda y, g, a, b: (g, g))
subtract = BinaryUfunc(np.subtract, lambda y, g, a, b: (g, -g))
multiply = BinaryUfunc(np.multiply, lambda y, g, a, b: (g * b, g * a))
divide = BinaryUfunc(np.divide, _of_quotient, FLOATS)
negative = UnaryUfunc(np.negative, lambda y, g, x: (-g,))
exp = UnaryUfunc(np.exp, lambda y, g, x: (g * y,), FLOATS)
expm1 = UnaryUfunc(np.expm1, lambda y, g, x: (g * exp(x),), FLOATS)
log = UnaryUfunc(np.log, lambda y, g, x: (g / x,), FLOATS)
sqrt = UnaryUfunc(np.sqrt, lambda y, g, x: (g * 0.5 / y,), FLOATS)
square = UnaryUfunc(np.square, lambda y, g, x: (g * 2.0 * x,))
tanh = UnaryUfunc(np.tanh, lambda y, g, x: (g * (1.0 - square(y)),), FLOATS)
less = Comparison(np.less)
less_equal = Comparison(np.less_equal)
greater = Comparison(np.greater)
greater_equal = Comparison(np.greater_equal)
equal = Comparison(np.equal)


@dataclass(frozen=True)
class Sigmoid(Elementwise):
    """1 / (1 + exp(-x))."""

    kinds = FLOATS

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        # If the exponential is infinite, the result is 0.
        return in_order(
            [
                partial(np.negative, inputs[0], out),
                partial(np.exp, out, out),
                partial(np.add, out, out.dtype.type(1), out),
                partial(np.reciprocal, out, out),
            ]
        )

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        return (g * y * sigmoid(-x[0]),)  # 1 - y would round to 0


def sigmoid(x: Expression) -> Expression:
    """Return 1 / (1 + exp(-x))."""
    return apply(Sigmoid(), x)
