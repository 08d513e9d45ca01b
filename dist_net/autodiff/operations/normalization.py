"""Batch normalization: scale each channel of a batch to mean 0 and variance 1, then by gamma.

Source: Ioffe and Szegedy 2015 (arXiv 1502.03167). A channel is an index of the last axis; its mean
and variance are taken over all other axes. The operations work on matrices (rows, channels). Passes
over memory dominate their time, so each operation works strip by strip and takes about one pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import Expression, Operation, SharedOperation, apply, constant
from dist_net.autodiff.kernels.convolution.training import compiled_loops
from dist_net.autodiff.kernels.thread_pool import ThreadPool, by_strip
from dist_net.autodiff.operations.reduction import broadcast_to, column_dots, long_rows, mean, sum
from dist_net.autodiff.operations.shaping import reshape, split
from dist_net.errors import ShapeError

MAX_SHIFT = 16.0
"""If the squared mean is at most this multiple of the variance, the variance is the mean of squares
minus the squared mean. That takes half the time of summing squared differences, with at most 17
times the rounding error."""


@dataclass(frozen=True)
class Variance(SharedOperation):
    """The mean of (x - mean)², by channel. Inputs: x (rows, channels), its mean (channels,)."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        x, center = inputs
        return center.shape, x.dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        x, center = inputs
        total, square, is_far = np.empty_like(out), np.empty_like(out), np.empty(out.shape, bool)
        share = out.dtype.type(1 / len(x))
        add_squares = column_dots(x, x, total, pool)
        part, alone = np.empty_like(out), ThreadPool()  # not shared: seldom called

        def differences(strip: slice, spare: Sequence[Array]) -> Sequence[Call]:
            return [
                partial(np.subtract, x[strip], center, spare[0]),
                column_dots(spare[0], spare[0], part, alone),
                partial(np.add, total, part, total),
            ]

        add_differences = by_strip(x, 1, differences, alone)

        def compute_variance() -> None:
            add_squares()
            np.multiply(total, share, out)
            np.multiply(center, center, square)
            np.subtract(out, square, out)
            np.multiply(out, MAX_SHIFT, total)
            np.greater(square, total, is_far)
            if is_far.any():
                total.fill(0)
                add_differences()
                np.multiply(total, share, out)

        return compute_variance

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, center = node.inputs
        factor = cotangent * (2 / x.shape[0])
        # The mean's cotangent is 0, because the differences from the mean sum to 0.
        return apply(ScaleAndShift(), -(center * factor), x, factor), None


@dataclass(frozen=True)
class ColumnDots(SharedOperation):
    """The sum, by channel, of the products of two matrices."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[0].shape[1:], inputs[0].dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        x, y = inputs
        return column_dots(x, y, out, pool)

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        x, y = node.inputs
        return cotangent * y, cotangent * x


@dataclass(frozen=True)
class ScaleAndShift(SharedOperation):
    """The sum of scaled matrices and a shift: x·a + y·b + ... + c, or the ``relu`` of that.

    Inputs: c, x, a, y, b, ...; matrices are (rows, channels), scales and shifts (channels,). Plans
    rewrite a relu into it, which needs no VJP.
    """

    rectifies: bool = False
    overwrites_inputs = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return inputs[1].shape, inputs[1].dtype

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        shift, *terms = inputs
        target, *matrices = long_rows(out, *terms[::2])
        vectors = [shift, *terms[1::2]]
        lanes = np.empty((len(vectors), target.shape[1] // len(shift), len(shift)), out.dtype)
        widen = [partial(np.copyto, *pair) for pair in zip(lanes, vectors, strict=True)]
        wide_shift, *scales = lanes.reshape(len(vectors), -1, copy=False)
        is_flat = all(each.flags.c_contiguous for each in (target, *matrices))
        is_simple = len(matrices) <= 2 and len(wide_shift) % 8 == 0 and out.dtype == np.float32
        loops = compiled_loops("scaling_loops") if is_flat and is_simple else None

        def calls(strip: slice, spare: Sequence[Array]) -> Sequence[Call]:
            terms = [(x[strip], scale) for x, scale in zip(matrices, scales, strict=True)]
            if loops:
                return [loops.scaling(terms, wide_shift, self.rectifies, target[strip])]
            # The result may overwrite a matrix: it is written when all have been read.
            total, product = spare
            made = [partial(np.multiply, *terms[0], total)]
            for each in terms[1:]:
                made.append(partial(np.multiply, *each, product))
                made.append(partial(np.add, total, product, total))
            made.append(partial(np.add, total, wide_shift, target[strip]))
            is_positive = partial(np.maximum, target[strip], 0, out=target[strip])
            return [*made, is_positive] if self.rectifies else made

        return in_order([*widen, by_strip(target, 0 if loops else 2, calls, pool)])

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        _, *terms = node.inputs
        flowing = [sum(cotangent, 0)]
        for x, scale in zip(terms[::2], terms[1::2], strict=True):
            none = broadcast_to(constant(0.0, x.dtype), scale.shape)
            flowing.append(apply(ScaleAndShift(), none, cotangent, scale))
            flowing.append(apply(ColumnDots(), cotangent, x))
        return flowing


class MeanOfParts(Operation):
    """The mean of a vector over the parts of a minibatch; of one part, if its plan runs alone."""

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.positive, inputs[0], out)

    def of(self, parts: Array, shares: Array) -> Array:
        """Return the mean of ``parts``, (parts, length), by their ``shares`` of the samples."""
        return np.asarray(shares @ parts)


class MomentsOfParts(MeanOfParts):
    """The mean and then the variance of all parts. Inputs: x (rows, channels), and its own two."""

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return (2 * inputs[1].size,), inputs[1].dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        return partial(np.concatenate, inputs[1:], 0, out)

    def of(self, parts: Array, shares: Array) -> Array:
        moments, size = super().of(parts, shares), parts.shape[1] // 2
        moments[size:] += super().of(np.square(parts[:, :size] - moments[:size]), shares)
        return moments

    def vjp(self, node: Expression, cotangent: Expression) -> Sequence[Expression | None]:
        # The loss is a mean of the parts' losses too, so that their cotangents are averaged.
        x = node.inputs[0]
        to_mean, to_variance = split(apply(MeanOfParts(), cotangent) * (1 / x.shape[0]), 2)
        factor = to_variance * 2.0
        return apply(ScaleAndShift(), to_mean - split(node, 2)[0] * factor, x, factor), None, None


def batch_normalize(
    x: Expression,
    gamma: Expression,
    beta: Expression,
    deviation: Callable[[Expression], Expression],
    in_parts: bool = False,
) -> tuple[Expression, Expression, Expression]:
    """Return (x - mean) · gamma / deviation(variance) + beta, and the batch's mean and variance.

    ``x`` is (..., channels), the others (channels,). The variance is the sum of squared differences
    divided by the number of rows, not by rows - 1. If ``x`` is a part of a batch, the whole
    batch's mean and variance are used: see ``MomentsOfParts``. Raise ``ShapeError``.
    """
    if x.ndim < 2 or x.size == 0 or not gamma.shape == beta.shape == x.shape[-1:]:
        raise ShapeError(
            f"batch_normalize: x {x.shape}, gamma {gamma.shape}, beta {beta.shape}; expected x "
            f"(..., channels), not empty, and (channels,) for gamma and beta"
        )
    # One node for all three uses, so that their cotangents are summed and merged at that node.
    rows = reshape(x, (-1, x.shape[-1]))
    center = mean(rows, 0)
    variance = apply(Variance(), rows, center)
    if in_parts:
        center, variance = split(apply(MomentsOfParts(), rows, center, variance), 2)
    scale = gamma / deviation(variance)
    normal = apply(ScaleAndShift(), beta - center * scale, rows, scale)
    return reshape(normal, x.shape), center, variance
