"""Convolution without rows of windows: sums of products of strided views, compiled by numba.

The windows of a map are a view of it. ``multiply`` keeps a *tile* of sums in registers: of several
elements of the view times several vectors. It adds the products of a sum in one order, whatever
else is computed, so that results have the same bits in any batch. Needs the extra ``fast``.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape, carve, scratch_bytes
from dist_net.autodiff.kernels.compiled.epilogues import (
    EpilogueNumbers,
    apply_epilogue,
    memory_of,
    numbers_of,
)
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    WIDE,
    Flat,
    Lanes,
    Pointer,
    Three,
    load,
    multiply_add,
    pointer,
    repeated,
    run_chosen,
    spread,
    traced,
    value_at,
    zeros,
)
from dist_net.autodiff.kernels.convolution.im2row import Im2Row, patches_of
from dist_net.autodiff.kernels.convolution.problem import Arrays, Block, Epilogue, Problem
from dist_net.autodiff.kernels.windows import POINTWISE, UNPADDED
from dist_net.ground.compiling import READ, WRITTEN, jit

BLOCK = 16  # columns, of which a multiple can be added to

TWO, ONE, NARROW, FOUR = range(4)
WIDTHS = {TWO: (2, WIDE), ONE: (1, WIDE), NARROW: (2, LANES)}
TILES = {10 * count + n: (count, *width) for count in (8, 4, 1) for n, width in WIDTHS.items()}
TILES[10 + FOUR] = 1, 4, WIDE
"""The elements, vectors and lanes of each kind of tile."""

LoopAxes = NDArray[np.intp]
AXES = types.Array(types.intp, 2, "C", readonly=True)

Place = tuple[Pointer, int, int]
"""An array, the place of a first element or vector in it, and how far apart the next ones are."""
TileFinish = tuple[Pointer, int, Pointer, bool, EpilogueNumbers]
"""The bias and the place of its first vector, and the rest of ``EpilogueValues``."""


class Finish(NamedTuple):
    """What becomes of the sums of products: added to the result, or their epilogue written."""

    adds: bool = False
    bias: Array | None = None
    residual: Array | None = None
    epilogue: Epilogue = Epilogue()


@traced()
def write_tile(
    kind: int,
    seen: tuple[Place, Three],
    factors: tuple[Place, Three],
    inner: Three,
    result: Place,
    finish: TileFinish,
) -> None:
    """Write the epilogue of the sums of a tile of a kind in ``TILES``.

    ``seen`` and ``factors`` are followed by their strides along the ``inner`` axes.
    """
    (x, x_place, x_apart), seen_steps = seen
    (y, y_place, y_apart), factor_steps = factors
    out, place, apart = result
    bias, column, *epilogue = finish

    def write(count: int, vectors: int, lanes: int) -> None:
        tile = [*product(range(count), range(vectors))]

        def with_products(i: int, j: int, sums: tuple[Lanes, ...]) -> tuple[Lanes, ...]:
            values = [load(y, j + y_apart * v, lanes) for v in range(vectors)]
            elements = [spread(value_at(x, i + x_apart * n), lanes) for n in range(count)]
            pairs = zip(tile, sums, strict=True)
            return tuple(multiply_add(elements[n], values[v], each) for (n, v), each in pairs)

        def along(axis: int, i: int, j: int, sums: tuple[Lanes, ...]) -> tuple[Lanes, ...]:
            if axis == len(inner):
                return with_products(i, j, sums)

            def step(k: int, *sums: Lanes) -> tuple[Lanes, ...]:
                return along(axis + 1, i + k * seen_steps[axis], j + k * factor_steps[axis], sums)

            return repeated(inner[axis], step, *sums)

        sums = along(0, x_place, y_place, (zeros(kind, lanes),) * len(tile))
        shifts = [load(bias, column + y_apart * v, lanes) for v in range(vectors)]
        for (n, v), each in zip(tile, sums, strict=True):
            target = place + apart * n + y_apart * v
            apply_epilogue(each, out, target, (shifts[v], *epilogue), lanes)

    run_chosen(kind, {number: partial(write, *tile) for number, tile in TILES.items()})


PLAIN, ADDED = Finish(), Finish(adds=True)


@jit(READ, READ, WRITTEN, AXES, types.UniTuple(READ, 3))
def multiply(x: Flat, y: Flat, out: Flat, axes: LoopAxes, finish: tuple[Flat, Flat, Flat]) -> None:
    """out[a, n, b, m] = epilogue of Σ x[a, n, b, m, c, d, e] · y[a, c, d, e].

    For vectors of ``columns``, at least ``LANES``. ``axes`` has the length of each axis and its
    strides in x, y and out; then ``columns``, whether there is a residual, and whether some
    results may be computed twice, as unless columns are a multiple of ``BLOCK``. ``finish`` has the
    bias, (a, columns), the residual, like out, and the epilogue's numbers.
    """
    bias, residual, numbers = finish
    seen, factors, result = pointer(x), pointer(y), pointer(out)
    shifts, others = pointer(bias), pointer(residual)
    columns, has_residual, may_repeat = axes[7, 0], axes[7, 1] > 0, axes[7, 2] > 0
    inner = axes[4, 0], axes[5, 0], axes[6, 0]
    seen_steps = axes[4, 1], axes[5, 1], axes[6, 1]
    factor_steps = axes[4, 2], axes[5, 2], axes[6, 2]
    epilogue = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
    for a in range(axes[0, 0]):
        column = 0
        while column < columns:
            left = columns - column
            width, step, gap = TWO, 2 * WIDE, WIDE
            if axes[3, 0] == 1 and left >= 4 * WIDE:
                width, step = FOUR, 4 * WIDE
            elif columns < WIDE:
                width, gap = NARROW, columns - LANES
            elif left < 2 * WIDE:
                width, step = ONE, WIDE
                column = min(column, columns - WIDE)
            end = shifts, a * columns + column, others, has_residual, epilogue
            for n in range(axes[1, 0]):
                for b in range(axes[2, 0]):
                    source = a * axes[0, 1] + n * axes[1, 1] + b * axes[2, 1]
                    target = a * axes[0, 3] + n * axes[1, 3] + b * axes[2, 3] + column
                    m = 0
                    while m < axes[3, 0]:
                        rest = axes[3, 0] - m
                        at_once = 8 if rest >= 8 else 4 if rest >= 4 else 1
                        if may_repeat and rest < 8 and axes[3, 0] >= 4:
                            at_once = 8 if rest > 4 and axes[3, 0] >= 8 else 4
                            m = min(m, axes[3, 0] - at_once)
                        write_tile(
                            10 * at_once + width,
                            ((seen, source + m * axes[3, 1], axes[3, 1]), seen_steps),
                            ((factors, a * axes[0, 2] + column, gap), factor_steps),
                            inner,
                            (result, target + m * axes[3, 3], axes[3, 3]),
                            end,
                        )
                        m += at_once
            column += step


def products(x: Array, y: Array, out: Array, finish: Finish = PLAIN) -> Call:
    """Return the call of ``multiply``: x (a, n, b, m, c, d, e), y (a, c, d, e, columns) to out (a,
    n, b, m, columns). All are views; columns are contiguous, and a residual is like out. Only a
    multiple of ``BLOCK`` columns can be added to out."""
    strides = np.zeros((3, 7), np.intp)
    strides[0], strides[1, [0, 4, 5, 6]], strides[2, :4] = x.strides, y.strides[:4], out.strides[:4]
    axes = np.zeros((8, 4), np.intp)
    axes[:7, 0], axes[:7, 1:] = x.shape, strides.T // x.itemsize
    residual, bias = out if finish.adds else finish.residual, finish.bias
    axes[7, :3] = out.shape[4], residual is not None, not finish.adds
    shift = np.zeros(out.shape[0] * out.shape[4], np.float32) if bias is None else bias
    other = shift if residual is None else memory_of(residual)
    end = shift, other, np.array(numbers_of(finish.epilogue), np.float32)
    return partial(multiply, memory_of(x), memory_of(y), memory_of(out), axes, end)


class Direct(Im2Row):
    """``Im2Row`` without its rows, and with the epilogue of sums that are in registers."""

    name = "direct"
    adds_in_one_order = True

    def scratch_bytes(self, problem: Problem, block: Block) -> int:
        return scratch_bytes([self._padded_shape(problem, block)], problem.dtype)

    def calls(
        self, problem: Problem, block: Block, arrays: Arrays, scratch: NDArray[np.uint8]
    ) -> Sequence[Call]:
        first, stop = block.channels.start, block.channels.stop
        if stop < LANES:
            raise ValueError(f"{stop} outputs; expected at least {LANES}, a vector")
        block = replace(block, channels=slice(min(first, stop - LANES), stop))
        (x,) = carve(scratch, [self._padded_shape(problem, block)], problem.dtype)
        take = patches_of(problem).take(arrays.x, block, x) if x.size else ()
        if not x.size:
            x = arrays.x[block.images, block.rows.start * problem.windows.stride[0] :]
        seen = self._seen(problem, x, block.size[1])
        filters = self.gemm.part(arrays.filters, block.channels)
        filters = filters.reshape(-1, *filters.shape[-2:], copy=False)  # by group, or by band
        count, _, columns = filters.shape
        seen = np.broadcast_to(seen, (count, *seen.shape[1:]))
        filters = filters.reshape(count, *seen.shape[4:], columns, copy=False)

        def results(array: Array) -> Array:
            values = array[block.index].reshape(*seen.shape[1:4], count, columns, copy=False)
            return values.transpose(3, 0, 1, 2, 4)

        residual = None if arrays.residual is None else results(arrays.residual)
        finish = Finish(False, arrays.bias[block.channels], residual, problem.epilogue)
        return [*take, products(seen, filters, results(arrays.out), finish)]

    def _seen(self, problem: Problem, x: Array, rows: int) -> Array:
        """Return the windows of each group, (groups, n, b, m, c, d, e), with few long axes."""
        seen = problem.windows.over(x)[:, :rows]
        by_group = seen.reshape(*seen.shape[:5], problem.groups, -1, copy=False)
        seen = by_group.transpose(5, 0, 1, 2, 3, 4, 6)
        if problem.windows == POINTWISE:
            seen = seen.reshape(problem.groups, 1, 1, -1, *seen.shape[4:], copy=False)
        elif problem.groups == 1 and problem.windows.dilation[1] == 1:
            seen = seen.reshape(*seen.shape[:5], 1, -1, copy=False)
        return seen

    def _padded_shape(self, problem: Problem, block: Block) -> Shape:
        is_inside = problem.windows.padding == UNPADDED
        return (0,) if is_inside else patches_of(problem).padded_shape(block)
