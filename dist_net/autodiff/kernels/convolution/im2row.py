"""im2row: convolution as one matrix product, with each window of the input copied to a row.

A pointwise convolution needs no copy: its rows are the input's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Problem, take_padded
from dist_net.autodiff.kernels.gemm import Gemm
from dist_net.autodiff.kernels.memory import carve, copy_in_runs, scratch_bytes


class Im2Row:
    """The algorithm that supports every convolution."""

    name = "im2row"
    row_step = 1

    def __init__(self, gemm: Gemm | None = None) -> None:
        self.gemm = gemm or Gemm()

    def prepared_shape(self, problem: Problem) -> Shape:
        """Return the shape of the result of ``prepare``."""
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
        """Return the bytes of scratch that one thread needs for a block."""
        return scratch_bytes(_shapes(problem, block), problem.dtype)

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """Return the calls that compute a block of the output."""
        padded, matrix, product, spare = carve(scratch, _shapes(problem, block), problem.dtype)
        calls: list[Call] = []
        if problem.is_pointwise and problem.groups == 1:
            matrix = arrays.x[block.images, block.rows].reshape(1, -1, problem.x[3], copy=False)
        else:
            calls += self._gather(problem, block, arrays.x, padded, matrix)
        if problem.groups == 1:
            columns = self.gemm.part(arrays.filters, block.channels)
            calls += self.gemm.calls(matrix[0], columns, product[:, 0])
        else:
            calls.append(partial(np.matmul, matrix, arrays.filters, product.transpose(1, 0, 2)))
        calls += self._from_product(problem, block, arrays, product, spare)
        return calls

    def _gather(
        self, problem: Problem, block: Block, x: Array, padded: Array, matrix: Array
    ) -> Sequence[Call]:
        """Return the calls that copy a block's windows to ``matrix``, (groups, pixels, length)."""
        windows = problem.windows
        top = block.rows.start * windows.stride[0] - windows.padding[0][0]
        padding = take_padded(x[block.images], top, -windows.padding[1][0], padded)
        return [*padding, copy_windows(windows.over(padded), matrix, problem.groups)]

    def _from_product(
        self, problem: Problem, block: Block, arrays: Arrays, product: Array, spare: Array
    ) -> Sequence[Call]:
        """Return the calls that apply the epilogue to a block's product and write the output."""
        out = arrays.out[block.index]
        residual = None if arrays.residual is None else arrays.residual[block.index]
        values, spare = product.reshape(out.shape, copy=False), spare.reshape(out.shape, copy=False)
        bias = arrays.bias[block.channels]
        return problem.epilogue.calls(values, bias, residual, out, spare)


def _shapes(problem: Problem, block: Block) -> list[Shape]:
    """Return the shapes of a block's padded input, rows, product and spare memory."""
    windows, groups = problem.windows, problem.groups
    images, rows, channels = block.size
    pixels = images * rows * problem.out[2]
    product = (pixels, groups, channels // groups)
    if problem.is_pointwise and groups == 1:
        return [(0,), (0,), product, product]
    (down, across), (height, width) = windows.stride, windows.extent
    return [
        (
            images,
            (rows - 1) * down + height,
            (problem.out[2] - 1) * across + width,
            problem.x[3],
        ),
        (groups, pixels, problem.row_length),
        product,
        product,
    ]


def copy_windows(windows: Array, matrix: Array, groups: int) -> Call:
    """Return the call that copies (N, H', W', kh, kw, C) to rows (groups, pixels, length)."""
    if groups == 1:
        lines = windows.reshape(*windows.shape[:4], -1, copy=False)
        return copy_in_runs(matrix.reshape(lines.shape, copy=False), lines)
    by_group = windows.reshape(*windows.shape[:5], groups, -1, copy=False)
    by_group = by_group.transpose(5, 0, 1, 2, 3, 4, 6)
    return partial(np.copyto, matrix.reshape(by_group.shape, copy=False), by_group)
