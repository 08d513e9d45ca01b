"""A convolution's shapes, and what the algorithms for it have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.convolution.epilogue import Epilogue
from dist_net.autodiff.kernels.memory import ALIGNMENT_BYTES
from dist_net.autodiff.kernels.windows import Windows


@dataclass(frozen=True)
class Problem:
    """(N, H, W, C) by filters (kh, kw, C / groups, O) to (N, H', W', O), and what follows."""

    windows: Windows
    groups: int
    epilogue: Epilogue
    x: Shape
    out: Shape
    dtype: np.dtype[np.generic]

    @property
    def flops(self) -> int:
        """Multiplications and additions of the direct convolution."""
        return 2 * math.prod(self.out) * self.row_length

    @property
    def row_length(self) -> int:
        """How many products make one element of the output."""
        return math.prod(self.windows.size) * (self.x[3] // self.groups)

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel comes from the one input pixel at the same place."""
        return self.windows == Windows((1, 1), (1, 1), ((0, 0), (0, 0)))


@dataclass(frozen=True)
class Arrays:
    """What a convolution is bound to: all borrowed and C-contiguous; perhaps no ``residual``."""

    x: Array
    filters: Array
    bias: Array
    residual: Array | None
    out: Array


def scratch_bytes(shapes: Sequence[Shape], dtype: np.dtype[np.generic]) -> int:
    """What ``carve`` needs for arrays of these shapes."""
    return sum(_room(shape, dtype) for shape in shapes)


def carve(
    scratch: NDArray[np.uint8], shapes: Sequence[Shape], dtype: np.dtype[np.generic]
) -> list[Array]:
    """Arrays of these shapes, one after the other in ``scratch``, each on a cache line."""
    arrays: list[Array] = []
    start = 0
    for shape in shapes:
        used = scratch[start : start + math.prod(shape) * dtype.itemsize]
        arrays.append(used.view(dtype).reshape(shape, copy=False))
        start += _room(shape, dtype)
    return arrays


def _room(shape: Shape, dtype: np.dtype[np.generic]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def take_padded(x: Array, top: int, left: int, padded: Array) -> Sequence[Call]:
    """The calls that fill ``padded`` with the part of ``x`` whose corner is (top, left).

    Both are (N, H, W, C); what lies outside of ``x`` is 0.
    """
    rows, own_rows = _overlap(top, padded.shape[1], x.shape[1])
    columns, own_columns = _overlap(left, padded.shape[2], x.shape[2])
    outside = [
        padded[:, : rows.start],
        padded[:, rows.stop :],
        padded[:, rows, : columns.start],
        padded[:, rows, columns.stop :],
    ]
    calls: list[Call] = [partial(part.fill, 0) for part in outside if part.size]
    calls.append(partial(np.copyto, padded[:, rows, columns], x[:, own_rows, own_columns]))
    return calls


def _overlap(start: int, length: int, own_length: int) -> tuple[slice, slice]:
    """Where a map lies in a part that begins at ``start``, and where that lies in the map."""
    first = min(max(-start, 0), length)
    last = max(first, min(own_length - start, length))
    return slice(first, last), slice(first + start, last + start)
