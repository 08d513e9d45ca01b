"""Depthwise convolution compiled by numba: rows are walked with the channels in vectors.

Four neighbouring outputs are summed up side by side, so that a tap is loaded once for them, and
their epilogue follows while they are in registers. Needs the extra ``fast``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Call
from dist_net.autodiff.kernels.compiled.im2row import (
    EPILOGUE,
    EpilogueNumbers,
    apply_epilogue,
    epilogue_of,
    flat,
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
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Problem
from dist_net.compiling import READ, jit

SIDE_BY_SIDE = 4


class CompiledDepthwise(Depthwise):
    """``Depthwise`` in one pass, for float32 and at least as many channels as a vector has."""

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        """None is needed."""
        return 0

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """The call that computes a block of the output."""
        windows = problem.windows
        images, rows, _ = block.size
        top = block.rows.start * windows.stride[0] - windows.padding[0][0]
        seen = *windows.size, *windows.stride, top, -windows.padding[1][0]
        x = arrays.x[block.images]
        grid = images, rows, problem.out[2]
        epilogue = epilogue_of(problem, block, arrays)
        return [
            partial(correlate, flat(x), x.shape[1:], grid, seen, flat(arrays.filters), *epilogue)
        ]


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
    """A vector of one output: ``part`` are the rows and columns of the window inside of the map."""
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
    """Vectors of 4 outputs, whose windows are ``apart`` values apart; all columns are inside."""
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
    """The epilogue of windows times filters: a ``grid`` of (N, rows, columns) outputs.

    ``shape`` is (H, W, C); ``windows`` are kh, kw, the strides down and across, and the first
    window's top and left. What lies outside of the map counts as 0.
    """
    height, width, channels = shape
    images, rows, columns = grid
    lines, line, down, across, top, left = windows
    start, per_image, per_row, per_pixel = place
    pixels, taps = pointer(x), pointer(filters)
    result, shifts, other = pointer(out), pointer(bias), pointer(residual)
    vectors = spread_each(numbers)
    row_length, apart = width * channels, across * channels
    # The columns whose windows are inside of the map from left to right.
    first = max(0, -(left // across))
    stop = min(columns, (width - line - left) // across + 1)
    for image in range(images):
        for row in range(rows):
            y = top + row * down
            upper, lower = max(0, -y), min(lines, height - y)
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
                        part = upper, lower, max(0, -z), min(line, width - z)
                        total = sum_of_taps(
                            pixels, source + c, row_length, channels, taps, c, line, part
                        )
                        apply_epilogue(total, result, target + c, epilogue)
                    else:
                        seen = upper, lower
                        totals = sums_side_by_side(
                            pixels, source + c, row_length, channels, taps, c, line, seen, apart
                        )
                        apply_epilogue(totals[0], result, target + c, epilogue)
                        apply_epilogue(totals[1], result, target + per_pixel + c, epilogue)
                        apply_epilogue(totals[2], result, target + 2 * per_pixel + c, epilogue)
                        apply_epilogue(totals[3], result, target + 3 * per_pixel + c, epilogue)
                column += count
