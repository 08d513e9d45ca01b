"""The sum of scaled matrices and a shift, rectified or not, in one pass. Needs the extra ``fast``.

Matrices are flat. A row of them has one scale per value, and a multiple of ``LANES`` values.
"""

from __future__ import annotations

from dist_net.autodiff.kernels.compiled.vectors import (
    LANES,
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
from dist_net.compiling import BOOLEAN, READ, REAL, WRITTEN, jit

Term = tuple[Pointer, Pointer]
"""A matrix and its scales."""


@traced()
def write_scaled(
    first: Term,
    second: Term,
    is_sum: bool,
    shift: Pointer,
    least: float,
    out: Pointer,
    i: int,
    j: int,
) -> None:
    """Write a vector at ``i``, whose scales are at ``j`` of a row."""

    def with_second(value: Lanes) -> Lanes:
        return multiply_add(load(second[0], i), load(second[1], j), value)

    value = multiply_add(load(first[0], i), load(first[1], j), load(shift, j))
    store(out, i, larger(changed_if(is_sum, with_second, value), spread(least)))


@jit(READ, READ, READ, READ, BOOLEAN, READ, REAL, WRITTEN)
def scale_and_shift(
    x: Flat, a: Flat, y: Flat, b: Flat, is_sum: bool, shift: Flat, least: float, out: Flat
) -> None:
    """Write x·a + shift, or x·a + y·b + shift if ``is_sum``, but ``least`` where that is larger."""
    first, second = (pointer(x), pointer(a)), (pointer(y), pointer(b))
    shifts, result = pointer(shift), pointer(out)
    for start in range(0, len(out), len(shift)):
        for j in range(0, len(shift), LANES):
            write_scaled(first, second, is_sum, shifts, least, result, start + j, j)
