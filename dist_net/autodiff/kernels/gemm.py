"""Matrix products: whole, or cut into pieces that BLAS multiplies as they lie.

Before it multiplies, BLAS copies both matrices, so that it can read them in order. For few rows
and a large matrix the copy takes as long as the product. Some versions of BLAS multiply small
matrices without a copy; for those, large products are cut into small ones. A matrix that stays the
same is laid out for that once:

    (K, columns) ─laid_out─▶ (bands, K, 64): what one piece reads of the matrix is contiguous
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
from threadpoolctl import ThreadpoolController

from dist_net.autodiff.arrays import Array, Call, Shape, in_order

# Measured on Zen 4 with OpenBLAS 0.3.31, whose limit for small products is 10⁶ multiplications:
# 16 rows by (512, 1024) are computed at 95 instead of 44 GFLOP/s, 128 rows by (128, 256) at 99
# instead of 83. Bands of 32 or 128 columns, and pieces of half or twice the size, are slower.
WIDEST_BAND = 64
BAND_STEP = ROW_STEP = 8
PIECE = 1 << 19  # multiplications
SMALL = 10**6  # multiplications that BLAS does without copies even if the product is not cut
# The longest row of a product that is cut while its matrix is not laid out: with longer rows,
# pieces lie too far apart to be read quickly. 128 rows by (784, 128) are computed at 116 instead of
# 101 GFLOP/s, 32 rows at 111 instead of 87.
LONGEST_ROW = 800
# OpenBLAS has kernels for small products for these processors (with AVX-512, Zen 4 among them);
# on others it copies the operands of a small product too, and pieces take a tenth more than whole.
WITH_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")


class Gemm:
    """Each product by one call of BLAS: matrices stay (..., K, columns)."""

    def laid_out(self, matrix: Array) -> Array:
        """The matrix as ``calls`` reads it: a view, whose contiguous copy ``calls`` is given."""
        return matrix

    def layout(self, shape: Shape) -> Shape:
        """The shape of a matrix that is laid out."""
        return shape

    def step(self, columns: int) -> int:
        """In a matrix with so many columns, ``part`` begins and ends at multiples of this."""
        return 1

    def part(self, matrix: Array, columns: slice) -> Array:
        """Some of a laid-out matrix's columns."""
        return matrix[..., columns]

    def calls(self, rows: Array, matrix: Array, out: Array) -> Sequence[Call]:
        """The calls that multiply rows (..., M, K) by a laid-out matrix into (..., M, columns)."""
        return [partial(np.matmul, rows, matrix, out)]

    def of_matrices(self, a: Array, b: Array, out: Array) -> Call:
        """The call that multiplies (M, K) by (K, N), which is not laid out, into (M, N)."""
        # np.matmul does not give outer products to BLAS: at a batch size of 1, six times the time.
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
        """The width of a band: the largest that divides ``columns``, or ``columns`` itself."""
        bands = range(WIDEST_BAND, 0, -BAND_STEP)
        return next((band for band in bands if columns % band == 0), columns)

    def part(self, matrix: Array, columns: slice) -> Array:
        band = matrix.shape[-1]
        return matrix[..., columns.start // band : math.ceil(columns.stop / band), :, :]

    def calls(self, rows: Array, matrix: Array, out: Array) -> Sequence[Call]:
        count, inner = rows.shape[-2:]
        size = max(1, PIECE // (inner * matrix.shape[-1]))
        # Below ROW_STEP a power of two, which cuts eight rows into equal pieces, computed alike.
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
        is_cut = rows * inner * columns > SMALL and inner <= LONGEST_ROW and band <= WIDEST_BAND
        if not (is_cut and b.flags.c_contiguous and b.dtype == np.float32):
            return super().of_matrices(a, b, out)
        bands = b.reshape(inner, columns // band, band, copy=False).swapaxes(0, 1)
        return in_order(self.calls(a, bands, out))


def _in_pieces(rows: Array, matrix: Array, out: Array, size: int) -> Call:
    """The call that multiplies rows, whose number ``size`` divides, ``size`` at a time."""
    *before, count, inner = rows.shape
    bands, _, band = matrix.shape[-3:]
    cut = rows.reshape(*before, 1, count // size, size, inner, copy=False)
    into = out.reshape(*before, count // size, size, bands, band, copy=False)
    return partial(np.matmul, cut, matrix[..., None, :, :], np.moveaxis(into, -2, -4))


LAYOUTS = (Gemm(), GemmInPieces())


def fastest_gemm() -> Gemm:
    """How products with a fixed matrix are computed here: the processor alone decides."""
    whole, pieces = LAYOUTS
    return pieces if has_small_kernels() else whole


@cache
def has_small_kernels() -> bool:
    """Whether this process's BLAS multiplies small matrices without copying them."""
    libraries = ThreadpoolController().info()
    return any(library.get("architecture") in WITH_SMALL_KERNELS for library in libraries)
