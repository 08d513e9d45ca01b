"""Products of many rows with a kernel: whole, or cut into pieces that BLAS multiplies as they lie.

Before it multiplies, BLAS copies both matrices, to read them in order. Of few rows with a large
kernel that copy takes as long as the product. Some BLAS have kernels for small products that need
no copy: for those a product is cut, and the kernel is laid out for its pieces beforehand.

    (K, columns) ─laid_out─▶ (bands, K, 64): what a piece reads of the kernel lies in one run
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from dist_net.autodiff.expression import Array, Expression, Kernel
from dist_net.autodiff.operations.shaping import reshape, transpose

# Measured on Zen 4 with OpenBLAS 0.3.31, whose limit for small products is 10⁶ multiplications:
# 16 rows by (512, 1024) are computed at 95 instead of 44 GFLOP/s, 128 rows by (128, 256) at 99
# instead of 83. Bands of 32 or 128 columns, and pieces of half or twice the size, are slower.
WIDEST_BAND = 64
BAND_STEP = 8  # values of a vector
PIECE = 1 << 19  # multiplications


class Products:
    """Each product by one call of BLAS: kernels stay (..., K, columns)."""

    def laid_out(self, kernel: Expression) -> Expression:
        """The kernel as ``calls`` reads it."""
        return kernel

    def step(self, columns: int) -> int:
        """``part`` begins and ends at multiples of it, of so many columns."""
        return 1

    def part(self, kernel: Array, columns: slice) -> Array:
        """Some of a laid-out kernel's columns."""
        return kernel[..., columns]

    def calls(self, rows: Array, kernel: Array, out: Array) -> Sequence[Kernel]:
        """The calls that multiply rows (..., M, K) by a laid-out kernel into (..., M, columns)."""
        return [partial(np.matmul, rows, kernel, out)]


class SmallProducts(Products):
    """Each product in pieces: kernels become (..., bands, K, columns of a band)."""

    def laid_out(self, kernel: Expression) -> Expression:
        *before, inner, columns = kernel.shape
        band = self.step(columns)
        split = reshape(kernel, (*before, inner, columns // band, band))
        axes = range(len(before))
        return transpose(split, (*axes, len(axes) + 1, len(axes), len(axes) + 2))

    def step(self, columns: int) -> int:
        """The width of a band: the widest that cuts them evenly; all of them if none does."""
        bands = range(WIDEST_BAND, 0, -BAND_STEP)
        return next((band for band in bands if columns % band == 0), columns)

    def part(self, kernel: Array, columns: slice) -> Array:
        band = kernel.shape[-1]
        return kernel[..., columns.start // band : math.ceil(columns.stop / band), :, :]

    def calls(self, rows: Array, kernel: Array, out: Array) -> Sequence[Kernel]:
        count, inner = rows.shape[-2:]
        size = min(count, max(1, PIECE // (inner * kernel.shape[-1])))
        whole = count // size * size
        calls = [_in_pieces(rows[..., :whole, :], kernel, out[..., :whole, :], size)]
        if whole < count:
            rest = slice(whole, count)
            calls.append(_in_pieces(rows[..., rest, :], kernel, out[..., rest, :], count - whole))
        return calls


def _in_pieces(rows: Array, kernel: Array, out: Array, size: int) -> Kernel:
    """The call for a number of rows that ``size`` divides."""
    *before, count, inner = rows.shape
    bands, _, band = kernel.shape[-3:]
    cut = rows.reshape(*before, 1, count // size, size, inner, copy=False)
    into = out.reshape(*before, count // size, size, bands, band, copy=False)
    return partial(np.matmul, cut, kernel[..., None, :, :], np.moveaxis(into, -2, -4))
