"""Depthwise convolution: one filter per channel, which reads only that channel.

It is not a matrix product, so windows are not copied to rows: a sum of products reads them as a
view of the padded map.

Maps are (N, H, W, C), filters (kh, kw, 1, C), taps (kh, kw, C). ``training`` has the gradients.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape, carve, scratch_bytes
from dist_net.autodiff.kernels.convolution.im2row import patches_of
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Problem

SUM_OF_TAPS = "nrchwl,hwl->nrcl"


class Depthwise:
    """The algorithm of inference with NumPy: one sum of products for a block."""

    name = "depthwise"
    row_step = 1
    adds_in_one_order = True

    def prepared_shape(self, problem: Problem) -> Shape:
        return *problem.windows.size, problem.out[3]

    def prepare(self, problem: Problem, filters: Array) -> Array:
        return filters[:, :, 0]

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        return scratch_bytes(self._shapes(problem, block), problem.dtype)

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        padded, spare = carve(scratch, self._shapes(problem, block), problem.dtype)
        out = arrays.out[block.index]
        residual = None if arrays.residual is None else arrays.residual[block.index]
        seen = problem.windows.over(padded)
        return [
            *patches_of(problem).take(arrays.x, block, padded),
            partial(np.einsum, SUM_OF_TAPS, seen, arrays.filters, out=out),
            *problem.epilogue.calls(out, arrays.bias, residual, out, spare),
        ]

    def _shapes(self, problem: Problem, block: Block) -> list[Shape]:
        return [patches_of(problem).padded_shape(block), (*block.size[:2], *problem.out[2:])]


def is_depthwise(x: Shape, groups: int, out: Shape) -> bool:
    """Return whether each channel is a group of its own, with one filter."""
    return groups == x[3] == out[3] > 1
