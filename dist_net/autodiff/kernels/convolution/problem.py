"""A convolution's shapes and epilogue, the blocks of its output, and its padded input.

An epilogue applies bias, activation and residual while the result is in the cache.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, cut
from dist_net.autodiff.kernels.windows import Windows

LINEAR = 1.0
PRODUCTS = 1 << 20  # of a block: about 100 us, several times the wake-up time of a thread


@dataclass(frozen=True)
class Epilogue:
    """y = max(x + bias, slope · (x + bias)); with a residual, then the same for y + residual.

    A slope of 1 is the identity, 0 relu, 0.1 Darknet's leaky relu. ``low`` and ``high`` clip y.
    """

    slope: float = LINEAR
    residual_slope: float = LINEAR
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        return self.low > -math.inf or self.high < math.inf

    def calls(
        self, values: Array, bias: Array | None, residual: Array | None, out: Array, spare: Array
    ) -> Sequence[Call]:
        """Return the calls that turn ``values`` into ``out``, which may be the same memory.

        ``values`` are overwritten; ``spare`` is memory of the same shape. All are (..., C);
        ``bias`` is (C,), or None if it has already been added.
        """
        calls: list[partial[object]] = []
        if bias is not None:
            calls.append(partial(np.add, values, bias, out=values))
        calls += _leaky_relu(self.slope, values, spare)
        if residual is not None:
            calls.append(partial(np.add, values, residual, out=values))
            calls += _leaky_relu(self.residual_slope, values, spare)
        if self.clips:
            low, high = values.dtype.type(self.low), values.dtype.type(self.high)
            calls.append(partial(np.clip, values, low, high, out=values))
        if not calls:
            return [partial(np.copyto, out, values)]
        last = calls.pop()
        return [*calls, partial(last.func, *last.args, out=out)]


def _leaky_relu(slope: float, values: Array, spare: Array) -> list[partial[object]]:
    if slope == LINEAR:
        return []
    if slope == 0.0:
        return [partial(np.maximum, values, values.dtype.type(0), out=values)]
    return [
        partial(np.multiply, values, values.dtype.type(slope), out=spare),
        partial(np.maximum, values, spare, out=values),
    ]


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
    def row_length(self) -> int:
        """The number of products summed for one element of the output."""
        return math.prod(self.windows.size) * (self.x[3] // self.groups)

    @property
    def multiplications(self) -> int:
        """The number of products that a direct convolution computes."""
        return math.prod(self.out) * self.row_length


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
    """The maximum images, rows and channels of a block; several images have all their rows."""

    images: int
    rows: int
    channels: int

    @classmethod
    def of_depthwise(cls, out: Shape, windows: Windows) -> Self:
        """Return blocks of about ``PRODUCTS``; the result is independent of the blocks."""
        images, height, width, channels = out
        per_row = max(1, width * channels * windows.size[0] * windows.size[1])
        rows = max(1, PRODUCTS // per_row)
        images = max(1, min(images, rows // max(1, height)))
        return cls(images, max(1, min(rows, height)), max(1, channels))

    def blocks(self, shape: Shape, row_step: int = 1) -> Iterator[Block]:
        """Return the blocks of (N, H, W, C); rows are cut at multiples of ``row_step``."""
        images, height, _, channels = shape
        rows = max(row_step, self.rows // row_step * row_step)
        for image in cut(images, self.images if rows >= height else 1):
            for row in cut(height, rows):
                for channel in cut(channels, self.channels):
                    yield Block(image, row, channel)


def take_padded(x: Array, top: int, left: int, padded: Array) -> Sequence[Call]:
    """Return calls that copy ``x`` (N, H, W, C) from (top, left) to ``padded``, 0 outside ``x``."""
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
