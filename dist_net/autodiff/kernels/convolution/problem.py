"""A convolution's shapes, the blocks that its output is computed in, and its padded input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.convolution.epilogue import Epilogue
from dist_net.autodiff.kernels.windows import POINTWISE, Windows


@dataclass(frozen=True)
class Problem:
    """A convolution of (N, H, W, C) by (kh, kw, C / groups, O) to (N, H', W', O), with epilogue."""

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
        """How many products are added up for one element of the output."""
        return math.prod(self.windows.size) * (self.x[3] // self.groups)

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel comes from the one input pixel at the same place."""
        return self.windows == POINTWISE


@dataclass(frozen=True)
class Arrays:
    """The arrays that a convolution is bound to: borrowed, C-contiguous."""

    x: Array
    filters: Array
    bias: Array
    residual: Array | None
    out: Array


@dataclass(frozen=True)
class Block:
    """Some images, some rows of each, and some channels of an output (N, H, W, C)."""

    images: slice
    rows: slice
    channels: slice

    @property
    def index(self) -> tuple[slice, slice, slice, slice]:
        """The index of the block in the whole output."""
        return self.images, self.rows, slice(None), self.channels

    @property
    def size(self) -> tuple[int, int, int]:
        """How many images, rows and channels these are."""
        images, rows, channels = (
            part.stop - part.start for part in (self.images, self.rows, self.channels)
        )
        return images, rows, channels


@dataclass(frozen=True)
class Blocking:
    """How an output is cut: a block has at most so many images, rows and channels.

    A block with several images has all their rows, so that its pixels are evenly spaced.
    """

    images: int
    rows: int
    channels: int

    def blocks(self, shape: Shape, row_step: int = 1) -> Iterator[Block]:
        """The blocks of (N, H, W, C); rows are cut at multiples of ``row_step``."""
        images, height, _, channels = shape
        rows = max(row_step, self.rows // row_step * row_step)
        for image in _cut(images, self.images if rows >= height else 1):
            for row in _cut(height, rows):
                for channel in _cut(channels, self.channels):
                    yield Block(image, row, channel)


def _cut(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def take_padded(x: Array, top: int, left: int, padded: Array) -> Sequence[Call]:
    """The calls that copy to ``padded`` the part of ``x`` whose corner is (top, left).

    Both are (N, H, W, C). What lies outside of ``x`` becomes 0.
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
    """The overlap of a map and of a part that begins at ``start``: in the part, and in the map."""
    first = min(max(-start, 0), length)
    last = max(first, min(own_length - start, length))
    return slice(first, last), slice(first + start, last + start)
