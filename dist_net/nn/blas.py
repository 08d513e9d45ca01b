"""What this process's BLAS does well, as far as plans depend on it."""

from __future__ import annotations

from functools import cache

from threadpoolctl import ThreadpoolController

from dist_net.autodiff.kernels.gemm import Gemm, GemmInPieces

# OpenBLAS has kernels for small products for these processors (with AVX-512, Zen 4 among them);
# on others it copies the operands of a small product too, and pieces take a tenth more than whole.
WITH_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")
LAYOUTS = (Gemm(), GemmInPieces())


def fastest_gemm() -> Gemm:
    """How products with a fixed kernel are computed here; depends on nothing but the processor."""
    whole, small = LAYOUTS
    return small if has_small_kernels() else whole


@cache
def has_small_kernels() -> bool:
    """Whether BLAS multiplies small matrices as they lie."""
    libraries = ThreadpoolController().info()
    return any(library.get("architecture") in WITH_SMALL_KERNELS for library in libraries)
