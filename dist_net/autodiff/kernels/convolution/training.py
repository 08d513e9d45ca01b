"""Convolution in training: the product and both of its gradients, strip by strip.

A strip is a range of pixels of a result. Their windows are copied to the rows of a matrix, which
stays in the L2 cache until BLAS has read it. With the extra ``fast``, compiled loops read the
windows in place instead. All arrays are C-contiguous. Maps are (N, H, W, C), filters
(kh, kw, C / groups, O).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
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
from dist_net.autodiff.kernels.convolution.problem import (
    Arrays,
    Block,
    Blocking,
    Epilogue,
    Problem,
)
from dist_net.autodiff.kernels.thread_pool import Task, ThreadPool, one_task
from dist_net.autodiff.kernels.windows import Pair, Windows, phase_of

STRIP_BYTES = 1 << 19  # of a strip's rows: a typical L2 cache
TILES = 128  # of 2x2 outputs in a block of Winograd's
MIN_CHANNELS = 16  # of Winograd's maps and filters
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
    return _correlated(windows, groups, x, _grouped(filters, groups), out, pool)


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
            turned = _grouped(taps[::-1, ::-1], groups).transpose(0, 1, 4, 3, 2)
            of_phase = _correlated(seen, groups, cotangent, turned, pixels, pool)
            before += of_phase.before
            blocks += of_phase.blocks
            tasks += of_phase.tasks
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
    loops = _direct_loops(windows, groups, x, out.shape[3])
    kernels = _depthwise_loops(windows, x) if depthwise else None
    if kernels and x.shape[3] % kernels.LANES:
        kernels = None  # the last vector would overlap the one before, and count twice
    tasks: list[Task] = []
    for part, total in zip(parts, sums, strict=True):
        if depthwise:
            of_taps = total[:, :, 0]
            tasks.append(gradient_task(windows, x, cotangent, part, of_taps, pool, kernels))
        elif loops:
            tasks.append(one_task(_direct_sum(loops, patches, x, part, cotangent, total, pool)))
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
def compiled_loops(name: str) -> ModuleType | None:
    """Return a module of ``kernels.compiled``; None without the extra ``fast``."""
    try:
        return import_module(f"dist_net.autodiff.kernels.compiled.{name}")
    except ImportError:
        return None


def _depthwise_loops(windows: Windows, x: Array) -> ModuleType | None:
    """Return the compiled loops of depthwise convolution, if they support these arguments."""
    if x.dtype != np.float32 or windows.dilation != (1, 1):
        return None
    loops = compiled_loops("depthwise_loops")
    return loops if loops and x.shape[3] >= loops.LANES else None


def _direct_loops(windows: Windows, groups: int, x: Array, filters: int) -> ModuleType | None:
    """Return the compiled loops that need no rows of windows, if they support these arguments.

    A pointwise convolution has none: its rows are the map's pixels.
    """
    if x.dtype != np.float32 or groups > 1 or windows.dilation != (1, 1) or windows.size == (1, 1):
        return None
    loops = compiled_loops("direct_loops")
    return loops if loops and filters % loops.BLOCK == 0 else None


def _suits_winograd(windows: Windows, x: Array, out: Array) -> bool:
    """Return whether F(2x2, 3x3) takes less time than direct loops, which support the arguments."""
    _, height, width, filters = out.shape
    is_of_three = windows.size == (3, 3) and windows.stride == (1, 1)
    is_even = height % 2 == width % 2 == 0 and out.flags.c_contiguous
    return is_of_three and is_even and min(x.shape[3], filters) >= MIN_CHANNELS


def _pair(shape: Shape) -> Pair:
    return shape[0], shape[1]


def _grouped(filters: Array, groups: int) -> Array:
    """Return filters (kh, kw, C / groups, O) as a view (kh, kw, C / groups, groups, O / groups)."""
    *axes, count = filters.shape
    return filters.reshape(*axes, groups, count // groups, copy=False)


def _contiguous(view: Array) -> tuple[list[Call], Array]:
    """Return a contiguous array with the values of a view, and the calls that copy them to it."""
    if view.flags.c_contiguous:
        return [], view
    copied = np.empty(view.shape, view.dtype)
    return [partial(np.copyto, copied, view)], copied


def _matrices(filters: Array) -> tuple[list[Call], Array]:
    """Return filters by group as matrices, and the calls that write them.

    Filters that are no contiguous view are copied column by column, in runs of outputs.
    """
    *line, groups, columns = filters.shape
    length = math.prod(line)
    if filters.flags.c_contiguous:
        return [], filters.reshape(length, groups, columns, copy=False).transpose(1, 0, 2)
    turn, by_column = _contiguous(filters.transpose(3, 4, 0, 1, 2))
    return turn, by_column.reshape(groups, columns, length, copy=False).transpose(0, 2, 1)


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
    windows: Windows, groups: int, x: Array, filters: Array, out: Array, pool: ThreadPool
) -> BlockTasks:
    """Return the tasks that fill the blocks of ``out``, which may be a strided view.

    ``filters`` are (kh, kw, C / groups, groups, O / groups), a view.
    """
    if is_depthwise(x.shape, groups, out.shape):
        turn, taps = _contiguous(filters[:, :, 0, :, 0])
        tasks = correlations(windows, x, taps, out, pool, _depthwise_loops(windows, x))
        return BlockTasks(turn, sized_blocks(out.shape, windows), tasks)
    loops = _direct_loops(windows, groups, x, out.shape[3])
    if loops and _suits_winograd(windows, x, out):
        return _by_winograd(windows, x, filters[:, :, :, 0], out, pool)
    patches = Patches(windows, x.shape, _pair(out.shape[1:]), groups)
    strips = _strips(patches, out)
    if loops:
        turn, laid_out = _contiguous(loops.laid_out(filters[:, :, :, 0]))

        def convolve_strip(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
            part = out[strips[i].images, strips[i].rows]
            call = loops.convolution(windows, scratch[0], laid_out, part)
            return [*patches.take(x, strips[i], scratch[0]), call]

        shapes = [[patches.padded_shape(strip)] for strip in strips]
        return BlockTasks(turn, strips, pool.tasks(shapes, x.dtype, convolve_strip))
    turn, matrix = _matrices(filters)

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

    tasks = _tasks(patches, x, strips, spare_shapes, multiply, pool)
    return BlockTasks(turn, strips, tasks)


def _by_winograd(
    windows: Windows, x: Array, filters: Array, out: Array, pool: ThreadPool
) -> BlockTasks:
    """Return the tasks of ``_correlated`` by F(2x2, 3x3), for filters (3, 3, C, O)."""
    loops = compiled_loops("winograd_loops")
    assert loops is not None
    algorithm = loops.CompiledWinograd(2, 1, pool.gemm)
    problem = Problem(windows, 1, Epilogue(), x.shape, out.shape, x.dtype)
    turn, contiguous = _contiguous(filters)
    prepared = np.empty(algorithm.prepared_shape(problem), x.dtype)

    def prepare() -> None:
        np.copyto(prepared, algorithm.prepare(problem, contiguous))

    arrays = Arrays(x, prepared, np.zeros(out.shape[3], x.dtype), None, out)
    _, height, width, filter_count = out.shape
    tiles = width // 2
    per_image = height // 2 * tiles
    blocking = Blocking(
        max(1, TILES // per_image), 2 * max(1, min(height // 2, TILES // tiles)), filter_count
    )
    blocks = [*blocking.blocks(out.shape, algorithm.row_step)]
    pool.reserve(max(algorithm.scratch_bytes(problem, each) for each in blocks))
    tasks = [
        [
            algorithm.calls(problem, block, arrays, pool.scratch(thread))
            for thread in range(pool.threads)
        ]
        for block in blocks
    ]
    return BlockTasks([*turn, prepare], blocks, tasks)


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


def _direct_sum(
    loops: ModuleType,
    patches: Patches,
    x: Array,
    strips: Sequence[Block],
    cotangent: Array,
    total: Array,
    pool: ThreadPool,
) -> list[Task]:
    """Return tasks as ``_tasks_of_sum``, by the compiled loops."""

    def add_strip(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
        part = cotangent[strips[i].images, strips[i].rows]
        call = loops.gradient(patches.windows, scratch[0], part, total)
        return [*patches.take(x, strips[i], scratch[0]), call]

    tasks = pool.tasks([[patches.padded_shape(strip)] for strip in strips], x.dtype, add_strip)
    fill: Task = [[partial(total.fill, 0)]] * pool.threads
    return [fill, *tasks]
