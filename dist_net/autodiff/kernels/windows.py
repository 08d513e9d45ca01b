"""The positions of convolution and pooling windows on a map, along both axes or one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dist_net.autodiff.arrays import Array, Shape, integer, shown
from dist_net.errors import ShapeError

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = "Literal['same', 'valid'] | int | tuple[Pair, Pair]"

UNPADDED = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Windows:
    """Windows of ``size`` every ``stride``, over a map with ``padding`` around it.

    A window has every ``dilation``-th pixel of its ``extent``. All are pairs, rows before columns:
    ``padding`` is ((top, bottom), (left, right)).
    """

    size: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair = (1, 1)

    @property
    def extent(self) -> Pair:
        """The rows and columns from the first to the last pixel of a window."""
        (height, width), (down, across) = self.size, self.dilation
        return (height - 1) * down + 1, (width - 1) * across + 1

    def output(self, height: int, width: int) -> Pair:
        """Return the number of windows down and across; raise ``ShapeError`` if none fits."""
        fits = tuple(
            (length + sum(padding) - extent) // stride + 1
            for length, extent, stride, padding in zip(
                (height, width), self.extent, self.stride, self.padding, strict=True
            )
        )
        if min(fits) < 1:
            raise ShapeError(
                f"a window of {self.extent} does not fit into a map of {(height, width)} with "
                f"padding {self.padding}; expected the padded map to be at least as large"
            )
        return fits[0], fits[1]

    def over(self, padded: Array) -> Array:
        """Return the windows of a padded map as a view (N, H', W', size[0], size[1], C)."""
        n, height, width, channels = padded.shape
        rows, columns = replace(self, padding=UNPADDED).output(height, width)
        per_image, per_row, per_column, per_channel = padded.strides
        between_windows = self.stride[0] * per_row, self.stride[1] * per_column
        in_a_window = self.dilation[0] * per_row, self.dilation[1] * per_column
        return as_strided(
            padded,
            (n, rows, columns, *self.size, channels),
            (per_image, *between_windows, *in_a_window, per_channel),
        )


POINTWISE = Windows((1, 1), (1, 1), UNPADDED)


def windows(
    size: int | Pair, stride: int | Pair, padding: Padding, map_size: Pair, dilation: int | Pair = 1
) -> Windows:
    """Return the windows over a map of ``map_size``, its height and width.

    ``padding`` is one number for every side, or ((top, bottom), (left, right)). "valid" is 0.
    "same" makes one window for every ``stride`` pixels of the map; if the padding is odd, the
    bottom or right gets the extra line, as in TensorFlow. Raise ``ShapeError``.
    """
    size, stride = pair("size", size, 1), pair("stride", stride, 1)
    seen = Windows(size, stride, UNPADDED, pair("dilation", dilation, 1))
    sides: tuple[Pair, Pair]
    match padding:
        case "valid":
            sides = UNPADDED
        case "same":
            sides = (
                _same(seen.extent[0], stride[0], map_size[0]),
                _same(seen.extent[1], stride[1], map_size[1]),
            )
        case int() | np.integer():
            sides = (pair("padding", padding, 0),) * 2
        case ((_, _), (_, _)):
            sides = pair("padding", padding[0], 0), pair("padding", padding[1], 0)
        case _:
            raise ShapeError(
                f"padding {shown(padding)}: expected 'same', 'valid', a number, or "
                f"((top, bottom), (left, right))"
            )
    return replace(seen, padding=sides)


def phase_of(size: int, stride: int, dilation: int, offset: int) -> tuple[slice, int]:
    """Return the taps of a phase and the offset of its first window, along one axis.

    Either the stride or the dilation must be 1.

    The phase consists of the pixels ``offset``, ``offset`` + stride, … of the padded map; the taps
    reach these pixels. The offset counts backwards from the start of the cotangent.
    """
    first = offset % stride
    taps = len(range(first, size, stride))
    return slice(first, size, stride), (taps - 1) * dilation - offset // stride


def pair(name: str, value: int | Pair, least: int) -> Pair:
    """Return one or two integers as a pair; raise ``ShapeError`` if one is below ``least``."""
    two = value if isinstance(value, Sequence) else (value, value)
    if len(two) != 2:
        raise ShapeError(f"{name} {shown(value)}; expected one or two integers")
    return integer(name, two[0], least), integer(name, two[1], least)


def _same(size: int, stride: int, length: int) -> Pair:
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class AxisWindows:
    """Windows of ``size`` every ``stride`` along one axis of a map, which has ``length`` elements.

    There are ``results`` windows; the first begins ``before`` elements before the map. Pooling
    splits a rectangular window into such windows along one axis, then along the other.
    """

    axis: int
    size: int
    stride: int
    before: int
    length: int
    results: int

    def taps(self) -> list[tuple[slice, slice]]:
        """Return the windows with an element at each position in a window, and these elements."""
        taps = []
        for offset in range(-self.before, self.size - self.before):
            first = max(0, -(offset // self.stride))
            last = min(self.results - 1, (self.length - 1 - offset) // self.stride)
            if first <= last:
                start, stop = first * self.stride + offset, last * self.stride + offset + 1
                taps.append((slice(first, last + 1), slice(start, stop, self.stride)))
        return taps

    def counts(self) -> list[int]:
        """Return the number of the map's elements in each window."""
        starts = range(-self.before, self.results * self.stride - self.before, self.stride)
        return [min(start + self.size, self.length) - max(start, 0) for start in starts]

    @property
    def changes_nothing(self) -> bool:
        return self.size == self.stride == 1 and self.results == self.length

    @property
    def overlaps(self) -> bool:
        return self.size > self.stride

    @property
    def is_partition(self) -> bool:
        """Whether each element is in exactly one window; the last window may be incomplete."""
        covered = self.results * self.stride
        return self.size == self.stride and self.before == 0 and covered >= self.length

    def index(self, where: slice) -> tuple[slice, ...]:
        return (slice(None),) * self.axis + (where,)

    def of(self, array: Array, where: slice) -> Array:
        return array[self.index(where)]

    def resized(self, shape: Shape, length: int) -> Shape:
        return (*shape[: self.axis], length, *shape[self.axis + 1 :])
