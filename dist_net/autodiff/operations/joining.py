"""Concatenation along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order, positive_axis
from dist_net.autodiff.expression import Expression, Operation, apply, same_dtype
from dist_net.errors import ShapeError


@dataclass(frozen=True)
class Concatenate(Operation):
    """The inputs, concatenated along ``axis``."""

    axis: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        dtype = same_dtype("concatenate", *inputs)
        first, *others = (_without(self.axis, each.shape) for each in inputs)
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

    Raise ``ShapeError`` unless they have equal lengths on all other axes, ``DTypeError`` unless
    they have the same dtype.
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


def _indices(axis: int, inputs: Sequence[Expression] | Sequence[Array]) -> list[tuple[slice, ...]]:
    """Return the index of each input in the result."""
    ends = accumulate((each.shape[axis] for each in inputs), initial=0)
    return [(slice(None),) * axis + (slice(*pair),) for pair in pairwise(ends)]


def _without(axis: int, shape: Shape) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])
