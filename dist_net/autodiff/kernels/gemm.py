"""Matrix products: whole, or cut into pieces that BLAS multiplies without copying them.

Before it multiplies, BLAS copies (packs) both matrices to read them in order. For few rows and a
large matrix, the copy takes as long as the product. Some versions of BLAS multiply small matrices
without a copy; for those, large products are cut into small products. A constant matrix is laid out
for that once:

    (K, columns) ─laid_out─▶ (bands, K, 64): each piece reads a contiguous part of the matrix
"""

import math
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
from threadpoolctl import ThreadpoolController

from dist_net.autodiff.arrays import Array, Call, Shape, in_order

# Measured on Zen 4 with OpenBLAS 0.3.31, whose limit for small products is 10⁶ multiplications:
# 16 rows by (512, 1024) run at 95 instead of 44 GFLOP/s, 128 rows by (128, 256) at 99 instead of
# 83. Bands of 32 or 128 columns, and pieces of half or twice the size, are slower.
MAX_BAND = 64
BAND_STEP = ROW_STEP = 8
PIECE = 1 << 19  # multiplications
SMALL = 10**6  # multiplications of a product that BLAS computes without copies
# The longest row for cutting a product whose matrix is not laid out: with longer rows, the lines of
# a piece are too far apart for fast reads. 128 rows by (784, 128) run at 116 instead of 101
# GFLOP/s, 32 rows at 111 instead of 87.
MAX_ROW = 800
# Processors for which OpenBLAS has kernels for small products (with AVX-512, including Zen 4). On
# others it also copies the operands of small products, and pieces take a tenth longer.
WITH_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")


class Gemm:
    """Each product by one call of BLAS: matrices stay (..., K, columns)."""

    def laid_out(self, matrix: Array) -> Array:
        """Return a view of the matrix; ``calls`` reads a contiguous copy of it."""
        return matrix

    def layout(self, shape: Shape) -> Shape:
        """Return the shape of a matrix that is laid out."""
        return shape

    def step(self, columns: int) -> int:
        """Return the step of ``part``: its bounds must be multiples of this."""
        return 1

    def part(self, matrix: Array, columns: slice) -> Array:
        """Return a range of columns of a laid-out matrix."""
        return matrix[..., columns]

    def calls(self, rows: Array, matrix: Array, out: Array) -> Sequence[Call]:
        """Multiply rows (..., M, K) by a laid-out matrix; return the calls that fill ``out``."""
        return [partial(np.matmul, rows, matrix, out)]

    def of_matrices(self, a: Array, b: Array, out: Array) -> Call:
        """Return the call that multiplies (M, K) by (K, N), not laid out, into (M, N)."""
        # np.matmul does not use BLAS for outer products: six times slower at a batch size of 1.
        return partial(np.dot, a, b, out)


class GemmInPieces(Gemm):
    """Each product in pieces: matrices become (..., bands, K, columns of a band)."""

    def laid_out(self, matrix: Array) -> Array:
        *before, bands, inner, band = self.layout(matrix.shape)
        return matrix.reshape(*before, inner, bands, band, copy=False).swapaxes(-3, -2)

    def layout(self, shape: Shape) -> Shape:
        *before, inner, columns = shape
        band = self.step(columns)
        return *before, columns // band, inner, band

    def step(self, columns: int) -> int:
        """Return the width of a band: the largest that divides ``columns``, or ``columns``."""
        bands = range(MAX_BAND, 0, -BAND_STEP)
        return next((band for band in bands if columns % band == 0), columns)

    def part(self, matrix: Array, columns: slice) -> Array:
        band = matrix.shape[-1]
        return matrix[..., columns.start // band : math.ceil(columns.stop / band), :, :]

    def calls(self, rows: Array, matrix: Array, out: Array) -> Sequence[Call]:
        count, inner = rows.shape[-2:]
        size = max(1, PIECE // (inner * matrix.shape[-1]))
        # Below ROW_STEP, use a power of two: it cuts eight rows into equal pieces, computed alike.
        size = min(count, size // ROW_STEP * ROW_STEP or 1 << size.bit_length() - 1)
        whole = count // size * size
        calls = [_in_pieces(rows[..., :whole, :], matrix, out[..., :whole, :], size)]
        if whole < count:
            rest = slice(whole, count)
            calls.append(_in_pieces(rows[..., rest, :], matrix, out[..., rest, :], count - whole))
        return calls

    def of_matrices(self, a: Array, b: Array, out: Array) -> Call:
        (rows, inner), columns = a.shape, b.shape[1]
        band = self.step(columns)
        is_cut = rows * inner * columns > SMALL and inner <= MAX_ROW and band <= MAX_BAND
        if not (is_cut and b.flags.c_contiguous and b.dtype == np.float32):
            return super().of_matrices(a, b, out)
        bands = b.reshape(inner, columns // band, band, copy=False).swapaxes(0, 1)
        return in_order(self.calls(a, bands, out))


def _in_pieces(rows: Array, matrix: Array, out: Array, size: int) -> Call:
    """Return the call that multiplies ``size`` rows at a time; ``size`` divides their number."""
    *before, count, inner = rows.shape
    bands, _, band = matrix.shape[-3:]
    cut = rows.reshape(*before, 1, count // size, size, inner, copy=False)
    into = out.reshape(*before, count // size, size, bands, band, copy=False)
    return partial(np.matmul, cut, matrix[..., None, :, :], np.moveaxis(into, -2, -4))


LAYOUTS = (Gemm(), GemmInPieces())


def fastest_gemm() -> Gemm:
    """Return the fastest ``Gemm`` for products with a fixed matrix on this processor."""
    whole, pieces = LAYOUTS
    return pieces if has_small_kernels() else whole


@cache
def has_small_kernels() -> bool:
    """Return whether this process's BLAS multiplies small matrices without copying them."""
    libraries = ThreadpoolController().info()
    return any(library.get("architecture") in WITH_SMALL_KERNELS for library in libraries)
