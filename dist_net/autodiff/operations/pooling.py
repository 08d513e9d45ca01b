"""Pooling: the largest element, or the mean, of each window of a map (N, H, W, C).

A window is pooled along one axis and then along the other: the maximum of the maxima of its rows,
the sum of their sums. That is less work than pooling all of its elements at once, and the gradient
uses the results in between. Padding is never the largest element, and does not count for the mean.
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

    ``stride`` is ``size`` if left out, ``padding`` is as for ``windows``. Of a window's elements
    that tie, the first, row by row, has the gradient. Raises ShapeError if the windows do not fit
    or one has only padding, DTypeError unless ``x`` is a float.
    """
    down, across = _sides("max_pool", x, size, stride, padding)
    for side in (across, down):  # rows first, so that of equal maxima the first row's is first
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
    """The windows along axis 1, down, and along axis 2, across."""
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
            f"{name}: a window of {seen.size} every {seen.stride} has only padding {seen.padding} "
            f"in a map of {map_size}; expected less padding than window on each side"
        )
    return sides
