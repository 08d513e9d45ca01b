"""Which algorithm computes a convolution, and in what blocks: decided by its shapes alone.

The rules come from measurements on two cores with 512 KiB of L2 cache each; ``dist-net bench
darknet53`` shows what they lead to, layer by layer. F(4x4) has the fewest products. A deep layer's
small map is bound by reading the filters, which the points of F(2x2) and F(4x4) make 1.8 and 4
times as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.convolution.im2row import Im2Row
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Blocking, Problem
from dist_net.autodiff.kernels.convolution.winograd import Winograd
from dist_net.autodiff.kernels.gemm import Gemm
from dist_net.autodiff.kernels.windows import Windows

# Their strides.
WINOGRAD = {Windows((3, 3), (stride, stride), ((1, 1), (1, 1))): stride for stride in (1, 2)}
FEWEST_CHANNELS = 16  # below, the transforms cost more than the products that they save
FEWEST_STRIDED = 64  # with a stride of 2, which saves fewer of them
FEWEST_TILES = 16  # of 4x4 outputs in an image: below, reading the larger filters costs more
ROWS_OF_A_PRODUCT = 128  # enough for BLAS, few enough that a block's arrays stay in the cache
FEWEST_ROWS = 32  # of a product: with fewer, threads had better share its columns
ROWS_OF_IM2ROW = 512  # of its one product: the longest filters are read often enough
ROWS_OF_SHORT = 1024  # of it where a row has no more than LONGEST_SHORT values
LONGEST_SHORT = 256
CHANNEL_STEP = 16  # a cache line: what is shared out among threads is a multiple
USUAL_THREADS = 2  # what a reproducible plan is cut for, however many there are
# Of its products, where one image has fewer: BLAS would read the filters anew for each. Eight are
# a whole number of BLAS's tiles, so all are computed alike; the last of six or sixteen are not.
ROWS_OF_A_PIECE = 8


class Algorithm(Protocol):
    """A way to compute a convolution block by block."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def row_step(self) -> int:
        """A block's rows are a multiple of it."""
        ...

    def prepared_shape(self, problem: Problem) -> Shape:
        """The shape of what ``prepare`` gives."""
        ...

    def prepare(self, problem: Problem, filters: Array) -> Array:
        """The filters, C-contiguous, as the algorithm reads them, in a new array or as a view."""
        ...

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        """What one thread needs for a block."""
        ...

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        """The calls that compute a block of the output."""
        ...


@dataclass(frozen=True)
class Choice:
    """An algorithm and its blocks."""

    algorithm: Algorithm
    blocking: Blocking


def choose(
    problem: Problem,
    threads: int,
    reproducible: bool = False,
    compiled: bool = False,
    gemm: Gemm | None = None,
) -> Choice:
    """The fastest known way to compute ``problem``.

    The algorithm depends on the layer alone, so that filters are prepared once for every batch.
    ``reproducible``: and so do the blocks, each of ``images_of_a_piece``, which must divide the
    images. Then BLAS is called with the same shapes for an image whatever its company, and its
    answer has the same bytes; in other shapes, BLAS may add products up in another order.
    ``compiled``: with the passes that the extra ``fast`` compiles, where they are quicker than
    NumPy's. ``gemm``: how they are computed, and filters laid out for that; by one call of BLAS
    each, if left out.
    """
    gemm = gemm or Gemm()
    images, height, width, out_channels = problem.out
    algorithm = _algorithm(problem, gemm)
    step = algorithm.row_step
    per_row, per_image = width // step, (height // step) * (width // step)
    if reproducible:
        images, threads = images_of_a_piece(problem), USUAL_THREADS
    most = ROWS_OF_A_PRODUCT
    if isinstance(algorithm, Im2Row):
        most = ROWS_OF_SHORT if problem.row_length <= LONGEST_SHORT else ROWS_OF_IM2ROW
    channels = out_channels
    if images * per_image < threads * FEWEST_ROWS and problem.groups == 1:
        channel_step = math.lcm(CHANNEL_STEP, gemm.step(out_channels))
        channels = -(-out_channels // (threads * channel_step)) * channel_step
    else:
        most = min(most, max(FEWEST_ROWS, -(-images * per_image // threads)))
    return Choice(
        _compiled(algorithm, problem) if compiled else algorithm,
        Blocking(
            images=max(1, min(images, most // per_image)),
            rows=step * max(1, min(height // step, most // per_row)),
            channels=channels,
        ),
    )


def images_of_a_piece(problem: Problem) -> int:
    """How many images a reproducible plan computes at a time: those that are eight rows, or one.

    One for Winograd, whose transforms are products, too, and longer than that.
    """
    _, height, width, _ = problem.out
    if isinstance(_algorithm(problem, Gemm()), Winograd):
        return 1
    images, rest = divmod(ROWS_OF_A_PIECE, height * width)
    return images if rest == 0 else 1


def _algorithm(problem: Problem, gemm: Gemm) -> Im2Row | Winograd:
    _, height, width, out_channels = problem.out
    divides = math.gcd(height, width)
    stride = WINOGRAD.get(problem.windows)
    if (
        stride is None
        or problem.groups != 1
        or min(problem.x[3], out_channels) < FEWEST_CHANNELS
        or divides % 2
    ):
        return Im2Row(gemm)
    if stride == 2 and problem.x[3] < FEWEST_STRIDED:
        return Im2Row(gemm)
    is_large = divides % 4 == 0 and height * width >= 16 * FEWEST_TILES
    return Winograd(4 if stride == 1 and is_large else 2, stride, gemm)


def _compiled(algorithm: Im2Row | Winograd, problem: Problem) -> Algorithm:
    """The same with compiled passes: by measurement quicker for every layer that they fit."""
    # numba, which they import, is an extra, and takes half a second to import.
    from dist_net.autodiff.kernels.compiled.im2row import CompiledIm2Row
    from dist_net.autodiff.kernels.compiled.winograd import CompiledWinograd

    if problem.dtype != np.float32:
        return algorithm
    if isinstance(algorithm, Im2Row):
        return CompiledIm2Row(algorithm.gemm)
    return CompiledWinograd(algorithm.m, algorithm.stride, algorithm.gemm)
