"""Elements along axes: the largest and the smallest, their order, their product and variance.

An order has no gradient, but the elements that it moves have. Also stop_gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, integer, positive_axis
from dist_net.autodiff.expression import Expression, Operation, View, apply
from dist_net.autodiff.operations.elementwise import astype, equal, maximum, sqrt, square, where
from dist_net.autodiff.operations.indexing import getitem
from dist_net.autodiff.operations.reduction import Axis, Reduction, Sum, broadcast_to, reduce, sum
from dist_net.autodiff.operations.shaping import concatenate, reshape, split, transpose
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
class ArgSort(Operation):
    """The indices that sort the last axis; equal elements keep their order, and nan is largest."""

    descending: bool

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape, np.dtype(np.intp)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (x,) = inputs
        if not self.descending:
            return lambda: np.copyto(out, x.argsort(-1, "stable"))
        backwards, last = x[..., ::-1], x.shape[-1] - 1
        return lambda: np.subtract(last, backwards.argsort(-1, "stable")[..., ::-1], out)


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


def argsort(x: Expression, axis: int = -1, descending: bool = False) -> Expression:
    """Return the indices that sort ``x`` along ``axis``; equal elements keep their order."""
    axes = [*range(x.ndim)]
    place = positive_axis("argsort", axis, x.shape)
    axes[place], axes[-1] = axes[-1], axes[place]
    return transpose(apply(ArgSort(descending), transpose(x, axes)), axes)


def take_along_axis(x: Expression, indices: Expression, axis: int = -1) -> Expression:
    """Return the elements at ``indices`` along ``axis``, such as those of ``argsort``."""
    places: list[Expression | Array] = [*np.ogrid[tuple(slice(n) for n in indices.shape)]]
    places[positive_axis("take_along_axis", axis, x.shape)] = indices
    return getitem(x, tuple(places))


def sort(x: Expression, axis: int = -1, descending: bool = False) -> Expression:
    """Return the elements in order along ``axis``; nan counts as the largest."""
    return take_along_axis(x, argsort(x, axis, descending), axis)


def top_k(x: Expression, k: int, axis: int = -1) -> tuple[Expression, Expression]:
    """Return the ``k`` largest along ``axis``, in stable order, and indices. Raise ShapeError."""
    place = positive_axis("top_k", axis, x.shape)
    if integer("top_k: k", k, 1) > x.shape[place]:
        raise ShapeError(f"top_k: k={k} of {x.shape}, with {x.shape[place]} along axis {axis}")
    first = (slice(None),) * place + (slice(k),)
    indices = argsort(x, axis, descending=True)[first]
    return take_along_axis(x, indices, axis), indices


def prod(x: Expression, axis: Axis = None, keepdims: bool = False) -> Expression:
    """Return the product along one, several or all (None) axes; ``keepdims`` keeps them as 1.

    Halves are multiplied with each other, so the gradient is also right where an element is 0.
    """
    total = sum(x, axis, keepdims)
    if x.size == 0:
        return total + 1
    for i, length in enumerate(sum(x, axis, keepdims=True).shape):
        while (left := x.shape[i]) > length:
            first, second, rest = split(x, [left // 2, left // 2 * 2], i)
            x = concatenate([first * second, rest], i)
    return reshape(x, total.shape)


def var(x: Expression, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Expression:
    """Return the variance along one, several or all (None) axes; ``keepdims`` keeps them as 1.

    The sum of squares is divided by the number of elements less ``ddof``, which is 0 as in NumPy;
    PyTorch's default is 1. Raise ``ShapeError`` if there are not more elements than ``ddof``.
    """
    variance = square(x - x.mean(axis, keepdims=True)).mean(axis, keepdims)
    count = x.size // (variance.size or 1)
    if variance.size and count <= ddof:
        raise ShapeError(f"var: {count} elements along axis {axis}; expected more than ddof={ddof}")
    return variance * (count / (count - ddof)) if ddof else variance


def std(x: Expression, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Expression:
    """Return the root of ``var``; its slope is 0 if all elements are equal."""
    return root_of_variance(var(x, axis, keepdims, ddof))


def root_of_variance(variance: Expression) -> Expression:
    """Return the root, with a slope of 0 at 0, the variance of equal elements, instead of inf."""
    is_zero = equal(variance, 0.0)
    return where(is_zero, 0.0, sqrt(where(is_zero, 1.0, variance)))


def masked_mean(
    x: Expression, mask: Expression, axis: Axis = None, keepdims: bool = False
) -> Expression:
    """Return the mean where ``mask``, bools that broadcast, is true; 0 if nowhere. See ``mean``."""
    counted = sum(broadcast_to(astype(mask, x.dtype), x.shape), axis, keepdims)
    return sum(where(mask, x, 0.0), axis, keepdims) / maximum(counted, 1.0)


def stop_gradient(x: Expression) -> Expression:
    """Return x as a constant for differentiation."""
    return apply(StopGradient(), x)
