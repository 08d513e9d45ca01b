"""Types of arrays and of calls on them, and checks of integers in shapes."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from dist_net.errors import ShapeError

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
Call: TypeAlias = Callable[[], object]
"""A NumPy call with its arrays bound. Running a plan makes its calls in order."""


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
