"""Pooling: the largest element, or the mean, of each window of a map (N, H, W, C).

A window is a rectangle, so it is taken along one axis and then along the other: the maximum of
the maxima of its rows, the sum of their sums. That is less work than all of its elements at
once, and what lies between serves the gradient. Padding takes no part: it is nothing that could
win or count.
"""

from __future__ import annotations

import numpy as np

from dist_net.autodiff.expression import Expression, apply, constant
from dist_net.autodiff.kernels.windows import AxisWindows, Padding, Pair, windows
from dist_net.autodiff.operations.window_maxima import WindowMaximum
from dist_net.autodiff.operations.window_sums import WindowSum
from dist_net.errors import DTypeError, ShapeError


def max_pool(
    x: Expression,
    size: int | Pair,
    stride: int | Pair | None = None,
    padding: Padding = "valid",
) -> Expression:
    """The largest element of each window: (N, H, W, C) to (N, H', W', C).

    ``stride`` is ``size`` if left out, ``padding`` as ``windows`` has it; it never wins. Of
    elements that tie, the first of a window, row by row, has the gradient. Raises ShapeError if
    the windows do not fit or one has nothing but padding, DTypeError unless ``x`` is a float.
    """
    down, across = _sides("max_pool", x, size, stride, padding)
    for side in (across, down):  # rows first, so that of maxima the one in the first row is first
        if not side.changes_nothing:
            x = apply(WindowMaximum(side), x)
    return x


def average_pool(
    x: Expression,
    size: int | Pair,
    stride: int | Pair | None = None,
    padding: Padding = "valid",
) -> Expression:
    """The mean of each window: (N, H, W, C) to (N, H', W', C); padding does not count.

    Parameters and errors as for ``max_pool``.
    """
    down, across = _sides("average_pool", x, size, stride, padding)
    counts = np.multiply.outer(down.counts(), across.counts())
    for side in (down, across):
        if not side.changes_nothing:
            x = apply(WindowSum(side), x)
    if (counts == counts[0, 0]).all():
        return x * (1 / float(counts[0, 0]))
    return x * constant((1 / counts[:, :, np.newaxis]).astype(x.dtype))


def _sides(
    name: str, x: Expression, size: int | Pair, stride: int | Pair | None, padding: Padding
) -> list[AxisWindows]:
    """The windows' sides: down, along axis 1, and across, along axis 2."""
    if x.ndim != 4:
        raise ShapeError(f"{name}: shape {x.shape}; expected a map (N, H, W, C)")
    if x.dtype.kind != "f":
        raise DTypeError(f"{name}: expected a float, got dtype {x.dtype}; convert with astype()")
    map_size = x.shape[1], x.shape[2]
    seen = windows(size, size if stride is None else stride, padding, map_size)
    results = seen.output(*map_size)
    sides = [
        AxisWindows(axis, size, stride, padding[0], length, count)
        for axis, size, stride, padding, length, count in zip(
            (1, 2), seen.size, seen.stride, seen.padding, map_size, results, strict=True
        )
    ]
    if min(*sides[0].counts(), *sides[1].counts()) < 1:
        raise ShapeError(
            f"{name}: a window of {seen.size} every {seen.stride} has nothing but padding "
            f"{seen.padding} in a map of {map_size}; expected less padding than window on each side"
        )
    return sides
