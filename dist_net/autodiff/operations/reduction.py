"""Reductions along axes, and broadcasting: sum and broadcast are each other's VJP.

In a broadcast, and in a sum along the first axis, NumPy has an overhead per row, which dominates
with 16 columns: the channels of a batch, the terms of a bias. Several rows side by side, as
*lanes*, form one long row of the same memory: for (50176, 16) float32, both then take a third of
the time. Sums are also more accurate, because each lane is added up separately.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape, cut, in_order, integers, positive_axis
from dist_net.autodiff.expression import (
    NUMBERS,
    Expression,
    Operation,
    SharedOperation,
    View,
    apply,
    same_dtype,
)
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.operations import shaping
from dist_net.errors import ShapeError

Floats: TypeAlias = NDArray[np.float32 | np.float64]

LONG_ROW = 1024  # elements; longer rows gain nothing
PART_BYTES, PART_ROWS = 1 << 20, 64  # of the rows that a task adds, and their least number
MANY_ELEMENTS = 1 << 16  # with fewer, the second call takes more time than long rows save


def long_rows(*matrices: Array) -> list[Array]:
    """Return views of matrices of one shape, with as many rows side by side as are useful.

    Returns the matrices unchanged if they are small or one of them is not C-contiguous.
    """
    rows, columns = matrices[0].shape
    contiguous = all(each.flags.c_contiguous for each in matrices)
    if not contiguous or rows * columns < MANY_ELEMENTS:
        return list(matrices)
    lanes = max(n for n in range(1, max(1, LONG_ROW // columns) + 1) if rows % n == 0)
    return [each.reshape(rows // lanes, lanes * columns, copy=False) for each in matrices]


def column_sums(x: Array, out: Array, pool: ThreadPool) -> Call:
    """Return the call that fills ``out``, (columns,), with the sums of the columns of ``x``.

    A sum is a row of ones times a matrix, and BLAS adds such columns twice as fast as NumPy.
    """
    ones = np.ones(len(x), x.dtype)
    return _by_part(
        [x], out, pool, lambda part, total: partial(np.matmul, ones[: len(part)], part, total)
    )


def column_dots(x: Array, y: Array, out: Array, pool: ThreadPool) -> Call:
    """Return the call that sums x·y by column into ``out``, (columns,), without an array of x·y."""

    def dots(x: Floats, y: Floats, total: Floats) -> Call:
        return partial(np.einsum, "rc,rc->c", x, y, out=total)

    return _by_part([x, y], out, pool, dots)


def _by_part(
    matrices: Sequence[Array], out: Array, pool: ThreadPool, call: Callable[..., Call]
) -> Call:
    """Return the call that adds the results of parts of the rows, the same for any threads."""
    long = long_rows(*matrices)
    rows, columns = long[0].shape
    parts = cut(rows, max(PART_ROWS, PART_BYTES * rows // max(1, long[0].nbytes)))
    if len(parts) <= 1 and columns == out.size:
        return call(*long, out)
    sums = np.empty((len(parts), columns), out.dtype)
    calls = [
        call(*(each[part] for each in long), into) for part, into in zip(parts, sums, strict=True)
    ]
    add_sums = column_sums(sums.reshape(-1, out.size, copy=False), out, pool)
    return in_order([pool.call([[[each]] * pool.threads for each in calls]), add_sums])


Axis: TypeAlias = int | Sequence[int] | None


@dataclass(frozen=True)
class Reduction(SharedOperation):
    """A function of all elements along ``axes``, which remain with length one."""

    axes: tuple[int, ...]
    of_pair: ClassVar[np.ufunc]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        shape = tuple(1 if axis in self.axes else n for axis, n in enumerate(x.shape))
        return shape, same_dtype(self.label.lower(), x, kinds=NUMBERS)

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        (x,) = inputs
        count = 2 * pool.threads if 0 not in self.axes and pool.shares(x.nbytes) else 1
        parts = cut(len(out), -(-len(out) // count)) if count > 1 else [...]
        calls = [self._reduced(x[part], out[part]) for part in parts]
        return pool.call([[[each]] * pool.threads for each in calls])

    def _reduced(self, x: Array, out: Array) -> Call:
        return partial(self.of_pair.reduce, x, axis=self.axes, keepdims=True, out=out)


@dataclass(frozen=True)
class Sum(Reduction):
    """The sum along axes."""

    of_pair = np.add

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        (x,) = inputs
        leading = self.axes == tuple(range(len(self.axes)))
        if leading and x.flags.c_contiguous and x.dtype.kind == "f" and out.size > 1:
            columns = x.reshape(-1, out.size, copy=False)
            return column_sums(columns, out.reshape(-1, copy=False), pool)
        return super().bind_shared(inputs, out, pool)

    def _reduced(self, x: Array, out: Array) -> Call:
        """Return the product of ones by each matrix of rows; NumPy's sum takes 10 times as long."""
        first, after = min(self.axes, default=0), max(self.axes, default=0) + 1
        stack, columns = math.prod(x.shape[:first]), math.prod(x.shape[after:])
        is_float = x.flags.c_contiguous and x.dtype.kind == "f"
        if len(self.axes) < after - first or columns < 2 or not is_float:
            return super()._reduced(x, out)
        rows = x.reshape(stack, math.prod(x.shape[first:after]), columns, copy=False)
        ones, sums = np.ones(rows.shape[1], x.dtype), out.reshape(stack, columns, copy=False)
        return partial(np.matmul, ones, rows, sums)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        return (broadcast_to(cotangent, node.inputs[0].shape),)


@dataclass(frozen=True)
class BroadcastTo(View):
    """The input repeated along new and length-one axes."""

    shape: Shape

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        pairs = zip(x.shape[::-1], self.shape[::-1], strict=False)
        if x.ndim > len(self.shape) or any(n not in (1, length) for n, length in pairs):
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


@dataclass(frozen=True)
class CumSum(Operation):
    """The sums of the elements up to each, along ``axis``."""

    axis: int

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape, same_dtype("cumsum", *inputs, kinds=NUMBERS)

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.add.accumulate, inputs[0], self.axis, None, out)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        backwards = (slice(None),) * self.axis + (slice(None, None, -1),)
        return (apply(self, cotangent[backwards])[backwards],)


def cumsum(x: Expression, axis: int | None = None) -> Expression:
    """Return the sums up to each element along ``axis``, or in row-major order (None)."""
    if axis is None:
        return cumsum(shaping.reshape(x, (x.size,)), 0)
    return apply(CumSum(positive_axis("cumsum", axis, x.shape)), x)


def broadcast_to(x: Expression, shape: Sequence[int]) -> Expression:
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
    """Apply ``operation`` along ``axis``, which may be negative. Raise ``ShapeError``."""
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
