"""Convolution in training: the product and both of its gradients, strip by strip.

A strip is a range of pixels of a result. Their windows are copied to the rows of a matrix, which
stays in the L2 cache until BLAS has read it. Compiled loops (the extra ``fast``) read the windows
in place. All arrays are C-contiguous. Maps are (N, H, W, C), filters (kh, kw, C / groups, O).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.kernels.convolution.choice import Choice, choose
from dist_net.autodiff.kernels.convolution.depthwise import (
    correlations,
    gradient_task,
    is_depthwise,
    sized_blocks,
)
from dist_net.autodiff.kernels.convolution.im2row import Patches, by_group
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Blocking, Epilogue, Problem
from dist_net.autodiff.kernels.convolution.winograd import Winograd, transforms
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
    blocks: list[Block] = []
    tasks: list[Task] = []
    (top, _), (left, _) = windows.padding
    (down, across), (tall, wide) = windows.stride, windows.dilation
    is_full = filters.size > 0 and windows.size[0] >= down and windows.size[1] >= across
    before: list[Call] = [] if is_full else [partial(out.fill, 0)]
    for row, column in product(range(down), range(across)):
        pixels = out[:, row::down, column::across]
        rows, above = phase_of(windows.size[0], down, tall, row + top)
        columns, beside = phase_of(windows.size[1], across, wide, column + left)
        taps = filters[rows, columns]
        if taps.size and pixels.size:
            sides = (
                (above, tall * (len(taps) - 1) - above),
                (beside, wide * (taps.shape[1] - 1) - beside),
            )
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
    by_winograd = _winograd(windows, groups, x, cotangent, pool)
    if by_winograd:
        return _gradient_by_winograd(*by_winograd, x, cotangent, out, pool)
    depthwise = is_depthwise(x.shape, groups, cotangent.shape)
    patches = Patches(windows, x.shape, _pair(cotangent.shape[1:]), groups)
    strips = sized_blocks(cotangent.shape, windows) if depthwise else _strips(patches, cotangent)
    loops = _direct_loops(windows, groups, x, out.shape[3])
    kernels = _depthwise_loops(windows, x) if depthwise else None
    if kernels and x.shape[3] % kernels.LANES:
        kernels = None  # the last vector would overlap the one before, and count twice

    def add_part(part: Sequence[Block], total: Array) -> Task:
        if depthwise:
            return gradient_task(windows, x, cotangent, part, total[:, :, 0], pool, kernels)

        def multiply(strip: Block, rows: Array, product: Array) -> Sequence[Call]:
            of_strip = cotangent[strip.images, strip.rows]
            if loops:
                by_value = _lines(windows, rows).transpose(3, 4, 0, 1, 2)
                lines = total.reshape(1, 1, len(total), -1, total.shape[3], copy=False)
                return [loops.products(by_value[None, None], of_strip[None], lines, True)]
            product = product.reshape(total.shape, copy=False)
            factors = rows.transpose(0, 2, 1), by_group(of_strip, groups)
            call = partial(np.matmul, *factors, by_group(product, groups))
            return [call, partial(np.add, total, product, total)]

        sizes = [total.size] * len(part)
        return one_task(_tasks(patches, x, part, sizes, multiply, pool, loops))

    return _sum_of_parts(strips, add_part, out, pool)


def _sum_of_parts(
    strips: Sequence[Block], add_part: Callable[..., Task], out: Array, pool: ThreadPool
) -> Call:
    """Return the call that fills ``out`` with the sum over strips, of which threads add a part."""
    parts = [part for i in range(pool.threads) if (part := strips[i :: pool.threads])]
    sums = [out, *(np.empty_like(out) for _ in parts[1:])]
    fill = [partial(each.fill, 0) for each in sums]
    tasks = [add_part(*each) for each in zip(parts, sums, strict=False)]
    return in_order([*fill, pool.call(tasks), *(partial(np.add, out, n, out) for n in sums[1:])])


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
    """Return compiled loops that need no rows of windows, if they apply; pixels are rows anyway."""
    if x.dtype != np.float32 or groups > 1 or windows.dilation != (1, 1) or windows.size == (1, 1):
        return None
    loops = compiled_loops("direct_loops")
    return loops if loops and filters % loops.BLOCK == 0 else None


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


def _lines(windows: Windows, padded: Array) -> Array:
    """Return the lines of all windows of a padded map, a view (N, H', W', kh, kw · C)."""
    seen = windows.over(padded)
    return seen.reshape(*seen.shape[:4], -1, copy=False)


MultiplyBlock = Callable[[Block, Array, Array], Sequence[Call]]
"""Maps a strip, its rows, and spare memory to the calls that multiply."""


def _tasks(
    patches: Patches,
    x: Array,
    strips: Sequence[Block],
    spare_sizes: Sequence[int],
    multiply: MultiplyBlock,
    pool: ThreadPool,
    loops: ModuleType | None,
) -> list[Task]:
    """Return a task per strip: write and multiply its rows, or by ``loops`` its padded map."""
    sized = zip(strips, spare_sizes, strict=True)
    shapes = [[*patches.shapes(strip), (size,)] for strip, size in sized]

    def calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
        padded, matrix, spare = scratch
        if loops:
            return [*patches.take(x, strips[i], padded), *multiply(strips[i], padded, spare)]
        gather, rows = patches.rows(x, strips[i], padded, matrix)
        return [*gather, *multiply(strips[i], rows, spare)]

    return pool.tasks(shapes, x.dtype, calls)


def _correlated(
    windows: Windows, groups: int, x: Array, filters: Array, out: Array, pool: ThreadPool
) -> BlockTasks:
    """Return tasks to fill ``out``, any view; filters (kh, kw, C / groups, groups, O / groups)."""
    if is_depthwise(x.shape, groups, out.shape):
        turn, taps = _contiguous(filters[:, :, 0, :, 0])
        tasks = correlations(windows, x, taps, out, pool, _depthwise_loops(windows, x))
        return BlockTasks(turn, sized_blocks(out.shape, windows), tasks)
    by_winograd = _winograd(windows, groups, x, out, pool)
    if by_winograd:
        return _by_winograd(*by_winograd, x, filters[:, :, :, 0], out, pool)
    loops = _direct_loops(windows, groups, x, out.shape[3])
    patches = Patches(windows, x.shape, _pair(out.shape[1:]), groups)
    turn, taps = _contiguous(filters.transpose(3, 0, 1, 2, 4))
    shape = (1, len(filters), 1, -1) if loops else (groups, patches.length)
    matrix = taps.reshape(*shape, out.shape[3] // groups, copy=False)

    def multiply(strip: Block, rows: Array, product: Array) -> Sequence[Call]:
        part = out[strip.images, strip.rows]
        if loops:
            lines = _lines(windows, rows)[None, ..., None, :]
            return [loops.products(lines, matrix, part[None])]
        target = part if part.flags.c_contiguous else product.reshape(part.shape, copy=False)
        call = partial(np.matmul, rows, matrix, by_group(target, groups))
        return [call] if target is part else [call, partial(np.copyto, part, target)]

    strips = _strips(patches, out)
    sizes = [out[each.images, each.rows].size for each in strips]
    return BlockTasks(turn, strips, _tasks(patches, x, strips, sizes, multiply, pool, loops))


def _winograd(
    windows: Windows, groups: int, x: Array, out: Array, pool: ThreadPool
) -> tuple[Problem, Choice] | None:
    """Return the problem and the choice of F(2x2) by compiled loops; None if it is not chosen."""
    if not (_direct_loops(windows, groups, x, out.shape[3]) and out.flags.c_contiguous):
        return None
    problem = Problem(windows, 1, Epilogue(), x.shape, out.shape, x.dtype)
    # For one thread, so that the blocks and all bits are the same for any number.
    choice = choose(problem, threads=1, compiled=True, gemm=pool.gemm, exact=True)
    return (problem, choice) if isinstance(choice.algorithm, Winograd) else None


def _by_winograd(
    problem: Problem, choice: Choice, x: Array, filters: Array, out: Array, pool: ThreadPool
) -> BlockTasks:
    """Return the tasks of ``_correlated`` by Winograd's algorithm, for filters (3, 3, C, O)."""
    turn, contiguous = _contiguous(filters)
    prepared = np.empty(choice.algorithm.prepared_shape(problem), x.dtype)

    def prepare() -> None:
        np.copyto(prepared, choice.algorithm.prepare(problem, contiguous))

    arrays = Arrays(x, prepared, np.zeros(out.shape[3], x.dtype), None, out)
    tasks = choice.tasks(problem, arrays, pool)
    return BlockTasks([*turn, prepare], choice.blocks(problem), tasks)


def _gradient_by_winograd(
    problem: Problem, choice: Choice, x: Array, cotangent: Array, out: Array, pool: ThreadPool
) -> Call:
    """Return the call of ``filter_gradient`` by Winograd's algorithm: 16 products instead of 36."""
    algorithm: Any = choice.algorithm  # a CompiledWinograd, whose module needs numba
    loops: Any = compiled_loops("direct_loops")
    blocks = [*replace(choice.blocking, channels=out.shape[3]).blocks(problem.out, algorithm.m)]
    _, g, _ = transforms(algorithm.m)
    to_filters = np.kron(g, g).T.astype(x.dtype)
    points = np.empty((to_filters.shape[1], *out.shape[2:]), x.dtype)

    def add_part(part: Sequence[Block], total: Array) -> Task:
        def calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
            transform, *both = algorithm.points_of_both(problem, part[i], x, cotangent, scratch)
            return [*transform, loops.products(*both, total[:, None, None], True)]

        shapes = [algorithm.shapes(problem, block) for block in part]
        return one_task(pool.tasks(shapes, x.dtype, calls))

    rows = out.reshape(len(to_filters), -1, copy=False)
    into = partial(np.matmul, to_filters, points.reshape(len(points), -1, copy=False), rows)
    return in_order([_sum_of_parts(blocks, add_part, points, pool), into])
