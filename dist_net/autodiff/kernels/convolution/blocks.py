"""Blocks: the parts of a convolution's output that are computed one by one, or side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dist_net.autodiff.arrays import Shape


@dataclass(frozen=True)
class Block:
    """Some images, some rows of each, and some channels of an output (N, H, W, C)."""

    images: slice
    rows: slice
    channels: slice

    @property
    def index(self) -> tuple[slice, slice, slice, slice]:
        """What selects the block from the whole output."""
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
    """How an output is cut: at most so many images, rows and channels in a block.

    Several images share a block only with all their rows, so a block's pixels are evenly spaced.
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
