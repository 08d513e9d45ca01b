"""Indices: NumPy's ``x[index]`` for integers, slices, ``...``, None and arrays of integers.

Arrays of integers, which may be expressions, choose elements along one or several axes. The VJP
adds up what each element receives, as it may be chosen more than once. A boolean array is a mask
if it is NumPy's: the shapes of a graph depend on no value that a plan computes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape, in_order, positive_axis
from dist_net.autodiff.expression import Expression, Operation, apply, constant
from dist_net.autodiff.operations.elementwise import where
from dist_net.autodiff.operations.shaping import basic_index, reshape, transpose, without_dots
from dist_net.errors import DTypeError, IndexRangeError, ShapeError

Indices: TypeAlias = "Expression | NDArray[np.integer[Any]] | Sequence[int]"


@dataclass(frozen=True)
class CheckedIndices(Operation):
    """Integers as intp; runs raise ``name``'s IndexRangeError unless least <= index < length."""

    name: str
    length: int
    least: int = 0

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (indices,) = inputs
        if indices.dtype.kind not in "iu":
            raise DTypeError(f"{self.name}: expected integer indices, got dtype {indices.dtype}")
        return indices.shape, np.dtype(np.intp)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        (indices,) = inputs
        integers, unsigned = out.view(np.intp), out.view(np.uintp)
        smallest, largest = np.minimum.reduce, np.maximum.reduce

        def copy_checked() -> None:
            np.copyto(out, indices, "unsafe")  # the largest uint64 becomes negative
            # As an unsigned number, a negative index is huge: usually one comparison suffices.
            if not out.size or largest(unsigned, None) < self.length:
                return
            if smallest(integers, None) >= self.least and largest(integers, None) < self.length:
                return
            position = int(np.argmax((integers < self.least) | (integers >= self.length)))
            raise IndexRangeError(
                f"{self.name}: index {indices.flat[position]} at position {position}; expected "
                f"{self.least} to {self.length - 1}, as there are {self.length} elements"
            )

        return copy_checked


@dataclass(frozen=True)
class Take(Operation):
    """The elements of the first input along ``axis`` at the indices in the second, all in range."""

    axis: int
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, indices = inputs
        return (*x.shape[: self.axis], *indices.shape, *x.shape[self.axis + 1 :]), x.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        x, indices = inputs
        return partial(x.take, indices, self.axis, out, "clip")  # "raise" makes a copy of out

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, indices = node.inputs
        return apply(AddAt(x.shape, self.axis), cotangent, indices), None


@dataclass(frozen=True)
class AddAt(Operation):
    """Zeros of ``shape``, to which the first input is added at the indices in the second.

    NumPy adds single elements eight times as fast as rows, so rows become places of elements.
    """

    shape: Shape
    axis: int
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.shape, inputs[0].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        values, indices = inputs[0], cast("NDArray[np.intp]", inputs[1])
        outer, inner = math.prod(self.shape[: self.axis]), math.prod(self.shape[self.axis + 1 :])
        target, added = out.reshape(-1, copy=False), values.reshape(-1, copy=False)
        firsts = indices.reshape(-1, 1, copy=False)
        if outer == inner == 1:  # the indices are the places
            add_all = partial(np.add.at, target, firsts[:, 0], added)
            return in_order([partial(out.fill, 0), add_all])
        starts = np.arange(outer)[:, np.newaxis, np.newaxis] * math.prod(self.shape[self.axis :])
        within = np.arange(inner)
        rows = np.empty(firsts.shape, np.intp)
        places = np.empty((len(starts), len(firsts), inner), np.intp)

        def add_at_places() -> None:
            np.multiply(firsts, inner, rows)
            np.add(rows, within, places)
            np.add(places, starts, places)
            out.fill(0)
            np.add.at(target, places.reshape(-1, copy=False), added)

        return add_at_places

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return apply(Take(self.axis), cotangent, node.inputs[1]), None


def getitem(x: Expression, index: object) -> Expression:
    """Return ``x[index]`` by NumPy's rules: a view, unless ``index`` has arrays.

    Raise ``IndexRangeError`` for an integer out of range, ``ShapeError`` or ``DTypeError`` for
    other indices. Plans raise ``IndexRangeError`` for an integer out of range in an array.
    """
    entries = index if isinstance(index, tuple) else (index,)
    arrays = [np.asarray(each) for each in entries if isinstance(each, np.ndarray | list)]
    if any(each.dtype == np.bool_ for each in arrays):
        return _by_mask(x, index)
    given = without_dots(index, x.shape)
    if not any(isinstance(each, Expression | np.ndarray | list) for each in given):
        return basic_index(x, given)
    chosen = [i for i, each in enumerate(given) if each is not None and not isinstance(each, slice)]
    x = basic_index(x, tuple(slice(None) if i in chosen else each for i, each in enumerate(given)))
    is_adjacent = chosen[-1] - chosen[0] < len(chosen)
    others = [axis for axis in range(x.ndim) if axis not in chosen]
    start = chosen[0] if is_adjacent else 0
    places, *more = (_from_zero(given[axis], x.shape[axis]) for axis in chosen)
    for axis, each in zip(chosen[1:], more, strict=True):
        places = places * x.shape[axis] + each
    moved = transpose(x, (*others[:start], *chosen, *others[start:]))
    before, after = moved.shape[:start], moved.shape[start + len(chosen) :]
    length = math.prod(x.shape[axis] for axis in chosen)
    return apply(Take(start), reshape(moved, (*before, length, *after)), places)


def take(x: Expression, indices: Indices, axis: int | None = None) -> Expression:
    """Return the elements at ``indices`` along ``axis``, or in row-major order (None)."""
    if axis is None:
        return take(reshape(x, (x.size,)), indices, 0)
    return getitem(x, (slice(None),) * positive_axis("take", axis, x.shape) + (indices,))


def checked_indices(name: str, indices: Expression, length: int) -> Expression:
    """Return ``indices`` as intp; plans check that they are in [0, length). Errors use ``name``."""
    return apply(CheckedIndices(name, length), indices)


def _by_mask(x: Expression, index: object) -> Expression:
    """Return ``x[index]`` for an index with a boolean array of NumPy, as NumPy computes it."""
    try:
        places = np.arange(x.size).reshape(x.shape, copy=False)[cast(Any, index)]
    except IndexError as error:
        raise ShapeError(f"index of shape {x.shape}: {error}") from error
    return apply(Take(0), reshape(x, (x.size,)), constant(places))


def _from_zero(given: object, length: int) -> Expression:
    """Return indices of an axis as intp; a negative index counts from the end."""
    indices = given if isinstance(given, Expression) else constant(np.asarray(given))
    if indices.dtype.kind == "b":
        raise DTypeError(
            f"index: the mask {indices} is computed, so the shape of x[mask] is not known before; "
            f"expected integers, or a mask of NumPy. Use where(mask, x, 0) or masked_mean(x, mask)"
        )
    if indices.operation == CheckedIndices("index", length) or indices.dtype.kind == "u":
        return checked_indices("index", indices, length)
    checked = apply(CheckedIndices("index", length, -length), indices)
    return where(checked < 0, checked + length, checked)
