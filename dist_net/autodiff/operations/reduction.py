"""Reductions along axes, and broadcasting: sum and broadcast are each other's VJP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from dist_net.autodiff.arrays import Array, Call, Shape, integers
from dist_net.autodiff.expression import NUMBERS, Expression, Operation, View, apply, same_dtype
from dist_net.autodiff.kernels.columns import column_sums
from dist_net.autodiff.operations import shaping
from dist_net.errors import ShapeError

Axis: TypeAlias = int | Sequence[int] | None


@dataclass(frozen=True)
class Reduction(Operation):
    """A function of all elements along ``axes``, which remain with length one."""

    axes: tuple[int, ...]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        shape = tuple(1 if axis in self.axes else n for axis, n in enumerate(x.shape))
        return shape, same_dtype(self.label.lower(), x, kinds=NUMBERS)


@dataclass(frozen=True)
class Sum(Reduction):
    """The sum along axes."""

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (x,) = inputs
        leading = self.axes == tuple(range(len(self.axes)))
        if leading and x.flags.c_contiguous and x.dtype.kind == "f" and out.size > 1:
            return column_sums(x.reshape(-1, out.size, copy=False), out.reshape(-1, copy=False))
        return partial(np.add.reduce, x, self.axes, None, out, True)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (broadcast_to(cotangent, node.inputs[0].shape),)


@dataclass(frozen=True)
class BroadcastTo(View):
    """The input repeated along new and length-one axes."""

    shape: Shape

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        try:
            fits = np.broadcast_shapes(x.shape, self.shape) == self.shape
        except ValueError:
            fits = False
        if not fits:
            raise ShapeError(f"broadcast_to: {x.shape} cannot be repeated to {self.shape}")
        return self.shape, x.dtype

    def view(self, array: Array) -> Array:
        return np.broadcast_to(array, self.shape)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (sum_to_shape(cotangent, node.inputs[0].shape),)


def sum(x: Expression, axis: Axis = None, keepdims: bool = False) -> Expression:
    """Return the sum along one, several or all (None) axes; ``keepdims`` keeps them as length 1.

    The result has the dtype of ``x``; convert small integers first, or their sum wraps around.
    """
    return reduce(Sum, x, axis, keepdims)


def mean(x: Expression, axis: Axis = None, keepdims: bool = False) -> Expression:
    """Return the mean along one, several or all (None) axes; ``keepdims`` keeps them as 1."""
    total = sum(x, axis, keepdims)
    if x.size == 0 and total.size > 0:
        raise ShapeError(f"mean: shape {x.shape} has no elements along axis {axis}")
    return total * (total.size / x.size) if x.size > 0 else total


def broadcast_to(x: Expression, shape: Sequence[int]) -> Expression:
    """Broadcast ``x`` to ``shape`` by NumPy's rules."""
    target = integers("broadcast_to: shape", shape)
    return x if target == x.shape else apply(BroadcastTo(target), x)


def sum_to_shape(x: Expression, shape: Shape) -> Expression:
    """Return the VJP of a broadcast from ``shape`` to that of ``x``: sum repeated elements."""
    if x.shape == shape:
        return x
    new = x.ndim - len(shape)
    axes = [*range(new)]
    axes += [new + i for i, length in enumerate(shape) if length == 1 and x.shape[new + i] != 1]
    return shaping.reshape(sum(x, axes, keepdims=True), shape)


def reduce(operation: type[Reduction], x: Expression, axis: Axis, keepdims: bool) -> Expression:
    """Apply ``operation`` along ``axis``; a negative axis counts from the last. May raise
    ``ShapeError``."""
    try:
        given = normalize_axis_tuple(range(x.ndim) if axis is None else axis, x.ndim)
    except (TypeError, ValueError) as error:
        name = operation.__name__.lower()
        raise ShapeError(f"{name}: axis {axis} of shape {x.shape}: {error}") from error
    positive = tuple(sorted(given))
    reduced = apply(operation(positive), x) if positive else x
    if keepdims:
        return reduced
    return shaping.reshape(reduced, [n for i, n in enumerate(x.shape) if i not in positive])
