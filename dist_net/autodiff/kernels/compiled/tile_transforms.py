"""Winograd's transforms of one tile, on vectors of 8 neighbouring channels, for numba.

``winograd.transforms`` defines the matrices Bᵀ and Aᵀ; terms shared by several rows are computed
once. A tile of a x a vectors is transformed down its columns, then along its rows. Each size has
separate functions, so that vectors stay in registers: names with a 6 are for F(4 x 4, 3 x 3), with
a 4 for F(2 x 2, 3 x 3), and with a 5 for the latter with a stride of 2. Needs the extra ``fast``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dist_net.autodiff.kernels.compiled.im2row_loops import EpilogueValues, apply_epilogue
from dist_net.autodiff.kernels.compiled.vectors import Lanes, Pointer, inlined, load, spread, store

TileLine = tuple[Lanes, ...]
"""A row or a column of a tile."""
TileColumns = tuple[TileLine, ...]
Transform = Callable[[TileLine], TileLine]
Apart = tuple[int, int]
"""The strides of rows and of pixels of the output, in values."""


# Bᵀ · x and Aᵀ · x for a column or row of a tile.


@inlined
def to_points_of_6(x: TileLine) -> TileLine:
    """Bᵀ · x of F(4, 3)."""
    four = spread(np.float32(4))
    even, odd = x[4] - four * x[2], x[3] - four * x[1]
    even_2, odd_2 = x[4] - x[2], (x[3] - x[1]) + (x[3] - x[1])
    return (
        four * (x[0] - x[2]) + even_2,
        even + odd,
        even - odd,
        even_2 + odd_2,
        even_2 - odd_2,
        four * (x[1] - x[3]) + (x[5] - x[3]),
    )


@inlined
def to_points_of_5(x: TileLine) -> TileLine:
    """Bᵀ · x of F(2, 3) with a stride of 2."""
    return x[2] - x[0], x[2], x[4] - x[2], x[1], x[3]


@inlined
def to_points_of_4(x: TileLine) -> TileLine:
    """Bᵀ · x of F(2, 3)."""
    return x[2] - x[0], x[1] + x[2], x[2] - x[1], x[3] - x[1]


@inlined
def from_points_of_6(x: TileLine) -> TileLine:
    """Aᵀ · x of F(4, 3)."""
    four = spread(np.float32(4))
    sum_1, sum_2, difference_1 = x[1] + x[2], x[3] + x[4], x[1] - x[2]
    difference_2 = (x[3] - x[4]) + (x[3] - x[4])
    return (
        x[0] + sum_1 + sum_2,
        difference_1 + difference_2,
        sum_1 + four * sum_2,
        difference_1 + four * difference_2 + x[5],
    )


@inlined
def from_points_of_5(x: TileLine) -> TileLine:
    """Aᵀ · x of F(2, 3) with a stride of 2."""
    return x[0] + x[1] + x[3], x[1] + x[2] + x[4]


@inlined
def from_points_of_4(x: TileLine) -> TileLine:
    """Aᵀ · x of F(2, 3)."""
    return x[0] + x[1] + x[2], x[1] - x[2] + x[3]


# Tile lines with vectors ``step`` values apart, and whole tiles.


@inlined
def load_4(x: Pointer, i: int, step: int) -> TileLine:
    """Return 4 vectors."""
    return load(x, i), load(x, i + step), load(x, i + 2 * step), load(x, i + 3 * step)


@inlined
def load_5(x: Pointer, i: int, step: int) -> TileLine:
    """Return 5 vectors."""
    return (*load_4(x, i, step), load(x, i + 4 * step))


@inlined
def load_6(x: Pointer, i: int, step: int) -> TileLine:
    """Return 6 vectors."""
    return (*load_5(x, i, step), load(x, i + 5 * step))


@inlined
def store_4(x: TileLine, target: Pointer, i: int, step: int) -> None:
    """Store the first 4 vectors."""
    store(target, i, x[0])
    store(target, i + step, x[1])
    store(target, i + 2 * step, x[2])
    store(target, i + 3 * step, x[3])


@inlined
def store_5(x: TileLine, target: Pointer, i: int, step: int) -> None:
    """Store the first 5 vectors."""
    store_4(x, target, i, step)
    store(target, i + 4 * step, x[4])


@inlined
def store_6(x: TileLine, target: Pointer, i: int, step: int) -> None:
    """Store 6 vectors."""
    store_5(x, target, i, step)
    store(target, i + 5 * step, x[5])


@inlined
def columns_of_4(transform: Transform, x: Pointer, i: int, between: int, step: int) -> TileColumns:
    """Return 4 columns of 4 vectors, ``between`` values apart, transformed."""
    return (
        transform(load_4(x, i, step)),
        transform(load_4(x, i + between, step)),
        transform(load_4(x, i + 2 * between, step)),
        transform(load_4(x, i + 3 * between, step)),
    )


@inlined
def columns_of_5(transform: Transform, x: Pointer, i: int, between: int, step: int) -> TileColumns:
    """Return 5 columns of 5 vectors, ``between`` values apart, transformed."""
    return (
        transform(load_5(x, i, step)),
        transform(load_5(x, i + between, step)),
        transform(load_5(x, i + 2 * between, step)),
        transform(load_5(x, i + 3 * between, step)),
        transform(load_5(x, i + 4 * between, step)),
    )


@inlined
def columns_of_6(transform: Transform, x: Pointer, i: int, between: int, step: int) -> TileColumns:
    """Return 6 columns of 6 vectors, ``between`` values apart, transformed."""
    return (
        transform(load_6(x, i, step)),
        transform(load_6(x, i + between, step)),
        transform(load_6(x, i + 2 * between, step)),
        transform(load_6(x, i + 3 * between, step)),
        transform(load_6(x, i + 4 * between, step)),
        transform(load_6(x, i + 5 * between, step)),
    )


@inlined
def row_of_4(h: TileColumns, row: int) -> TileLine:
    """Return a row across 4 columns."""
    return h[0][row], h[1][row], h[2][row], h[3][row]


@inlined
def row_of_5(h: TileColumns, row: int) -> TileLine:
    """Return a row across 5 columns."""
    return h[0][row], h[1][row], h[2][row], h[3][row], h[4][row]


@inlined
def row_of_6(h: TileColumns, row: int) -> TileLine:
    """Return a row across 6 columns."""
    return h[0][row], h[1][row], h[2][row], h[3][row], h[4][row], h[5][row]


# Bᵀ · d · B: from a tile of the input at ``i`` to points at ``j``, one plane per point.


@inlined
def tile_to_points_4(
    x: Pointer, i: int, per_row: int, per_pixel: int, points: Pointer, j: int, plane: int
) -> None:
    """4 x 4 pixels to 16 planes."""
    h = columns_of_4(to_points_of_4, x, i, per_pixel, per_row)
    store_4(to_points_of_4(row_of_4(h, 0)), points, j, plane)
    store_4(to_points_of_4(row_of_4(h, 1)), points, j + 4 * plane, plane)
    store_4(to_points_of_4(row_of_4(h, 2)), points, j + 8 * plane, plane)
    store_4(to_points_of_4(row_of_4(h, 3)), points, j + 12 * plane, plane)


@inlined
def tile_to_points_5(
    x: Pointer, i: int, per_row: int, per_pixel: int, points: Pointer, j: int, plane: int
) -> None:
    """5 x 5 pixels to 25 planes."""
    h = columns_of_5(to_points_of_5, x, i, per_pixel, per_row)
    store_5(to_points_of_5(row_of_5(h, 0)), points, j, plane)
    store_5(to_points_of_5(row_of_5(h, 1)), points, j + 5 * plane, plane)
    store_5(to_points_of_5(row_of_5(h, 2)), points, j + 10 * plane, plane)
    store_5(to_points_of_5(row_of_5(h, 3)), points, j + 15 * plane, plane)
    store_5(to_points_of_5(row_of_5(h, 4)), points, j + 20 * plane, plane)


@inlined
def tile_to_points_6(
    x: Pointer, i: int, per_row: int, per_pixel: int, points: Pointer, j: int, plane: int
) -> None:
    """6 x 6 pixels to 36 planes."""
    h = columns_of_6(to_points_of_6, x, i, per_pixel, per_row)
    store_6(to_points_of_6(row_of_6(h, 0)), points, j, plane)
    store_6(to_points_of_6(row_of_6(h, 1)), points, j + 6 * plane, plane)
    store_6(to_points_of_6(row_of_6(h, 2)), points, j + 12 * plane, plane)
    store_6(to_points_of_6(row_of_6(h, 3)), points, j + 18 * plane, plane)
    store_6(to_points_of_6(row_of_6(h, 4)), points, j + 24 * plane, plane)
    store_6(to_points_of_6(row_of_6(h, 5)), points, j + 30 * plane, plane)


# The epilogue of Aᵀ · s · A: from sums at ``i``, one plane per point, to outputs at ``j``.


@inlined
def store_row_of_2(
    x: TileLine, out: Pointer, j: int, per_pixel: int, epilogue: EpilogueValues
) -> None:
    """Store the epilogue of the first 2 vectors."""
    apply_epilogue(x[0], out, j, epilogue)
    apply_epilogue(x[1], out, j + per_pixel, epilogue)


@inlined
def tile_from_points_4(
    sums: Pointer, i: int, plane: int, out: Pointer, j: int, apart: Apart, epilogue: EpilogueValues
) -> None:
    """16 planes to 2 x 2 outputs."""
    h = columns_of_4(from_points_of_4, sums, i, plane, 4 * plane)
    store_row_of_2(from_points_of_4(row_of_4(h, 0)), out, j, apart[1], epilogue)
    store_row_of_2(from_points_of_4(row_of_4(h, 1)), out, j + apart[0], apart[1], epilogue)


@inlined
def tile_from_points_5(
    sums: Pointer, i: int, plane: int, out: Pointer, j: int, apart: Apart, epilogue: EpilogueValues
) -> None:
    """25 planes to 2 x 2 outputs."""
    h = columns_of_5(from_points_of_5, sums, i, plane, 5 * plane)
    store_row_of_2(from_points_of_5(row_of_5(h, 0)), out, j, apart[1], epilogue)
    store_row_of_2(from_points_of_5(row_of_5(h, 1)), out, j + apart[0], apart[1], epilogue)


@inlined
def store_row_of_4(
    x: TileLine, out: Pointer, j: int, per_pixel: int, epilogue: EpilogueValues
) -> None:
    """Store the epilogue of 4 vectors."""
    store_row_of_2(x, out, j, per_pixel, epilogue)
    apply_epilogue(x[2], out, j + 2 * per_pixel, epilogue)
    apply_epilogue(x[3], out, j + 3 * per_pixel, epilogue)


@inlined
def tile_from_points_6(
    sums: Pointer, i: int, plane: int, out: Pointer, j: int, apart: Apart, epilogue: EpilogueValues
) -> None:
    """36 planes to 4 x 4 outputs."""
    h = columns_of_6(from_points_of_6, sums, i, plane, 6 * plane)
    store_row_of_4(from_points_of_6(row_of_6(h, 0)), out, j, apart[1], epilogue)
    store_row_of_4(from_points_of_6(row_of_6(h, 1)), out, j + apart[0], apart[1], epilogue)
    store_row_of_4(from_points_of_6(row_of_6(h, 2)), out, j + 2 * apart[0], apart[1], epilogue)
    store_row_of_4(from_points_of_6(row_of_6(h, 3)), out, j + 3 * apart[0], apart[1], epilogue)
