"""3x3 convolution with fewer multiplications (Winograd; Lavin and Gray, arXiv 1509.09308).

F(m x m, 3 x 3) computes a tile of m x m outputs from a = m + 2 squared inputs:

    tile ─Bᵀ·d·B─▶ a² points ─a² products with the filters' points─▶ a² sums ─Aᵀ·s·A─▶ m² outputs

The products over the channels are a² matrix products, each for all tiles at once. A transform is a
matrix product too: the Kronecker product of B with itself, a² x a², times all tiles' elements.

With a stride of 2, along one axis, every other input is multiplied only by the middle of the
filter, and the inputs in between by its two ends. The latter are F(m, 2), the former m plain
products, together a = 2m + 1: for m = 2, 25 products instead of 36. The plain products share one
point of the filters, which have (m + 2)² points for either stride.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape, carve, scratch_bytes
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Problem, take_padded
from dist_net.autodiff.kernels.gemm import Gemm
from dist_net.autodiff.kernels.windows import UNPADDED, Windows

POINTS = (0, 1, -1, 2, -2)
ONE = POINTS.index(1)
APART = 16  # values between planes, which would otherwise often map to the same cache set


class Winograd:
    """F(m x m, 3 x 3), for maps whose sides are multiples of ``m``: 2 or 4; stride 1 or 2."""

    adds_in_one_order = False

    def __init__(self, m: int, stride: int = 1, gemm: Gemm | None = None) -> None:
        self.m = m
        self.stride = stride
        self.gemm = gemm or Gemm()
        self.a = m * stride + 3 - stride
        self.name = f"winograd{m}" if stride == 1 else f"winograd{m}/{stride}"
        self.row_step = m

    def prepared_shape(self, problem: Problem) -> Shape:
        """Return the shape of the result of ``prepare``."""
        return self.gemm.layout((self.m + 2, self.m + 2, problem.x[3], problem.out[3]))

    def prepare(self, problem: Problem, filters: Array) -> Array:
        """Transform (3, 3, C, O) to points (m + 2, m + 2, C, O), laid out for products."""
        _, g, _ = transforms(self.m, self.stride)
        matrix = np.kron(g, g).astype(problem.dtype)
        points = np.empty((self.m + 2, self.m + 2, *filters.shape[2:]), problem.dtype)
        rows = points.reshape(len(matrix), -1, copy=False)
        self.gemm.of_matrices(matrix, filters.reshape(9, -1, copy=False), rows)()
        return self.gemm.laid_out(points)

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        """Return the bytes of scratch that one thread needs for a block."""
        return scratch_bytes(self.shapes(problem, block), problem.dtype)

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """Return the calls that compute a block of the output."""
        points, sums, *spare = carve(scratch, self.shapes(problem, block), problem.dtype)
        filters = self.gemm.part(arrays.filters, block.channels)
        by_tile = (self.a, self.a, self._tiles(problem, block), -1)
        x = points[:, :-APART].reshape(by_tile, copy=False)
        y = sums[:, :-APART].reshape(by_tile, copy=False)
        return [
            *self._to_points(problem, block, arrays.x, points, spare),
            *(
                call
                for place in self._places
                for call in self.gemm.calls(x[place], filters[place], y[place])
            ),
            *self._from_points(problem, block, arrays, sums, spare),
        ]

    @property
    def _places(self) -> Sequence[tuple[slice, slice]]:
        """The points multiplied at a time: equally many of the filters and of the input, or one
        point of the filters that several of the input share."""
        if self.stride == 1:
            return [(slice(None), slice(None))]
        parts = slice(0, self.m + 1), slice(self.m + 1, None)
        return [(rows, columns) for rows in parts for columns in parts]

    def _to_points(
        self, problem: Problem, block: Block, x: Array, points: Array, spare: Sequence[Array]
    ) -> Sequence[Call]:
        """Return the input's tiles, transformed: (a², tiles · C + APART)."""
        padded, shared = spare
        (top, _), (left, _) = problem.windows.padding
        tiles = _tile_elements(padded, self.m * self.stride, self.a)
        points = points[:, :-APART]
        gathered = shared[: points.size].reshape(tiles.shape, copy=False)
        b, _, _ = transforms(self.m, self.stride)
        matrix = np.kron(b, b).astype(problem.dtype)
        return [
            *take_padded(x[block.images], block.rows.start * self.stride - top, -left, padded),
            partial(np.copyto, gathered, tiles),
            partial(np.matmul, matrix, gathered.reshape(points.shape, copy=False), points),
        ]

    def _from_points(
        self, problem: Problem, block: Block, arrays: Arrays, sums: Array, spare: Sequence[Array]
    ) -> Sequence[Call]:
        """Return the block's outputs, from the sums, (a², tiles · O + APART)."""
        _, shared = spare
        out = _tile_elements(arrays.out[block.index], self.m, self.m)
        residual = arrays.residual
        if residual is not None:
            residual = _tile_elements(residual[block.index], self.m, self.m)
        _, _, a = transforms(self.m, self.stride)
        matrix = np.kron(a, a).astype(problem.dtype)
        values = shared[: out.size].reshape(out.shape, copy=False)
        memory = shared[out.size : 2 * out.size].reshape(out.shape, copy=False)
        # Adding a constant to the sums at the point (1, 1) adds it to every output.
        sums = sums[:, :-APART]
        at_one = sums[ONE * self.a + ONE].reshape(-1, out.shape[5], copy=False)
        return [
            partial(np.add, at_one, arrays.bias[block.channels], at_one),
            partial(np.matmul, matrix, sums, values.reshape(self.m**2, -1, copy=False)),
            *problem.epilogue.calls(values, None, residual, out, memory),
        ]

    def _tiles(self, problem: Problem, block: Block) -> int:
        images, rows, _ = block.size
        return images * (rows // self.m) * (problem.out[2] // self.m)

    def shapes(self, problem: Problem, block: Block) -> list[Shape]:
        """Return the shapes of a block's points, its sums, its padded input, and the memory that
        gathered tiles and outputs share."""
        images, rows, out_channels = block.size
        width, channels = problem.out[2], problem.x[3]
        tiles = self._tiles(problem, block)
        outputs = tiles * self.m**2 * out_channels
        return [
            (self.a**2, tiles * channels + APART),
            (self.a**2, tiles * out_channels + APART),
            (images, *((side - 1) * self.stride + 3 for side in (rows, width)), channels),
            (max(self.a**2 * tiles * channels, 2 * outputs),),
        ]


def _tile_elements(maps: Array, step: int, side: int) -> Array:
    """Return overlapping tiles of (N, H, W, C) as a view (side, side, N, rows, columns, C)."""
    seen = Windows((side, side), (step, step), UNPADDED)
    return seen.over(maps).transpose(3, 4, 0, 1, 2, 5)


Transforms = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@cache
def transforms(m: int, stride: int = 1) -> Transforms:
    """Return Bᵀ (a, a), G (m + 2, 3) and Aᵀ (m, a) of F(m, 3), for a stride of 1 or 2."""
    if stride == 1:
        return _interpolation(m, 3)
    b, g, a = _interpolation(m, 2)
    whole = np.zeros((2 * m + 1, 2 * m + 1))
    whole[: m + 1, ::2] = b
    whole[m + 1 :, 1::2] = np.eye(m)
    ends = np.stack([g[:, 0], np.zeros(m + 1), g[:, 1]], axis=1)
    return whole, np.vstack([ends, [0, 1, 0]]), np.hstack([a, np.eye(m)])


def _interpolation(m: int, r: int) -> Transforms:
    """Return Bᵀ (n, n), G (n, r), Aᵀ (m, n) of F(m, r), n = m + r - 1, by Toom and Cook's method.

    A product of polynomials is determined by its values at n - 1 points and its leading coefficient
    (the point at infinity); correlation is the transpose of that product.
    """
    points = POINTS[: m + r - 2]
    others = [[Fraction(q) for q in points if q != p] for p in points]
    scales = [math.prod(p - q for q in rest) for p, rest in zip(points, others, strict=True)]
    b = [[*_coefficients(rest), Fraction(0)] for rest in others]
    b.append(_coefficients([Fraction(p) for p in points]))
    g = [
        [Fraction(p**power) / scale for power in range(r)]
        for p, scale in zip(points, scales, strict=True)
    ]
    g.append([Fraction(power == r - 1) for power in range(r)])
    a = [[*(Fraction(p**row) for p in points), Fraction(row == m - 1)] for row in range(m)]
    return np.array(b, np.float64), np.array(g, np.float64), np.array(a, np.float64)


def _coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of (x - root), the constant first."""
    product = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *product]
        product = [s - root * p for s, p in zip(shifted, [*product, Fraction(0)], strict=True)]
    return product
