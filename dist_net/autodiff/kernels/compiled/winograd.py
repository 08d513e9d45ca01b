"""Winograd's convolution with its transforms compiled by numba: a tile goes in, and comes out.

Needs the extra ``fast``. What is computed is defined by the plain algorithm that this one extends,
and computed by it where vectors do not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.compiled.im2row import finish_of, flat, is_suitable
from dist_net.autodiff.kernels.compiled.strided_tiles import from_points_strided, to_points_strided
from dist_net.autodiff.kernels.compiled.tiles import (
    from_points_2,
    from_points_4,
    to_points_2,
    to_points_4,
)
from dist_net.autodiff.kernels.compiled.vectors import LANES
from dist_net.autodiff.kernels.convolution.blocks import Block
from dist_net.autodiff.kernels.convolution.problem import Arrays, Problem
from dist_net.autodiff.kernels.convolution.winograd import Winograd


class CompiledWinograd(Winograd):
    """``Winograd``, with each transform in one pass; of m = 2 alone for a stride of 2."""

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        """What one thread needs for a block, by this algorithm or the plain one."""
        return max(self._plain.scratch_bytes(problem, block), super().scratch_bytes(problem, block))

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """The calls that compute a block of the output."""
        if problem.x[3] < LANES or not is_suitable(block, arrays):
            return self._plain.calls(problem, block, arrays, scratch)
        return super().calls(problem, block, arrays, scratch)

    def _to_points(
        self, problem: Problem, block: Block, x: Array, points: Array, spare: Sequence[Array]
    ) -> Sequence[Call]:
        transform = to_points_4 if self.m == 4 else to_points_2
        if self.stride == 2:
            transform = to_points_strided
        (top, _), (left, _) = problem.windows.padding
        corner = block.rows.start * self.stride - top, -left
        part = x[block.images]
        geometry = *self._grid(problem, block), *corner, *part.shape[1:]
        planes = flat(points), points.shape[1]
        return [partial(transform, flat(part), *geometry, flat(spare[0]), *planes)]

    def _from_points(
        self, problem: Problem, block: Block, arrays: Arrays, sums: Array, spare: Sequence[Array]
    ) -> Sequence[Call]:
        transform = from_points_4 if self.m == 4 else from_points_2
        if self.stride == 2:
            transform = from_points_strided
        grid = *self._grid(problem, block), block.size[2]
        planes = flat(sums), sums.shape[1]
        return [partial(transform, *planes, *grid, *finish_of(problem, block, arrays))]

    @property
    def _plain(self) -> Winograd:
        return Winograd(self.m, self.stride, self.gemm)

    def _grid(self, problem: Problem, block: Block) -> tuple[int, int, int]:
        """How many images a block has, and rows and columns of tiles each of them."""
        return block.size[0], block.size[1] // self.m, problem.out[2] // self.m

    def _shapes(self, problem: Problem, block: Block) -> list[Shape]:
        """Of a block's points and sums, and of one tile of the input."""
        points, sums, *_ = super()._shapes(problem, block)
        return [points, sums, (self.a, self.a, problem.x[3])]
