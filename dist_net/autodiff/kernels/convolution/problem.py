"""A convolution's shapes, the blocks of its output, and its padded input."""

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
        """The number of products summed for one element of the output."""
        return math.prod(self.windows.size) * (self.x[3] // self.groups)

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel depends only on the input pixel at the same position."""
        return self.windows == POINTWISE


@dataclass(frozen=True)
class Arrays:
    """The arrays bound to a convolution: borrowed, C-contiguous."""

    x: Array
    filters: Array
    bias: Array
    residual: Array | None
    out: Array


@dataclass(frozen=True)
class Block:
    """A range of images, rows and channels of an output (N, H, W, C)."""

    images: slice
    rows: slice
    channels: slice

    @property
    def index(self) -> tuple[slice, slice, slice, slice]:
        """The index of the block in the whole output."""
        return self.images, self.rows, slice(None), self.channels

    @property
    def size(self) -> tuple[int, int, int]:
        """The number of images, rows and channels."""
        images, rows, channels = (
            part.stop - part.start for part in (self.images, self.rows, self.channels)
        )
        return images, rows, channels


@dataclass(frozen=True)
class Blocking:
    """The maximum number of images, rows and channels of a block.

    A block with several images has all their rows, so that its pixels are evenly spaced.
    """

    images: int
    rows: int
    channels: int

    def blocks(self, shape: Shape, row_step: int = 1) -> Iterator[Block]:
        """Return the blocks of (N, H, W, C); rows are cut at multiples of ``row_step``."""
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
    """Return the calls that copy the part of ``x`` with corner (top, left) to ``padded``.

    Both are (N, H, W, C). Values outside ``x`` become 0.
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
    """Return the overlap of a map and a part from ``start``, as slices of the part and the map."""
    first = min(max(-start, 0), length)
    last = max(first, min(own_length - start, length))
    return slice(first, last), slice(first + start, last + start)
