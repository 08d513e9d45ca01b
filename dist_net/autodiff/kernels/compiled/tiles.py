"""Loops over tiles that transform them, for Winograd's convolution, compiled by numba.

8 neighbouring channels of a tile are loaded as vectors, transformed down the columns, then along
the rows, and stored. Where a number of channels is no multiple of 8, the last vector overlaps the
one before it. A tile that reaches beyond the map is first copied, with 0 outside. Needs the extra
``fast``.
"""

from __future__ import annotations

import numpy as np

from dist_net.autodiff.kernels.compiled.im2row import FINISH, How, finish_one
from dist_net.autodiff.kernels.compiled.line_transforms import (
    Four,
    Two,
    across_2,
    across_4,
    from_line_2,
    from_line_4,
    from_lines_2,
    from_lines_4,
    store_points_2,
    store_points_4,
    to_lines_2,
    to_lines_4,
)
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
from dist_net.compiling import INTEGER, READ, WRITTEN, jit


@inlined
def take_tile(
    x: Pointer,
    image: int,
    y: int,
    z: int,
    height: int,
    width: int,
    channels: int,
    tile: Pointer,
    a: int,
) -> None:
    """The a · a pixels of (N, H, W, C) from (y, z) on, 0 outside, to (a, a, C)."""
    place = 0
    nothing = spread(np.float32(0))
    for row in range(y, y + a):
        for column in range(z, z + a):
            pixel = ((image * height + row) * width + column) * channels
            is_inside = 0 <= row < height and 0 <= column < width
            for first in range(0, channels, LANES):
                c = min(first, channels - LANES)
                store(tile, place + c, load(x, pixel + c) if is_inside else nothing)
            place += channels


TO_POINTS = READ, *[INTEGER] * 8, WRITTEN, WRITTEN, INTEGER


@jit(*TO_POINTS)
def to_points_4(
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
    """Bᵀ · d · B: from (N, H, W, C), 0 outside, to 36 planes (tiles, C), ``plane`` apart."""
    pixels, copied, planes = pointer(x), pointer(tile), pointer(points)
    target = 0
    for image in range(images):
        for y in range(top, top + 4 * rows, 4):
            for z in range(left, left + 4 * columns, 4):
                place = ((image * height + y) * width + z) * channels
                source, per_row = pixels, width
                if y < 0 or z < 0 or y + 6 > height or z + 6 > width:
                    take_tile(pixels, image, y, z, height, width, channels, copied, 6)
                    source, place, per_row = copied, 0, 6
                for first in range(0, channels, LANES):
                    c = min(first, channels - LANES)
                    h = to_lines_4(source, place + c, per_row * channels, channels)
                    store_points_4(h, planes, target + c, plane)
                target += channels


@jit(*TO_POINTS)
def to_points_2(
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
    """Bᵀ · d · B: from (N, H, W, C), 0 outside, to 16 planes (tiles, C), ``plane`` apart."""
    pixels, copied, planes = pointer(x), pointer(tile), pointer(points)
    target = 0
    for image in range(images):
        for y in range(top, top + 2 * rows, 2):
            for z in range(left, left + 2 * columns, 2):
                place = ((image * height + y) * width + z) * channels
                source, per_row = pixels, width
                if y < 0 or z < 0 or y + 4 > height or z + 4 > width:
                    take_tile(pixels, image, y, z, height, width, channels, copied, 4)
                    source, place, per_row = copied, 0, 4
                for first in range(0, channels, LANES):
                    c = min(first, channels - LANES)
                    h = to_lines_2(source, place + c, per_row * channels, channels)
                    store_points_2(h, planes, target + c, plane)
                target += channels


FROM_POINTS = READ, *[INTEGER] * 5, *FINISH


@inlined
def finish_4(line: Four, out: Pointer, place: int, step: int, bias: Vector, how: How) -> None:
    """The epilogue of 4 pixels, ``step`` apart."""
    finish_one(line[0], out, place, bias, how)
    finish_one(line[1], out, place + step, bias, how)
    finish_one(line[2], out, place + 2 * step, bias, how)
    finish_one(line[3], out, place + 3 * step, bias, how)


@inlined
def finish_2(line: Two, out: Pointer, place: int, step: int, bias: Vector, how: How) -> None:
    """The epilogue of 2 pixels, ``step`` apart."""
    finish_one(line[0], out, place, bias, how)
    finish_one(line[1], out, place + step, bias, how)


@jit(*FROM_POINTS)
def from_points_4(
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
    """The epilogue of Aᵀ · s · A: from 36 planes (tiles, O), ``plane`` apart, to a block.

    The rest is as ``finish_of`` gives it.
    """
    how = pointer(residual), has_residual, spread(slope), spread(residual_slope)
    planes, shifts, result = pointer(sums), pointer(bias), pointer(out)
    source = 0
    for image in range(images):
        for row in range(rows):
            target = start + image * per_image + 4 * row * per_row
            for _ in range(columns):
                for first in range(0, out_channels, LANES):
                    c = min(first, out_channels - LANES)
                    shift, place = load(shifts, c), target + c
                    h = from_lines_4(planes, source + c, 6 * plane, plane)
                    line = from_line_4(across_4(h, 0))
                    finish_4(line, result, place, per_pixel, shift, how)
                    line = from_line_4(across_4(h, 1))
                    finish_4(line, result, place + per_row, per_pixel, shift, how)
                    line = from_line_4(across_4(h, 2))
                    finish_4(line, result, place + 2 * per_row, per_pixel, shift, how)
                    line = from_line_4(across_4(h, 3))
                    finish_4(line, result, place + 3 * per_row, per_pixel, shift, how)
                source += out_channels
                target += 4 * per_pixel


@jit(*FROM_POINTS)
def from_points_2(
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
    """The epilogue of Aᵀ · s · A: from 16 planes (tiles, O), ``plane`` apart, to a block.

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
                    h = from_lines_2(planes, source + c, 4 * plane, plane)
                    line = from_line_2(across_2(h, 0))
                    finish_2(line, result, place, per_pixel, shift, how)
                    line = from_line_2(across_2(h, 1))
                    finish_2(line, result, place + per_row, per_pixel, shift, how)
                source += out_channels
                target += 2 * per_pixel
