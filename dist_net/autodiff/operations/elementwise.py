"""Elementwise arithmetic and comparisons, with NumPy's broadcasting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import (
    Expression,
    Operand,
    Operation,
    apply,
    broadcast_shape,
    operands,
    same_dtype,
)
from dist_net.autodiff.operations.reduction import sum_to_shape
from dist_net.errors import DTypeError


class Elementwise(Operation):
    """A NumPy ufunc on inputs that broadcast to the result's shape."""

    ufunc: ClassVar[np.ufunc]
    kinds: ClassVar[str] = "fiu"
    """NumPy's kinds of the supported dtypes: floats, integers, unsigned integers."""
    overwrites_inputs = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        dtype = same_dtype(name, *inputs)
        if dtype.kind not in self.kinds:
            expected = "floats" if self.kinds == "f" else "numbers"
            raise DTypeError(
                f"{name}: expected {expected}, got dtype {dtype}; convert with astype()"
            )
        return broadcast_shape(name, *inputs), dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(self.ufunc, *inputs, out)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        derivatives = self.derivatives(node, cotangent, *node.inputs)
        return [
            None if derivative is None else sum_to_shape(derivative, each.shape)
            for derivative, each in zip(derivatives, node.inputs, strict=True)
        ]

    def derivatives(
        self, y: Expression, g: Expression, *x: Expression
    ) -> tuple[Expression | None, ...]:
        """Return g · df/dx for y = f(x) and the cotangent g of y, before undoing broadcasting."""
        raise NotImplementedError


@dataclass(frozen=True)
class Add(Elementwise):
    ufunc = np.add

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return g, g


@dataclass(frozen=True)
class Subtract(Elementwise):
    ufunc = np.subtract

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return g, -g


@dataclass(frozen=True)
class Multiply(Elementwise):
    ufunc = np.multiply

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return g * x[1], g * x[0]


@dataclass(frozen=True)
class Divide(Elementwise):
    ufunc = np.divide
    kinds = "f"

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        share = g / x[1]
        return share, -(share * y)


@dataclass(frozen=True)
class Negative(Elementwise):
    ufunc = np.negative

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return (-g,)


@dataclass(frozen=True)
class Exp(Elementwise):
    ufunc = np.exp
    kinds = "f"

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return (g * y,)


@dataclass(frozen=True)
class Expm1(Elementwise):
    ufunc = np.expm1
    kinds = "f"

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return (g * exp(x[0]),)


@dataclass(frozen=True)
class Log(Elementwise):
    ufunc = np.log
    kinds = "f"

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return (g / x[0],)


@dataclass(frozen=True)
class Sqrt(Elementwise):
    ufunc = np.sqrt
    kinds = "f"

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return (g * 0.5 / y,)


@dataclass(frozen=True)
class Square(Elementwise):
    ufunc = np.square

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return (g * 2.0 * x[0],)


@dataclass(frozen=True)
class Tanh(Elementwise):
    ufunc = np.tanh
    kinds = "f"

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return (g * (1.0 - square(y)),)


@dataclass(frozen=True)
class Sigmoid(Elementwise):
    kinds = "f"

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

    def derivatives(self, y: Expression, g: Expression, *x: Expression) -> tuple[Expression, ...]:
        return (g * y * sigmoid(-x[0]),)  # 1 - y would round to 0


class Comparison(Elementwise):
    """A ufunc with a boolean result, which has no gradient."""

    overwrites_inputs = False

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return super().result(*inputs)[0], np.dtype(np.bool_)


@dataclass(frozen=True)
class Less(Comparison):
    ufunc = np.less


@dataclass(frozen=True)
class LessEqual(Comparison):
    ufunc = np.less_equal


@dataclass(frozen=True)
class Greater(Comparison):
    ufunc = np.greater


@dataclass(frozen=True)
class GreaterEqual(Comparison):
    ufunc = np.greater_equal


@dataclass(frozen=True)
class Equal(Comparison):
    ufunc = np.equal


def add(first: Operand, second: Operand) -> Expression:
    """first + second."""
    return apply(Add(), *operands(first, second))


def subtract(first: Operand, second: Operand) -> Expression:
    """first - second."""
    return apply(Subtract(), *operands(first, second))


def multiply(first: Operand, second: Operand) -> Expression:
    """first * second."""
    return apply(Multiply(), *operands(first, second))


def divide(first: Operand, second: Operand) -> Expression:
    """first / second; floats only."""
    return apply(Divide(), *operands(first, second))


def less(first: Operand, second: Operand) -> Expression:
    """first < second, as bool."""
    return apply(Less(), *operands(first, second))


def less_equal(first: Operand, second: Operand) -> Expression:
    """first <= second, as bool."""
    return apply(LessEqual(), *operands(first, second))


def greater(first: Operand, second: Operand) -> Expression:
    """first > second, as bool."""
    return apply(Greater(), *operands(first, second))


def greater_equal(first: Operand, second: Operand) -> Expression:
    """first >= second, as bool."""
    return apply(GreaterEqual(), *operands(first, second))


def equal(first: Operand, second: Operand) -> Expression:
    """first == second, as bool."""
    return apply(Equal(), *operands(first, second))


def negative(x: Expression) -> Expression:
    """-x."""
    return apply(Negative(), x)


def exp(x: Expression) -> Expression:
    """Return e to the power of x."""
    return apply(Exp(), x)


def expm1(x: Expression) -> Expression:
    """Return exp(x) - 1 without loss of precision near 0."""
    return apply(Expm1(), x)


def log(x: Expression) -> Expression:
    """Return the natural logarithm."""
    return apply(Log(), x)


def sqrt(x: Expression) -> Expression:
    """Return the square root."""
    return apply(Sqrt(), x)


def square(x: Expression) -> Expression:
    """x * x."""
    return apply(Square(), x)


def tanh(x: Expression) -> Expression:
    """Return the hyperbolic tangent."""
    return apply(Tanh(), x)


def sigmoid(x: Expression) -> Expression:
    """1 / (1 + exp(-x))."""
    return apply(Sigmoid(), x)
