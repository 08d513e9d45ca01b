"""Batch normalisation: each channel of a batch brought to mean 0 and variance 1, then scaled.

Source: Ioffe and Szegedy 2015 (arXiv 1502.03167). A channel is an index of the last axis; its
statistics are over all the others. The operations are on matrices, (rows, channels), and as
passes through memory are what they cost, each takes one, or as good as one: strip by strip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import Expression, SharedOperation, apply, constant, same_dtype
from dist_net.autodiff.kernels.columns import column_dots, column_sums, long_rows
from dist_net.autodiff.kernels.thread_pool import ThreadPool, by_strip, strips
from dist_net.autodiff.operations.reduction import broadcast_to, mean, sum
from dist_net.autodiff.operations.shaping import reshape
from dist_net.errors import ShapeError

LARGEST_SHIFT = 16.0
"""Up to so many variances, the square of the mean is subtracted from the mean of the squares. It
takes half the time of a sum of squared differences, for at most 17 times its rounding error."""


@dataclass(frozen=True)
class Variance(SharedOperation):
    """Of (rows, channels) x and its mean, (channels,): the mean square of the differences."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, center = inputs
        return center.shape, x.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        x, center = inputs
        total, square, is_far = np.empty_like(out), np.empty_like(out), np.empty(out.shape, bool)
        share = out.dtype.type(1 / len(x))
        add_squares = column_dots(x, x, total, pool)
        add_differences = _squared_differences(x, center, total)

        def compute_variance() -> None:
            add_squares()
            np.multiply(total, share, out)
            np.multiply(center, center, square)
            np.subtract(out, square, out)
            np.multiply(out, LARGEST_SHIFT, total)
            np.greater(square, total, is_far)
            if is_far.any():
                add_differences()
                np.multiply(total, share, out)

        return compute_variance

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, center = node.inputs
        factor = cotangent * (2 / x.shape[0])
        # Nothing flows to the mean: the differences from it add up to 0.
        return apply(ScaleAndShift(), -(center * factor), x, factor), None


@dataclass(frozen=True)
class ColumnDots(SharedOperation):
    """The sum, by channel, of the products of two matrices."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape[1:], same_dtype("column dots", *inputs)

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        x, y = inputs
        return column_dots(x, y, out, pool)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, y = node.inputs
        return cotangent * y, cotangent * x


@dataclass(frozen=True)
class ScaleAndShift(SharedOperation):
    """The sum of matrices, each times its scales, and of shifts: x·a + y·b + ... + c.

    Inputs: c, x, a, y, b, ...; matrices are (rows, channels), scales and shifts (channels,).
    """

    overwrites_inputs = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[1].shape, same_dtype("scale and shift", *inputs)

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        shift, *terms = inputs
        target, *matrices = long_rows(out, *terms[::2])
        vectors = [shift, *terms[1::2]]
        lanes = np.empty((len(vectors), target.shape[1] // len(shift), len(shift)), out.dtype)
        widen = [partial(np.copyto, *pair) for pair in zip(lanes, vectors, strict=True)]
        wide_shift, *scales = lanes.reshape(len(vectors), -1, copy=False)

        def spare_shapes(strip: slice) -> Sequence[Shape]:
            return [target[strip].shape] * min(2, len(matrices) - 1)

        def calls(strip: slice, spare: Sequence[Array]) -> Sequence[Call]:
            parts = [each[strip] for each in matrices]
            return _scaled_and_shifted(parts, scales, wide_shift, target[strip], spare)

        return in_order([*widen, by_strip(target, spare_shapes, calls, pool)])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        _, *terms = node.inputs
        flowing = [sum(cotangent, 0)]
        for x, scale in zip(terms[::2], terms[1::2], strict=True):
            none = broadcast_to(constant(0.0, x.dtype), scale.shape)
            flowing.append(apply(ScaleAndShift(), none, cotangent, scale))
            flowing.append(apply(ColumnDots(), cotangent, x))
        return flowing


def batch_normalize(
    x: Expression,
    gamma: Expression,
    beta: Expression,
    deviation: Callable[[Expression], Expression],
) -> tuple[Expression, Expression, Expression]:
    """(x - mean) · gamma / deviation(variance) + beta, and the batch's mean and variance.

    ``x`` is (..., channels), all else (channels,). The variance is the mean square of the
    differences, not corrected for the number of rows. Raises ShapeError.
    """
    if x.ndim < 2 or x.size == 0 or not gamma.shape == beta.shape == x.shape[-1:]:
        raise ShapeError(
            f"batch_normalize: x {x.shape}, gamma {gamma.shape}, beta {beta.shape}; expected "
            f"(..., channels), not empty, and twice (channels,)"
        )
    # The same node for all three, so that what flows back to it is added up, and merged, there.
    rows = reshape(x, (-1, x.shape[-1]))
    center = mean(rows, 0)
    variance = apply(Variance(), rows, center)
    scale = gamma / deviation(variance)
    normal = apply(ScaleAndShift(), beta - center * scale, rows, scale)
    return reshape(normal, x.shape), center, variance


def scale_and_shift(x: Expression, scale: Expression, shift: Expression) -> Expression:
    """x · scale + shift, by channel: (..., channels), and twice (channels,)."""
    rows = reshape(x, (-1, x.shape[-1]))
    return reshape(apply(ScaleAndShift(), shift, rows, scale), x.shape)


def _scaled_and_shifted(
    matrices: Sequence[Array],
    scales: Sequence[Array],
    shift: Array,
    out: Array,
    spare: Sequence[Array],
) -> list[Call]:
    """The calls for one strip. ``out`` is written when all but the last matrix were read, and so
    may be any of them. ``spare``: one array for a sum of two products, and two for more."""
    *others, last = zip(matrices, scales, strict=True)
    calls: list[Call] = []
    for i, (matrix, scale) in enumerate(others):
        calls.append(partial(np.multiply, matrix, scale, spare[min(i, 1)]))
        if i:
            calls.append(partial(np.add, spare[0], spare[1], spare[0]))
    calls.append(partial(np.multiply, *last, out))
    if others:
        calls.append(partial(np.add, out, spare[0], out))
    return [*calls, partial(np.add, out, shift, out)]


def _squared_differences(x: Array, center: Array, out: Array) -> Call:
    """The call that fills ``out`` with the sums of the columns of (x - center)²."""
    (rows,) = long_rows(x)
    lanes = np.empty((rows.shape[1] // len(center), len(center)), out.dtype)
    total, part = np.empty((2, rows.shape[1]), out.dtype)
    calls: list[Call] = [partial(np.copyto, lanes, center), partial(total.fill, 0)]
    parts, alone = strips(rows), ThreadPool()  # as it is seldom called
    spare = np.empty_like(rows[parts[0]])
    for strip in parts:
        differences = spare[: strip.stop - strip.start]
        calls += [
            partial(np.subtract, rows[strip], lanes.reshape(-1, copy=False), differences),
            column_dots(differences, differences, part, alone),
            partial(np.add, total, part, total),
        ]
    return in_order([*calls, column_sums(total.reshape(lanes.shape, copy=False), out)])
