"""Elements by their index: the logit of each label, and the index of the largest."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.expression import (
    Array,
    Expression,
    Kernel,
    Operation,
    Shape,
    apply,
    constant,
)
from dist_net.autodiff.operations.elementwise import add
from dist_net.autodiff.operations.reduction import sum_to_shape
from dist_net.autodiff.operations.selection import cast
from dist_net.autodiff.operations.shaping import reshape
from dist_net.errors import DTypeError, ShapeError


@dataclass(frozen=True)
class Take(Operation):
    """The elements of the first input, which has one axis, that the second names."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, flat_index = inputs
        return flat_index.shape, x.dtype

    def kernel(self, inputs: Sequence[Array], out: Array) -> Kernel:
        x, flat_index = inputs
        # Clipping spares a buffered check of every index; Dataset has checked the labels.
        return partial(x.take, flat_index, 0, out, "clip")

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, flat_index = node.inputs
        return apply(Put(x.shape), cotangent, flat_index), None


@dataclass(frozen=True)
class Put(Operation):
    """Zeros, but for the given values at the given places, which must all differ."""

    shape: Shape

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.shape, inputs[0].dtype

    def kernel(self, inputs: Sequence[Array], out: Array) -> Kernel:
        values = inputs[0]
        flat_index = typing.cast("NDArray[np.intp]", inputs[1])

        def put_into_zeros() -> None:
            out.fill(0)
            out.put(flat_index, values)

        return put_into_zeros

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        values, flat_index = node.inputs
        return sum_to_shape(apply(Take(), cotangent, flat_index), values.shape), None


@dataclass(frozen=True)
class ArgMax(Operation):
    """The index of the largest element along the last axis, the first of those that tie."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ShapeError(f"argmax: shape {x.shape} has no elements on its last axis")
        return x.shape[:-1], np.dtype(np.intp)

    def kernel(self, inputs: Sequence[Array], out: Array) -> Kernel:
        return partial(inputs[0].argmax, -1, out)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (None,)


def pick(x: Expression, indices: Expression) -> Expression:
    """Element ``indices[i]`` of row i: (N, C) and (N,) integers in [0, C) give (N,)."""
    if x.ndim != 2 or indices.shape != x.shape[:1]:
        raise ShapeError(f"pick: shapes {x.shape} and {indices.shape}; expected (N, C) and (N,)")
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"pick: expected integer indices, got dtype {indices.dtype}")
    rows, columns = x.shape
    row_starts = constant(np.arange(rows, dtype=np.intp) * columns)
    flat = reshape(x, (rows * columns,))
    return apply(Take(), flat, add(row_starts, cast(indices, np.intp)))


def argmax(x: Expression) -> Expression:
    """The index of the largest element along the last axis."""
    return apply(ArgMax(), x)
