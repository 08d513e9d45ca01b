"""The choice of a convolution's algorithm and blocks, by its shapes alone.

The rules were measured on two cores with 512 KiB of L2 cache each; ``scripts/bench darknet53``
shows the choice for each layer. F(4x4) needs the fewest products. A deep layer with a small map is
limited by reading the filters, which F(2x2) and F(4x4) make 1.8 and 4 times as large.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from dist_net.autodiff.kernels.convolution.depthwise import Depthwise, is_depthwise
from dist_net.autodiff.kernels.convolution.im2row import Im2Row
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Blocking, Problem
from dist_net.autodiff.kernels.convolution.winograd import Winograd
from dist_net.autodiff.kernels.gemm import Gemm, GemmInPieces
from dist_net.autodiff.kernels.thread_pool import SHARED_PRODUCT, Task, ThreadPool
from dist_net.autodiff.kernels.windows import Windows

# The windows that Winograd supports, and their strides.
WINOGRAD = {Windows((3, 3), (stride, stride), ((1, 1), (1, 1))): stride for stride in (1, 2)}
MIN_CHANNELS = 16  # with fewer, the transforms take more time than the saved products
MIN_STRIDED = 64  # the same with a stride of 2, which saves fewer products
MIN_TILES = 16  # of 4x4 outputs in an image; with fewer, reading the larger filters dominates
ROWS_OF_A_PRODUCT = 128  # enough for BLAS, few enough that a block's arrays stay in the cache
MIN_ROWS = 32  # of a product; with fewer, threads share its columns instead
ROWS_OF_IM2ROW = 512  # of im2row's product; more rows hardly reduce the reads of the filters
ROWS_OF_SHORT = 1024  # the same where a row has at most MAX_SHORT values
MAX_SHORT = 256
VALUES_OF_DIRECT = 1 << 16  # of the input of a block of a direct convolution, a part of an L2 cache
# The largest filters of a direct convolution if each line of them is as long as the output's: lines
# that are far apart displace each other from the cache, and BLAS, which copies them, is faster.
MAX_FILTERS_OF_DIRECT = 1 << 17
CHANNEL_STEP = 16  # a cache line: each thread's channels are a multiple of it
USUAL_THREADS = 2  # a reproducible plan is cut for two threads, for any number of threads
# A reproducible plan computes eight rows at a time if one image has fewer: otherwise BLAS would
# read the filters again for each image. BLAS's tiles divide eight, so all rows are computed alike;
# the last of six or sixteen rows are not.
ROWS_OF_A_PIECE = 8


Algorithm: TypeAlias = Depthwise | Im2Row | Winograd
"""A way to compute a convolution block by block; compiled versions are subclasses."""


@dataclass(frozen=True)
class Choice:
    """An algorithm and its blocks."""

    algorithm: Algorithm
    blocking: Blocking

    def blocks(self, problem: Problem) -> list[Block]:
        return [*self.blocking.blocks(problem.out, self.algorithm.row_step)]

    def reserve_scratch(self, problem: Problem, pool: ThreadPool) -> None:
        """Reserve the pool's memory for the largest block."""
        sizes = [self.algorithm.scratch_bytes(problem, block) for block in self.blocks(problem)]
        pool.reserve(max(sizes))

    def tasks(self, problem: Problem, arrays: Arrays, pool: ThreadPool) -> list[Task]:
        self.reserve_scratch(problem, pool)
        scratch = [pool.scratch(thread) for thread in range(pool.threads)]
        return [
            [self.algorithm.calls(problem, block, arrays, each) for each in scratch]
            for block in self.blocks(problem)
        ]


def choose(
    problem: Problem,
    threads: int,
    reproducible: bool = False,
    compiled: bool = False,
    gemm: Gemm | None = None,
    exact: bool = False,
) -> Choice:
    """Return the fastest known way to compute ``problem``.

    The algorithm depends on the layer alone, so filters prepared once serve batches of any size.
    With ``reproducible``, so do the blocks of products by BLAS, each of ``images_of_a_piece``
    images, which must divide the number of images. BLAS calls for an image then have the same
    shapes whatever else is in its batch, which makes results bit-identical; for other shapes, BLAS
    may add products in another order. ``compiled``: use kernels of the extra ``fast`` if they are
    faster than NumPy. ``gemm`` computes products; the default makes one BLAS call per product.
    ``exact``: not F(4x4), which rounds several times as much as a direct convolution.
    """
    gemm = gemm or Gemm()
    algorithm = _algorithm(problem, gemm, exact, compiled)
    if isinstance(algorithm, Depthwise):
        return Choice(algorithm, Blocking.of_depthwise(problem.out, problem.windows))
    images, height, width, out_channels = problem.out
    step = algorithm.row_step
    per_row, per_image = width // step, (height // step) * (width // step)
    if isinstance(algorithm, Im2Row) and algorithm.adds_in_one_order:
        most = max(MIN_ROWS, VALUES_OF_DIRECT * images * per_image // max(1, math.prod(problem.x)))
        threads = threads if problem.multiplications >= SHARED_PRODUCT else 1
    else:
        if reproducible:
            images, threads = images_of_a_piece(problem), USUAL_THREADS
        most = ROWS_OF_A_PRODUCT
        if isinstance(algorithm, Im2Row):
            most = ROWS_OF_SHORT if problem.row_length <= MAX_SHORT else ROWS_OF_IM2ROW
    channels = out_channels
    if images * per_image < threads * MIN_ROWS and problem.groups == 1:
        channel_step = math.lcm(CHANNEL_STEP, gemm.step(out_channels))
        channels = -(-out_channels // (threads * channel_step)) * channel_step
    else:
        most = min(most, max(MIN_ROWS, -(-images * per_image // threads)))
    return Choice(
        algorithm,
        Blocking(
            images=max(1, min(images, most // per_image)),
            rows=step * max(1, min(height // step, most // per_row)),
            channels=channels,
        ),
    )


def images_of_a_piece(problem: Problem, compiled: bool = False, gemm: Gemm | None = None) -> int:
    """Return the number of images that a reproducible plan computes at a time.

    Enough for eight rows of BLAS, or one. Winograd takes one: its transforms multiply more rows.
    """
    _, height, width, _ = problem.out
    images, rest = divmod(ROWS_OF_A_PIECE, height * width)
    algorithm = _algorithm(problem, gemm or Gemm(), compiled=compiled)
    multiplies_rows = isinstance(algorithm, Im2Row) and not algorithm.adds_in_one_order
    return images if multiplies_rows and rest == 0 else 1


def _algorithm(
    problem: Problem, gemm: Gemm, exact: bool = False, compiled: bool = False
) -> Algorithm:
    if is_depthwise(problem.x, problem.groups, problem.out):
        return _compiled(Depthwise(), problem) if compiled else Depthwise()
    _, height, width, out_channels = problem.out
    divides = math.gcd(height, width)
    stride = WINOGRAD.get(problem.windows)
    least = MIN_STRIDED if stride == 2 else MIN_CHANNELS
    is_narrow = problem.x[3] < least or out_channels < MIN_CHANNELS
    algorithm: Im2Row | Winograd
    if stride is None or problem.groups != 1 or is_narrow or divides % 2:
        algorithm = Im2Row(gemm)
    else:
        is_large = divides % 4 == 0 and height * width >= 16 * MIN_TILES
        algorithm = Winograd(4 if stride == 1 and is_large and not exact else 2, stride, gemm)
    return _compiled(algorithm, problem) if compiled else algorithm


def _compiled(algorithm: Algorithm, problem: Problem) -> Algorithm:
    """Return the compiled version, which was measured to be faster for every supported layer."""
    if problem.dtype != np.float32:
        return algorithm
    # Each module needs numba, which is optional, and compiles its loops when first imported.
    from dist_net.autodiff.kernels.compiled.vectors import LANES

    columns = problem.out[3] // problem.groups
    match algorithm:
        case Depthwise():
            from dist_net.autodiff.kernels.compiled.depthwise_loops import CompiledDepthwise

            is_suitable = problem.out[3] >= LANES and problem.windows.dilation == (1, 1)
            return CompiledDepthwise() if is_suitable else algorithm
        case Im2Row():
            from dist_net.autodiff.kernels.compiled.direct_loops import Direct

            is_near = isinstance(algorithm.gemm, GemmInPieces)
            is_near |= problem.row_length * columns <= MAX_FILTERS_OF_DIRECT
            return Direct(algorithm.gemm) if is_near and columns >= LANES else algorithm
    from dist_net.autodiff.kernels.compiled.winograd_loops import CompiledWinograd

    return CompiledWinograd(algorithm.m, algorithm.stride, algorithm.gemm)
