"""Convolution in training: the product and both of its gradients, strip by strip.

A strip is a range of pixels of a result. Their windows are copied to the rows of a matrix, which
stays in the L2 cache until BLAS has read it. Compiled loops (the extra ``fast``) read the windows
in place. All arrays are C-contiguous. Maps are (N, H, W, C), filters (kh, kw, C / groups, O).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from dist_net.autodiff.arrays import Array, Call, in_order
from dist_net.autodiff.kernels.convolution.choice import Choice, choose
from dist_net.autodiff.kernels.convolution.depthwise import SUM_OF_TAPS, is_depthwise
from dist_net.autodiff.kernels.convolution.im2row import Patches, by_group
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Blocking, Epilogue, Problem
from dist_net.autodiff.kernels.convolution.winograd import Winograd, transforms
from dist_net.autodiff.kernels.thread_pool import Task, ThreadPool, one_task
from dist_net.autodiff.kernels.windows import Windows, phase_of

STRIP_BYTES = 1 << 19  # of a strip's rows: a typical L2 cache
MIN_PIXELS = 256  # of a strip; with fewer, BLAS reads the filters too often
SUM_OF_WINDOWS = "nrchwl,nrcl->hwl"  # of depthwise convolution


class BlockTasks(NamedTuple):
    """Calls to make first, and for each block of a result the task that computes it."""

    before: Sequence[Call]
    blocks: Sequence[Block]
    tasks: Sequence[Task]

    def call(self, pool: ThreadPool) -> Call:
        """Return the call that computes the whole result."""
        return in_order([*self.before, pool.call(self.tasks)])


MultiplyBlock = Callable[[Block, Array, Array], Sequence[Call]]
"""Maps a strip, its rows, and spare memory to the calls that multiply."""


@dataclass(frozen=True, eq=False)
class SeenMap:
    """The windows of a map ``x``, one for each pixel of ``y``: the result, or its cotangent.

    Its properties choose the algorithm; ``kernels`` are those of depthwise convolution, and
    ``loops`` need no rows of windows. None: NumPy.
    """

    windows: Windows
    groups: int
    x: Array
    y: Array
    pool: ThreadPool

    @cached_property
    def patches(self) -> Patches:
        return Patches(self.windows, self.x.shape, (self.y.shape[1], self.y.shape[2]), self.groups)

    @property
    def is_depthwise(self) -> bool:
        return is_depthwise(self.x.shape, self.groups, self.y.shape)

    @property
    def _has_plain_floats(self) -> bool:
        return self.x.dtype == np.float32 and self.windows.dilation == (1, 1)

    @cached_property
    def kernels(self) -> ModuleType | None:
        kernels = compiled_loops("depthwise_loops") if self._has_plain_floats else None
        return kernels if kernels and self.x.shape[3] >= kernels.LANES else None

    @cached_property
    def loops(self) -> ModuleType | None:
        if not self._has_plain_floats or self.groups > 1 or self.windows.size == (1, 1):
            return None  # pixels are rows anyway
        loops = compiled_loops("direct_loops")
        return loops if loops and self.y.shape[3] % loops.BLOCK == 0 else None

    @property
    def winograd(self) -> tuple[Problem, Choice] | None:
        """The problem and the choice of F(2x2) by compiled loops; None if it is not chosen."""
        if not (self.loops and self.y.flags.c_contiguous):
            return None
        shapes = self.x.shape, self.y.shape
        problem = Problem(self.windows, 1, Epilogue(), *shapes, self.x.dtype)
        # For one thread, so that the blocks and all bits are the same for any number.
        choice = choose(problem, threads=1, compiled=True, gemm=self.pool.gemm, exact=True)
        return (problem, choice) if isinstance(choice.algorithm, Winograd) else None

    def blocks(self) -> list[Block]:
        """Return the blocks of ``y`` for depthwise convolution."""
        return [*Blocking.of_depthwise(self.y.shape, self.windows).blocks(self.y.shape)]

    def strips(self) -> list[Block]:
        """Return strips of ``y``: some rows of one image, or all rows of several images."""
        images, height, width, channels = self.y.shape
        row_bytes = max(1, self.groups * self.patches.length, channels) * self.y.itemsize
        pixels = max(MIN_PIXELS, STRIP_BYTES // row_bytes)
        rows = max(1, min(height, pixels // width))
        even_rows = -(-height // -(-height // rows))
        strips = Blocking(max(1, pixels // (height * width)), even_rows, 1)
        return [*strips.blocks((images, height, width, 1))]

    def tasks(
        self, strips: Sequence[Block], spare_sizes: Sequence[int], multiply: MultiplyBlock
    ) -> list[Task]:
        """Return a task per strip: write and multiply its rows, or by ``loops`` its padded map."""
        sized = zip(strips, spare_sizes, strict=True)
        shapes = [[*self.patches.shapes(strip), (size,)] for strip, size in sized]

        def calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
            padded, matrix, spare = scratch
            if self.loops:
                gather, rows = self.patches.take(self.x, strips[i], padded), padded
            else:
                gather, rows = self.patches.rows(self.x, strips[i], padded, matrix)
            return [*gather, *multiply(strips[i], rows, spare)]

        return self.pool.tasks(shapes, self.x.dtype, calls)

    def lines(self, padded: Array) -> Array:
        """Return the lines of all windows of a padded map, a view (N, H', W', kh, kw · C)."""
        seen = self.windows.over(padded)
        return seen.reshape(*seen.shape[:4], -1, copy=False)


def convolve(
    windows: Windows, groups: int, x: Array, filters: Array, out: Array, pool: ThreadPool
) -> BlockTasks:
    """Convolve ``x`` by ``filters``: return the tasks that fill ``out``, (N, H', W', O)."""
    return _correlated(SeenMap(windows, groups, x, out, pool), _grouped(filters, groups))


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
            seen = Windows((len(taps), taps.shape[1]), (1, 1), sides, windows.dilation)
            turned = _grouped(taps[::-1, ::-1], groups).transpose(0, 1, 4, 3, 2)
            of_phase = _correlated(SeenMap(seen, groups, cotangent, pixels, pool), turned)
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
    seen = SeenMap(windows, groups, x, cotangent, pool)
    if out.size == 0:
        return partial(out.fill, 0)
    if by_winograd := seen.winograd:
        return _gradient_by_winograd(seen, *by_winograd, out)
    if seen.is_depthwise:
        return _sum_of_parts(seen.blocks(), partial(_depthwise_gradient, seen), out, pool)
    add = _added_lines if seen.loops else _added_products

    def add_part(part: Sequence[Block], total: Array) -> Task:
        sizes = [total.size] * len(part)
        return one_task(seen.tasks(part, sizes, partial(add, seen, total)))

    return _sum_of_parts(seen.strips(), add_part, out, pool)


def _added_lines(
    seen: SeenMap, total: Array, strip: Block, padded: Array, _: Array
) -> Sequence[Call]:
    """Return the call that adds a strip's gradient to ``total`` by ``SeenMap.loops``."""
    loops: Any = seen.loops
    by_value = seen.lines(padded).transpose(3, 4, 0, 1, 2)
    lines = total.reshape(1, 1, len(total), -1, total.shape[3], copy=False)
    factors = by_value[None, None], seen.y[strip.images, strip.rows][None]
    return [loops.products(*factors, lines, loops.ADDED)]


def _added_products(
    seen: SeenMap, total: Array, strip: Block, rows: Array, spare: Array
) -> Sequence[Call]:
    """Return the calls that add a strip's gradient to ``total`` by a matrix product."""
    product, of_strip = spare.reshape(total.shape, copy=False), seen.y[strip.images, strip.rows]
    factors = rows.transpose(0, 2, 1), by_group(of_strip, seen.groups)
    call = partial(np.matmul, *factors, by_group(product, seen.groups))
    return [call, partial(np.add, total, product, total)]


def _sum_of_parts(
    strips: Sequence[Block], add_part: Callable[..., Task], out: Array, pool: ThreadPool
) -> Call:
    """Return the call that fills ``out`` with the sum over strips, of which threads add a part."""
    parts = [part for i in range(pool.threads) if (part := strips[i :: pool.threads])]
    sums = [out, *(np.empty_like(out) for _ in parts[1:])]
    fill = [partial(each.fill, 0) for each in sums]
    tasks = [add_part(*each) for each in zip(parts, sums, strict=False)]
    return in_order([*fill, pool.call(tasks), *(partial(np.add, out, n, out) for n in sums[1:])])


@cache
def compiled_loops(name: str) -> ModuleType | None:
    """Return a module of ``kernels.compiled``; None without the extra ``fast``."""
    try:
        return import_module(f"dist_net.autodiff.kernels.compiled.{name}")
    except ImportError:
        return None


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


def _correlated(seen: SeenMap, filters: Array) -> BlockTasks:
    """Return tasks to fill ``y``, any view; filters (kh, kw, C / groups, groups, O / groups)."""
    out = seen.y
    if seen.is_depthwise:
        turn, taps = _contiguous(filters[:, :, 0, :, 0])
        return BlockTasks(turn, seen.blocks(), _depthwise(seen, taps))
    if by_winograd := seen.winograd:
        return _by_winograd(seen, *by_winograd, filters[:, :, :, 0])
    loops = seen.loops
    turn, taps = _contiguous(filters.transpose(3, 0, 1, 2, 4))
    shape = (1, len(filters), 1, -1) if loops else (seen.groups, seen.patches.length)
    matrix = taps.reshape(*shape, out.shape[3] // seen.groups, copy=False)

    def multiply(strip: Block, rows: Array, product: Array) -> Sequence[Call]:
        part = out[strip.images, strip.rows]
        if loops:
            return [loops.products(seen.lines(rows)[None, ..., None, :], matrix, part[None])]
        target = part if part.flags.c_contiguous else product.reshape(part.shape, copy=False)
        call = partial(np.matmul, rows, matrix, by_group(target, seen.groups))
        return [call] if target is part else [call, partial(np.copyto, part, target)]

    strips = seen.strips()
    sizes = [out[each.images, each.rows].size for each in strips]
    return BlockTasks(turn, strips, seen.tasks(strips, sizes, multiply))


def _depthwise(seen: SeenMap, taps: Array) -> list[Task]:
    """Return the tasks that convolve by (kh, kw, C) taps, in compiled loops or NumPy."""
    blocks, windows, patches = seen.blocks(), seen.windows, seen.patches
    parts = [seen.y[block.images, block.rows] for block in blocks]
    if seen.kernels:
        calls = [
            seen.kernels.correlation(windows, seen.x[block.images], block.rows.start, taps, part)
            for block, part in zip(blocks, parts, strict=True)
        ]
        return [[[call]] * seen.pool.threads for call in calls]

    def block_calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
        factors = windows.over(scratch[0]), taps
        sum_of_taps = partial(np.einsum, SUM_OF_TAPS, *factors, out=parts[i])
        return [*patches.take(seen.x, blocks[i], scratch[0]), sum_of_taps]

    shapes = [[patches.padded_shape(each)] for each in blocks]
    return seen.pool.tasks(shapes, seen.x.dtype, block_calls)


def _depthwise_gradient(seen: SeenMap, blocks: Sequence[Block], out: Array) -> Task:
    """Return the task that writes the sum of the blocks' gradients to ``out``, (kh, kw, 1, C)."""
    total, patches = out[:, :, 0], seen.patches
    # Loops whose last vector overlaps the one before would count it twice.
    kernels = seen.kernels
    if kernels and seen.x.shape[3] % kernels.LANES:
        kernels = None

    def block_calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
        padded, sums = scratch
        part = seen.y[blocks[i].images, blocks[i].rows]
        gather = patches.take(seen.x, blocks[i], padded)
        if kernels:
            return [*gather, kernels.gradient(seen.windows, padded, part, total)]
        factors = seen.windows.over(padded), part
        sum_of_windows = partial(np.einsum, SUM_OF_WINDOWS, *factors, out=sums)
        return [*gather, sum_of_windows, partial(np.add, total, sums, total)]

    shapes = [[patches.padded_shape(block), total.shape] for block in blocks]
    return one_task(seen.pool.tasks(shapes, seen.x.dtype, block_calls))


def _by_winograd(seen: SeenMap, problem: Problem, choice: Choice, filters: Array) -> BlockTasks:
    """Return the tasks of ``_correlated`` by Winograd's algorithm, for filters (3, 3, C, O)."""
    turn, contiguous = _contiguous(filters)
    prepared = np.empty(choice.algorithm.prepared_shape(problem), problem.dtype)

    def prepare() -> None:
        np.copyto(prepared, choice.algorithm.prepare(problem, contiguous))

    arrays = Arrays(seen.x, prepared, np.zeros(problem.out[3], problem.dtype), None, seen.y)
    tasks = choice.tasks(problem, arrays, seen.pool)
    return BlockTasks([*turn, prepare], choice.blocks(problem), tasks)


def _gradient_by_winograd(seen: SeenMap, problem: Problem, choice: Choice, out: Array) -> Call:
    """Return the call of ``filter_gradient`` by Winograd's algorithm: 16 products instead of 36."""
    algorithm: Any = choice.algorithm  # a CompiledWinograd, whose module needs numba
    loops: Any = seen.loops
    blocks = [*replace(choice.blocking, channels=out.shape[3]).blocks(problem.out, algorithm.m)]
    _, g, _ = transforms(algorithm.m)
    to_filters = np.kron(g, g).T.astype(problem.dtype)
    points = np.empty((to_filters.shape[1], *out.shape[2:]), problem.dtype)

    def add_part(part: Sequence[Block], total: Array) -> Task:
        def calls(i: int, scratch: Sequence[Array]) -> Sequence[Call]:
            transform, *both = algorithm.points_of_both(problem, part[i], seen.x, seen.y, scratch)
            return [*transform, loops.products(*both, total[:, None, None], loops.ADDED)]

        shapes = [algorithm.shapes(problem, block) for block in part]
        return one_task(seen.pool.tasks(shapes, problem.dtype, calls))

    rows = out.reshape(len(to_filters), -1, copy=False)
    into = partial(np.matmul, to_filters, points.reshape(len(points), -1, copy=False), rows)
    return in_order([_sum_of_parts(blocks, add_part, points, seen.pool), into])
