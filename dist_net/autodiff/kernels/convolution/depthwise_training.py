"""Depthwise convolution in training: the product and both of its gradients, block by block.

Maps are (N, H, W, C), filters (kh, kw, 1, C). Each function returns one call with its arrays bound.
``out`` must be C-contiguous; the others may have any strides. With the extra ``fast``, compiled
kernels compute contiguous float32 arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from types import ModuleType

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.kernels.convolution.depthwise import (
    SUM_OF_TAPS,
    gather_phases,
    in_long_rows,
    phases_shape,
    repeat_taps,
    sized_blocks,
    taps_shape,
)
from dist_net.autodiff.kernels.convolution.problem import Block
from dist_net.autodiff.kernels.memory import carve, scratch_bytes
from dist_net.autodiff.kernels.thread_pool import Task, ThreadPool
from dist_net.autodiff.kernels.windows import Windows, phase_of

SUM_OF_WINDOWS = "nrjaqpl,nrjl->aqpl"

Calls = Sequence[Call]


def convolve(windows: Windows, x: Array, filters: Array, out: Array, pool: ThreadPool) -> Call:
    """Convolve ``x`` by ``filters``: return the call that fills ``out``, (N, H', W', C)."""
    taps = np.empty((*filters.shape[:2], filters.shape[3]), filters.dtype)
    copy = partial(np.copyto, taps, filters[:, :, 0])
    return in_order([copy, pool.call(_correlations(windows, x, taps, out, pool))])


def input_gradient(
    windows: Windows, cotangent: Array, filters: Array, out: Array, pool: ThreadPool
) -> Call:
    """Return the call that writes the cotangent of x, (N, H, W, C), to ``out``.

    It works phase by phase, like ``training.input_gradient``.
    """
    before: list[Call] = []
    tasks: list[Task] = []
    (top, _), (left, _) = windows.padding
    down, across = windows.stride
    for row, column in product(range(down), range(across)):
        pixels = out[:, row::down, column::across]
        rows, above = phase_of(windows.size[0], down, row + top)
        columns, beside = phase_of(windows.size[1], across, column + left)
        turned = filters[rows, columns, 0][::-1, ::-1]
        if turned.size == 0:
            before.append(partial(pixels.fill, 0))
        elif pixels.size > 0:
            height, width, channels = turned.shape
            taps = np.empty((height, width, channels), turned.dtype)
            before.append(partial(np.copyto, taps, turned))
            seen = Windows((height, width), (1, 1), ((above, 0), (beside, 0)))
            tasks += _correlations(seen, cotangent, taps, pixels, pool)
    return in_order([*before, pool.call(tasks)])


def filter_gradient(
    windows: Windows, x: Array, cotangent: Array, out: Array, pool: ThreadPool
) -> Call:
    """Return the call that writes the filters' gradient, (kh, kw, 1, C), to ``out``.

    Each thread of the pool has fixed blocks, so that every run adds in the same order and returns
    the same bits.
    """
    blocks = list(sized_blocks(cotangent.shape, windows)) if out.size else []
    parts = [part for i in range(pool.threads) if (part := blocks[i :: pool.threads])]
    if not parts:
        return partial(out.fill, 0)
    height, width, _, channels = out.shape
    sums = np.empty((len(parts), height, width, channels), out.dtype)
    gradient = _gradient_calls(windows, x, cotangent, pool)
    tasks: list[Task] = [
        [
            [
                partial(total.fill, 0),
                *(call for block in part for call in gradient(block, total, thread)),
            ]
            for thread in range(pool.threads)
        ]
        for part, total in zip(parts, sums, strict=True)
    ]
    return in_order([pool.call(tasks), partial(np.sum, sums, 0, None, out[:, :, 0])])


@cache
def compiled_kernels() -> ModuleType | None:
    """Return the module of the compiled kernels; None without the extra ``fast``."""
    try:
        from dist_net.autodiff.kernels.compiled import depthwise_loops
    except ImportError:
        return None
    return depthwise_loops


def _compiled_for(*arrays: Array) -> ModuleType | None:
    """Return the compiled kernels, if they can read these arrays."""
    kernels = compiled_kernels()
    is_suitable = all(each.flags.c_contiguous and each.dtype == np.float32 for each in arrays)
    return kernels if kernels and is_suitable and arrays[0].shape[3] >= kernels.LANES else None


def _correlations(
    windows: Windows, x: Array, taps: Array, out: Array, pool: ThreadPool
) -> list[Task]:
    """Return the tasks that convolve ``x`` by (kh, kw, C) taps into ``out``, a view."""
    blocks = list(sized_blocks(out.shape, windows))
    kernels = _compiled_for(x)
    if kernels:
        calls = [
            kernels.correlation(windows, x[block.images], block.rows.start, taps, _part(out, block))
            for block in blocks
        ]
        return [[[call]] * pool.threads for call in calls]
    shapes = [_shapes(windows, block, out.shape) for block in blocks]
    pool.reserve(max((scratch_bytes(each, x.dtype) for each in shapes), default=0))
    tasks: list[Task] = []
    for block, each in zip(blocks, shapes, strict=True):
        task: list[Calls] = []
        for thread in range(pool.threads):
            padded, repeated, values = carve(pool.scratch(thread), each, x.dtype)
            gather, seen = _seen(windows, x, block, padded, repeated.shape[3])
            target = _part(out, block)
            task.append(
                [
                    *gather,
                    *repeat_taps(taps, repeated, out.shape[3]),
                    partial(np.einsum, SUM_OF_TAPS, seen, repeated, out=values),
                    partial(np.copyto, target, values.reshape(target.shape, copy=False)),
                ]
            )
        tasks.append(task)
    return tasks


def _gradient_calls(
    windows: Windows, x: Array, cotangent: Array, pool: ThreadPool
) -> Callable[[Block, Array, int], Calls]:
    """Return a function of a block, a total (kh, kw, C) and a thread.

    It returns the calls that add the block's gradient to the total.
    """
    kernels = _compiled_for(x, cotangent)
    if kernels:
        compiled = kernels.gradient

        def by_compiled_kernel(block: Block, total: Array, _: int) -> Calls:
            part = x[block.images], block.rows.start, _part(cotangent, block)
            return [compiled(windows, *part, total)]

        return by_compiled_kernel
    for block in sized_blocks(cotangent.shape, windows):
        pool.reserve(scratch_bytes(_shapes(windows, block, cotangent.shape), x.dtype))

    def by_numpy(block: Block, total: Array, thread: int) -> Calls:
        shapes = _shapes(windows, block, cotangent.shape)
        padded, sums, values = carve(pool.scratch(thread), shapes, x.dtype)
        gather, seen = _seen(windows, x, block, padded, sums.shape[3])
        part = _part(cotangent, block)
        calls: list[Call] = [
            *gather,
            partial(np.copyto, values.reshape(part.shape, copy=False), part),
            partial(np.einsum, SUM_OF_WINDOWS, seen, values, out=sums),
        ]
        for phase in range(windows.stride[1]):
            own = total[:, phase :: windows.stride[1]]
            pixels = sums.shape[3] // own.shape[2], own.shape[2]
            by_pixel = sums[:, : own.shape[1], phase].reshape(*own.shape[:2], *pixels, copy=False)
            calls.append(partial(_add_sum, by_pixel, own))
        return calls

    return by_numpy


def _add_sum(by_pixel: Array, total: Array) -> None:
    """Add the sum over pixels of (kh, kw, pixels, C) to (kh, kw, C)."""
    np.add(total, by_pixel.sum(2), total)


def _seen(
    windows: Windows, x: Array, block: Block, padded: Array, row_length: int
) -> tuple[Calls, Array]:
    """Return the calls that copy a block's padded input, and its view for the taps."""
    corner = block.rows.start * windows.stride[0] - windows.padding[0][0], -windows.padding[1][0]
    gather = gather_phases(x[block.images], windows, corner, padded)
    return gather, in_long_rows(padded, windows, block.size[1], row_length)


def _shapes(windows: Windows, block: Block, result: Shape) -> list[Shape]:
    """Return the shapes of a block's padded input, repeated taps and values in long rows."""
    images, rows, _ = block.size
    _, _, columns, channels = result
    taps = taps_shape(windows, columns, channels)
    return [
        phases_shape(windows, images, rows, columns, channels),
        taps,
        (images, rows, columns * channels // taps[3], taps[3]),
    ]


def _part(array: Array, block: Block) -> Array:
    return array[block.images, block.rows]
