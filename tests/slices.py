"""Work in slices, done at once."""

from collections.abc import Generator
from typing import TypeVar

Value = TypeVar("Value")


def finished(work: Generator[None, None, Value]) -> Value:
    """Return the result of a generator that yields between slices."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Value = end.value
            return result
