"""Depthwise convolution: one filter per channel, which reads only that channel.

It is not a matrix product, so windows are not copied to rows. Neighbouring pixels form one long
row, which is multiplied by a tap repeated as often. With a stride, these pixels are not neighbours
in the map; so the padded map is copied as *phases*, each of which has every stride-th column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

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
from dist_net.autodiff.kernels.windows import Windows

PRODUCTS = 1 << 20  # of a block: about 100 us, several times the wake-up time of a thread
MAX_ROW = 1024  # values: the repeated taps of a 5x5 filter still fit in the cache
SUM_OF_TAPS = "nrjaqpl,aqpl->nrjl"


class Depthwise:
    """The algorithm with NumPy: one sum of products for a block."""

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
        return scratch_bytes(_shapes(problem, block), problem.dtype)

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """Return the calls that compute a block of the output."""
        padded, taps, spare, bias = carve(scratch, _shapes(problem, block), problem.dtype)
        channels = problem.out[3]
        gather, seen = gathered(problem.windows, arrays.x, block, padded, len(bias))
        repeat: list[Call] = [
            *repeat_taps(arrays.filters, taps, channels),
            partial(np.copyto, bias.reshape(-1, channels, copy=False), arrays.bias),
        ]
        out = arrays.out[block.index].reshape(spare.shape, copy=False)
        residual = None
        if arrays.residual is not None:
            residual = arrays.residual[block.index].reshape(spare.shape, copy=False)
        return [
            *gather,
            *repeat,
            partial(np.einsum, SUM_OF_TAPS, seen, taps, out=out),
            *problem.epilogue.calls(out, bias, residual, out, spare),
        ]


def is_depthwise(x: Shape, groups: int, out: Shape) -> bool:
    """Return whether each channel is a group of its own, with one filter."""
    return groups == x[3] == out[3] > 1


def sized_blocks(out: Shape, windows: Windows) -> Iterator[Block]:
    """Return the blocks of an output, each of about ``PRODUCTS``."""
    return blocking(out, windows).blocks(out)


def blocking(out: Shape, windows: Windows) -> Blocking:
    """Return blocks of about ``PRODUCTS``; the result is independent of the blocks."""
    images, height, width, channels = out
    per_row = max(1, width * channels * windows.size[0] * windows.size[1])
    rows = max(1, PRODUCTS // per_row)
    return Blocking(
        max(1, min(images, rows // max(1, height))), max(1, min(rows, height)), max(1, channels)
    )


def shapes_of_block(windows: Windows, block: Block, result: Shape) -> list[Shape]:
    """Return the shapes of a block's padded input, repeated taps, and values in long rows.

    They are (N, H, phases, W, C), (kh, kw / phases, phases, values of a long row), and (N, rows,
    long rows, values). The number of pixels of a long row divides the number of columns.
    """
    images, rows, _ = block.size
    _, _, columns, channels = result
    (height, width), (down, across) = windows.size, windows.stride
    most = max(1, MAX_ROW // channels)
    pixels = max(n for n in range(1, min(most, columns) + 1) if columns % n == 0)
    taps = -(-width // across)
    return [
        (images, (rows - 1) * down + height, across, columns - 1 + taps, channels),
        (height, taps, across, pixels * channels),
        (images, rows, columns // pixels, pixels * channels),
    ]


def gathered(
    windows: Windows, x: Array, block: Block, padded: Array, row_length: int
) -> tuple[Sequence[Call], Array]:
    """Return the calls that copy a block's input to ``padded``, by phases, and each tap's values.

    The values are a view (N, rows, long rows, kh, kw / phases, phases, values of a long row).
    """
    (height, width), (down, across) = windows.size, windows.stride
    top, left = block.rows.start * down - windows.padding[0][0], -windows.padding[1][0]
    calls: list[Call] = []
    for phase in range(across):
        before, first = divmod(left + phase, across)
        source = x[block.images, :, first::across]
        calls += take_padded(source, top, before, padded[:, :, phase])
    taps = -(-width // across)
    columns = padded.shape[3] + 1 - taps
    per_image, per_row, per_phase, per_pixel, per_value = padded.strides
    seen = as_strided(
        padded,
        (
            *(len(padded), block.size[1], columns * padded.shape[4] // row_length),
            *(height, taps, across, row_length),
        ),
        (
            *(per_image, down * per_row, row_length * per_value),
            *(per_row, per_pixel, per_phase, per_value),
        ),
    )
    return calls, seen


def repeat_taps(filters: Array, taps: Array, channels: int) -> Sequence[Call]:
    """Return the calls that fill ``taps`` with (kh, kw, C) filters, and missing columns with 0."""
    across = taps.shape[2]
    calls: list[Call] = []
    for phase in range(across):
        there = filters[:, phase::across]
        of_phase = taps[:, :, phase].reshape(*taps.shape[:2], -1, channels, copy=False)
        calls.append(partial(np.copyto, of_phase[:, : there.shape[1]], there[:, :, np.newaxis]))
        if there.shape[1] < taps.shape[1]:
            calls.append(partial(of_phase[:, there.shape[1] :].fill, 0))
    return calls


def _shapes(problem: Problem, block: Block) -> list[Shape]:
    """Return the shapes of a block's scratch: ``shapes_of_block``, and the repeated bias."""
    shapes = shapes_of_block(problem.windows, block, problem.out)
    return [*shapes, shapes[1][3:]]
