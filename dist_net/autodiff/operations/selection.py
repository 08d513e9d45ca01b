"""The largest and the smallest elements along axes, their indices, and stop_gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, positive_axis
from dist_net.autodiff.expression import Expression, Operation, View, apply
from dist_net.autodiff.operations.elementwise import astype, equal
from dist_net.autodiff.operations.reduction import Axis, Reduction, Sum, reduce
from dist_net.autodiff.operations.shaping import reshape
from dist_net.errors import ShapeError


@dataclass(frozen=True)
class Max(Reduction):
    """The maximum along axes; tied elements share the gradient."""

    of_pair: ClassVar[np.ufunc] = np.maximum

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        if any(inputs[0].shape[axis] == 0 for axis in self.axes):
            name = self.label.lower()
            raise ShapeError(f"{name}: shape {inputs[0].shape} has no elements on a reduced axis")
        return super().result(*inputs)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(self.of_pair.reduce, inputs[0], axis=self.axes, out=out, keepdims=True)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        (x,) = node.inputs
        hits = astype(equal(x, node), x.dtype)
        return (hits * (cotangent / apply(Sum(self.axes), hits)),)


class Min(Max):
    """The minimum along axes; tied elements share the gradient."""

    of_pair = np.minimum


@dataclass(frozen=True)
class ArgMax(Operation):
    """The index of the largest element along ``axis``; the first if several tie."""

    axis: int
    method: ClassVar[str] = "argmax"

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        if x.shape[self.axis] == 0:
            raise ShapeError(
                f"{self.method}: shape {x.shape} has no elements along axis {self.axis}"
            )
        return (*x.shape[: self.axis], *x.shape[self.axis + 1 :]), np.dtype(np.intp)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(getattr(inputs[0], self.method), self.axis, out)


class ArgMin(ArgMax):
    """The index of the smallest element along ``axis``; the first if several tie."""

    method = "argmin"


@dataclass(frozen=True)
class StopGradient(View):
    """The identity with a gradient of 0."""

    keeps_contiguous = True

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (None,)


def max(x: Expression, axis: Axis = None, keepdims: bool = False) -> Expression:
    """Return the maximum along one, several or all (None) axes; ``keepdims`` keeps them as 1."""
    return reduce(Max, x, axis, keepdims)


def min(x: Expression, axis: Axis = None, keepdims: bool = False) -> Expression:
    """Return the minimum along one, several or all (None) axes; ``keepdims`` keeps them as 1."""
    return reduce(Min, x, axis, keepdims)


def argmax(x: Expression, axis: int | None = None) -> Expression:
    """Return the index of the largest element along ``axis``, or in row-major order (None)."""
    return _index(ArgMax, x, axis)


def argmin(x: Expression, axis: int | None = None) -> Expression:
    """Return the index of the smallest element along ``axis``, or in row-major order (None)."""
    return _index(ArgMin, x, axis)


def _index(operation: type[ArgMax], x: Expression, axis: int | None) -> Expression:
    if axis is None:
        return apply(operation(0), reshape(x, (x.size,)))
    return apply(operation(positive_axis(operation.method, axis, x.shape)), x)


def stop_gradient(x: Expression) -> Expression:
    """Return x as a constant for differentiation."""
    return apply(StopGradient(), x)
