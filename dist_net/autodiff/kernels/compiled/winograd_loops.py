"""Winograd's convolution with its transforms compiled by numba, each in one pass.

Needs the extra ``fast``. It computes the same as the plain algorithm that it extends, and uses it
for shapes that do not suit vectors. Loops take 8 neighbouring channels of a tile at a time; if the
number of channels is not a multiple of 8, the last vector overlaps the previous one.

``winograd.transforms`` defines the matrices Bᵀ and Aᵀ; terms shared by several rows are computed
once. A tile of a x a vectors is transformed down its columns, then along its rows. Each size has
separate code, so that vectors stay in registers: 6 is for F(4 x 4, 3 x 3), 4 for F(2 x 2, 3 x 3),
and 5 for the latter with a stride of 2.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numba.types import Tuple
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.compiled.epilogues import (
    EPILOGUE,
    EpilogueValues,
    OfBlock,
    apply_epilogue,
    epilogue_of,
    flat,
)
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    Flat,
    Four,
    Lanes,
    Pointer,
    Three,
    inlined,
    integers,
    load,
    pointer,
    run_chosen,
    spread,
    store,
    traced,
)
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Problem
from dist_net.autodiff.kernels.convolution.winograd import APART, Winograd
from dist_net.ground.compiling import INTEGER, READ, WRITTEN, jit

TileLine = Sequence[Lanes]
"""A row or a column of a tile."""
Transform = Callable[[TileLine], TileLine]
Maps = tuple[Three, Three, Three]
"""(H, W, C); the numbers of images, and of rows and columns of tiles; the row and column of the
first tile, and the pixels from one tile to the next."""
MAPS = Tuple((integers(3), integers(3), integers(3)))
TilePoints = tuple[Pointer, int, int]
"""An array, the place of a tile's first points, and how far apart planes are."""
TilePixels = tuple[Pointer, int, int, int]
"""An array, the place of a tile, and the strides of rows and of pixels, in values."""


# Bᵀ · x and Aᵀ · x for a column or row of a tile.


def to_points_of_6(x: TileLine) -> TileLine:
    """Bᵀ · x of F(4, 3)."""
    even, odd = x[4] - 4 * x[2], x[3] - 4 * x[1]
    even_2, odd_2 = x[4] - x[2], (x[3] - x[1]) + (x[3] - x[1])
    return (
        4 * (x[0] - x[2]) + even_2,
        even + odd,
        even - odd,
        even_2 + odd_2,
        even_2 - odd_2,
        4 * (x[1] - x[3]) + (x[5] - x[3]),
    )


def to_points_of_5(x: TileLine) -> TileLine:
    """Bᵀ · x of F(2, 3) with a stride of 2."""
    return x[2] - x[0], x[2], x[4] - x[2], x[1], x[3]


def to_points_of_4(x: TileLine) -> TileLine:
    """Bᵀ · x of F(2, 3)."""
    return x[2] - x[0], x[1] + x[2], x[2] - x[1], x[3] - x[1]


def to_points_of_2(x: TileLine) -> TileLine:
    """A · x of F(2, 3): the VJP of ``from_points_of_4``."""
    return x[0], x[0] + x[1], x[0] - x[1], x[1]


def from_points_of_6(x: TileLine) -> TileLine:
    """Aᵀ · x of F(4, 3)."""
    sum_1, sum_2, difference_1 = x[1] + x[2], x[3] + x[4], x[1] - x[2]
    difference_2 = (x[3] - x[4]) + (x[3] - x[4])
    return (
        x[0] + sum_1 + sum_2,
        difference_1 + difference_2,
        sum_1 + 4 * sum_2,
        difference_1 + 4 * difference_2 + x[5],
    )


def from_points_of_5(x: TileLine) -> TileLine:
    """Aᵀ · x of F(2, 3) with a stride of 2."""
    return x[0] + x[1] + x[3], x[1] + x[2] + x[4]


def from_points_of_4(x: TileLine) -> TileLine:
    """Aᵀ · x of F(2, 3)."""
    return x[0] + x[1] + x[2], x[1] - x[2] + x[3]


def tile_rows(
    a: int, transform: Transform, x: Pointer, i: int, per_row: int, per_column: int
) -> Iterator[TileLine]:
    """Yield the rows of the tile of a x a vectors at ``i``, transformed along both axes."""
    places = [[i + row * per_row + column * per_column for row in range(a)] for column in range(a)]
    columns = [transform([load(x, place) for place in column]) for column in places]
    return (transform(row) for row in zip(*columns, strict=True))


TO_POINTS = {2: to_points_of_2, 4: to_points_of_4, 5: to_points_of_5, 6: to_points_of_6}
FROM_POINTS = {4: from_points_of_4, 5: from_points_of_5, 6: from_points_of_6}


@traced()
def write_points(a: int, tile: TilePixels, target: TilePoints) -> None:
    """Write Bᵀ · d · B, from a tile of the input to points; or A · d · Aᵀ."""
    points, j, plane = target

    def write(size: int) -> None:
        for row, values in enumerate(tile_rows(size, TO_POINTS[size], *tile)):
            for column, value in enumerate(values):
                store(points, j + (row * len(values) + column) * plane, value)

    run_chosen(a, {size: partial(write, size) for size in TO_POINTS})


@traced()
def write_outputs(a: int, sums: TilePoints, outputs: TilePixels, epilogue: EpilogueValues) -> None:
    """Write the epilogue of Aᵀ · s · A for a tile."""
    (points, i, plane), (out, j, per_row, per_pixel) = sums, outputs

    def write(size: int) -> None:
        rows = tile_rows(size, FROM_POINTS[size], points, i, size * plane, plane)
        for row, values in enumerate(rows):
            for column, value in enumerate(values):
                apply_epilogue(value, out, j + row * per_row + column * per_pixel, epilogue)

    run_chosen(a, {size: partial(write, size) for size in FROM_POINTS})


class CompiledWinograd(Winograd):
    """``Winograd`` with each transform in one pass; a stride of 2 requires m = 2."""

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        return max(self._plain.scratch_bytes(problem, block), super().scratch_bytes(problem, block))

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        if min(problem.x[3], block.size[2]) < LANES:
            return self._plain.calls(problem, block, arrays, scratch)
        return super().calls(problem, block, arrays, scratch)

    def _to_points(
        self, problem: Problem, block: Block, x: Array, points: Array, spare: Sequence[Array]
    ) -> Sequence[Call]:
        (top, _), (left, _) = problem.windows.padding
        tiles = block.rows.start * self.stride - top, -left, self.m * self.stride
        part = x[block.images]
        maps = part.shape[1:], self._grid(problem, block), tiles
        planes = flat(points), points.shape[1]
        return [partial(to_points, self.a, flat(part), maps, flat(spare[0]), *planes)]

    def _from_points(
        self, problem: Problem, block: Block, arrays: Arrays, sums: Array, spare: Sequence[Array]
    ) -> Sequence[Call]:
        grid = *self._grid(problem, block), block.size[2]
        planes = flat(sums), sums.shape[1]
        epilogue = epilogue_of(problem, block, arrays)
        return [partial(from_points, self.a, self.m, *planes, grid, epilogue)]

    def points_of_both(
        self, problem: Problem, block: Block, x: Array, cotangent: Array, scratch: Sequence[Array]
    ) -> tuple[Sequence[Call], Array, Array]:
        """Return the calls that transform a block of ``x`` and of the output's cotangent, and both
        results, whose ``products`` are the points of the filters' gradient. Only for F(2x2) with a
        stride of 1."""
        points, others, tile = scratch
        part, tiles = cotangent[block.images], (block.rows.start, 0, self.m)
        seen = flat(part), (part.shape[1:], self._grid(problem, block), tiles)
        planes = flat(others), others.shape[1]
        spread_out = partial(to_points, self.m, *seen, flat(tile), *planes)
        by_tile = len(points), 1, 1, self._tiles(problem, block), -1
        of_x, of_y = (each[:, :-APART].reshape(by_tile, copy=False) for each in (points, others))
        calls: list[Call] = [*self._to_points(problem, block, x, points, [tile]), spread_out]
        return calls, of_x.transpose(0, 1, 4, 2, 3)[:, None, ..., None, :], of_y

    @property
    def _plain(self) -> Winograd:
        return Winograd(self.m, self.stride, self.gemm)

    def _grid(self, problem: Problem, block: Block) -> tuple[int, int, int]:
        """Return the number of images in a block, and of rows and columns of tiles per image."""
        return block.size[0], block.size[1] // self.m, problem.out[2] // self.m

    def shapes(self, problem: Problem, block: Block) -> list[Shape]:
        """Return the shapes of a block's points and sums, and of one tile of the input."""
        points, sums, *_ = super().shapes(problem, block)
        return [points, sums, (self.a, self.a, problem.x[3])]


@inlined
def take_tile(x: Pointer, shape: Three, corner: Three, tile: Pointer, a: int) -> None:
    """Copy a · a pixels of (N, H, W, C) from an image's row and column on to (a, a, C)."""
    (height, width, channels), (image, y, z) = shape, corner
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


@jit(INTEGER, READ, MAPS, WRITTEN, WRITTEN, INTEGER)
def to_points(a: int, x: Flat, maps: Maps, tile: Flat, points: Flat, plane: int) -> None:
    """Bᵀ · d · B: from (N, H, W, C), padded with 0, to a² planes (tiles, C), ``plane`` apart.

    With an ``a`` of 2, it is A · d · Aᵀ of F(2 x 2), with 16 planes. ``tile`` holds a copy of a
    tile beyond the map.
    """
    shape, (images, rows, columns), (top, left, step) = maps
    height, width, channels = shape
    pixels, copied, planes = pointer(x), pointer(tile), pointer(points)
    j = 0
    for image in range(images):
        for y in range(top, top + step * rows, step):
            for z in range(left, left + step * columns, step):
                source, i = pixels, ((image * height + y) * width + z) * channels
                per_row = width * channels
                if y < 0 or z < 0 or y + a > height or z + a > width:
                    take_tile(pixels, shape, (image, y, z), copied, a)
                    source, i, per_row = copied, 0, a * channels
                for first in range(0, channels, LANES):
                    c = min(first, channels - LANES)
                    seen = source, i + c, per_row, channels
                    write_points(a, seen, (planes, j + c, plane))
                j += channels


@jit(INTEGER, INTEGER, READ, INTEGER, integers(4), EPILOGUE)
def from_points(a: int, m: int, sums: Flat, plane: int, grid: Four, of_block: OfBlock) -> None:
    """Write the epilogue of Aᵀ · s · A: from a² planes (tiles, O), ``plane`` apart, to a block.

    ``grid`` is as in ``Maps``, followed by O; the block has m² outputs per tile.
    """
    images, rows, columns, channels = grid
    out, residual, has_residual, bias, numbers, place = of_block
    start, per_image, per_row, per_pixel = place
    planes, result = pointer(sums), pointer(out)
    shifts, other = pointer(bias), pointer(residual)
    i = 0
    for image in range(images):
        for row in range(rows):
            j = start + image * per_image + m * row * per_row
            for _ in range(columns):
                for first in range(0, channels, LANES):
                    c = min(first, channels - LANES)
                    epilogue = load(shifts, c), other, has_residual, numbers
                    outputs = result, j + c, per_row, per_pixel
                    write_outputs(a, (planes, i + c, plane), outputs, epilogue)
                i += channels
                j += m * per_pixel
