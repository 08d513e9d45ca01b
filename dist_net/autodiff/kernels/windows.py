"""Windows that slide over a map: the geometry that convolution and pooling have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dist_net.autodiff.arrays import Array, Shape, integer
from dist_net.errors import ShapeError

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = "Literal['same', 'valid'] | int | tuple[Pair, Pair]"


@dataclass(frozen=True)
class Windows:
    """Windows of ``size`` every ``stride``, over a map with ``padding`` around it.

    All three are pairs, rows before columns: ``padding`` is ((top, bottom), (left, right)).
    """

    size: Pair
    stride: Pair
    padding: tuple[Pair, Pair]

    def output(self, height: int, width: int) -> Pair:
        """How many windows fit, down and across; raises ShapeError if none does."""
        fits = tuple(
            (length + sum(padding) - size) // stride + 1
            for length, size, stride, padding in zip(
                (height, width), self.size, self.stride, self.padding, strict=True
            )
        )
        if min(fits) < 1:
            raise ShapeError(
                f"a window of {self.size} does not fit into a map of {(height, width)} with "
                f"padding {self.padding}; expected the padded map to be as large at least"
            )
        return fits[0], fits[1]

    def padded(self, shape: Shape) -> Shape:
        """The shape of (N, H, W, C) with the padding around it."""
        n, height, width, channels = shape
        (top, bottom), (left, right) = self.padding
        return n, height + top + bottom, width + left + right, channels

    def over(self, padded: Array) -> Array:
        """(N, H', W', size[0], size[1], C): the windows of a padded map, in its own memory."""
        n, height, width, channels = padded.shape
        rows, columns = Windows(self.size, self.stride, ((0, 0), (0, 0))).output(height, width)
        per_image, per_row, per_column, per_channel = padded.strides
        return as_strided(
            padded,
            (n, rows, columns, *self.size, channels),
            (
                *(per_image, self.stride[0] * per_row, self.stride[1] * per_column),
                *(per_row, per_column, per_channel),
            ),
        )


def windows(size: int | Pair, stride: int | Pair, padding: Padding, map_size: Pair) -> Windows:
    """The windows that these say, over a map of ``map_size``, which "same" needs to know.

    ``padding`` is one number for every side, or ((top, bottom), (left, right)); "valid" is 0, and
    "same" gives a window for each ``stride`` of the map, with the odd one of an odd number of
    padded lines below or on the right, as TensorFlow has it. Raises ShapeError for values that
    cannot be.
    """
    size, stride = pair("size", size, 1), pair("stride", stride, 1)
    sides: tuple[Pair, Pair]
    match padding:
        case "valid":
            sides = ((0, 0), (0, 0))
        case "same":
            sides = (
                _same(size[0], stride[0], map_size[0]),
                _same(size[1], stride[1], map_size[1]),
            )
        case int() | np.integer():
            sides = (pair("padding", padding, 0),) * 2
        case ((_, _), (_, _)):
            sides = pair("padding", padding[0], 0), pair("padding", padding[1], 0)
        case _:
            raise ShapeError(
                f"padding {padding!r}: expected 'same', 'valid', a number, or "
                f"((top, bottom), (left, right))"
            )
    return Windows(size, stride, sides)


def pair(name: str, value: int | Pair, least: int) -> Pair:
    """One or two integers as two, of at least ``least``; raises ShapeError if they are others."""
    two = value if isinstance(value, Sequence) else (value, value)
    if len(two) != 2:
        raise ShapeError(f"{name} {value!r}; expected one or two integers")
    return integer(name, two[0], least), integer(name, two[1], least)


def _same(size: int, stride: int, length: int) -> Pair:
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def fill_padded(windows: Windows, x: Array, padded: Array, value: float) -> None:
    """Copies (N, H, W, C) into the middle of ``padded``, and ``value`` around it."""
    (top, _), (left, _) = windows.padding
    _, height, width, _ = x.shape
    padded[:, :top] = value
    padded[:, top + height :] = value
    padded[:, :, :left] = value
    padded[:, :, left + width :] = value
    np.copyto(padded[:, top : top + height, left : left + width], x)
