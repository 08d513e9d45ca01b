"""Arrays: the types of arrays and of calls on them, checks of integers in shapes, and memory."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ShapeError

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Call: TypeAlias = Callable[[], object]
"""A NumPy call with its arrays bound. Running a plan makes its calls in order."""

ALIGNMENT_BYTES = 64  # a cache line, and the widest vector register


def in_order(calls: Sequence[Call]) -> Call:
    """Return a single call that makes all of ``calls`` in order."""
    if len(calls) == 1:
        return calls[0]

    def call_all() -> None:
        for call in calls:
            call()

    return call_all


def cut(length: int, step: int) -> list[slice]:
    """Return the slices of ``step`` elements that cut an axis; the last may be shorter."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def integer(name: str, value: Any, least: int | None = None) -> int:
    """Return a Python or NumPy integer ``value`` >= ``least`` as an int. Raise ``ShapeError``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        found = shown(value)
        hint = f"; pass an activation by name: activation={found}" if callable(value) else ""
        raise ShapeError(f"{name} {found}; expected an integer{bound}{hint}")
    return number


def shown(value: Any) -> str:
    """Return the ``repr`` of a value, with functions by their names instead of addresses."""
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    return str(getattr(value, "__name__", None) or repr(value))


def integers(name: str, values: Any) -> Shape:
    """Return a shape or axes as a tuple; raise ``ShapeError`` unless all are integers."""
    try:
        return tuple(operator.index(each) for each in values)
    except TypeError:
        raise ShapeError(f"{name} {values!r}; expected a sequence of integers") from None


def positive_axis(name: str, axis: Any, shape: Shape) -> int:
    """Return ``axis`` of ``shape`` as a non-negative number; raise ``ShapeError``."""
    found = integer(f"{name}: axis", axis)
    if not -len(shape) <= found < len(shape):
        raise ShapeError(
            f"{name}: axis {found} of shape {shape}; expected one of {len(shape)} axes"
        )
    return found % len(shape)


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
