"""Tensors of the protocol: their data types, example values, raw bytes, and comparison."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# The letters of ``struct``. BF16 is the upper half of an FP32, and BYTES have lengths.
CODES = {
    **{"BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b"},
    **{"INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d"},
}
INTEGERS = {name for name in CODES if "INT" in name}
DATATYPES = {*CODES, "BF16", "BYTES"}
_TOLERANCE = {"FP16": 1e-2, "BF16": 5e-2}  # of a compute on other rows, as parts of the value
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Tensor:
    """An input with example values: their number is the product of ``shape``."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]

    def as_json(self) -> dict[str, Any]:
        described = {"name": self.name, "shape": list(self.shape), "datatype": self.datatype}
        return described | {"data": self.values}

    def raw(self) -> bytes:
        return packed(self.datatype, self.values)


def example(name: str, datatype: str, shape: Sequence[int], start: int = 0) -> Tensor:
    """Return a tensor of small values, which every numeric type represents exactly."""
    places = range(start, start + math.prod(shape))
    if datatype == "BOOL":
        values: list[Any] = [place % 2 == 0 for place in places]
    elif datatype == "BYTES":
        values = [f"text {place % 5}" for place in places]
    elif datatype in ("FP16", "BF16", "FP32", "FP64"):
        values = [place % 5 / 4 for place in places]
    else:
        values = [place % 5 for place in places]
    return Tensor(name, datatype, tuple(shape), values)


def integer_limits(datatype: str) -> tuple[int, int]:
    """Return the smallest and the greatest value of a type of integers."""
    bits = 8 * struct.calcsize("<" + CODES[datatype])
    return (
        (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )


def packed(datatype: str, values: Sequence[Any]) -> bytes:
    """Return raw contents: little-endian, row-major; BYTES with a uint32 length before each."""
    if datatype == "BYTES":
        contents = [each.encode() for each in values]
        return b"".join(struct.pack("<I", len(each)) + each for each in contents)
    if datatype == "BF16":
        return b"".join(struct.pack("<f", each)[2:] for each in values)
    return struct.pack(f"<{len(values)}{CODES[datatype]}", *values)


def unpacked(datatype: str, raw: bytes) -> list[Any]:
    """Return the elements of raw contents. Raise ValueError."""
    try:
        if datatype == "BF16":
            return [each for (each,) in struct.iter_unpack("<f", _widened(raw))]
        if datatype != "BYTES":
            return [each for (each,) in struct.iter_unpack(f"<{CODES[datatype]}", raw)]
        elements = []
        while raw:
            end = 4 + struct.unpack_from("<I", raw)[0]
            if end > len(raw):
                raise ValueError(f"an element of BYTES ends after its tensor, at {end:,}")
            elements.append(raw[4:end].decode())
            raw = raw[end:]
        return elements
    except struct.error as error:
        raise ValueError(f"{len(raw):,} bytes are no tensor of {datatype}: {error}") from error


def _widened(raw: bytes) -> bytes:
    return b"".join(b"\0\0" + raw[start : start + 2] for start in range(0, len(raw), 2))


def flat(data: Any) -> list[Any]:
    """Return the elements of a nested JSON array."""
    if not isinstance(data, list):
        raise ValueError(f"{data!r:.80} is no array")
    nested = any(isinstance(each, list) for each in data)
    return [element for each in data for element in flat(each)] if nested else data


def nested(values: Sequence[Any], shape: Sequence[int]) -> Any:
    """Return the elements as nested lists of this shape; a scalar's as a list of one."""
    if len(shape) <= 1:
        return list(values)
    step = math.prod(shape[1:])
    return [
        nested(values[step * place : step * (place + 1)], shape[1:]) for place in range(shape[0])
    ]


def is_element(datatype: str, value: Any) -> bool:
    """Return whether a JSON value represents an element of this type."""
    if datatype in ("BOOL", "BYTES"):
        return type(value) is (bool if datatype == "BOOL" else str)
    if datatype.startswith(("FP", "BF")):
        return type(value) in (int, float)
    try:
        packed(datatype, [value])
    except struct.error:
        return False
    return type(value) is int


def are_close(datatype: str, found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Return whether elements are equal, for floating point up to the rounding of a batch."""
    if not datatype.startswith(("FP", "BF")):
        return list(found) == list(expected)
    part = _TOLERANCE.get(datatype, _ROUNDING)
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(
        math.isclose(a, b, rel_tol=part, abs_tol=part * 1e-2) for a, b in pairs
    )
