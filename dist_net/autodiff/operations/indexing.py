"""Elements by their index: the logit of each label, and the index of the largest."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape, in_order, positive_axis
from dist_net.autodiff.expression import Expression, Operation, apply, constant
from dist_net.autodiff.operations.elementwise import add
from dist_net.autodiff.operations.shaping import reshape
from dist_net.errors import DTypeError, IndexRangeError, ShapeError


@dataclass(frozen=True)
class CheckedIndices(Operation):
    """Integers as intp; each run of a plan raises IndexRangeError unless all are in [0, length).

    ``name`` is who asks, for the message.
    """

    name: str
    length: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (indices,) = inputs
        if indices.dtype.kind not in "iu":
            raise DTypeError(f"{self.name}: expected integer indices, got dtype {indices.dtype}")
        return indices.shape, np.dtype(np.intp)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (indices,) = inputs
        unsigned = out.view(np.uintp)  # negative ones become huge: one comparison finds them, too

        def copy_checked() -> None:
            np.copyto(out, indices, "unsafe")
            if out.size and np.maximum.reduce(unsigned, None) >= self.length:
                position = int(np.argmax(unsigned >= self.length))
                raise IndexRangeError(
                    f"{self.name}: index {indices.flat[position]} at position {position}; expected "
                    f"0 to {self.length - 1}, as there are {self.length} classes"
                )

        return copy_checked

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (None,)


@dataclass(frozen=True)
class Take(Operation):
    """The elements of the first input, which has one axis, that the second names, as NumPy does.

    ``distinct`` promises that it names none of them twice, so that gradients need not add up.
    """

    distinct: bool = False

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, flat_index = inputs
        return flat_index.shape, x.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        x, flat_index = inputs
        return _in_range(partial(x.take, flat_index, 0, out))

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, flat_index = node.inputs
        return apply(Put(x.shape, self.distinct), cotangent, flat_index), None


@dataclass(frozen=True)
class Put(Operation):
    """Zeros, and each of the given values added at its place: what several share is their sum.

    ``distinct`` promises that no place is named twice.
    """

    shape: Shape
    distinct: bool = False

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        values, flat_index = inputs
        if values.shape != flat_index.shape or len(self.shape) != 1:
            raise ShapeError(
                f"put: {values.shape} values at {flat_index.shape} places of {self.shape}; "
                f"expected a place for each, along one axis"
            )
        return self.shape, values.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        values = inputs[0]
        flat_index = typing.cast("NDArray[np.intp]", inputs[1])
        # Adding takes 3.4 instead of 0.7 µs for the 32 labels of a minibatch.
        put = partial(out.put if self.distinct else partial(np.add.at, out), flat_index, values)
        return in_order([partial(out.fill, 0), _in_range(put)])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return apply(Take(self.distinct), cotangent, node.inputs[1]), None


def _in_range(call: Call) -> Call:
    """The call, whose IndexError is raised as this project's."""

    def call_translated() -> None:
        try:
            call()
        except IndexError as error:
            raise IndexRangeError(str(error)) from error

    return call_translated


@dataclass(frozen=True)
class ArgMax(Operation):
    """The index of the largest element along ``axis``, the first of those that tie."""

    axis: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        if x.shape[self.axis] == 0:
            raise ShapeError(f"argmax: shape {x.shape} has no elements along axis {self.axis}")
        return (*x.shape[: self.axis], *x.shape[self.axis + 1 :]), np.dtype(np.intp)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(inputs[0].argmax, self.axis, out)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (None,)


def gather(x: Expression, indices: Expression) -> Expression:
    """Element ``indices[i]`` of row i: (N, C) and (N,) integers in [0, C) give (N,).

    Raises ShapeError or DTypeError for others; a plan that meets an index outside of [0, C) raises
    IndexRangeError when it runs.
    """
    if x.ndim != 2 or indices.shape != x.shape[:1]:
        raise ShapeError(f"gather: shapes {x.shape} and {indices.shape}; expected (N, C) and (N,)")
    rows, columns = x.shape
    row_starts = constant(np.arange(rows, dtype=np.intp) * columns)
    flat = reshape(x, (rows * columns,))
    places = add(row_starts, checked_indices("gather", indices, columns))
    return apply(Take(distinct=True), flat, places)


def checked_indices(name: str, indices: Expression, length: int) -> Expression:
    """``indices`` as intp, each checked to be in [0, length) when a plan runs, for ``name``."""
    return apply(CheckedIndices(name, length), indices)


def argmax(x: Expression, axis: int | None = None) -> Expression:
    """The index of the largest element along ``axis``, or in row-major order of all (None)."""
    if axis is None:
        return apply(ArgMax(0), reshape(x, (x.size,)))
    return apply(ArgMax(positive_axis("argmax", axis, x.shape)), x)
