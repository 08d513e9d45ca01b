"""Winograd's convolution with its transforms compiled by numba, each in one pass.

Needs the extra ``fast``. It computes the same as the plain algorithm that it extends, and uses it
for shapes that do not suit vectors. Loops take 8 neighbouring channels of a tile at a time; if the
number of channels is not a multiple of 8, the last vector overlaps the previous one.

``winograd.transforms`` defines the matrices Bᵀ and Aᵀ; terms shared by several rows are computed
once. A tile of a x a vectors is transformed down its columns, then along its rows. Each size has
separate functions, so that vectors stay in registers: names with a 6 are for F(4 x 4, 3 x 3), with
a 4 for F(2 x 2, 3 x 3), and with a 5 for the latter with a stride of 2. As one function that calls
itself for the rest of a tuple, the transforms take 20 times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.compiled.im2row_loops import (
    EPILOGUE,
    EpilogueNumbers,
    EpilogueValues,
    apply_epilogue,
    epilogue_of,
    flat,
    is_suitable,
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
    pointer,
    spread,
    store,
)
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Problem
from dist_net.autodiff.kernels.convolution.winograd import Winograd
from dist_net.autodiff.kernels.windows import Pair
from dist_net.compiling import INTEGER, READ, WRITTEN, jit

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


Triple = tuple[int, int, int]
Quadruple = tuple[int, int, int, int]


class CompiledWinograd(Winograd):
    """``Winograd`` with each transform in one pass; a stride of 2 requires m = 2."""

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        """Return the bytes of scratch for a block, by this algorithm or the plain one."""
        return max(self._plain.scratch_bytes(problem, block), super().scratch_bytes(problem, block))

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """Return the calls that compute a block of the output."""
        if problem.x[3] < LANES or not is_suitable(block, arrays):
            return self._plain.calls(problem, block, arrays, scratch)
        return super().calls(problem, block, arrays, scratch)

    def _to_points(
        self, problem: Problem, block: Block, x: Array, points: Array, spare: Sequence[Array]
    ) -> Sequence[Call]:
        (top, _), (left, _) = problem.windows.padding
        corner = block.rows.start * self.stride - top, -left
        part = x[block.images]
        step = self.m * self.stride
        geometry = part.shape[1:], self._grid(problem, block), corner
        planes = flat(points), points.shape[1]
        return [partial(to_points, self.a, step, flat(part), *geometry, flat(spare[0]), *planes)]

    def _from_points(
        self, problem: Problem, block: Block, arrays: Arrays, sums: Array, spare: Sequence[Array]
    ) -> Sequence[Call]:
        grid = *self._grid(problem, block), block.size[2]
        planes = flat(sums), sums.shape[1]
        return [
            partial(
                from_points, self.a, self.m, *planes, grid, *epilogue_of(problem, block, arrays)
            )
        ]

    @property
    def _plain(self) -> Winograd:
        return Winograd(self.m, self.stride, self.gemm)

    def _grid(self, problem: Problem, block: Block) -> tuple[int, int, int]:
        """Return the number of images in a block, and of rows and columns of tiles per image."""
        return block.size[0], block.size[1] // self.m, problem.out[2] // self.m

    def _shapes(self, problem: Problem, block: Block) -> list[Shape]:
        """Return the shapes of a block's points and sums, and of one tile of the input."""
        points, sums, *_ = super()._shapes(problem, block)
        return [points, sums, (self.a, self.a, problem.x[3])]


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
    """Copy a · a pixels of (N, H, W, C) at (y, z), padded with 0, to (a, a, C)."""
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


@jit(INTEGER, INTEGER, READ, integers(3), integers(3), integers(2), WRITTEN, WRITTEN, INTEGER)
def to_points(
    a: int,
    step: int,
    x: Flat,
    shape: Triple,
    grid: Triple,
    corner: Pair,
    tile: Flat,
    points: Flat,
    plane: int,
) -> None:
    """Bᵀ · d · B: from (N, H, W, C), padded with 0, to a² planes (tiles, C), ``plane`` apart.

    ``shape`` is (H, W, C); ``grid`` is the number of images, and of rows and columns of tiles. The
    first tile begins at ``corner``, the next after ``step`` pixels. ``tile`` holds a copy of a tile
    that extends beyond the map.
    """
    height, width, channels = shape
    images, rows, columns = grid
    top, left = corner
    pixels, copied, planes = pointer(x), pointer(tile), pointer(points)
    j = 0
    for image in range(images):
        for y in range(top, top + step * rows, step):
            for z in range(left, left + step * columns, step):
                source, i = pixels, ((image * height + y) * width + z) * channels
                per_row = width * channels
                if y < 0 or z < 0 or y + a > height or z + a > width:
                    take_tile(pixels, image, y, z, height, width, channels, copied, a)
                    source, i, per_row = copied, 0, a * channels
                for first in range(0, channels, LANES):
                    c = min(first, channels - LANES)
                    if a == 6:
                        tile_to_points_6(source, i + c, per_row, channels, planes, j + c, plane)
                    elif a == 5:
                        tile_to_points_5(source, i + c, per_row, channels, planes, j + c, plane)
                    else:
                        tile_to_points_4(source, i + c, per_row, channels, planes, j + c, plane)
                j += channels


@jit(INTEGER, INTEGER, READ, INTEGER, integers(4), *EPILOGUE)
def from_points(
    a: int,
    m: int,
    sums: Flat,
    plane: int,
    grid: Quadruple,
    out: Flat,
    residual: Flat,
    has_residual: bool,
    bias: Flat,
    numbers: EpilogueNumbers,
    place: Quadruple,
) -> None:
    """Return the epilogue of Aᵀ · s · A: from a² planes (tiles, O), ``plane`` apart, to a block.

    ``grid`` is as in ``to_points``, followed by O; the block has m² outputs per tile.
    """
    images, rows, columns, channels = grid
    start, per_image, per_row, per_pixel = place
    planes, result = pointer(sums), pointer(out)
    shifts, other = pointer(bias), pointer(residual)
    vectors, apart = spread_each(numbers), (per_row, per_pixel)
    i = 0
    for image in range(images):
        for row in range(rows):
            j = start + image * per_image + m * row * per_row
            for _ in range(columns):
                for first in range(0, channels, LANES):
                    c = min(first, channels - LANES)
                    epilogue = load(shifts, c), other, has_residual, vectors
                    if a == 6:
                        tile_from_points_6(planes, i + c, plane, result, j + c, apart, epilogue)
                    elif a == 5:
                        tile_from_points_5(planes, i + c, plane, result, j + c, apart, epilogue)
                    else:
                        tile_from_points_4(planes, i + c, plane, result, j + c, apart, epilogue)
                i += channels
                j += m * per_pixel
