"""Winograd's transforms for a stride of 2, F(2 x 2) of tiles of 5 x 5 inputs, compiled by numba.

As ``compiled_tiles``, with the matrices of ``winograd.transforms(2, 2)``. Needs the extra ``fast``.
"""

from __future__ import annotations

from dist_net.autodiff.kernels.compiled.line_transforms import Lines, Two
from dist_net.autodiff.kernels.compiled.tiles import FROM_POINTS, TO_POINTS, finish_2, take_tile
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    Flat,
    Pointer,
    Vector,
    inlined,
    load,
    pointer,
    spread,
    store,
)
from dist_net.compiling import jit

Five = tuple[Vector, Vector, Vector, Vector, Vector]


@inlined
def load_5(x: Pointer, place: int, step: int) -> Five:
    """5 vectors, ``step`` apart."""
    return (
        load(x, place),
        load(x, place + step),
        load(x, place + 2 * step),
        load(x, place + 3 * step),
        load(x, place + 4 * step),
    )


@inlined
def store_5(x: Five, target: Pointer, place: int, step: int) -> None:
    """5 vectors, ``step`` apart."""
    store(target, place, x[0])
    store(target, place + step, x[1])
    store(target, place + 2 * step, x[2])
    store(target, place + 3 * step, x[3])
    store(target, place + 4 * step, x[4])


@inlined
def to_line(x: Five) -> Five:
    """Bᵀ · x."""
    return x[2] - x[0], x[2], x[4] - x[2], x[1], x[3]


@inlined
def from_line(x: Five) -> Two:
    """Aᵀ · x."""
    return x[0] + x[1] + x[3], x[1] + x[2] + x[4]


@inlined
def across(h: Lines, i: int) -> Five:
    """What 5 lines have at ``i``."""
    return h[0][i], h[1][i], h[2][i], h[3][i], h[4][i]


@inlined
def to_lines(x: Pointer, place: int, per_row: int, per_pixel: int) -> Lines:
    """Bᵀ · d, as columns."""
    return (
        to_line(load_5(x, place, per_row)),
        to_line(load_5(x, place + per_pixel, per_row)),
        to_line(load_5(x, place + 2 * per_pixel, per_row)),
        to_line(load_5(x, place + 3 * per_pixel, per_row)),
        to_line(load_5(x, place + 4 * per_pixel, per_row)),
    )


@inlined
def from_lines(x: Pointer, place: int, per_row: int, per_pixel: int) -> Lines:
    """Aᵀ · s, as columns."""
    return (
        from_line(load_5(x, place, per_row)),
        from_line(load_5(x, place + per_pixel, per_row)),
        from_line(load_5(x, place + 2 * per_pixel, per_row)),
        from_line(load_5(x, place + 3 * per_pixel, per_row)),
        from_line(load_5(x, place + 4 * per_pixel, per_row)),
    )


@jit(*TO_POINTS)
def to_points_strided(
    x: Flat,
    images: int,
    rows: int,
    columns: int,
    top: int,
    left: int,
    height: int,
    width: int,
    channels: int,
    tile: Flat,
    points: Flat,
    plane: int,
) -> None:
    """Bᵀ · d · B: from (N, H, W, C), 0 outside, to 25 planes (tiles, C), ``plane`` apart."""
    pixels, copied, planes = pointer(x), pointer(tile), pointer(points)
    target = 0
    for image in range(images):
        for y in range(top, top + 4 * rows, 4):
            for z in range(left, left + 4 * columns, 4):
                place = ((image * height + y) * width + z) * channels
                source, per_row = pixels, width
                if y < 0 or z < 0 or y + 5 > height or z + 5 > width:
                    take_tile(pixels, image, y, z, height, width, channels, copied, 5)
                    source, place, per_row = copied, 0, 5
                for first in range(0, channels, LANES):
                    c = min(first, channels - LANES)
                    h = to_lines(source, place + c, per_row * channels, channels)
                    store_5(to_line(across(h, 0)), planes, target + c, plane)
                    store_5(to_line(across(h, 1)), planes, target + c + 5 * plane, plane)
                    store_5(to_line(across(h, 2)), planes, target + c + 10 * plane, plane)
                    store_5(to_line(across(h, 3)), planes, target + c + 15 * plane, plane)
                    store_5(to_line(across(h, 4)), planes, target + c + 20 * plane, plane)
                target += channels


@jit(*FROM_POINTS)
def from_points_strided(
    sums: Flat,
    plane: int,
    images: int,
    rows: int,
    columns: int,
    out_channels: int,
    out: Flat,
    residual: Flat,
    has_residual: bool,
    bias: Flat,
    slope: float,
    residual_slope: float,
    start: int,
    per_image: int,
    per_row: int,
    per_pixel: int,
) -> None:
    """The epilogue of Aᵀ · s · A: from 25 planes (tiles, O), ``plane`` apart, to a block.

    The rest is as ``finish_of`` gives it.
    """
    how = pointer(residual), has_residual, spread(slope), spread(residual_slope)
    planes, shifts, result = pointer(sums), pointer(bias), pointer(out)
    source = 0
    for image in range(images):
        for row in range(rows):
            target = start + image * per_image + 2 * row * per_row
            for _ in range(columns):
                for first in range(0, out_channels, LANES):
                    c = min(first, out_channels - LANES)
                    shift, place = load(shifts, c), target + c
                    h = from_lines(planes, source + c, 5 * plane, plane)
                    line = from_line(across(h, 0))
                    finish_2(line, result, place, per_pixel, shift, how)
                    line = from_line(across(h, 1))
                    finish_2(line, result, place + per_row, per_pixel, shift, how)
                source += out_channels
                target += 2 * per_pixel
