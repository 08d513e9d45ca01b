"""Depthwise convolution: one filter per channel, which reads only that channel.

It is not a matrix product, so windows are not copied to rows. With a stride of 1, neighbouring
pixels form one long row, which is multiplied by a tap repeated as often.

Maps are (N, H, W, C), filters (kh, kw, 1, C), taps (kh, kw, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.convolution.problem import (
    Arrays,
    Block,
    Blocking,
    Problem,
    take_padded,
)
from dist_net.autodiff.kernels.memory import carve, scratch_bytes
from dist_net.autodiff.kernels.thread_pool import Task, ThreadPool, one_task
from dist_net.autodiff.kernels.windows import Windows

PRODUCTS = 1 << 20  # of a block: about 100 us, several times the wake-up time of a thread
MAX_ROW = 1024  # values: the repeated taps of a 5x5 filter still fit in the cache
SUM_OF_TAPS = "nrjhwl,hwl->nrjl"
SUM_OF_WINDOWS = "nrjhwl,nrjl->hwl"


class Depthwise:
    """The algorithm of inference with NumPy: one sum of products for a block."""

    name = "depthwise"
    row_step = 1

    def prepared_shape(self, problem: Problem) -> Shape:
        """Return the shape of the result of ``prepare``."""
        return *problem.windows.size, problem.out[3]

    def prepare(self, problem: Problem, filters: Array) -> Array:
        """Return (kh, kw, 1, C) as (kh, kw, C), a view."""
        return filters[:, :, 0]

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        """Return the bytes of scratch that one thread needs for a block."""
        return scratch_bytes(self._shapes(problem, block), problem.dtype)

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """Return the calls that compute a block of the output."""
        padded, taps, spare, bias = carve(scratch, self._shapes(problem, block), problem.dtype)
        gather, seen = _seen(problem.windows, arrays.x, block, padded, spare)
        out = arrays.out[block.index].reshape(spare.shape, copy=False)
        residual = None
        if arrays.residual is not None:
            residual = arrays.residual[block.index].reshape(spare.shape, copy=False)
        return [
            *gather,
            _repeat(arrays.filters, taps),
            partial(np.copyto, bias.reshape(-1, problem.out[3], copy=False), arrays.bias),
            partial(np.einsum, SUM_OF_TAPS, seen, taps, out=out),
            *problem.epilogue.calls(out, bias, residual, out, spare),
        ]

    def _shapes(self, problem: Problem, block: Block) -> list[Shape]:
        padded, taps, values = _shapes(problem.windows, block, problem.out)
        return [padded, taps, values, taps[2:]]


def is_depthwise(x: Shape, groups: int, out: Shape) -> bool:
    """Return whether each channel is a group of its own, with one filter."""
    return groups == x[3] == out[3] > 1


def sized_blocks(out: Shape, windows: Windows) -> list[Block]:
    """Return the blocks of an output, each of about ``PRODUCTS``."""
    return [*blocking(out, windows).blocks(out)]


def blocking(out: Shape, windows: Windows) -> Blocking:
    """Return blocks of about ``PRODUCTS``; the result is independent of the blocks."""
    images, height, width, channels = out
    per_row = max(1, width * channels * windows.size[0] * windows.size[1])
    rows = max(1, PRODUCTS // per_row)
    return Blocking(
        max(1, min(images, rows // max(1, height))), max(1, min(rows, height)), max(1, channels)
    )


def correlations(
    windows: Windows,
    x: Array,
    taps: Array,
    out: Array,
    pool: ThreadPool,
    kernels: ModuleType | None,
) -> list[Task]:
    """Return the tasks that convolve ``x`` by taps into ``out``, which may be a strided view.

    ``kernels``: the module of the compiled kernels; None: use NumPy.
    """
    blocks = sized_blocks(out.shape, windows)
    if kernels:
        calls = [
            kernels.correlation(windows, x[block.images], block.rows.start, taps, _part(out, block))
            for block in blocks
        ]
        return [[[call]] * pool.threads for call in calls]

    def block_calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
        padded, repeated, values = scratch
        gather, seen = _seen(windows, x, blocks[i], padded, values)
        target = _part(out, blocks[i])
        return [
            *gather,
            _repeat(taps, repeated),
            partial(np.einsum, SUM_OF_TAPS, seen, repeated, out=values),
            partial(np.copyto, target, values.reshape(target.shape, copy=False)),
        ]

    return pool.tasks([_shapes(windows, each, out.shape) for each in blocks], x.dtype, block_calls)


def gradient_task(
    windows: Windows,
    x: Array,
    cotangent: Array,
    blocks: Sequence[Block],
    total: Array,
    pool: ThreadPool,
    kernels: ModuleType | None,
) -> Task:
    """Return the task that writes the sum of the blocks' gradients of the taps to ``total``.

    ``kernels`` as for ``correlations``.
    """
    fill: Task = [[partial(total.fill, 0)]] * pool.threads
    if kernels:
        calls = [
            kernels.gradient(
                windows, x[each.images], each.rows.start, _part(cotangent, each), total
            )
            for each in blocks
        ]
        return one_task([fill, [calls] * pool.threads])

    def block_calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
        padded, sums, values = scratch
        gather, seen = _seen(windows, x, blocks[i], padded, values)
        part = _part(cotangent, blocks[i]).reshape(values.shape, copy=False)
        by_pixel = sums.reshape(*sums.shape[:2], -1, total.shape[2], copy=False)
        return [
            *gather,
            partial(np.einsum, SUM_OF_WINDOWS, seen, part, out=sums),
            partial(_add_sum, by_pixel, total),
        ]

    shapes = [_shapes(windows, block, cotangent.shape) for block in blocks]
    by_block = pool.tasks(shapes, x.dtype, block_calls)
    return one_task([fill, *by_block])


def _shapes(windows: Windows, block: Block, result: Shape) -> list[Shape]:
    """Return the shapes of a block's padded input, repeated taps, and values in long rows."""
    images, rows, _ = block.size
    _, _, columns, channels = result
    (height, width), (down, across) = windows.size, windows.stride
    (tall, wide) = windows.extent
    most = max(1, MAX_ROW // channels) if across == 1 else 1
    pixels = max(n for n in range(1, min(most, columns) + 1) if columns % n == 0)
    return [
        (images, (rows - 1) * down + tall, (columns - 1) * across + wide, channels),
        (height, width, pixels * channels),
        (images, rows, columns // pixels, pixels * channels),
    ]


def _seen(
    windows: Windows, x: Array, block: Block, padded: Array, values: Array
) -> tuple[Sequence[Call], Array]:
    """Return the calls that copy a block's padded input, and the input of each tap.

    The latter is a view, (N, rows, long rows, kh, kw, values of a long row).
    """
    (down, across), ((top, _), (left, _)) = windows.stride, windows.padding
    gather = take_padded(x[block.images], block.rows.start * down - top, -left, padded)
    per_image, per_row, per_pixel, per_value = padded.strides
    long_row = values.shape[3]
    strides = per_image, down * per_row, across * long_row * per_value
    of_taps = windows.dilation[0] * per_row, windows.dilation[1] * per_pixel
    shape = *values.shape[:3], *windows.size, long_row
    return gather, as_strided(padded, shape, (*strides, *of_taps, per_value))


def _repeat(taps: Array, repeated: Array) -> Call:
    """Return the call that repeats each tap for all pixels of a long row."""
    by_pixel = repeated.reshape(*taps.shape[:2], -1, taps.shape[2], copy=False)
    return partial(np.copyto, by_pixel, taps[:, :, np.newaxis])


def _add_sum(by_pixel: Array, total: Array) -> None:
    """Add the sum over pixels of (kh, kw, pixels, C) to (kh, kw, C)."""
    np.add(total, by_pixel.sum(2), total)


def _part(array: Array, block: Block) -> Array:
    return array[block.images, block.rows]
