"""Operations on scores of classes: argmax, gather, softmax and cross entropy.

Softmax subtracts the maximum of each row first, so that no exponential overflows and at least one
is 1. The result does not depend on the subtracted value, which is therefore constant in the
gradient.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape, in_order, positive_axis
from dist_net.autodiff.expression import Expression, Operation, apply, constant
from dist_net.autodiff.operations.elementwise import add, exp, log
from dist_net.autodiff.operations.reduction import mean, sum
from dist_net.autodiff.operations.selection import max, stop_gradient
from dist_net.autodiff.operations.shaping import reshape
from dist_net.errors import DTypeError, IndexRangeError, ShapeError


@dataclass(frozen=True)
class CheckedIndices(Operation):
    """Integers as intp; a run of a plan raises ``IndexRangeError`` unless all are in [0, length).

    ``name`` is the function to name in the message.
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
        unsigned = out.view(np.uintp)  # negative indices become huge, so one comparison suffices

        def copy_checked() -> None:
            np.copyto(out, indices, "unsafe")
            if out.size and np.maximum.reduce(unsigned, None) >= self.length:
                position = int(np.argmax(unsigned >= self.length))
                raise IndexRangeError(
                    f"{self.name}: index {indices.flat[position]} at position {position}; expected "
                    f"0 to {self.length - 1}, as there are {self.length} classes"
                )

        return copy_checked


@dataclass(frozen=True)
class Take(Operation):
    """The elements of the first input, a vector, at the distinct indices in the second."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, flat_index = inputs
        return flat_index.shape, x.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        x, flat_index = inputs
        return partial(x.take, flat_index, 0, out)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, flat_index = node.inputs
        return apply(Put(x.shape), cotangent, flat_index), None


@dataclass(frozen=True)
class Put(Operation):
    """Zeros, with the first input's values at the distinct indices in the second."""

    shape: Shape

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        values, flat_index = inputs
        if values.shape != flat_index.shape or len(self.shape) != 1:
            raise ShapeError(
                f"put: {values.shape} values at {flat_index.shape} indices of {self.shape}; "
                f"expected one index per value, along one axis"
            )
        return self.shape, values.dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        values = inputs[0]
        flat_index = typing.cast("NDArray[np.intp]", inputs[1])
        return in_order([partial(out.fill, 0), partial(out.put, flat_index, values)])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return apply(Take(), cotangent, node.inputs[1]), None


@dataclass(frozen=True)
class ArgMax(Operation):
    """The index of the largest element along ``axis``; the first if several tie."""

    axis: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        if x.shape[self.axis] == 0:
            raise ShapeError(f"argmax: shape {x.shape} has no elements along axis {self.axis}")
        return (*x.shape[: self.axis], *x.shape[self.axis + 1 :]), np.dtype(np.intp)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(inputs[0].argmax, self.axis, out)


def gather(x: Expression, indices: Expression) -> Expression:
    """Return element ``indices[i]`` of each row i: from (N, C) and (N,) integers in [0, C) to (N,).

    Raise ``ShapeError`` or ``DTypeError`` for other inputs. For an index outside [0, C), the plan
    raises ``IndexRangeError`` when it runs.
    """
    if x.ndim != 2 or indices.shape != x.shape[:1]:
        raise ShapeError(f"gather: shapes {x.shape} and {indices.shape}; expected (N, C) and (N,)")
    rows, columns = x.shape
    row_starts = constant(np.arange(rows, dtype=np.intp) * columns)
    flat = reshape(x, (rows * columns,))
    places = add(row_starts, checked_indices("gather", indices, columns))
    return apply(Take(), flat, places)


def checked_indices(name: str, indices: Expression, length: int) -> Expression:
    """Return ``indices`` as intp; plans check that they are in [0, length). Errors use ``name``."""
    return apply(CheckedIndices(name, length), indices)


def argmax(x: Expression, axis: int | None = None) -> Expression:
    """Return the index of the largest element along ``axis``, or in row-major order (None)."""
    if axis is None:
        return apply(ArgMax(0), reshape(x, (x.size,)))
    return apply(ArgMax(positive_axis("argmax", axis, x.shape)), x)


def shifted_to_zero(logits: Expression) -> Expression:
    """Return the logits minus their maximum along the last axis."""
    return logits - stop_gradient(max(logits, -1, keepdims=True))


def softmax(logits: Expression) -> Expression:
    """Return probabilities along the last axis, proportional to exp(logits)."""
    exponentials = exp(shifted_to_zero(logits))
    return exponentials / sum(exponentials, -1, keepdims=True)


def log_softmax(logits: Expression) -> Expression:
    """Return the logarithm of softmax, accurate even if a probability would round to 0."""
    shifted = shifted_to_zero(logits)
    return shifted - log(sum(exp(shifted), -1, keepdims=True))


def require_class_indices(name: str, outputs: Expression, labels: Expression) -> None:
    """Raise ``DTypeError`` or ``ShapeError`` unless ``name`` has an integer per row of scores."""
    expected = outputs.shape[:-1]
    if labels.shape != expected:
        remedy = "another network, such as one with Flatten before Dense"
        if labels.size == math.prod(expected):
            remedy = f"targets.reshape({', '.join(map(str, (-1, *expected[1:])))})"
        if labels.shape == outputs.shape and labels.shape[-1] > 1:
            remedy = f"targets.argmax({len(expected)})"
        raise ShapeError(
            f"{name}: targets of shape {labels.shape[1:]} each for outputs of {outputs.shape[1:]}; "
            f"expected class indices, integers of shape {expected[1:]} each: use {remedy}"
        )
    if labels.dtype.kind not in "iu":
        raise DTypeError(
            f"{name}: targets of dtype {labels.dtype}; expected integer class indices; to predict "
            f"numbers use mean_squared_error"
        )


def scores_of(labels: Expression, scores: Expression) -> Expression:
    """Return the score of each label: (N, ...) integers in [0, C) and (N, ..., C) to (N, ...)."""
    rows = reshape(scores, (labels.size, scores.shape[-1]))
    return reshape(gather(rows, reshape(labels, (labels.size,))), labels.shape)


def cross_entropy_of_logits(logits: Expression, labels: Expression) -> Expression:
    """Return -log softmax(logits)[label] of each row: (N, C) and (N,) integers to (N,).

    For (N, ..., C) and (N, ...), return the mean over each sample's positions. Raise ``DTypeError``
    unless labels are integers, ``ShapeError`` for other shapes.
    """
    require_class_indices("cross_entropy_of_logits", logits, labels)
    shifted = shifted_to_zero(logits)
    losses = log(sum(exp(shifted), -1)) - scores_of(labels, shifted)
    return mean(losses, range(1, labels.ndim))
