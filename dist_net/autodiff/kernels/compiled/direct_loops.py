"""Convolution without rows of windows, compiled by numba: sums of a few pixels stay in registers.

In maps (N, H, W, C), a line of a window is one run of values. ``convolve`` multiplies each value of
the windows of neighbouring pixels by a vector of ``BLOCK`` filters; ``add_filter_gradient``
multiplies neighbouring values of a line by a vector of the cotangent. Needs the extra ``fast``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import types
from numpy.lib.stride_tricks import as_strided

from dist_net.autodiff.arrays import Array, Call
from dist_net.autodiff.kernels.compiled.im2row_loops import flat
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    VECTOR,
    Flat,
    Lanes,
    Pointer,
    inlined,
    integers,
    load,
    multiply_add,
    pointer,
    spread,
    store,
    traced,
    value_at,
)
from dist_net.autodiff.kernels.windows import Windows
from dist_net.compiling import INTEGER, READ, WRITTEN, jit

BLOCK = 2 * LANES  # filters at a time: two vectors for each pixel

Sums = tuple[Lanes, ...]


def products_of(count: int) -> Callable[..., Sums]:
    """Return a function that adds a pair of vectors times each of ``count`` values to the sums.

    The values are ``apart`` values apart.
    """

    @traced(types.UniTuple(VECTOR, 2 * count))
    def with_products(sums: Sums, x: Pointer, i: int, apart: int, vectors: Pointer, j: int) -> Sums:
        pair = load(vectors, j), load(vectors, j + LANES)
        values = [spread(value_at(x, i + n * apart)) for n in range(count)]
        return tuple(multiply_add(values[n // 2], pair[n % 2], each) for n, each in enumerate(sums))

    return with_products


def reading(count: int) -> Callable[..., Sums]:
    """Return a function that reads ``count`` pairs of vectors, ``apart`` values apart."""

    @traced(types.UniTuple(VECTOR, 2 * count))
    def load_pairs(source: Pointer, place: int, apart: int) -> Sums:
        places = [place + n // 2 * apart + n % 2 * LANES for n in range(2 * count)]
        return tuple(load(source, each) for each in places)

    return load_pairs


@traced()
def store_pairs(sums: Sums, out: Pointer, place: int, apart: int) -> None:
    """Write pairs of vectors, ``apart`` values apart."""
    for n, each in enumerate(sums):
        store(out, place + n // 2 * apart + n % 2 * LANES, each)


def side_by_side(count: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the inner loops of ``convolve`` and ``add_filter_gradient`` for ``count`` pairs."""
    load_pairs, with_products = reading(count), products_of(count)

    @inlined
    def write_pixels(
        x: Pointer,
        i: int,
        window: tuple[int, int, int, int],
        taps: Pointer,
        j: int,
        out: Pointer,
        place: int,
        apart: int,
        zeros: Pointer,
    ) -> None:
        lines, line, row_length, across = window
        sums = load_pairs(zeros, 0, 0)
        for _ in range(lines):
            for k in range(line):
                sums = with_products(sums, x, i + k, across, taps, j + k * BLOCK)
            i += row_length
            j += line * BLOCK
        store_pairs(sums, out, place, apart)

    @inlined
    def add_taps(
        x: Pointer,
        first: int,
        strides: tuple[int, int, int],
        grid: tuple[int, int, int],
        cotangent: Pointer,
        j: int,
        total: Pointer,
        place: int,
        filters: int,
    ) -> None:
        per_image, per_row, per_pixel = strides
        images, rows, columns = grid
        sums = load_pairs(total, place, filters)
        for image in range(images):
            for row in range(rows):
                i = first + image * per_image + row * per_row
                for _ in range(columns):
                    sums = with_products(sums, x, i, 1, cotangent, j)
                    i += per_pixel
                    j += filters
        store_pairs(sums, total, place, filters)

    return write_pixels, add_taps


write_8_pixels, add_8_taps = side_by_side(8)
write_4_pixels, add_4_taps = side_by_side(4)
write_pixel, add_tap = side_by_side(1)


@jit(READ, integers(3), READ, integers(4), integers(3), WRITTEN, integers(4), READ)
def convolve(
    x: Flat,
    shape: tuple[int, int, int],
    filters: Flat,
    windows: tuple[int, int, int, int],
    grid: tuple[int, int, int],
    out: Flat,
    place: tuple[int, int, int, int],
    nothing: Flat,
) -> None:
    """Write the windows of padded maps times the filters: a ``grid`` of (N, rows, columns) pixels.

    ``shape`` is (H, W, C) of the maps; filters are (O / BLOCK, kh, kw, C, BLOCK); ``windows`` are
    kh, kw and the strides. ``place`` is the number of blocks of filters, and the strides of images,
    rows and pixels of ``out``. ``nothing`` has ``BLOCK`` zeros.
    """
    height, width, channels = shape
    lines, line, down, across = windows
    images, rows, columns = grid
    blocks, per_image, per_row, per_pixel = place
    pixels, taps, result, zeros = pointer(x), pointer(filters), pointer(out), pointer(nothing)
    apart, row_length = across * channels, width * channels
    window = lines, line * channels, row_length, apart
    for block in range(blocks):
        j = block * lines * line * channels * BLOCK
        for image in range(images):
            for row in range(rows):
                target = image * per_image + row * per_row + block * BLOCK
                source = (image * height + row * down) * row_length
                column = 0
                while column < columns:
                    # The last pixels may overlap those before.
                    if columns >= 8 and columns - column > 4:
                        column = min(column, columns - 8)
                        i, k = source + column * apart, target + column * per_pixel
                        write_8_pixels(pixels, i, window, taps, j, result, k, per_pixel, zeros)
                        column += 8
                    elif columns >= 4:
                        column = min(column, columns - 4)
                        i, k = source + column * apart, target + column * per_pixel
                        write_4_pixels(pixels, i, window, taps, j, result, k, per_pixel, zeros)
                        column += 4
                    else:
                        i, k = source + column * apart, target + column * per_pixel
                        write_pixel(pixels, i, window, taps, j, result, k, per_pixel, zeros)
                        column += 1


@jit(READ, integers(3), READ, integers(4), integers(3), WRITTEN, INTEGER)
def add_filter_gradient(
    x: Flat,
    shape: tuple[int, int, int],
    cotangent: Flat,
    windows: tuple[int, int, int, int],
    grid: tuple[int, int, int],
    total: Flat,
    filters: int,
) -> None:
    """Add each window times its cotangent, (N, rows, columns, O), to ``total``, (kh, kw, C, O).

    The arguments are as for ``convolve``; ``filters`` is O.
    """
    height, width, channels = shape
    lines, line, down, across = windows
    line *= channels
    pixels, factors, totals = pointer(x), pointer(cotangent), pointer(total)
    strides = height * width * channels, down * width * channels, across * channels
    for tap in range(lines):
        for c in range(0, filters, BLOCK):
            k = 0
            while k < line:
                i, place = tap * width * channels + k, (tap * line + k) * filters + c
                if line - k >= 8:
                    add_8_taps(pixels, i, strides, grid, factors, c, totals, place, filters)
                    k += 8
                elif line - k >= 4:
                    add_4_taps(pixels, i, strides, grid, factors, c, totals, place, filters)
                    k += 4
                else:
                    add_tap(pixels, i, strides, grid, factors, c, totals, place, filters)
                    k += 1


NOTHING = np.zeros(BLOCK, np.float32)


def laid_out(filters: Array) -> Array:
    """Return a view (O / BLOCK, kh, kw, C, BLOCK) of (kh, kw, C, O), of which ``convolve`` reads
    a contiguous copy."""
    *axes, count = filters.shape
    return filters.reshape(*axes, count // BLOCK, BLOCK, copy=False).transpose(3, 0, 1, 2, 4)


def convolution(windows: Windows, padded: Array, filters: Array, out: Array) -> Call:
    """Return the call that convolves padded maps by filters, which are laid out.

    ``out`` is a range of rows, a view of one array with contiguous channels.
    """
    apart = tuple(each // out.itemsize for each in out.strides[:3])
    last = sum((n - 1) * step for n, step in zip(out.shape[:3], apart, strict=True))
    values = as_strided(out, (last + out.shape[3],), out.strides[3:])
    seen = *windows.size, *windows.stride
    of_x = flat(padded), padded.shape[1:], flat(filters), seen, out.shape[:3]
    return partial(convolve, *of_x, values, (len(filters), *apart), NOTHING)


def gradient(windows: Windows, padded: Array, cotangent: Array, total: Array) -> Call:
    """Return the call that adds the filters' gradient to ``total``, (kh, kw, C, O)."""
    seen = *windows.size, *windows.stride
    of_x = flat(padded), padded.shape[1:], flat(cotangent), seen, cotangent.shape[:3]
    return partial(add_filter_gradient, *of_x, flat(total), total.shape[3])
