"""Convolution in training: the product and both of its gradients, each by BLAS, strip by strip.

A strip is a range of pixels of a result. Their windows are copied to the rows of a matrix, which
stays in the L2 cache until BLAS has read it. Each function returns one call with its arrays bound.
``out`` must be C-contiguous; the others may have any strides. Maps are (N, H, W, C), filters
(kh, kw, C / groups, O).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.kernels.convolution import depthwise_training
from dist_net.autodiff.kernels.convolution.depthwise import is_depthwise
from dist_net.autodiff.kernels.convolution.patches import Patches, by_group
from dist_net.autodiff.kernels.convolution.problem import Block
from dist_net.autodiff.kernels.memory import carve, scratch_bytes
from dist_net.autodiff.kernels.thread_pool import Task, ThreadPool
from dist_net.autodiff.kernels.windows import Pair, Windows, phase_of


def convolve(
    windows: Windows, groups: int, x: Array, filters: Array, out: Array, pool: ThreadPool
) -> Call:
    """Convolve ``x`` by ``filters``: return the call that fills ``out``, (N, H', W', O)."""
    if is_depthwise(x.shape, groups, out.shape):
        return depthwise_training.convolve(windows, x, filters, out, pool)
    patches = _patches(windows, groups, x, out.shape)
    before, filters = _contiguous(filters)
    matrix = by_group(filters, groups)

    def multiply(strip: Block, rows: Array, _: Sequence[Array]) -> Sequence[Call]:
        target = by_group(out[strip.images, strip.rows], groups)
        return [partial(np.matmul, rows, matrix, target)]

    tasks = _tasks(patches, patches.strips(), _nothing, multiply, pool)
    return in_order([*before, pool.call(tasks)])


def input_gradient(
    windows: Windows, groups: int, cotangent: Array, filters: Array, out: Array, pool: ThreadPool
) -> Call:
    """Return the call that writes the cotangent of x, (N, H, W, C), to ``out``.

    ``cotangent`` is (N, H', W', O). For the pixels of one *phase* (every stride-th down and
    across), the result is a convolution with stride 1 by every stride-th tap of the flipped
    filters. A single convolution for all pixels would insert zeros between the pixels of
    ``cotangent`` and multiply by them.
    """
    if is_depthwise(out.shape, groups, cotangent.shape):
        return depthwise_training.input_gradient(windows, cotangent, filters, out, pool)
    before: list[Call] = []
    tasks: list[Task] = []
    (top, _), (left, _) = windows.padding
    down, across = windows.stride
    for row, column in product(range(down), range(across)):
        pixels = out[:, row::down, column::across]
        rows, above = phase_of(windows.size[0], down, row + top)
        columns, beside = phase_of(windows.size[1], across, column + left)
        taps = filters[rows, columns]
        if taps.size == 0:
            before.append(partial(pixels.fill, 0))
        elif pixels.size > 0:
            size, result = _pair(taps.shape), _pair(pixels.shape[1:])
            patches = Patches(cotangent, size, (1, 1), (above, beside), result, groups)
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
    if is_depthwise(x.shape, groups, cotangent.shape):
        return depthwise_training.filter_gradient(windows, x, cotangent, out, pool)
    patches = _patches(windows, groups, x, cotangent.shape)
    strips = patches.strips() if out.size > 0 else []
    parts = [part for i in range(pool.threads) if (part := strips[i :: pool.threads])]
    if not parts:
        return partial(out.fill, 0)
    sums = [out, *(np.empty_like(out) for _ in parts[1:])]
    tasks: list[Task] = []
    for part, total in zip(parts, sums, strict=True):
        by_strip = _tasks_of_sum(patches, part, cotangent, total, pool)
        tasks.append([[call for task in by_strip for call in task[i]] for i in range(pool.threads)])
    return in_order([pool.call(tasks), *(partial(np.add, out, each, out) for each in sums[1:])])


def _patches(windows: Windows, groups: int, x: Array, result: Shape) -> Patches:
    (top, _), (left, _) = windows.padding
    return Patches(x, windows.size, windows.stride, (top, left), _pair(result[1:]), groups)


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


def _contiguous(array: Array) -> tuple[Sequence[Call], Array]:
    """Return a C-contiguous version of ``array``, and the calls that copy to it, if needed."""
    if array.flags.c_contiguous:
        return [], array
    copy = np.empty(array.shape, array.dtype)
    return [partial(np.copyto, copy, array)], copy


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


def _nothing(_: Block) -> list[Shape]:
    return []
