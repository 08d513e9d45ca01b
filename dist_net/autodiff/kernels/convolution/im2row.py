"""im2row: convolution as one matrix product, with each window of the input copied to a row.

A pointwise convolution needs no copy: its rows are the input's pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape, carve, scratch_bytes
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Problem, take_padded
from dist_net.autodiff.kernels.gemm import Gemm
from dist_net.autodiff.kernels.windows import Pair, Windows


class Im2Row:
    """The algorithm that supports every convolution."""

    name = "im2row"
    row_step = 1
    adds_in_one_order = False  # whatever the number of rows, as BLAS does not

    def __init__(self, gemm: Gemm | None = None) -> None:
        self.gemm = gemm or Gemm()

    def prepared_shape(self, problem: Problem) -> Shape:
        length, groups, columns = problem.row_length, problem.groups, problem.out[3]
        if groups == 1:
            return self.gemm.layout((length, columns))
        return groups, length, columns // groups

    def prepare(self, problem: Problem, filters: Array) -> Array:
        """Return (kh, kw, C / groups, O) as (groups, kh · kw · C / groups, O / groups), a view.

        A single group has no group axis and is laid out for ``gemm``.
        """
        length, groups, columns = problem.row_length, problem.groups, problem.out[3]
        if groups == 1:
            return self.gemm.laid_out(filters.reshape(length, columns, copy=False))
        return filters.reshape(length, groups, columns // groups, copy=False).swapaxes(0, 1)

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        return scratch_bytes(_shapes(problem, block), problem.dtype)

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        padded, matrix, product, spare = carve(scratch, _shapes(problem, block), problem.dtype)
        gather, matrix = patches_of(problem).rows(arrays.x, block, padded, matrix)
        calls = [*gather]
        if problem.groups == 1:
            columns = self.gemm.part(arrays.filters, block.channels)
            calls += self.gemm.calls(matrix[0], columns, product[:, 0])
        else:
            calls.append(partial(np.matmul, matrix, arrays.filters, product.transpose(1, 0, 2)))
        out, bias = arrays.out[block.index], arrays.bias[block.channels]
        residual = None if arrays.residual is None else arrays.residual[block.index]
        values, spare = product.reshape(out.shape, copy=False), spare.reshape(out.shape, copy=False)
        return [*calls, *problem.epilogue.calls(values, bias, residual, out, spare)]


def _shapes(problem: Problem, block: Block) -> list[Shape]:
    """Return the shapes of a block's padded input, rows, product and spare memory."""
    images, rows, channels = block.size
    product = (images * rows * problem.out[2], problem.groups, channels // problem.groups)
    return [*patches_of(problem).shapes(block), product, product]


@dataclass(frozen=True)
class Patches:
    """The windows of a map (N, H, W, C), one per pixel of a result, as the rows of a matrix per
    group.

    The first window begins above and left of the map by its padding, or inside the map if that is
    negative. Values outside the map are 0.
    """

    windows: Windows
    map_shape: Shape
    result: Pair
    groups: int

    @property
    def channels(self) -> int:
        return self.map_shape[3] // self.groups

    @property
    def length(self) -> int:
        return math.prod(self.windows.size) * self.channels

    @property
    def _are_pixels(self) -> bool:
        (top, _), (left, _) = self.windows.padding
        is_pointwise = self.windows.size == self.windows.stride == (1, 1) and top == left == 0
        return is_pointwise and self.result == self.map_shape[1:3]

    def shapes(self, block: Block) -> list[Shape]:
        """Return the shapes of the scratch for ``rows``: a padded part of the map, the matrices."""
        if self._are_pixels:
            return [(0,), (0,)]
        images, rows, _ = block.size
        pixels = images * rows * self.result[1]
        return [self.padded_shape(block), (self.groups, pixels, self.length)]

    def padded_shape(self, block: Block) -> Shape:
        """Return the shape of the part of the map that a block's windows cover."""
        images, rows, _ = block.size
        height, width = (
            (n - 1) * stride + extent
            for n, stride, extent in zip(
                (rows, self.result[1]), self.windows.stride, self.windows.extent, strict=True
            )
        )
        return images, height, width, self.map_shape[3]

    def take(self, x: Array, block: Block, padded: Array) -> Sequence[Call]:
        """Return the calls that copy the part of the map that a block's windows cover."""
        (above, _), (left, _) = self.windows.padding
        top = block.rows.start * self.windows.stride[0] - above
        return take_padded(x[block.images], top, -left, padded)

    def rows(
        self, x: Array, block: Block, padded: Array, matrix: Array
    ) -> tuple[Sequence[Call], Array]:
        """Return the calls that write a block's rows, and the rows (groups, pixels, length)."""
        if self._are_pixels:
            return [], by_group(x[block.images, block.rows], self.groups)
        if matrix.size == 0:
            return [], matrix
        padding = self.take(x, block, padded)
        windows = self.windows.over(padded)
        grouped = windows.reshape(*windows.shape[:5], self.groups, self.channels, copy=False)
        rows = grouped.transpose(5, 0, 1, 2, 3, 4, 6)
        return [*padding, partial(np.copyto, matrix.reshape(rows.shape, copy=False), rows)], matrix


def patches_of(problem: Problem) -> Patches:
    """Return the windows of a problem."""
    _, height, width, _ = problem.out
    return Patches(problem.windows, problem.x, (height, width), problem.groups)


def by_group(pixels: Array, groups: int) -> Array:
    """Return (..., channels) as a view (groups, pixels, channels / groups)."""
    *axes, channels = pixels.shape
    by_pixel = pixels.reshape(math.prod(axes), groups, channels // groups, copy=False)
    return by_pixel.transpose(1, 0, 2)
