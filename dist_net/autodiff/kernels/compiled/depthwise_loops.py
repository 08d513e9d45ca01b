"""Depthwise convolution compiled by numba, row by row, on vectors of neighbouring channels.

The loops compute four neighbouring outputs together: a tap is loaded once for all four, and their
epilogue is applied while they are in registers. Needs the extra ``fast``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call
from dist_net.autodiff.kernels.compiled.im2row_loops import (
    EPILOGUE,
    EpilogueNumbers,
    apply_epilogue,
    epilogue_of,
    flat,
    geometry,
    spread_each,
)
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    Flat,
    Lanes,
    Pointer,
    inlined,
    integers,
    load,
    multiply_add,
    pointer,
    spread,
)
from dist_net.autodiff.kernels.convolution.depthwise import Depthwise
from dist_net.autodiff.kernels.convolution.problem import LINEAR, Arrays, Block, Problem
from dist_net.autodiff.kernels.windows import Windows
from dist_net.compiling import READ, jit

SIDE_BY_SIDE = 4


class CompiledDepthwise(Depthwise):
    """``Depthwise`` in one pass, for float32 and at least one vector of channels."""

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        """None."""
        return 0

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """Return the call that computes a block of the output."""
        windows = problem.windows
        images, rows, _ = block.size
        seen = geometry(windows, block.rows.start)
        x = arrays.x[block.images]
        grid = images, rows, problem.out[2]
        epilogue = epilogue_of(problem, block, arrays)
        return [
            partial(correlate, flat(x), x.shape[1:], grid, seen, flat(arrays.filters), *epilogue)
        ]


def correlation(windows: Windows, x: Array, first_row: int, taps: Array, out: Array) -> Call:
    """Return the call that convolves ``x`` by (kh, kw, C) taps into ``out``, a range of rows.

    ``out`` is a view of one array with contiguous channels.
    """
    nothing = np.zeros(x.shape[3], np.float32)
    numbers = tuple(map(np.float32, (LINEAR, LINEAR, -np.inf, np.inf)))
    apart = tuple(each // out.itemsize for each in out.strides[:3])
    last = sum((n - 1) * step for n, step in zip(out.shape[:3], apart, strict=True))
    values = as_strided(out, (last + out.shape[3],), out.strides[3:])
    seen = geometry(windows, first_row)
    epilogue = values, nothing, False, nothing, numbers, (0, *apart)
    return partial(correlate, flat(x), x.shape[1:], out.shape[:3], seen, flat(taps), *epilogue)


@inlined
def sum_of_taps(
    x: Pointer,
    i: int,
    per_row: int,
    channels: int,
    taps: Pointer,
    j: int,
    line: int,
    part: tuple[int, int, int, int],
) -> Lanes:
    """Return a vector of one output; ``part``: the window's rows and columns inside the map."""
    upper, lower, left, right = part
    total = spread(np.float32(0))
    for row in range(upper, lower):
        for column in range(left, right):
            tap = load(taps, j + (row * line + column) * channels)
            total = multiply_add(load(x, i + row * per_row + column * channels), tap, total)
    return total


@inlined
def sums_side_by_side(
    x: Pointer,
    i: int,
    per_row: int,
    channels: int,
    taps: Pointer,
    j: int,
    line: int,
    lines: tuple[int, int],
    apart: int,
) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """Return vectors of 4 outputs with windows ``apart`` values apart; all columns are inside."""
    nothing = spread(np.float32(0))
    a, b, c, d = nothing, nothing, nothing, nothing
    for row in range(lines[0], lines[1]):
        for column in range(line):
            tap = load(taps, j + (row * line + column) * channels)
            k = i + row * per_row + column * channels
            a = multiply_add(load(x, k), tap, a)
            b = multiply_add(load(x, k + apart), tap, b)
            c = multiply_add(load(x, k + 2 * apart), tap, c)
            d = multiply_add(load(x, k + 3 * apart), tap, d)
    return a, b, c, d


@inlined
def unrolled_sums(
    x: Pointer,
    i: int,
    per_row: int,
    channels: int,
    taps: Pointer,
    j: int,
    line: int,
    lines: tuple[int, int],
    apart: int,
) -> tuple[Lanes, Lanes, Lanes, Lanes]:
    """Return ``sums_side_by_side``; literal loop bounds let LLVM unroll common filter sizes."""
    if line == 3 and lines == (0, 3):
        return sums_side_by_side(x, i, per_row, channels, taps, j, 3, (0, 3), apart)
    if line == 5 and lines == (0, 5):
        return sums_side_by_side(x, i, per_row, channels, taps, j, 5, (0, 5), apart)
    return sums_side_by_side(x, i, per_row, channels, taps, j, line, lines, apart)


@jit(READ, integers(3), integers(3), integers(6), READ, *EPILOGUE)
def correlate(
    x: Flat,
    shape: tuple[int, int, int],
    grid: tuple[int, int, int],
    windows: tuple[int, int, int, int, int, int],
    filters: Flat,
    out: Flat,
    residual: Flat,
    has_residual: bool,
    bias: Flat,
    numbers: EpilogueNumbers,
    place: tuple[int, int, int, int],
) -> None:
    """Write the epilogue of windows times filters: a ``grid`` of (N, rows, columns) outputs.

    ``shape`` is (H, W, C); ``windows`` are kh, kw, the strides down and across, and the top and
    left of the first window. Values outside the map count as 0.
    """
    height, width, channels = shape
    images, rows, columns = grid
    lines, line, down, across, top, left = windows
    start, per_image, per_row, per_pixel = place
    pixels, taps, vectors = pointer(x), pointer(filters), spread_each(numbers)
    result, shifts, other = pointer(out), pointer(bias), pointer(residual)
    row_length, apart = width * channels, across * channels
    # The columns whose windows are completely inside the map.
    first = max(0, -(left // across))
    stop = min(columns, (width - line - left) // across + 1)
    for image in range(images):
        for row in range(rows):
            y = top + row * down
            seen = max(0, -y), min(lines, height - y)
            column = 0
            while column < columns:
                if first <= column < stop and stop - first >= SIDE_BY_SIDE:
                    column = min(column, stop - SIDE_BY_SIDE)
                    count = SIDE_BY_SIDE
                else:
                    count = 1
                z = left + column * across
                source = ((image * height + y) * width + z) * channels
                target = start + image * per_image + row * per_row + column * per_pixel
                for first_channel in range(0, channels, LANES):
                    c = min(first_channel, channels - LANES)
                    epilogue = load(shifts, c), other, has_residual, vectors
                    if count == 1:
                        part = seen[0], seen[1], max(0, -z), min(line, width - z)
                        total = sum_of_taps(
                            pixels, source + c, row_length, channels, taps, c, line, part
                        )
                        apply_epilogue(total, result, target + c, epilogue)
                    else:
                        totals = unrolled_sums(
                            pixels, source + c, row_length, channels, taps, c, line, seen, apart
                        )
                        apply_epilogue(totals[0], result, target + c, epilogue)
                        apply_epilogue(totals[1], result, target + per_pixel + c, epilogue)
                        apply_epilogue(totals[2], result, target + 2 * per_pixel + c, epilogue)
                        apply_epilogue(totals[3], result, target + 3 * per_pixel + c, epilogue)
                column += count
