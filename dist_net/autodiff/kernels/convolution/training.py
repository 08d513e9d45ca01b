"""Convolution in training: the product and both of its gradients, each by BLAS, strip by strip.

A strip is a range of pixels of a result. Their windows are copied to the rows of a matrix, which
stays in the L2 cache until BLAS has read it. Each function returns one call with its arrays bound.
``out`` must be C-contiguous; the others may have any strides. Maps are (N, H, W, C), filters
(kh, kw, C / groups, O).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from types import ModuleType

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.kernels.convolution.depthwise import (
    correlations,
    gradient_task,
    is_depthwise,
    sized_blocks,
)
from dist_net.autodiff.kernels.convolution.im2row import copy_windows
from dist_net.autodiff.kernels.convolution.problem import Block, Blocking, take_padded
from dist_net.autodiff.kernels.memory import carve, scratch_bytes
from dist_net.autodiff.kernels.thread_pool import Task, ThreadPool
from dist_net.autodiff.kernels.windows import Pair, Windows, phase_of

STRIP_BYTES = 1 << 19  # of a strip's rows: a typical L2 cache
MIN_PIXELS = 256  # of a strip; with fewer, BLAS reads the filters too often
FEW_CHANNELS = 4  # of a group; runs of so few values are too short to copy one by one


@dataclass(frozen=True, eq=False)
class Patches:
    """The windows of ``x``, one per pixel of a result, as the rows of a matrix per group.

    The first window begins above and left of the map by its padding, or inside the map if that is
    negative. Values outside the map are 0.
    """

    x: Array
    windows: Windows
    result: Pair
    groups: int

    @property
    def channels(self) -> int:
        """The channels of one group."""
        channels: int = self.x.shape[3]
        return channels // self.groups

    @property
    def length(self) -> int:
        """The length of a row: the values of one window in one group."""
        return math.prod(self.windows.size) * self.channels

    @property
    def _has_rows(self) -> bool:
        """Whether the map's pixels are the rows, without a copy."""
        (top, _), (left, _) = self.windows.padding
        is_pointwise = self.windows.size == self.windows.stride == (1, 1) and top == left == 0
        return is_pointwise and self.result == self.x.shape[1:3] and self.x.flags.c_contiguous

    def strips(self) -> list[Block]:
        """Return strips of the result: some rows of one image, or all rows of several images."""
        height, width = self.result
        row_bytes = max(1, self.groups * self.length * self.x.itemsize)
        pixels = max(MIN_PIXELS, STRIP_BYTES // row_bytes)
        rows = max(1, min(height, pixels // width))
        even_rows = -(-height // -(-height // rows))
        blocking = Blocking(max(1, pixels // (height * width)), even_rows, 1)
        return list(blocking.blocks((len(self.x), height, width, 1)))

    def shapes(self, strip: Block) -> list[Shape]:
        """Return the shapes of the scratch for ``rows``: a padded part of the map, the matrices."""
        images = strip.images.stop - strip.images.start
        if self._has_rows:
            return [(0,), (0,)]
        rows = strip.rows.stop - strip.rows.start
        height, width = (
            (n - 1) * stride + extent
            for n, stride, extent in zip(
                (rows, self.result[1]), self.windows.stride, self.windows.extent, strict=True
            )
        )
        pixels = images * rows * self.result[1]
        return [(images, height, width, self.x.shape[3]), (self.groups, pixels, self.length)]

    def rows(self, strip: Block, padded: Array, matrix: Array) -> tuple[Sequence[Call], Array]:
        """Return the calls that write a strip's rows, and the rows (groups, pixels, length)."""
        x = self.x[strip.images]
        if self._has_rows:
            return [], by_group(x[:, strip.rows], self.groups)
        if matrix.size == 0:
            return [], matrix
        (above, _), (left, _) = self.windows.padding
        top = strip.rows.start * self.windows.stride[0] - above
        padding = take_padded(x, top, -left, padded)
        windows = self.windows.over(padded)
        if self.channels > FEW_CHANNELS:
            return [*padding, copy_windows(windows, matrix, self.groups)], matrix
        # Runs of channels are short, so copy runs of pixels to columns instead.
        grouped = windows.reshape(*windows.shape[:5], self.groups, self.channels, copy=False)
        seen = grouped.transpose(5, 3, 4, 6, 0, 1, 2)
        columns = matrix.reshape(self.groups, self.length, matrix.shape[1], copy=False)
        copy = partial(np.copyto, columns.reshape(seen.shape, copy=False), seen)
        return [*padding, copy], columns.transpose(0, 2, 1)


def by_group(pixels: Array, groups: int) -> Array:
    """Return (..., channels) as a view (groups, pixels, channels / groups)."""
    *axes, channels = pixels.shape
    by_pixel = pixels.reshape(math.prod(axes), groups, channels // groups, copy=False)
    return by_pixel.transpose(1, 0, 2)


def convolve(
    windows: Windows, groups: int, x: Array, filters: Array, out: Array, pool: ThreadPool
) -> Call:
    """Convolve ``x`` by ``filters``: return the call that fills ``out``, (N, H', W', O)."""
    contiguous = np.empty(filters.shape, filters.dtype)
    if is_depthwise(x.shape, groups, out.shape):
        kernels = _depthwise_kernels(windows, x)
        tasks = correlations(windows, x, contiguous[:, :, 0], out, pool, kernels)
    else:
        matrix = by_group(contiguous, groups)

        def multiply(strip: Block, rows: Array, _: Sequence[Array]) -> Sequence[Call]:
            target = by_group(out[strip.images, strip.rows], groups)
            return [partial(np.matmul, rows, matrix, target)]

        patches = Patches(x, windows, _pair(out.shape[1:]), groups)
        tasks = _tasks(patches, patches.strips(), lambda _: [], multiply, pool)
    return in_order([partial(np.copyto, contiguous, filters), pool.call(tasks)])


def input_gradient(
    windows: Windows, groups: int, cotangent: Array, filters: Array, out: Array, pool: ThreadPool
) -> Call:
    """Return the call that writes the cotangent of x, (N, H, W, C), to ``out``.

    ``cotangent`` is (N, H', W', O). For the pixels of one *phase* (every stride-th down and
    across), the result is a convolution with stride 1 by every stride-th tap of the flipped
    filters. A single convolution for all pixels would insert zeros between the pixels of
    ``cotangent`` and multiply by them.
    """
    before: list[Call] = []
    tasks: list[Task] = []
    depthwise = is_depthwise(out.shape, groups, cotangent.shape)
    kernels = _depthwise_kernels(windows, cotangent) if depthwise else None
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
            if depthwise:
                turned = np.empty((*seen.size, out.shape[3]), taps.dtype)
                before.append(partial(np.copyto, turned, taps[::-1, ::-1, 0]))
                tasks += correlations(seen, cotangent, turned, pixels, pool, kernels)
            else:
                patches = Patches(cotangent, seen, _pair(pixels.shape[1:]), groups)
                turn, matrix = _turned(taps, groups)
                before.append(turn)
                tasks += _tasks_of_phase(patches, matrix, pixels, pool)
    return in_order([*before, pool.call(tasks)])


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
    patches = Patches(x, windows, _pair(cotangent.shape[1:]), groups)
    strips = list(sized_blocks(cotangent.shape, windows)) if depthwise else patches.strips()
    parts = [part for i in range(pool.threads) if (part := strips[i :: pool.threads])]
    if not parts:
        return partial(out.fill, 0)
    sums = [out, *(np.empty_like(out) for _ in parts[1:])]
    tasks: list[Task] = []
    for part, total in zip(parts, sums, strict=True):
        if depthwise:
            tasks.append(gradient_task(windows, x, cotangent, part, total[:, :, 0], pool))
        else:
            by_strip = _tasks_of_sum(patches, part, cotangent, total, pool)
            task = [[call for each in by_strip for call in each[i]] for i in range(pool.threads)]
            tasks.append(task)
    return in_order([pool.call(tasks), *(partial(np.add, out, each, out) for each in sums[1:])])


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
    is_plain = x.flags.c_contiguous and x.dtype == np.float32
    is_suitable = is_plain and windows.dilation == (1, 1)
    return kernels if kernels and is_suitable and x.shape[3] >= kernels.LANES else None


def _pair(shape: Shape) -> Pair:
    return shape[0], shape[1]


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
    strips: Sequence[Block],
    spare_shapes: Callable[[Block], list[Shape]],
    multiply: MultiplyBlock,
    pool: ThreadPool,
) -> list[Task]:
    """Return the calls that write each strip's rows and multiply them, for each thread."""
    shapes = [[*patches.shapes(strip), *spare_shapes(strip)] for strip in strips]
    dtype = patches.x.dtype
    pool.reserve(max((scratch_bytes(each, dtype) for each in shapes), default=0))
    tasks: list[Task] = []
    for strip, each in zip(strips, shapes, strict=True):
        task = []
        for thread in range(pool.threads):
            padded, matrix, *spare = carve(pool.scratch(thread), each, dtype)
            calls, rows = patches.rows(strip, padded, matrix)
            task.append([*calls, *multiply(strip, rows, spare)])
        tasks.append(task)
    return tasks


def _tasks_of_phase(patches: Patches, matrix: Array, pixels: Array, pool: ThreadPool) -> list[Task]:
    groups = patches.groups

    def spare_shapes(strip: Block) -> list[Shape]:
        part = pixels[strip.images, strip.rows]
        return [(0,) if part.flags.c_contiguous else part.shape]

    def multiply(strip: Block, rows: Array, spare: Sequence[Array]) -> Sequence[Call]:
        part = pixels[strip.images, strip.rows]
        if part.flags.c_contiguous:
            return [partial(np.matmul, rows, matrix, by_group(part, groups))]
        return [
            partial(np.matmul, rows, matrix, by_group(spare[0], groups)),
            partial(np.copyto, part, spare[0]),
        ]

    return _tasks(patches, patches.strips(), spare_shapes, multiply, pool)


def _tasks_of_sum(
    patches: Patches, strips: Sequence[Block], cotangent: Array, total: Array, pool: ThreadPool
) -> list[Task]:
    """Return tasks that write the first strip's product to ``total`` and add the others to it."""
    groups = patches.groups
    is_contiguous = cotangent.flags.c_contiguous

    def spare_shapes(strip: Block) -> list[Shape]:
        part = cotangent[strip.images, strip.rows]
        return [(0,) if is_contiguous else part.shape, (0,) if strip is strips[0] else total.shape]

    def multiply(strip: Block, rows: Array, spare: Sequence[Array]) -> Sequence[Call]:
        part = cotangent[strip.images, strip.rows]
        calls: list[Call] = []
        if not is_contiguous:
            calls.append(partial(np.copyto, spare[0], part))
            part = spare[0]
        product = total if strip is strips[0] else spare[1]
        columns = rows.transpose(0, 2, 1)
        calls.append(partial(np.matmul, columns, by_group(part, groups), by_group(product, groups)))
        return calls if product is total else [*calls, partial(np.add, total, product, total)]

    return _tasks(patches, strips, spare_shapes, multiply, pool)
