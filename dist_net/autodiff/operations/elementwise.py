"""Elementwise operations, with NumPy's names, meanings and broadcasting.

The table has a row for each function: the function of arrays, its derivatives, and the dtypes it
accepts. A row is an operation and also the function that applies it: ``exp(x)`` is a node of
``exp``. Operations on several dtypes are classes below the table.
"""

# ruff: noqa: ARG005 - all derivatives take the same arguments: y, g and each input

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import (
    BOOLS,
    FLOATS,
    NUMBERS,
    Expression,
    Operand,
    Operation,
    apply,
    broadcast_shape,
    constant,
    operands,
    same_dtype,
)
from dist_net.autodiff.kernels.compiled import ERF
from dist_net.autodiff.operations.reduction import sum_to_shape
from dist_net.errors import ParameterError

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
        pairs = zip(derivatives, node.inputs, strict=True)
        return [None if of_x is None else sum_to_shape(of_x, x.shape) for of_x, x in pairs]

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        """Return g · df/dx for y = f(x) and the cotangent g of y, before undoing broadcasting."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Row(Elementwise):
    """A row of the table.

    ``function(*inputs, out=out)`` is a ufunc, or a function that calls several and reads the inputs
    once. ``derivatives`` is a function of y, g and each input.
    """

    function: Callable[..., object]
    derivatives: Callable[..., Derivatives]
    kinds: str = NUMBERS
    overwrites_inputs: bool = True

    @property
    def __name__(self) -> str:
        return self.function.__name__.removeprefix("_")

    @property
    def label(self) -> str:
        return self.function.__name__.title().replace("_", "")

    def __repr__(self) -> str:
        return f"{self.label}()"

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(self.function, *inputs, out=out)


class Unary(Row):
    """A function with one input."""

    def __call__(self, x: Expression) -> Expression:
        return apply(self, x)


class Binary(Row):
    """A function with two inputs, one of which may be a number or an array."""

    def __call__(self, first: Operand, second: Operand) -> Expression:
        return apply(self, *operands(first, second))


class Comparison(Binary):
    """A function with a boolean result, which has no gradient."""

    def __init__(self, function: np.ufunc) -> None:
        super().__init__(function, lambda *_: (None, None), overwrites_inputs=False)

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return super().result(*inputs)[0], np.dtype(np.bool_)


def _of_power(y: Expression, g: Expression, x: Expression, n: Expression) -> Derivatives:
    of_base = g * n * power(x, where(equal(n, 0.0), 1.0, n - 1.0))  # 0, not nan, for 0 ** 0
    return of_base, g * y * log(where(equal(x, 0.0), 1.0, x))


def _of_clipped(y: Expression, g: Expression, *bounds: Expression) -> Derivatives:
    _, low, high = bounds
    return where(logical_and(greater(y, low), less(y, high)), g, 0.0), None, None


def _of_chosen(is_first: Comparison) -> Callable[..., Derivatives]:
    """Return the derivatives of a choice: if the inputs tie, the second receives all of g."""

    def derivatives(_: Expression, g: Expression, a: Expression, b: Expression) -> Derivatives:
        first = is_first(a, b)
        return where(first, g, 0.0), where(logical_not(first), g, 0.0)

    return derivatives


def _sigmoid(x: Array, out: Array) -> None:
    np.negative(x, out)
    np.exp(out, out)
    np.add(out, 1, out)
    np.reciprocal(out, out)  # 0 if the exponential is infinite


def _power(x: Array, n: Array, out: Array) -> None:
    if n.ndim == 0 and n == 2:  # four times as fast
        np.square(x, out)
    else:
        np.power(x, n, out)


def _relu(x: Array, out: Array) -> None:
    np.maximum(x, 0, out=out)


def _leaky_relu(x: Array, slope: Array, out: Array) -> None:
    np.maximum(x, np.multiply(x, slope, out), out=out)


def _erf(x: Array, out: Array) -> None:
    if out.dtype != np.float32:  # exact, and 50 times slower
        np.frompyfunc(math.erf, 1, 1)(x, out=out, casting="unsafe")
        return
    np.multiply(x, ERF[-1], out)
    for coefficient in ERF[-2::-1]:
        np.multiply(out, x, out)
        np.add(out, coefficient, out)
        np.multiply(out, x, out)
    np.tanh(out, out)


less = Comparison(np.less)
less_equal = Comparison(np.less_equal)
greater = Comparison(np.greater)
greater_equal = Comparison(np.greater_equal)
equal = Comparison(np.equal)
logical_and = Binary(np.logical_and, lambda y, g, a, b: (None, None), BOOLS)
logical_or = Binary(np.logical_or, lambda y, g, a, b: (None, None), BOOLS)
logical_not = Unary(np.logical_not, lambda y, g, x: (None,), BOOLS)
add = Binary(np.add, lambda y, g, a, b: (g, g))
subtract = Binary(np.subtract, lambda y, g, a, b: (g, -g))
multiply = Binary(np.multiply, lambda y, g, a, b: (g * b, g * a))
divide = Binary(np.divide, lambda y, g, a, b: (g / b, -(g / b * y)), FLOATS)
power = Binary(_power, _of_power, FLOATS)
# The larger and the smaller of two elements; nan if either is nan.
maximum = Binary(np.maximum, _of_chosen(greater))
minimum = Binary(np.minimum, _of_chosen(less))
negative = Unary(np.negative, lambda y, g, x: (-g,))
sign = Unary(np.sign, lambda y, g, x: (None,))
absolute = Unary(np.absolute, lambda y, g, x: (g * sign(x),))
square = Unary(np.square, lambda y, g, x: (g * 2.0 * x,))
sqrt = Unary(np.sqrt, lambda y, g, x: (g * 0.5 / y,), FLOATS)
exp = Unary(np.exp, lambda y, g, x: (g * y,), FLOATS)
expm1 = Unary(np.expm1, lambda y, g, x: (g * exp(x),), FLOATS)
log = Unary(np.log, lambda y, g, x: (g / x,), FLOATS)
log1p = Unary(np.log1p, lambda y, g, x: (g / (x + 1.0),), FLOATS)
sin = Unary(np.sin, lambda y, g, x: (g * cos(x),), FLOATS)
cos: Unary = Unary(np.cos, lambda y, g, x: (-(g * sin(x)),), FLOATS)
tanh = Unary(np.tanh, lambda y, g, x: (g * (1.0 - square(y)),), FLOATS)
# 1 / (1 + exp(-x)); in the derivative, 1 - y would round to 0.
sigmoid: Unary = Unary(_sigmoid, lambda y, g, x: (g * y * sigmoid(-x),), FLOATS)
erf = Unary(_erf, lambda y, g, x: (g * 2 / math.pi**0.5 * exp(-square(x)),), FLOATS, False)
# relu'(0) is 0. The gradient of a leaky relu takes fewer passes over memory than a maximum's.
relu = Unary(_relu, lambda y, g, x: (where(greater(y, 0.0), g, 0.0),), FLOATS)
leaky = Row(
    _leaky_relu,
    lambda y, g, x, slope: (g * (astype(greater(y, 0.0), y.dtype) * (1.0 - slope) + slope), None),
    FLOATS,
    False,
)
clipped = Row(np.clip, _of_clipped, FLOATS)


def softplus(x: Expression) -> Expression:
    """Return log(1 + exp(x)), also where the exponential would overflow."""
    return maximum(x, 0.0) + log1p(exp(minimum(-x, x)))  # at the tie, the derivative is 1/2


def silu(x: Expression) -> Expression:
    return x * sigmoid(x)


def clip(x: Expression, low: float, high: float) -> Expression:
    """Limit x to ``low`` and ``high``; nan stays nan.

    The derivative at both bounds is 0. Raise ParameterError unless low <= high, and DTypeError.
    """
    if not low <= high:
        raise ParameterError(f"clip: from {low} to {high}; expected low <= high")
    return apply(clipped, x, constant(low, x.dtype), constant(high, x.dtype))


def leaky_relu(x: Expression, slope: float = 0.1) -> Expression:
    """Return x if x > 0, else ``slope`` · x, for a slope from 0 to 1; Darknet's is 0.1.

    The derivative at 0 is the slope. Raise ParameterError, and DTypeError unless x is a float.
    """
    if not 0 <= slope <= 1:
        raise ParameterError(f"leaky_relu: slope {slope}; expected 0 <= slope <= 1")
    return apply(leaky, x, constant(slope, x.dtype)) if slope else relu(x)


@dataclass(frozen=True)
class Where(Elementwise):
    """``condition ? first : second``, element by element."""

    overwrites_inputs = False

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        condition, first, second = inputs
        same_dtype("where", condition, kinds=BOOLS)
        return broadcast_shape("where", *inputs), same_dtype("where", first, second)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        condition, first, second = inputs

        def select_into_out() -> None:
            np.copyto(out, second)
            np.copyto(out, first, where=condition)

        return select_into_out

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        return None, where(x[0], g, 0.0), where(logical_not(x[0]), g, 0.0)


def where(condition: Expression, x: Operand, y: Operand) -> Expression:
    """Return x where the condition is true, else y; the unselected value may be nan."""
    return apply(Where(), condition, *operands(x, y))


@dataclass(frozen=True)
class Mask(Elementwise):
    """A faster ``where(condition, x, 0)``, into which plans rewrite it; needs no VJP.

    The product of the bits of ``x``, as an integer, and the condition. It takes a fifth of the time
    of a masked copy, which branches at each element. A product of floats would be nan for an
    infinite ``x`` and a false condition.
    """

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return broadcast_shape("where", *inputs), inputs[1].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        condition, x = inputs
        bits = np.dtype(f"i{x.itemsize}")
        return partial(np.multiply, x.view(bits), condition.view(np.int8), out.view(bits))


@dataclass(frozen=True)
class AsType(Elementwise):
    """Conversion to another dtype."""

    dtype: np.dtype[np.generic]
    overwrites_inputs = False

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape, self.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.copyto, out, inputs[0], "unsafe")

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        return (astype(g, x[0].dtype) if x[0].dtype.kind == y.dtype.kind == "f" else None,)


def astype(x: Expression, dtype: DTypeLike) -> Expression:
    return x if np.dtype(dtype) == x.dtype else apply(AsType(np.dtype(dtype)), x)
