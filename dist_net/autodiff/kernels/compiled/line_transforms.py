"""Winograd's transforms of a line of vectors, and of several lines side by side, for numba.

The matrices are those of ``winograd.transforms``; what their lines share is computed once. Needs
the extra ``fast``.
"""

from __future__ import annotations

import numpy as np

from dist_net.autodiff.kernels.compiled.vectors import Pointer, Vector, inlined, load, spread, store

Two = tuple[Vector, Vector]
Four = tuple[Vector, Vector, Vector, Vector]
Six = tuple[Vector, Vector, Vector, Vector, Vector, Vector]
Lines = tuple[tuple[Vector, ...], ...]


@inlined
def load_6(x: Pointer, place: int, step: int) -> Six:
    """6 vectors, ``step`` apart."""
    return (
        load(x, place),
        load(x, place + step),
        load(x, place + 2 * step),
        load(x, place + 3 * step),
        load(x, place + 4 * step),
        load(x, place + 5 * step),
    )


@inlined
def load_4(x: Pointer, place: int, step: int) -> Four:
    """4 vectors, ``step`` apart."""
    return (
        load(x, place),
        load(x, place + step),
        load(x, place + 2 * step),
        load(x, place + 3 * step),
    )


@inlined
def to_line_4(x: Six) -> Six:
    """Bᵀ · x of F(4, 3)."""
    four = spread(np.float32(4))
    even, odd = x[4] - four * x[2], x[3] - four * x[1]
    even_2, odd_2 = x[4] - x[2], (x[3] - x[1]) + (x[3] - x[1])
    return (
        four * (x[0] - x[2]) + even_2,
        even + odd,
        even - odd,
        even_2 + odd_2,
        even_2 - odd_2,
        four * (x[1] - x[3]) + (x[5] - x[3]),
    )


@inlined
def to_line_2(x: Four) -> Four:
    """Bᵀ · x of F(2, 3)."""
    return x[2] - x[0], x[1] + x[2], x[2] - x[1], x[3] - x[1]


@inlined
def from_line_4(x: Six) -> Four:
    """Aᵀ · x of F(4, 3)."""
    four = spread(np.float32(4))
    sum_1, sum_2, difference_1 = x[1] + x[2], x[3] + x[4], x[1] - x[2]
    difference_2 = (x[3] - x[4]) + (x[3] - x[4])
    return (
        x[0] + sum_1 + sum_2,
        difference_1 + difference_2,
        sum_1 + four * sum_2,
        difference_1 + four * difference_2 + x[5],
    )


@inlined
def from_line_2(x: Four) -> Two:
    """Aᵀ · x of F(2, 3)."""
    return x[0] + x[1] + x[2], x[1] - x[2] + x[3]


@inlined
def across_4(h: Lines, i: int) -> Six:
    """What 6 lines have at ``i``."""
    return h[0][i], h[1][i], h[2][i], h[3][i], h[4][i], h[5][i]


@inlined
def across_2(h: Lines, i: int) -> Four:
    """What 4 lines have at ``i``."""
    return h[0][i], h[1][i], h[2][i], h[3][i]


@inlined
def to_lines_4(x: Pointer, place: int, per_row: int, per_pixel: int) -> Lines:
    """Bᵀ · d, as columns."""
    return (
        to_line_4(load_6(x, place, per_row)),
        to_line_4(load_6(x, place + per_pixel, per_row)),
        to_line_4(load_6(x, place + 2 * per_pixel, per_row)),
        to_line_4(load_6(x, place + 3 * per_pixel, per_row)),
        to_line_4(load_6(x, place + 4 * per_pixel, per_row)),
        to_line_4(load_6(x, place + 5 * per_pixel, per_row)),
    )


@inlined
def to_lines_2(x: Pointer, place: int, per_row: int, per_pixel: int) -> Lines:
    """Bᵀ · d, as columns."""
    return (
        to_line_2(load_4(x, place, per_row)),
        to_line_2(load_4(x, place + per_pixel, per_row)),
        to_line_2(load_4(x, place + 2 * per_pixel, per_row)),
        to_line_2(load_4(x, place + 3 * per_pixel, per_row)),
    )


@inlined
def store_6(x: Six, target: Pointer, place: int, step: int) -> None:
    """6 vectors, ``step`` apart."""
    store(target, place, x[0])
    store(target, place + step, x[1])
    store(target, place + 2 * step, x[2])
    store(target, place + 3 * step, x[3])
    store(target, place + 4 * step, x[4])
    store(target, place + 5 * step, x[5])


@inlined
def store_4(x: Four, target: Pointer, place: int, step: int) -> None:
    """4 vectors, ``step`` apart."""
    store(target, place, x[0])
    store(target, place + step, x[1])
    store(target, place + 2 * step, x[2])
    store(target, place + 3 * step, x[3])


@inlined
def store_points_4(h: Lines, target: Pointer, place: int, step: int) -> None:
    """(Bᵀ · d) · B, given the first's columns: 36 vectors, ``step`` apart."""
    store_6(to_line_4(across_4(h, 0)), target, place, step)
    store_6(to_line_4(across_4(h, 1)), target, place + 6 * step, step)
    store_6(to_line_4(across_4(h, 2)), target, place + 12 * step, step)
    store_6(to_line_4(across_4(h, 3)), target, place + 18 * step, step)
    store_6(to_line_4(across_4(h, 4)), target, place + 24 * step, step)
    store_6(to_line_4(across_4(h, 5)), target, place + 30 * step, step)


@inlined
def store_points_2(h: Lines, target: Pointer, place: int, step: int) -> None:
    """(Bᵀ · d) · B, given the first's columns: 16 vectors, ``step`` apart."""
    store_4(to_line_2(across_2(h, 0)), target, place, step)
    store_4(to_line_2(across_2(h, 1)), target, place + 4 * step, step)
    store_4(to_line_2(across_2(h, 2)), target, place + 8 * step, step)
    store_4(to_line_2(across_2(h, 3)), target, place + 12 * step, step)


@inlined
def from_lines_4(x: Pointer, place: int, per_row: int, per_pixel: int) -> Lines:
    """Aᵀ · s, as columns."""
    return (
        from_line_4(load_6(x, place, per_row)),
        from_line_4(load_6(x, place + per_pixel, per_row)),
        from_line_4(load_6(x, place + 2 * per_pixel, per_row)),
        from_line_4(load_6(x, place + 3 * per_pixel, per_row)),
        from_line_4(load_6(x, place + 4 * per_pixel, per_row)),
        from_line_4(load_6(x, place + 5 * per_pixel, per_row)),
    )


@inlined
def from_lines_2(x: Pointer, place: int, per_row: int, per_pixel: int) -> Lines:
    """Aᵀ · s, as columns."""
    return (
        from_line_2(load_4(x, place, per_row)),
        from_line_2(load_4(x, place + per_pixel, per_row)),
        from_line_2(load_4(x, place + 2 * per_pixel, per_row)),
        from_line_2(load_4(x, place + 3 * per_pixel, per_row)),
    )
