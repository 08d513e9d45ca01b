"""Patches: the windows of a map copied to the rows of matrices, strip by strip, for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.kernels.convolution.problem import Block, Blocking, take_padded
from dist_net.autodiff.kernels.memory import copy_in_runs
from dist_net.autodiff.kernels.windows import UNPADDED, Pair, Windows

STRIP_BYTES = 1 << 19  # of a strip's rows: a typical L2 cache
MIN_PIXELS = 256  # of a strip; with fewer, BLAS reads the filters too often
FEW_CHANNELS = 4  # of a group; runs of so few values are too short to copy one by one


@dataclass(frozen=True, eq=False)
class Patches:
    """The windows of ``x``, one per pixel of a result, as the rows of a matrix per group.

    The first window begins ``before`` rows and columns before the map, or inside it if these are
    negative. Values outside the map are 0.
    """

    x: Array
    size: Pair
    stride: Pair
    before: Pair
    result: Pair
    groups: int

    @property
    def channels(self) -> int:
        """The channels of one group."""
        channels: int = self.x.shape[3]
        return channels // self.groups

    @property
    def length(self) -> int:
        """The length of a row: the values of one window in one group."""
        return math.prod(self.size) * self.channels

    @property
    def _has_rows(self) -> bool:
        """Whether the map's pixels are the rows, without a copy."""
        is_pointwise = self.size == self.stride == (1, 1) and self.before == (0, 0)
        return is_pointwise and self.result == self.x.shape[1:3] and self.x.flags.c_contiguous

    def strips(self) -> list[Block]:
        """Return strips of the result: some rows of one image, or all rows of several images."""
        height, width = self.result
        row_bytes = max(1, self.groups * self.length * self.x.itemsize)
        pixels = max(MIN_PIXELS, STRIP_BYTES // row_bytes)
        rows = max(1, min(height, pixels // width))
        even_rows = -(-height // -(-height // rows))
        blocking = Blocking(max(1, pixels // (height * width)), even_rows, 1)
        return list(blocking.blocks((len(self.x), height, width, 1)))

    def shapes(self, strip: Block) -> list[Shape]:
        """Return the shapes of the scratch for ``rows``: a padded part of the map, the matrices."""
        images = strip.images.stop - strip.images.start
        if self._has_rows:
            return [(0,), (0,)]
        rows = strip.rows.stop - strip.rows.start
        height, width = (
            (n - 1) * stride + size
            for n, stride, size in zip((rows, self.result[1]), self.stride, self.size, strict=True)
        )
        pixels = images * rows * self.result[1]
        return [(images, height, width, self.x.shape[3]), (self.groups, pixels, self.length)]

    def rows(self, strip: Block, padded: Array, matrix: Array) -> tuple[Sequence[Call], Array]:
        """Return the calls that write a strip's rows, and the rows (groups, pixels, length)."""
        x = self.x[strip.images]
        if self._has_rows:
            return [], by_group(x[:, strip.rows], self.groups)
        calls: list[Call] = []
        top, left = strip.rows.start * self.stride[0] - self.before[0], -self.before[1]
        bottom, right = top + padded.shape[1], left + padded.shape[2]
        is_inside = min(top, left) >= 0 and bottom <= x.shape[1] and right <= x.shape[2]
        if is_inside and x.flags.c_contiguous:
            padded = x[:, top:bottom, left:right]
        else:
            calls += take_padded(x, top, left, padded)
        windows = Windows(self.size, self.stride, UNPADDED).over(padded)
        if matrix.size == 0:
            return [], matrix
        if self.groups == 1 and self.channels > FEW_CHANNELS:
            return [*calls, _copy_in_runs(matrix, windows)], matrix
        grouped = windows.reshape(*windows.shape[:5], self.groups, self.channels, copy=False)
        if self.channels > FEW_CHANNELS:
            seen = grouped.transpose(5, 0, 1, 2, 3, 4, 6)
            return [
                *calls,
                partial(np.copyto, matrix.reshape(seen.shape, copy=False), seen),
            ], matrix
        # Runs of channels are short, so copy runs of pixels to columns instead.
        seen = grouped.transpose(5, 3, 4, 6, 0, 1, 2)
        columns = matrix.reshape(self.groups, self.length, matrix.shape[1], copy=False)
        calls.append(partial(np.copyto, columns.reshape(seen.shape, copy=False), seen))
        return calls, columns.transpose(0, 2, 1)


def _copy_in_runs(matrix: Array, windows: Array) -> Call:
    """Return the call that copies (N, H', W', kh, kw, C); a window's line is contiguous."""
    *places, width, channels = windows.shape
    lines = windows.reshape(*places, width * channels, copy=False)
    return copy_in_runs(matrix.reshape(lines.shape, copy=False), lines)


def by_group(pixels: Array, groups: int) -> Array:
    """Return (..., channels) as a view (groups, pixels, channels / groups)."""
    *axes, channels = pixels.shape
    by_pixel = pixels.reshape(math.prod(axes), groups, channels // groups, copy=False)
    return by_pixel.transpose(1, 0, 2)
