"""Depthwise convolution compiled by numba, row by row, on vectors of neighbouring channels.

``correlate`` computes four neighbouring outputs together: a tap is loaded once for all four, and
their epilogue is applied while they are in registers. ``add_gradient`` sums the products of a row
of taps over a row of outputs in registers. Needs the extra ``fast``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numba import types
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call
from dist_net.autodiff.kernels.compiled.epilogues import (
    EPILOGUE,
    EpilogueValues,
    Geometry,
    OfBlock,
    apply_epilogue,
    epilogue_of,
    flat,
    geometry,
    memory_of,
    numbers_of,
)
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    VECTOR,
    Flat,
    Four,
    Lanes,
    Pointer,
    Three,
    inlined,
    integers,
    load,
    multiply_add,
    pointer,
    spread,
    store,
    traced,
)
from dist_net.autodiff.kernels.convolution.depthwise import Depthwise
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Epilogue, Problem
from dist_net.autodiff.kernels.windows import Windows
from dist_net.ground.compiling import READ, WRITTEN, jit

SIDE_BY_SIDE = 4


class CompiledDepthwise(Depthwise):
    """``Depthwise`` in one pass, for float32 and at least one vector of channels."""

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        """None."""
        return 0

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        windows = problem.windows
        images, rows, _ = block.size
        seen = geometry(windows, block.rows.start)
        x = arrays.x[block.images]
        grid = images, rows, problem.out[2]
        epilogue = epilogue_of(problem, block, arrays)
        of_filters = flat(arrays.filters)
        return [partial(correlate, flat(x), x.shape[1:], grid, seen, of_filters, epilogue)]


def correlation(windows: Windows, x: Array, first_row: int, taps: Array, out: Array) -> Call:
    """Return the call that convolves ``x`` by (kh, kw, C) taps into ``out``, a range of rows.

    ``out`` is a view of one array with contiguous channels.
    """
    nothing = np.zeros(x.shape[3], np.float32)
    apart = tuple(each // out.itemsize for each in out.strides[:3])
    seen = geometry(windows, first_row)
    epilogue = memory_of(out), nothing, False, nothing, numbers_of(Epilogue()), (0, *apart)
    return partial(correlate, flat(x), x.shape[1:], out.shape[:3], seen, flat(taps), epilogue)


def gradient(windows: Windows, padded: Array, cotangent: Array, total: Array) -> Call:
    """Return the call that adds the gradient of a block's taps to ``total``, (kh, kw, C).

    ``padded`` and ``cotangent`` are contiguous; C is a multiple of ``LANES``.
    """
    read = flat(padded), padded.shape[1:], flat(cotangent), cotangent.shape[:3]
    return partial(add_gradient, *read, (*windows.size, *windows.stride), flat(total))


SeenWindow = tuple[Pointer, int, int]
"""A map, the place of a window's first pixel, and how far apart rows are."""
Filters = tuple[Pointer, int]
"""The taps, and the place of the first."""


@inlined
def sum_of_taps(seen: SeenWindow, filters: Filters, channels: int, line: int, part: Four) -> Lanes:
    """Return a vector of one output; ``part``: the window's rows and columns inside the map."""
    x, i, per_row = seen
    taps, j = filters
    upper, lower, left, right = part
    total = spread(np.float32(0))
    for row in range(upper, lower):
        for column in range(left, right):
            tap = load(taps, j + (row * line + column) * channels)
            total = multiply_add(load(x, i + row * per_row + column * channels), tap, total)
    return total


def taps_of(size: int) -> Callable[..., tuple[Lanes, ...]]:
    """Return a function that adds size² taps to 4 sums, of inner windows ``apart`` values apart."""

    @traced(types.UniTuple(VECTOR, SIDE_BY_SIDE))
    def sums_with_taps(
        sums: tuple[Lanes, ...], seen: SeenWindow, filters: Filters, channels: int, apart: int
    ) -> tuple[Lanes, ...]:
        (x, i, per_row), (taps, j) = seen, filters
        for row, column in np.ndindex(size, size):
            tap = load(taps, j + (row * size + column) * channels)
            k = i + row * per_row + column * channels
            sums = tuple(
                multiply_add(load(x, k + n * apart), tap, each) for n, each in enumerate(sums)
            )
        return sums

    return sums_with_taps


with_tap, with_3x3_taps, with_5x5_taps = taps_of(1), taps_of(3), taps_of(5)


@inlined
def sums_side_by_side(
    seen: SeenWindow, filters: Filters, channels: int, line: int, lines: tuple[int, int], apart: int
) -> tuple[Lanes, ...]:
    """Return vectors of 4 outputs with windows ``apart`` values apart; all columns are inside."""
    x, i, per_row = seen
    taps, j = filters
    nothing = spread(np.float32(0))
    sums = nothing, nothing, nothing, nothing
    if line == 3 and lines == (0, 3):
        return with_3x3_taps(sums, seen, filters, channels, apart)
    if line == 5 and lines == (0, 5):
        return with_5x5_taps(sums, seen, filters, channels, apart)
    for row in range(lines[0], lines[1]):
        for column in range(line):
            k, tap = i + row * per_row + column * channels, j + (row * line + column) * channels
            sums = with_tap(sums, (x, k, per_row), (taps, tap), channels, apart)
    return sums


@traced()
def apply_epilogues(
    totals: tuple[Lanes, ...], out: Pointer, place: int, apart: int, epilogue: EpilogueValues
) -> None:
    """Write the epilogue of each vector, ``apart`` values apart."""
    for n, total in enumerate(totals):
        apply_epilogue(total, out, place + n * apart, epilogue)


@jit(READ, integers(3), integers(3), integers(6), READ, EPILOGUE)
def correlate(
    x: Flat, shape: Three, grid: Three, windows: Geometry, filters: Flat, of_block: OfBlock
) -> None:
    """Write the epilogue of windows times filters: a ``grid`` of (N, rows, columns) outputs.

    ``shape`` is (H, W, C); ``windows`` are kh, kw, the strides down and across, and the top and
    left of the first window. Values outside the map count as 0.
    """
    height, width, channels = shape
    images, rows, columns = grid
    lines, line, down, across, top, left = windows
    out, residual, has_residual, bias, numbers, place = of_block
    start, per_image, per_row, per_pixel = place
    pixels, taps = pointer(x), pointer(filters)
    result, shifts, other = pointer(out), pointer(bias), pointer(residual)
    row_length, apart = width * channels, across * channels
    # The columns whose windows are completely inside the map.
    first = max(0, -(left // across))
    stop = min(columns, (width - line - left) // across + 1)
    for image in range(images):
        for row in range(rows):
            y = top + row * down
            inside = max(0, -y), min(lines, height - y)
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
                    epilogue = load(shifts, c), other, has_residual, numbers
                    seen, tap = (pixels, source + c, row_length), (taps, c)
                    if count == 1:
                        part = inside[0], inside[1], max(0, -z), min(line, width - z)
                        total = sum_of_taps(seen, tap, channels, line, part)
                        apply_epilogue(total, result, target + c, epilogue)
                    else:
                        totals = sums_side_by_side(seen, tap, channels, line, inside, apart)
                        apply_epilogues(totals, result, target + c, per_pixel, epilogue)
                column += count


def products_of(size: int) -> Callable[..., tuple[Lanes, ...]]:
    """Return a function that adds an output's products to the sums of ``size`` taps in a line."""

    @traced(types.UniTuple(VECTOR, size))
    def with_products(
        sums: tuple[Lanes, ...], x: Pointer, i: int, cotangent: Pointer, j: int, channels: int
    ) -> tuple[Lanes, ...]:
        factor = load(cotangent, j)
        return tuple(
            multiply_add(load(x, i + tap * channels), factor, each) for tap, each in enumerate(sums)
        )

    return with_products


with_1, with_3, with_5 = products_of(1), products_of(3), products_of(5)


@traced()
def add_sums(sums: tuple[Lanes, ...], total: Pointer, place: int, channels: int) -> None:
    """Add vectors to those at ``place``, ``channels`` values apart."""
    for n, each in enumerate(sums):
        there = place + n * channels
        store(total, there, load(total, there) + each)


@jit(READ, integers(3), READ, integers(3), integers(4), WRITTEN)
def add_gradient(
    x: Flat, shape: Three, cotangent: Flat, grid: Three, windows: Four, total: Flat
) -> None:
    """Add each window of padded maps times its cotangent, (N, rows, columns, C), to ``total``.

    ``shape`` is (H, W, C) of the maps; ``windows`` are kh, kw and the strides.
    """
    height, width, channels = shape
    images, rows, columns = grid
    lines, line, down, across = windows
    pixels, factors, totals = pointer(x), pointer(cotangent), pointer(total)
    nothing = spread(np.float32(0))
    for image in range(images):
        for row in range(rows):
            for c in range(0, channels, LANES):
                for tap in range(lines):
                    i = (image * height + row * down + tap) * width * channels + c
                    j = (image * rows + row) * columns * channels + c
                    place = tap * line * channels + c
                    if line == 3:
                        three = nothing, nothing, nothing
                        for _ in range(columns):
                            three = with_3(three, pixels, i, factors, j, channels)
                            i += across * channels
                            j += channels
                        add_sums(three, totals, place, channels)
                    elif line == 5:
                        five = nothing, nothing, nothing, nothing, nothing
                        for _ in range(columns):
                            five = with_5(five, pixels, i, factors, j, channels)
                            i += across * channels
                            j += channels
                        add_sums(five, totals, place, channels)
                    else:
                        for beside in range(line):
                            one = (nothing,)
                            for n in range(columns):
                                k, m = i + (n * across + beside) * channels, j + n * channels
                                one = with_1(one, pixels, k, factors, m, channels)
                            add_sums(one, totals, place + beside * channels, channels)
