"""Maximum, minimum, clip, leaky relu, where, dtype conversion and stop_gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import DTypeLike

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import (
    FLOATS,
    Expression,
    Operand,
    Operation,
    View,
    apply,
    broadcast_shape,
    operands,
    same_dtype,
)
from dist_net.autodiff.operations.elementwise import (
    BinaryUfunc,
    Comparison,
    Derivatives,
    Elementwise,
    equal,
    greater,
    less,
)
from dist_net.autodiff.operations.reduction import Axis, Reduction, Sum, reduce, sum_to_shape
from dist_net.errors import DTypeError, ParameterError, ShapeError


def _of_chosen(is_first: Comparison) -> Callable[..., Derivatives]:
    """Return the derivatives of a choice: if the inputs tie, the second receives all of g."""

    def derivatives(_: Expression, g: Expression, a: Expression, b: Expression) -> Derivatives:
        first = is_first(a, b)
        return where(first, g, 0.0), where(logical_not(first), g, 0.0)

    return derivatives


# The larger and the smaller of two elements; nan if either is nan. relu'(0) is 0.
maximum = BinaryUfunc(np.maximum, _of_chosen(greater))
minimum = BinaryUfunc(np.minimum, _of_chosen(less))


@dataclass(frozen=True)
class Clip(Elementwise):
    """x limited to ``low`` and ``high``; the gradient at both bounds is 0."""

    low: float
    high: float
    kinds = FLOATS

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        number = out.dtype.type
        return partial(np.clip, *inputs, number(self.low), number(self.high), out)

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        above = where(greater(y, self.low), g, 0.0)
        return (where(less(y, self.high), above, 0.0),)


@dataclass(frozen=True)
class Max(Reduction):
    """The maximum along axes; tied elements share the gradient."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        if any(inputs[0].shape[axis] == 0 for axis in self.axes):
            raise ShapeError(f"max: shape {inputs[0].shape} has no elements on a reduced axis")
        return super().result(*inputs)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.maximum.reduce, inputs[0], self.axes, None, out, True)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        (x,) = node.inputs
        hits = astype(equal(x, node), x.dtype)
        return (hits * (cotangent / apply(Sum(self.axes), hits)),)


@dataclass(frozen=True)
class Where(Operation):
    """``condition ? first : second``, element by element."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        condition, first, second = inputs
        expect_condition("where", condition)
        return broadcast_shape("where", *inputs), same_dtype("where", first, second)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        condition, first, second = inputs

        def select_into_out() -> None:
            np.copyto(out, second)
            np.copyto(out, first, where=condition)

        return select_into_out

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        condition, first, second = node.inputs
        return (
            None,
            sum_to_shape(where(condition, cotangent, 0.0), first.shape),
            sum_to_shape(where(logical_not(condition), cotangent, 0.0), second.shape),
        )


@dataclass(frozen=True)
class Mask(Operation):
    """A faster ``where(condition, x, 0)``, into which plans rewrite it; needs no VJP.

    The product of the bits of ``x``, as an integer, and the condition. It takes a fifth of the time
    of a masked copy, which branches at each element. A product of floats would be nan for an
    infinite ``x`` and a false condition.
    """

    overwrites_inputs = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return broadcast_shape("where", *inputs), inputs[1].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        condition, x = inputs
        bits = np.dtype(f"i{x.itemsize}")
        return partial(np.multiply, x.view(bits), condition.view(np.int8), out.view(bits))


@dataclass(frozen=True)
class LogicalNot(Operation):
    """Logical negation."""

    overwrites_inputs = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        expect_condition("logical_not", inputs[0])
        return inputs[0].shape, inputs[0].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.logical_not, inputs[0], out)


@dataclass(frozen=True)
class AsType(Operation):
    """Conversion to another dtype."""

    dtype: np.dtype[np.generic]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape, self.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.copyto, out, inputs[0], "unsafe")

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        (x,) = node.inputs
        differentiable = x.dtype.kind == "f" and self.dtype.kind == "f"
        return (astype(cotangent, x.dtype) if differentiable else None,)


@dataclass(frozen=True)
class StopGradient(View):
    """The identity with a gradient of 0."""

    keeps_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape, inputs[0].dtype

    def view(self, array: Array) -> Array:
        return array

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (None,)


def expect_condition(name: str, condition: Expression) -> None:
    """Raise ``DTypeError`` unless ``condition`` is bool."""
    if condition.dtype != np.bool_:
        raise DTypeError(f"{name}: expected a bool condition, got dtype {condition.dtype}")


def clip(x: Expression, low: float, high: float) -> Expression:
    """Limit x to ``low`` and ``high``; nan stays nan.

    The derivative at both bounds is 0. Raise ``ParameterError`` unless low <= high,
    ``DTypeError`` unless x is a float.
    """
    if not low <= high:
        raise ParameterError(f"clip: from {low} to {high}; expected low <= high")
    return apply(Clip(low, high), x)


def max(x: Expression, axis: Axis = None, keepdims: bool = False) -> Expression:
    """Return the maximum along one, several or all (None) axes; ``keepdims`` keeps them as 1."""
    return reduce(Max, x, axis, keepdims)


def where(condition: Expression, x: Operand, y: Operand) -> Expression:
    """Return x where the condition is true, else y; the unselected value may be nan."""
    return apply(Where(), condition, *operands(x, y))


def logical_not(condition: Expression) -> Expression:
    """Return the negation of ``condition``."""
    return apply(LogicalNot(), condition)


def astype(x: Expression, dtype: DTypeLike) -> Expression:
    """Convert x to another dtype."""
    return x if np.dtype(dtype) == x.dtype else apply(AsType(np.dtype(dtype)), x)


def stop_gradient(x: Expression) -> Expression:
    """Return x as a constant for differentiation."""
    return apply(StopGradient(), x)


@dataclass(frozen=True)
class LeakyRelu(Elementwise):
    """x if x > 0, else ``slope`` · x, for a slope from 0 (relu) to 1.

    Its gradient takes fewer passes over memory than those of a maximum and a product.
    """

    slope: float
    kinds = FLOATS
    overwrites_inputs = False

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (x,) = inputs
        if self.slope == 0:  # 0 · infinity would be nan
            return partial(np.maximum, x, out.dtype.type(0), out=out)
        scale = partial(np.multiply, x, out.dtype.type(self.slope), out)
        return in_order([scale, partial(np.maximum, x, out, out=out)])

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        if self.slope == 0:
            return (where(greater(y, 0.0), g, 0.0),)
        return (apply(LeakyReluGradient(self.slope), g, y),)


@dataclass(frozen=True)
class LeakyReluGradient(Elementwise):
    """g if y > 0, else ``slope`` · g."""

    slope: float
    kinds = FLOATS
    overwrites_inputs = False

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        g, y = inputs
        number = out.dtype.type
        return in_order(
            [
                partial(np.greater, y, number(0), out),  # 1 or 0, in the dtype of ``out``
                partial(np.multiply, out, number(1 - self.slope), out),
                partial(np.add, out, number(self.slope), out),
                partial(np.multiply, out, g, out),
            ]
        )

    def derivatives(self, y: Expression, g: Expression, /, *x: Expression) -> Derivatives:
        return apply(self, g, x[1]), None


def leaky_relu(x: Expression, slope: float = 0.1) -> Expression:
    """Return x if x > 0, else ``slope`` · x, for a slope from 0 to 1; Darknet's is 0.1.

    The derivative at 0 is the slope. Raise ``ParameterError`` for another slope, ``DTypeError``
    unless x is a float.
    """
    if not 0 <= slope <= 1:
        raise ParameterError(f"leaky_relu: slope {slope}; expected 0 <= slope <= 1")
    return apply(LeakyRelu(slope), x)
