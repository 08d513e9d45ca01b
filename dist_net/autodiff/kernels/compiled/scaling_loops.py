"""The sum of scaled matrices and a shift, rectified or not, in one pass. Needs the extra ``fast``.

Matrices are flat. A row of them has one scale per value, and a multiple of ``LANES`` values.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numba.types import UniTuple

from dist_net.autodiff.arrays import Array, Call
from dist_net.autodiff.kernels.compiled.epilogues import flat
from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
    VECTOR,
    Flat,
    Lanes,
    Pointer,
    changed_if,
    larger,
    load,
    multiply_add,
    pointer,
    spread,
    store,
    traced,
)
from dist_net.ground.compiling import BOOLEAN, READ, REAL, WRITTEN, jit

Term = tuple[Pointer, Pointer]  # a matrix and its scales
FourFlat = tuple[Flat, Flat, Flat, Flat]  # of two terms


@traced(VECTOR)
def scaled(first: Term, second: Term, is_sum: bool, shift: Pointer, i: int, j: int) -> Lanes:
    """Return the sum of the terms at ``i``, and of the shift, for scales at ``j`` of a row."""
    value = multiply_add(load(first[0], i), load(first[1], j), load(shift, j))
    with_second = partial(multiply_add, load(second[0], i), load(second[1], j))
    return changed_if(is_sum, with_second, value)


@jit(UniTuple(READ, 4), BOOLEAN, READ, REAL, WRITTEN)
def scale_and_shift(terms: FourFlat, is_sum: bool, shift: Flat, least: float, out: Flat) -> None:
    """Write x·a + shift, or x·a + y·b + shift if ``is_sum``, but ``least`` where that is larger."""
    x, a, y, b = terms
    first, second = (pointer(x), pointer(a)), (pointer(y), pointer(b))
    shifts, result = pointer(shift), pointer(out)
    for start in range(0, len(out), len(shift)):
        for j in range(0, len(shift), LANES):
            value = scaled(first, second, is_sum, shifts, start + j, j)
            store(result, start + j, larger(value, spread(least)))


def scaling(
    terms: Sequence[tuple[Array, Array]], shift: Array, rectifies: bool, out: Array
) -> Call:
    """Return the call of ``scale_and_shift`` for one or two contiguous matrices with scales."""
    (x, a), (y, b) = terms[0], terms[-1]
    arrays, least = (flat(x), a, flat(y), b), np.float32(0 if rectifies else -np.inf)
    return partial(scale_and_shift, arrays, len(terms) > 1, shift, least, flat(out))
