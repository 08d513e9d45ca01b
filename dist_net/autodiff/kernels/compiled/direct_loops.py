"""Sums of products of strided views, compiled by numba: convolution without rows of windows.

The windows of a map are a view of it. ``multiply`` keeps the sums of eight of its elements times
``BLOCK`` neighbouring values in registers. Needs the extra ``fast``.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import types

from dist_net.autodiff.arrays import Array, Call
from dist_net.autodiff.kernels.compiled.im2row_loops import memory_of
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    VECTOR,
    Flat,
    Four,
    Lanes,
    Pointer,
    Three,
    inlined,
    integers,
    load,
    multiply_add,
    pointer,
    spread,
    store,
    traced,
    value_at,
)
from dist_net.compiling import BOOLEAN, INTEGER, READ, WRITTEN, jit

BLOCK = 2 * LANES
NOTHING = np.zeros(BLOCK, np.float32)

Sums = tuple[Lanes, ...]
Place = tuple[Pointer, int, int]
"""An array, the place of a first pair of vectors, and how far apart the next ones are."""


def at_a_time(count: int) -> Callable[..., None]:
    """Return the inner loops of ``multiply`` for ``count`` elements."""

    @traced(types.UniTuple(VECTOR, 2 * count))
    def load_pairs(source: Pointer, place: int, apart: int) -> Sums:
        places = [place + n // 2 * apart + n % 2 * LANES for n in range(2 * count)]
        return tuple(load(source, each) for each in places)

    @traced()
    def store_pairs(sums: Sums, out: Pointer, place: int, apart: int) -> None:
        for n, each in enumerate(sums):
            store(out, place + n // 2 * apart + n % 2 * LANES, each)

    @traced(types.UniTuple(VECTOR, 2 * count))
    def with_products(sums: Sums, x: Pointer, i: int, apart: int, vectors: Pointer, j: int) -> Sums:
        pair = load(vectors, j), load(vectors, j + LANES)
        values = [spread(value_at(x, i + n * apart)) for n in range(count)]
        return tuple(multiply_add(values[n // 2], pair[n % 2], each) for n, each in enumerate(sums))

    @inlined
    def write_sums(
        start: Place, x: Place, x_steps: Three, y: Place, y_steps: Three, counts: Three, out: Place
    ) -> None:
        sums = load_pairs(start[0], start[1], start[2])
        for c in range(counts[0]):
            for d in range(counts[1]):
                i = x[1] + c * x_steps[0] + d * x_steps[1]
                j = y[1] + c * y_steps[0] + d * y_steps[1]
                for _ in range(counts[2]):
                    sums = with_products(sums, x[0], i, x[2], y[0], j)
                    i += x_steps[2]
                    j += y_steps[2]
        store_pairs(sums, out[0], out[1], out[2])

    return write_sums


write_8, write_4, write_1 = at_a_time(8), at_a_time(4), at_a_time(1)


@jit(READ, *[integers(3)] * 4, READ, integers(4), WRITTEN, integers(3), INTEGER, BOOLEAN, READ)
def multiply(
    x: Flat,
    counts: Three,
    x_apart: Three,
    inner: Three,
    x_steps: Three,
    y: Flat,
    y_steps: Four,
    out: Flat,
    out_apart: Three,
    columns: int,
    adds: bool,
    nothing: Flat,
) -> None:
    """out[a, b, m] = Σ x[a, b, m, c, d, e] · y[a, c, d, e], or add it, for vectors of ``columns``.

    ``counts`` and ``inner`` are the axes' lengths, the others strides. ``nothing``: BLOCK zeros.
    """
    values, vectors, result, zeros = pointer(x), pointer(y), pointer(out), pointer(nothing)
    apart, result_apart = x_apart[2], out_apart[2]
    steps = y_steps[1:]
    for column in range(0, columns, BLOCK):
        for a in range(counts[0]):
            factors = vectors, column + a * y_steps[0], 0
            for b in range(counts[1]):
                source = a * x_apart[0] + b * x_apart[1]
                target = a * out_apart[0] + b * out_apart[1] + column
                m = 0
                while m < counts[2]:
                    left = counts[2] - m
                    at_once = 8 if left >= 8 else 4 if left >= 4 else 1
                    if not adds and left < 8 and counts[2] >= 4:
                        # May compute some elements before again.
                        at_once = 8 if left > 4 and counts[2] >= 8 else 4
                        m = min(m, counts[2] - at_once)
                    seen = values, source + m * apart, apart
                    place = result, target + m * result_apart, result_apart
                    start = place if adds else (zeros, 0, 0)
                    if at_once == 8:
                        write_8(start, seen, x_steps, factors, steps, inner, place)
                    elif at_once == 4:
                        write_4(start, seen, x_steps, factors, steps, inner, place)
                    else:
                        write_1(start, seen, x_steps, factors, steps, inner, place)
                    m += at_once


def products(x: Array, y: Array, out: Array, adds: bool) -> Call:
    """Return the call of ``multiply``: x (a, b, m, c, d, e), y ([a,] c, d, e, columns) to out (a,
    b, m, columns), for multiples of ``BLOCK`` columns. All are views; columns are contiguous."""
    y = np.broadcast_to(y, (len(x), *y.shape[-4:]))
    of_x, of_y, of_out = (tuple(n // each.itemsize for n in each.strides) for each in (x, y, out))
    given = memory_of(x), x.shape[:3], of_x[:3], x.shape[3:], of_x[3:], memory_of(y), of_y[:4]
    return partial(multiply, *given, memory_of(out), of_out[:3], out.shape[3], adds, NOTHING)
