"""Convolution in training: the product and both of its gradients, each by BLAS, strip by strip.

A strip is a range of pixels of a result. Their windows are copied to the rows of a matrix, which
stays in the L2 cache until BLAS has read it. Each function returns one call with its arrays bound.
All arrays are C-contiguous. Maps are (N, H, W, C), filters (kh, kw, C / groups, O).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from types import ModuleType
from typing import NamedTuple

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.kernels.convolution.depthwise import (
    correlations,
    gradient_task,
    is_depthwise,
    sized_blocks,
)
from dist_net.autodiff.kernels.convolution.im2row import Patches, by_group
from dist_net.autodiff.kernels.convolution.problem import Block, Blocking
from dist_net.autodiff.kernels.thread_pool import Task, ThreadPool, one_task
from dist_net.autodiff.kernels.windows import Pair, Windows, phase_of

STRIP_BYTES = 1 << 19  # of a strip's rows: a typical L2 cache
MIN_PIXELS = 256  # of a strip; with fewer, BLAS reads the filters too often


class BlockTasks(NamedTuple):
    """Calls to make first, and for each block of a result the task that computes it."""

    before: Sequence[Call]
    blocks: Sequence[Block]
    tasks: Sequence[Task]

    def call(self, pool: ThreadPool) -> Call:
        """Return the call that computes the whole result."""
        return in_order([*self.before, pool.call(self.tasks)])


def convolve(
    windows: Windows, groups: int, x: Array, filters: Array, out: Array, pool: ThreadPool
) -> BlockTasks:
    """Convolve ``x`` by ``filters``: return the tasks that fill ``out``, (N, H', W', O)."""
    depthwise = is_depthwise(x.shape, groups, out.shape)
    matrix = filters[:, :, 0] if depthwise else by_group(filters, groups)
    return BlockTasks([], *_correlated(windows, groups, x, matrix, out, pool))


def input_gradient(
    windows: Windows, groups: int, cotangent: Array, filters: Array, out: Array, pool: ThreadPool
) -> BlockTasks:
    """Return the tasks that write the cotangent of x, (N, H, W, C), to ``out``.

    ``cotangent`` is (N, H', W', O). For the pixels of one *phase* (every stride-th down and
    across), the result is a convolution with stride 1 by every stride-th tap of the flipped
    filters. A single convolution for all pixels would insert zeros between the pixels of
    ``cotangent`` and multiply by them. Each phase has its own blocks.
    """
    before: list[Call] = []
    blocks: list[Block] = []
    tasks: list[Task] = []
    depthwise = is_depthwise(out.shape, groups, cotangent.shape)
    (top, _), (left, _) = windows.padding
    (down, across), (tall, wide) = windows.stride, windows.dilation
    for row, column in product(range(down), range(across)):
        pixels = out[:, row::down, column::across]
        rows, above = phase_of(windows.size[0], down, tall, row + top)
        columns, beside = phase_of(windows.size[1], across, wide, column + left)
        taps = filters[rows, columns]
        if taps.size == 0:
            before.append(partial(pixels.fill, 0))
        elif pixels.size > 0:
            sides = (above, 0), (beside, 0)
            seen = Windows(_pair(taps.shape), (1, 1), sides, windows.dilation)
            turn, matrix = _turned_taps(taps) if depthwise else _turned(taps, groups)
            before.append(turn)
            of_phase = _correlated(seen, groups, cotangent, matrix, pixels, pool)
            blocks += of_phase[0]
            tasks += of_phase[1]
    return BlockTasks(before, blocks, tasks)


def filter_gradient(
    windows: Windows, groups: int, x: Array, cotangent: Array, out: Array, pool: ThreadPool
) -> Call:
    """Return the call that writes the filters' gradient, (kh, kw, C / groups, O), to ``out``.

    It is the sum of each window times its cotangent. Each thread of the pool has fixed strips, so
    that every run adds in the same order and returns the same bits.
    """
    if out.size == 0:
        return partial(out.fill, 0)
    depthwise = is_depthwise(x.shape, groups, cotangent.shape)
    patches = Patches(windows, x.shape, _pair(cotangent.shape[1:]), groups)
    strips = sized_blocks(cotangent.shape, windows) if depthwise else _strips(patches, cotangent)
    parts = [part for i in range(pool.threads) if (part := strips[i :: pool.threads])]
    if not parts:
        return partial(out.fill, 0)
    sums = [out, *(np.empty_like(out) for _ in parts[1:])]
    tasks: list[Task] = []
    for part, total in zip(parts, sums, strict=True):
        if depthwise:
            kernels = _depthwise_kernels(windows, x)
            if kernels and x.shape[3] % kernels.LANES:
                kernels = None  # the last vector would overlap the one before, and count twice
            of_taps = total[:, :, 0]
            tasks.append(gradient_task(windows, x, cotangent, part, of_taps, pool, kernels))
        else:
            tasks.append(one_task(_tasks_of_sum(patches, x, part, cotangent, total, pool)))
    return in_order([pool.call(tasks), *(partial(np.add, out, each, out) for each in sums[1:])])


def _strips(patches: Patches, result: Array) -> list[Block]:
    """Return strips of the result: some rows of one image, or all rows of several images."""
    images, height, width, channels = result.shape
    row_bytes = max(1, patches.groups * patches.length, channels) * result.itemsize
    pixels = max(MIN_PIXELS, STRIP_BYTES // row_bytes)
    rows = max(1, min(height, pixels // width))
    even_rows = -(-height // -(-height // rows))
    blocking = Blocking(max(1, pixels // (height * width)), even_rows, 1)
    return list(blocking.blocks((images, height, width, 1)))


@cache
def compiled_kernels() -> ModuleType | None:
    """Return the module of the compiled kernels; None without the extra ``fast``."""
    try:
        from dist_net.autodiff.kernels.compiled import depthwise_loops
    except ImportError:
        return None
    return depthwise_loops


def _depthwise_kernels(windows: Windows, x: Array) -> ModuleType | None:
    """Return the compiled kernels of depthwise convolution, if they support these arguments."""
    kernels = compiled_kernels()
    is_suitable = x.dtype == np.float32 and windows.dilation == (1, 1)
    return kernels if kernels and is_suitable and x.shape[3] >= kernels.LANES else None


def _pair(shape: Shape) -> Pair:
    return shape[0], shape[1]


def _turned_taps(taps: Array) -> tuple[Call, Array]:
    """Return the call that flips depthwise filters, (kh, kw, 1, C), and the taps that it writes."""
    turned = np.empty((*taps.shape[:2], taps.shape[3]), taps.dtype)
    return partial(np.copyto, turned, taps[::-1, ::-1, 0]), turned


def _turned(taps: Array, groups: int) -> tuple[Call, Array]:
    """Return the call that flips (kh, kw, C / groups, O), and the array that it writes.

    The array, (groups, kh · kw · O / groups, C / groups), is column-major, so that outputs are
    copied in runs.
    """
    height, width, channels, out_channels = taps.shape
    source = taps[::-1, ::-1].reshape(
        height, width, channels, groups, out_channels // groups, copy=False
    )
    turned = np.empty((groups, channels, height, width, out_channels // groups), taps.dtype)
    call = partial(np.copyto, turned, source.transpose(3, 2, 0, 1, 4))
    return call, turned.reshape(groups, channels, -1, copy=False).transpose(0, 2, 1)


MultiplyBlock = Callable[[Block, Array, Sequence[Array]], Sequence[Call]]
"""Maps a strip, its rows and its spare arrays to the calls that multiply."""


def _tasks(
    patches: Patches,
    x: Array,
    strips: Sequence[Block],
    spare_shapes: Callable[[Block], list[Shape]],
    multiply: MultiplyBlock,
    pool: ThreadPool,
) -> list[Task]:
    """Return the calls that write each strip's rows and multiply them, for each thread."""
    shapes = [[*patches.shapes(strip), *spare_shapes(strip)] for strip in strips]

    def calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
        padded, matrix, *spare = scratch
        gather, rows = patches.rows(x, strips[i], padded, matrix)
        return [*gather, *multiply(strips[i], rows, spare)]

    return pool.tasks(shapes, x.dtype, calls)


def _correlated(
    windows: Windows, groups: int, x: Array, matrix: Array, out: Array, pool: ThreadPool
) -> tuple[Sequence[Block], Sequence[Task]]:
    """Return the blocks of ``out``, which may be a strided view, and the task that fills each.

    ``matrix`` has the filters by group, or is (kh, kw, C) if the convolution is depthwise.
    """
    if is_depthwise(x.shape, groups, out.shape):
        tasks = correlations(windows, x, matrix, out, pool, _depthwise_kernels(windows, x))
        return sized_blocks(out.shape, windows), tasks
    patches = Patches(windows, x.shape, _pair(out.shape[1:]), groups)
    strips = _strips(patches, out)

    def spare_shapes(strip: Block) -> list[Shape]:
        part = out[strip.images, strip.rows]
        return [(0,) if part.flags.c_contiguous else part.shape]

    def multiply(strip: Block, rows: Array, spare: Sequence[Array]) -> Sequence[Call]:
        part = out[strip.images, strip.rows]
        if part.flags.c_contiguous:
            return [partial(np.matmul, rows, matrix, by_group(part, groups))]
        return [
            partial(np.matmul, rows, matrix, by_group(spare[0], groups)),
            partial(np.copyto, part, spare[0]),
        ]

    return strips, _tasks(patches, x, strips, spare_shapes, multiply, pool)


def _tasks_of_sum(
    patches: Patches,
    x: Array,
    strips: Sequence[Block],
    cotangent: Array,
    total: Array,
    pool: ThreadPool,
) -> list[Task]:
    """Return tasks that write the first strip's product to ``total`` and add the others to it."""
    groups = patches.groups

    def spare_shapes(strip: Block) -> list[Shape]:
        return [(0,) if strip is strips[0] else total.shape]

    def multiply(strip: Block, rows: Array, spare: Sequence[Array]) -> Sequence[Call]:
        part = by_group(cotangent[strip.images, strip.rows], groups)
        product = total if strip is strips[0] else spare[0]
        call = partial(np.matmul, rows.transpose(0, 2, 1), part, by_group(product, groups))
        return [call] if product is total else [call, partial(np.add, total, product, total)]

    return _tasks(patches, x, strips, spare_shapes, multiply, pool)
