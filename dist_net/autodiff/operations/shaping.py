"""Reshape and transpose: views of the same elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_net.autodiff.arrays import Array, Shape, integers
from dist_net.autodiff.expression import Expression, View, apply
from dist_net.errors import ShapeError


@dataclass(frozen=True)
class Reshape(View):
    """The same elements, in row-major order, in another shape."""

    shape: Shape
    keeps_contiguous = True
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        if any(length < 0 for length in self.shape):
            raise ShapeError(f"reshape: {x.shape} to {self.shape}; expected at most one -1")
        if x.size != math.prod(self.shape):
            raise ShapeError(
                f"reshape: {x.shape} has {x.size} elements, {self.shape} needs "
                f"{math.prod(self.shape)}"
            )
        return self.shape, x.dtype

    def view(self, array: Array) -> Array:
        # Binding the plan would make a copy only once, which would be stale at the next run.
        return array.reshape(self.shape, copy=False)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (reshape(cotangent, node.inputs[0].shape),)


@dataclass(frozen=True)
class Transpose(View):
    """Axis ``axes[i]`` of the input becomes axis i."""

    axes: tuple[int, ...]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        if sorted(self.axes) != list(range(x.ndim)):
            raise ShapeError(
                f"transpose: axes {self.axes} of shape {x.shape}; expected a permutation of "
                f"{tuple(range(x.ndim))}"
            )
        return tuple(x.shape[axis] for axis in self.axes), x.dtype

    def view(self, array: Array) -> Array:
        return array.transpose(self.axes)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (transpose(cotangent, tuple(int(axis) for axis in np.argsort(self.axes))),)


def reshape(x: Expression, shape: Sequence[int]) -> Expression:
    """Return ``x`` in another shape of the same size; one length may be -1 and is inferred."""
    lengths = integers("reshape: shape", shape)
    if lengths.count(-1) == 1:
        known = math.prod(length for length in lengths if length != -1)
        if known == 0 or x.size % known:
            raise ShapeError(f"reshape: {x.shape} does not divide into {lengths}")
        lengths = tuple(x.size // known if length == -1 else length for length in lengths)
    return x if lengths == x.shape else apply(Reshape(lengths), x)


def transpose(x: Expression, axes: Sequence[int] | None = None) -> Expression:
    """Return ``x`` with permuted axes, reversed if ``axes`` is None; -1 is the last axis."""
    given = range(x.ndim)[::-1] if axes is None else integers("transpose: axes", axes)
    order = tuple(axis + x.ndim if axis < 0 else axis for axis in given)
    return x if order == tuple(range(x.ndim)) else apply(Transpose(order), x)


def matrix_transpose(x: Expression) -> Expression:
    """Transpose every matrix of a stack by exchanging the last two axes.

    Raise ``ShapeError`` if ``x`` has fewer than two axes.
    """
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: shape {x.shape}; expected at least two axes")
    return transpose(x, (*range(x.ndim - 2), -1, -2))
