"""Memory for arrays: aligned, shared by plans, divided into scratch arrays."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Array, Shape

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector register


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Return ``size`` uninitialised bytes at a multiple of ``ALIGNMENT_BYTES``."""
    raw = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + size]


class Arena:
    """Memory that several plans use in turn; each may overwrite the others' contents.

    A plan keeps its memory, so compile the largest first: the others then fit into that.
    """

    def __init__(self) -> None:
        self._pieces: list[NDArray[np.uint8]] = []

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self._pieces))

    def pieces(self, sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Return disjoint, uninitialised pieces of at least these ``sizes`` in bytes."""
        given: dict[int, NDArray[np.uint8]] = {}
        for rank, index in enumerate(sorted(range(len(sizes)), key=lambda i: -sizes[i])):
            if rank == len(self._pieces):
                self._pieces.append(aligned_bytes(sizes[index]))
            elif len(self._pieces[rank]) < sizes[index]:
                self._pieces[rank] = aligned_bytes(sizes[index])
            given[index] = self._pieces[rank]
        return [given[index] for index in range(len(sizes))]


def scratch_bytes(shapes: Sequence[Shape], dtype: np.dtype[np.generic]) -> int:
    """Return the number of bytes that ``carve`` needs for these shapes."""
    return sum(_room(shape, dtype) for shape in shapes)


def carve(
    scratch: NDArray[np.uint8], shapes: Sequence[Shape], dtype: np.dtype[np.generic]
) -> list[Array]:
    """Return arrays of these shapes in ``scratch``, each aligned to a cache line."""
    arrays: list[Array] = []
    start = 0
    for shape in shapes:
        used = scratch[start : start + math.prod(shape) * dtype.itemsize]
        arrays.append(used.view(dtype).reshape(shape, copy=False))
        start += _room(shape, dtype)
    return arrays


def _room(shape: Shape, dtype: np.dtype[np.generic]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
