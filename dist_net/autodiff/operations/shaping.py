"""Views of elements: reshape, transpose, and slices by NumPy's basic indices, ``x[1:, ..., None]``.

Also the gradient of a slice, padded with zeros; concatenation and its inverse.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from types import EllipsisType
from typing import Any, SupportsIndex, TypeAlias

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order, integer, integers, positive_axis
from dist_net.autodiff.expression import Expression, Operation, View, apply, same_dtype
from dist_net.errors import IndexRangeError, ShapeError


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
            needed = math.prod(self.shape)
            raise ShapeError(
                f"reshape: {x.shape} has {x.size} elements, {self.shape} needs {needed}"
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
    """Exchange the last two axes. Raise ``ShapeError`` if ``x`` has fewer."""
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: shape {x.shape}; expected at least two axes")
    return transpose(x, (*range(x.ndim - 2), -1, -2))


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
        places = zip(others, inputs[1:], strict=True)
        additions = [partial(np.add, place, x, place) for place, x in places]
        return in_order([partial(out.fill, 0), partial(np.copyto, first, inputs[0]), *additions])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return [apply(Slice(index), cotangent) for index in (self.index, *self.more)]


def basic_index(x: Expression, index: BasicIndices) -> Expression:
    """Return the view ``x[index]`` by NumPy's rules; raise IndexRangeError or ShapeError."""
    normal = _normal(index, x.shape)
    if [each for each in normal if each is not None] == [range(length) for length in x.shape]:
        return reshape(x, _shape_of(normal))
    return apply(Slice(normal), x)


def zeros_around(x: Expression, shape: Sequence[int], index: BasicIndices) -> Expression:
    """Return zeros of ``shape`` after ``zeros[index] = x``. Raise the errors of ``basic_index``."""
    lengths = integers("zeros_around: shape", shape)
    normal = _normal(index, lengths)
    if x.shape != _shape_of(normal):
        raise ShapeError(f"zeros_around: x has shape {x.shape}; expected {_shape_of(normal)}")
    fills = list(normal) == [range(length) for length in lengths]
    return x if fills else apply(ZerosAround(lengths, normal), x)


def without_dots(index: Any, shape: Shape) -> tuple[Any, ...]:
    """Return an index as a tuple with an entry for each axis of ``shape``, and None for others."""
    given = index if isinstance(index, tuple) else (index,)
    dots = [i for i, each in enumerate(given) if each is Ellipsis] or [len(given)]
    named = sum(each is not None and each is not Ellipsis for each in given)
    if named > len(shape):
        raise ShapeError(f"{named} indices of shape {shape}; expected at most {len(shape)}")
    if len(dots) > 1:
        raise ShapeError(f"an index of shape {shape} has ... {len(dots)} times; expected once")
    unnamed = (slice(None),) * (len(shape) - named)
    return (*given[: dots[0]], *unnamed, *given[dots[0] + 1 :])


def _normal(index: BasicIndices, shape: Shape) -> Index:
    """Return the index in normal form, including the axes that ``index`` omits."""
    axes = iter(range(len(shape)))
    entries = without_dots(index, shape)
    return tuple(None if each is None else _places(each, next(axes), shape) for each in entries)


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
            f"integer, an array of integers, a slice, ... or None"
        )
    if not -length <= place < length:
        raise IndexRangeError(
            f"index {place} along axis {axis} of shape {shape}; expected {-length} to {length - 1}"
        )
    return place % length


def _shape_of(index: Index) -> Shape:
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


@dataclass(frozen=True)
class Concatenate(Operation):
    """The inputs, concatenated along ``axis``."""

    axis: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        dtype = same_dtype("concatenate", *inputs)
        axis = self.axis
        first, *others = ((*x.shape[:axis], *x.shape[axis + 1 :]) for x in inputs)
        if any(each != first for each in others):
            shapes = " and ".join(str(each.shape) for each in inputs)
            raise ShapeError(
                f"concatenate: shapes {shapes}; expected equal lengths on all axes but {self.axis}"
            )
        length = sum(each.shape[self.axis] for each in inputs)
        return (*first[: self.axis], length, *first[self.axis :]), dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        places = [out[place] for place in _indices(self.axis, inputs)]
        return in_order([partial(np.copyto, *pair) for pair in zip(places, inputs, strict=True)])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return [cotangent[place] for place in _indices(self.axis, node.inputs)]


def concatenate(expressions: Sequence[Expression], axis: int = 0) -> Expression:
    """Concatenate expressions along ``axis``; a negative axis counts from the last.

    Raise ``ShapeError`` unless all other axes are equally long, ``DTypeError`` for other dtypes.
    """
    if not expressions:
        raise ShapeError("concatenate: no expressions; expected at least one")
    positive = positive_axis("concatenate", axis, expressions[0].shape)
    if any(each.ndim != expressions[0].ndim for each in expressions):
        shapes = " and ".join(str(each.shape) for each in expressions)
        raise ShapeError(f"concatenate: shapes {shapes}; expected the same number of axes")
    operation = Concatenate(positive)
    operation.result(*expressions)  # empty inputs are checked too
    filled = [each for each in expressions if each.shape[positive] > 0] or [*expressions[:1]]
    return filled[0] if len(filled) == 1 else apply(operation, *filled)


def stack(expressions: Sequence[Expression], axis: int = 0) -> Expression:
    """Concatenate expressions of one shape along a new axis."""
    if not expressions:
        raise ShapeError("stack: no expressions; expected at least one")
    before = positive_axis("stack", axis, (1, *expressions[0].shape))
    return concatenate([x[(slice(None),) * before + (None,)] for x in expressions], before)


def split(x: Expression, parts: int | Sequence[int], axis: int = 0) -> list[Expression]:
    """Return ``x`` cut along ``axis`` into ``parts`` of equal length, or at these indices."""
    before = (slice(None),) * positive_axis("split", axis, x.shape)
    length = x.shape[len(before)]
    if isinstance(parts, SupportsIndex):
        count = integer("split: parts", parts, 1)
        if length % count:
            raise ShapeError(f"split: {x.shape} does not divide into {count} along axis {axis}")
        parts = range(length // count, length, length // count) if length else [0] * (count - 1)
    edges = [0, *integers("split: parts", parts), length]
    return [x[(*before, slice(*pair))] for pair in pairwise(edges)]


def pad(x: Expression, width: int | Sequence[int] | Sequence[Sequence[int]]) -> Expression:
    """Add zeros: ``width`` on all sides, (before, after) on all axes, or a pair for each axis."""
    try:
        given = np.broadcast_to(np.asarray(width), (x.ndim, 2)).tolist()
    except ValueError as error:
        raise ShapeError(f"pad: width {width} for shape {x.shape}: {error}") from error
    pairs = [tuple(integer("pad: width", each, 0) for each in pair) for pair in given]
    lengths = [before + n + after for (before, after), n in zip(pairs, x.shape, strict=True)]
    index = tuple(slice(pair[0], pair[0] + n) for pair, n in zip(pairs, x.shape, strict=True))
    return zeros_around(x, lengths, index)


def _indices(axis: int, inputs: Sequence[Expression] | Sequence[Array]) -> list[tuple[slice, ...]]:
    """Return the index of each input in the result."""
    ends = accumulate((each.shape[axis] for each in inputs), initial=0)
    return [(slice(None),) * axis + (slice(*pair),) for pair in pairwise(ends)]
