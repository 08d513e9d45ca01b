"""Windows along one axis: of a rectangular window the sides, which pooling takes one by one."""

from __future__ import annotations

from dataclasses import dataclass

from dist_net.autodiff.arrays import Array, Shape


@dataclass(frozen=True)
class AxisWindows:
    """Windows of ``size`` every ``stride`` along an axis of a map, ``length`` elements long.

    There are ``results`` of them; the first begins ``before`` elements before the map.
    """

    axis: int
    size: int
    stride: int
    before: int
    length: int
    results: int

    def taps(self) -> list[tuple[slice, slice]]:
        """For each place in a window: the windows that have an element there, and the elements."""
        taps = []
        for offset in range(-self.before, self.size - self.before):
            first = max(0, -(offset // self.stride))
            last = min(self.results - 1, (self.length - 1 - offset) // self.stride)
            if first <= last:
                start, stop = first * self.stride + offset, last * self.stride + offset + 1
                taps.append((slice(first, last + 1), slice(start, stop, self.stride)))
        return taps

    def counts(self) -> list[int]:
        """How many elements of the map each window has."""
        starts = range(-self.before, self.results * self.stride - self.before, self.stride)
        return [min(start + self.size, self.length) - max(start, 0) for start in starts]

    @property
    def changes_nothing(self) -> bool:
        """Whether each window is one element, and each element a window."""
        return self.size == self.stride == 1 and self.results == self.length

    @property
    def overlaps(self) -> bool:
        """Whether an element can be in two windows."""
        return self.size > self.stride

    @property
    def is_partition(self) -> bool:
        """Whether each element is in one window, and only the last may lack some."""
        covered = self.results * self.stride
        return self.size == self.stride and self.before == 0 and covered >= self.length

    def of(self, array: Array, where: slice) -> Array:
        """A part along the axis."""
        return array[(slice(None),) * self.axis + (where,)]

    def result_shape(self, shape: Shape) -> Shape:
        """The result's shape for a map's."""
        return (*shape[: self.axis], self.results, *shape[self.axis + 1 :])

    def map_shape(self, shape: Shape) -> Shape:
        """The map's shape for a result's."""
        return (*shape[: self.axis], self.length, *shape[self.axis + 1 :])
