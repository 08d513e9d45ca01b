"""Tensors of the Open Inference Protocol, in JSON and as raw bytes; pure.

Raw bytes are little-endian and row-major. An element of BYTES is its length, a little-endian
uint32, and then its content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from math import prod
from reprlib import Repr
from typing import Any

from dist_net.errors import QuestionError
from dist_net.serving.pool.description import ROW_BYTES
from dist_net.serving.pool.requests import Payload

_FORMATS = {"FP32": "f", "UINT8": "B"}
_LENGTH = struct.Struct("<I")
_SHOWN = Repr()
_SHOWN.maxlevel = 2  # what is nested a thousand deep must not be followed to its ground
_SHOWN.maxstring = _SHOWN.maxother = 60


def shown(value: object) -> str:
    """A value of somebody else's for a message: cut short."""
    return _SHOWN.repr(value)


def tensor_from_json(data: Any, datatype: str, shape: Sequence[int]) -> bytes:
    """The raw bytes of a tensor whose elements are a JSON array, flat or nested as ``shape`` is.

    Raises QuestionError unless these are as many numbers as fit, each in the type's range.
    """
    elements = _flat(data, shape)
    if len(elements) != prod(shape):
        raise QuestionError(
            f'"data" has {len(elements):,} elements; expected {prod(shape):,}, for the shape '
            f"{list(shape)}"
        )
    try:
        # Strict where NumPy is not: it would take "1" and null for numbers, and would make an array
        # of strings as wide as the longest of them. And twice as fast.
        return struct.pack(f"<{len(elements)}{_FORMATS[datatype]}", *elements)
    except (struct.error, OverflowError) as error:
        raise QuestionError(f'"data" holds more than numbers of {datatype}: {error}') from error


def tensor_from_bytes(raw: Payload, datatype: str, shape: Sequence[int]) -> Payload:
    """``raw``, which is borrowed; raises QuestionError unless it is a tensor of this shape."""
    expected = ROW_BYTES[datatype] * prod(shape)
    if len(raw) != expected:
        raise QuestionError(
            f"{len(raw):,} bytes for a tensor of {datatype} and the shape {list(shape)}; expected "
            f"{expected:,}"
        )
    return raw


def elements_of_bytes(raw: Payload, count: int) -> list[memoryview]:
    """What is in a tensor of BYTES, borrowed; raises QuestionError unless it has ``count``."""
    found: list[memoryview] = []
    left = memoryview(raw)
    while left and len(found) < count:
        start = _LENGTH.size
        end = start + _LENGTH.unpack_from(left)[0] if len(left) >= start else start
        if end > len(left):
            raise QuestionError(
                f"element {len(found)} of a tensor of BYTES ends {end - len(left):,} bytes behind "
                f"the tensor; expected a length (uint32, little-endian) and as many bytes"
            )
        found.append(left[start:end])
        left = left[end:]
    if left or len(found) != count:
        raise QuestionError(
            f"a tensor of BYTES has {len(found)} elements and {len(left):,} bytes behind them; "
            f"expected {count} elements, as its shape says, and nothing else"
        )
    return found


def bytes_of_elements(elements: Iterable[bytes]) -> bytes:
    """A tensor of BYTES with these contents."""
    return b"".join(chain.from_iterable((_LENGTH.pack(len(each)), each) for each in elements))


def _flat(data: Any, shape: Sequence[int]) -> list[Any]:
    """The elements of nested lists; they must be as long as ``shape`` says, unless flat already."""
    if not isinstance(data, list):
        raise QuestionError(f'"data" is {shown(data)}; expected an array')
    if not (data and isinstance(data[0], list)):
        return data
    rows = [data]
    for size in shape:
        if any(not isinstance(row, list) or len(row) != size for row in rows):
            raise QuestionError(
                f'"data" is not nested as its shape {list(shape)} says; expected that, or all '
                f"elements in one array"
            )
        rows = list(chain.from_iterable(rows))
    return rows
