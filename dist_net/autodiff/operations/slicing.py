"""Slices by NumPy's basic indices, ``x[1:, ..., None]``, and their gradients, padded with zeros."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import SupportsIndex, TypeAlias

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order, integers
from dist_net.autodiff.expression import Expression, Operation, View, apply
from dist_net.autodiff.operations.shaping import reshape
from dist_net.errors import IndexRangeError, ShapeError

BasicIndex: TypeAlias = SupportsIndex | slice | EllipsisType | None
BasicIndices: TypeAlias = BasicIndex | tuple[BasicIndex, ...]

Index: TypeAlias = tuple[int | range | None, ...]
"""The selection along each axis: an index, which drops the axis, or a range; None adds an axis of
length one. It is in normal form for comparisons: all numbers are valid indices."""


@dataclass(frozen=True)
class Slice(View):
    """The elements at ``index``."""

    index: Index

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return _shape_of(self.index), inputs[0].dtype

    def view(self, array: Array) -> Array:
        return _sliced(array, self.index)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (apply(ZerosAround(node.inputs[0].shape, self.index), cotangent),)


@dataclass(frozen=True)
class ZerosAround(Operation):
    """Zeros of ``shape``, to which each input is added at its index.

    Several inputs are the gradient of an array with several slices in use: that takes one pass over
    each slice, while a sum of arrays would take a pass over the whole array for each.
    """

    shape: Shape
    index: Index
    more: tuple[Index, ...] = ()

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return self.shape, inputs[0].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        first, *others = [_sliced(out, index) for index in (self.index, *self.more)]
        additions = [
            partial(np.add, place, x, place) for place, x in zip(others, inputs[1:], strict=True)
        ]
        return in_order([partial(out.fill, 0), partial(np.copyto, first, inputs[0]), *additions])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return [apply(Slice(index), cotangent) for index in (self.index, *self.more)]


def getitem(x: Expression, index: BasicIndices) -> Expression:
    """Return the view ``x[index]`` for integers, slices, ``...`` and None, by NumPy's rules.

    Raise ``IndexRangeError`` for an integer out of range, ``ShapeError`` for other indices.
    """
    normal = _normal(index, x.shape)
    if [each for each in normal if each is not None] == [range(length) for length in x.shape]:
        return reshape(x, _shape_of(normal))
    return apply(Slice(normal), x)


def zeros_around(x: Expression, shape: Sequence[int], index: BasicIndices) -> Expression:
    """Return zeros of ``shape`` after ``zeros[index] = x``.

    Raise ``ShapeError`` unless ``x`` has the shape of ``zeros[index]``; otherwise as ``getitem``.
    """
    lengths = integers("zeros_around: shape", shape)
    normal = _normal(index, lengths)
    if x.shape != _shape_of(normal):
        raise ShapeError(f"zeros_around: x has shape {x.shape}; expected {_shape_of(normal)}")
    fills = list(normal) == [range(length) for length in lengths]
    return x if fills else apply(ZerosAround(lengths, normal), x)


def _normal(index: BasicIndices, shape: Shape) -> Index:
    """Return the index in normal form, including the axes that ``index`` omits."""
    given = index if isinstance(index, tuple) else (index,)
    dots = [i for i, each in enumerate(given) if each is Ellipsis] or [len(given)]
    named = sum(each is not None and each is not Ellipsis for each in given)
    if named > len(shape):
        raise ShapeError(f"{named} indices of shape {shape}; expected at most {len(shape)}")
    if len(dots) > 1:
        raise ShapeError(f"an index of shape {shape} has ... {len(dots)} times; expected once")
    unnamed = (slice(None),) * (len(shape) - named)
    axes = iter(range(len(shape)))
    return tuple(
        None if each is None else _places(each, next(axes), shape)
        for each in (*given[: dots[0]], *unnamed, *given[dots[0] + 1 :])
    )


def _places(given: object, axis: int, shape: Shape) -> int | range:
    """Return the index or range of an integer or slice along an axis."""
    length = shape[axis]
    if isinstance(given, slice):
        try:
            return range(*given.indices(length)) or range(0)
        except (TypeError, ValueError) as error:
            raise ShapeError(
                f"index {given} along axis {axis} of shape {shape}: {error}; expected integers, "
                f"and a step other than 0"
            ) from error
    try:
        # NumPy treats True and False as masks.
        place = None if isinstance(given, bool) else operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        place = None
    if place is None:
        raise ShapeError(
            f"index of type {type(given).__name__} along axis {axis} of shape {shape}; expected an "
            f"integer, a slice, ... or None; for indices in an array use gather()"
        )
    if not -length <= place < length:
        raise IndexRangeError(
            f"index {place} along axis {axis} of shape {shape}; expected {-length} to {length - 1}"
        )
    return place % length


def _shape_of(index: Index) -> Shape:
    """Return the shape of a slice."""
    return tuple(1 if each is None else len(each) for each in index if not isinstance(each, int))


def _sliced(array: Array, index: Index) -> Array:
    """Return the view of ``array`` at ``index``, also if it has no axes."""
    entries = [
        slice(each.start, each.stop if each.stop >= 0 else None, each.step)
        if isinstance(each, range)
        else each
        for each in index
    ]
    view: Array = array[(*entries, ...)]
    return view
