"""Arrays end to end along an axis, and a part of one: each is what the other's VJP needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order, integer, positive_axis
from dist_net.autodiff.expression import Expression, Operation, View, apply, constant
from dist_net.autodiff.operations.broadcasting import same_dtype
from dist_net.autodiff.operations.reduction import broadcast_to
from dist_net.errors import ShapeError


@dataclass(frozen=True)
class Concatenate(Operation):
    """The inputs one after the other along ``axis``."""

    axis: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        dtype = same_dtype("concatenate", *inputs)
        first, *others = (_without(self.axis, each.shape) for each in inputs)
        if any(each != first for each in others):
            shapes = " and ".join(str(each.shape) for each in inputs)
            raise ShapeError(
                f"concatenate: shapes {shapes}; expected equal lengths on each axis but {self.axis}"
            )
        length = sum(each.shape[self.axis] for each in inputs)
        return (*first[: self.axis], length, *first[self.axis :]), dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        starts = _starts(self.axis, inputs)
        places = [
            _part(out, self.axis, start, start + each.shape[self.axis])
            for start, each in zip(starts, inputs, strict=True)
        ]
        return in_order([partial(np.copyto, *pair) for pair in zip(places, inputs, strict=True)])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return [
            part(cotangent, self.axis, start, start + each.shape[self.axis])
            for start, each in zip(_starts(self.axis, node.inputs), node.inputs, strict=True)
        ]


@dataclass(frozen=True)
class Part(View):
    """What lies between ``start`` and ``stop`` along ``axis``."""

    axis: int
    start: int
    stop: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        if not 0 <= self.start <= self.stop <= x.shape[self.axis]:
            raise ShapeError(
                f"part: {self.start} to {self.stop} along axis {self.axis} of shape {x.shape}; "
                f"expected 0 <= start <= stop <= {x.shape[self.axis]}"
            )
        before, after = x.shape[: self.axis], x.shape[self.axis + 1 :]
        return (*before, self.stop - self.start, *after), x.dtype

    def view(self, array: Array) -> Array:
        return _part(array, self.axis, self.start, self.stop)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        (x,) = node.inputs
        zero = constant(np.zeros((), cotangent.dtype))
        around = [
            broadcast_to(zero, _with(self.axis, length, x.shape))
            for length in (self.start, x.shape[self.axis] - self.stop)
        ]
        return (concatenate([around[0], cotangent, around[1]], self.axis),)


def concatenate(expressions: Sequence[Expression], axis: int = 0) -> Expression:
    """The expressions end to end along ``axis``, a negative one counted from the last.

    Raises ShapeError unless they have equal lengths on all other axes, DTypeError unless they
    have one dtype.
    """
    if not expressions:
        raise ShapeError("concatenate: no expressions; expected one at least")
    positive = positive_axis("concatenate", axis, expressions[0].shape)
    if any(each.ndim != expressions[0].ndim for each in expressions):
        shapes = " and ".join(str(each.shape) for each in expressions)
        raise ShapeError(f"concatenate: shapes {shapes}; expected as many axes of each")
    operation = Concatenate(positive)
    operation.result(*expressions)  # what is empty must fit, too
    filled = [each for each in expressions if each.shape[positive] > 0] or [*expressions[:1]]
    return filled[0] if len(filled) == 1 else apply(operation, *filled)


def part(x: Expression, axis: int, start: int, stop: int) -> Expression:
    """The elements ``start`` to ``stop``, that one left out, along ``axis``: a view of ``x``.

    Raises ShapeError if they are not all there.
    """
    positive = positive_axis("part", axis, x.shape)
    between = integer("part: start", start), integer("part: stop", stop)
    return x if between == (0, x.shape[positive]) else apply(Part(positive, *between), x)


def _part(array: Array, axis: int, start: int, stop: int) -> Array:
    return array[(slice(None),) * axis + (slice(start, stop),)]


def _starts(axis: int, inputs: Sequence[Expression] | Sequence[Array]) -> list[int]:
    """Where each input begins along the axis."""
    lengths = [0, *(each.shape[axis] for each in inputs)]
    return [sum(lengths[: i + 1]) for i in range(len(inputs))]


def _without(axis: int, shape: Shape) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])


def _with(axis: int, length: int, shape: Shape) -> Shape:
    return (*shape[:axis], length, *shape[axis + 1 :])
