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
from dist_net.autodiff.kernels.windows import Pair, Windows

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
        padded, taps, bias, spare = carve(scratch, _shapes(problem, block), problem.dtype)
        windows, channels = problem.windows, problem.out[3]
        top = block.rows.start * windows.stride[0] - windows.padding[0][0]
        corner = top, -windows.padding[1][0]
        gather = gather_phases(arrays.x[block.images], windows, corner, padded)
        repeat: list[Call] = [
            *repeat_taps(arrays.filters, taps, channels),
            partial(np.copyto, bias.reshape(-1, channels, copy=False), arrays.bias),
        ]
        seen = in_long_rows(padded, windows, block.size[1], len(bias))
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


def phases_shape(windows: Windows, images: int, rows: int, columns: int, channels: int) -> Shape:
    """Return the shape (N, H, phases, W, C) of the padded map for ``rows`` of a result."""
    (height, width), (down, across) = windows.size, windows.stride
    return images, (rows - 1) * down + height, across, columns - 1 - (-width // across), channels


def taps_shape(windows: Windows, columns: int, channels: int) -> Shape:
    """Return the shape of the repeated taps: (kh, kw / phases, phases, values of a long row)."""
    (height, width), across = windows.size, windows.stride[1]
    return height, -(-width // across), across, long_row(columns, channels)


def long_row(columns: int, channels: int) -> int:
    """Return the length of a long row: its number of pixels divides the number of columns."""
    most = max(1, MAX_ROW // channels)
    return channels * max(n for n in range(1, min(most, columns) + 1) if columns % n == 0)


def gather_phases(x: Array, windows: Windows, corner: Pair, padded: Array) -> Sequence[Call]:
    """Return the calls that copy the part of ``x`` at ``corner`` to ``padded``, by phases."""
    across = windows.stride[1]
    calls: list[Call] = []
    for phase in range(across):
        before, first = divmod(corner[1] + phase, across)
        calls += take_padded(x[:, :, first::across], corner[0], before, padded[:, :, phase])
    return calls


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


def in_long_rows(padded: Array, windows: Windows, rows: int, row_length: int) -> Array:
    """Return a view of each tap's values: (N, rows, long rows, kh, kw / phases, phases, values)."""
    images, _, _, width, channels = padded.shape
    taps = taps_shape(windows, 1, channels)
    columns = width + 1 - taps[1]
    per_image, per_row, per_phase, per_pixel, per_value = padded.strides
    return as_strided(
        padded,
        (images, rows, columns * channels // row_length, *taps[:3], row_length),
        (
            *(per_image, windows.stride[0] * per_row, row_length * per_value),
            *(per_row, per_pixel, per_phase, per_value),
        ),
    )


def _shapes(problem: Problem, block: Block) -> list[Shape]:
    """Return the shapes of a block's padded input, repeated taps, bias and spare memory."""
    images, rows, channels = block.size
    columns, windows = problem.out[2], problem.windows
    taps = taps_shape(windows, columns, channels)
    return [
        phases_shape(windows, images, rows, columns, channels),
        taps,
        taps[3:],
        (images, rows, columns * channels // taps[3], taps[3]),
    ]
