"""A parameter server's buffers for tests: arrays of this process."""

from collections.abc import Sequence

from dist_net.vector import Vector


class ListedBuffers:
    """These arrays, of which those in ``mapped`` were asked for and ``released`` given back."""

    def __init__(self, arrays: Sequence[Vector]) -> None:
        self.arrays = arrays
        self.vectors = len(arrays)
        self.mapped: set[int] = set()
        self.released: list[int] = []

    def vector(self, index: int) -> Vector:
        self.mapped.add(index)
        return self.arrays[index]

    def release(self, index: int) -> None:
        self.released.append(index)
