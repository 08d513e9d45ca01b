"""Tensors as JSON: their numbers are parsed and written in slices.

A JSON parser holds the interpreter's lock until its end: for 0.1 s with 4 MiB of numbers, and for 1
s with as many empty objects. So arrays of numbers are taken out of the text, and the rest is short.
Functions that work in slices are generators, which yield between two of them.
"""

import re
import struct
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from math import prod
from reprlib import Repr
from typing import Any, NamedTuple

import orjson

from dist_net.errors import BadRequestError, RequestTooLargeError
from dist_net.nets.tensor_specs import TYPE_CODES
from dist_net.serving.gateway.client_ledger import Value
from dist_net.serving.pool.requests import Payload

Sliced = Generator[None, None, Value]
"""The work for a value, in slices."""

MAX_JSON_BYTES = 4 * 2**20

SLICE_ELEMENTS = 2**11
"""The numbers of an answer that are written at a time, in about 0.2 ms."""

_SLICE_BYTES = 2**13  # of numbers, parsed at a time, in up to 0.3 ms
_MAX_OTHER_BYTES = 2**16  # parsed at once
_MAX_ARRAYS = 2**8
_DATA = b'"data"'
_BEFORE_ARRAY = re.compile(rb'[{,\s]"data"\s{0,64}:\s{0,64}(?=\[)')
_BRACKETS_AS_SPACES = bytes.maketrans(b"[]", b"  ")
_SPACES = b" \t\r\n"
_NOT_NESTING = bytes(set(range(256)) - set(b"[],"))
_MISPLACED = re.compile(rb"(?<=[^,\[])\[|\](?=[^,\]])")  # after a number, or before one
_SHOWN = Repr()
_SHOWN.maxlevel = 2  # instead of descending a thousand nested lists
_SHOWN.maxstring = _SHOWN.maxother = 60


def shown(value: object) -> str:
    """Return a value from a request for a message, shortened."""
    return _SHOWN.repr(value)


class JsonArray(NamedTuple):
    text: bytes
    start: int
    end: int


def json_object(
    text: Payload, example: Callable[[], str] = str
) -> tuple[dict[str, Any], dict[str, JsonArray]]:
    """Return a body's JSON object, with names in place of the arrays of its data, and the arrays.

    Raise RequestTooLargeError, and BadRequestError with an example.
    """
    if len(text) > MAX_JSON_BYTES:
        raise RequestTooLargeError(
            f"{len(text):,} bytes of JSON; expected at most {MAX_JSON_BYTES:,}; send larger "
            f"tensors as raw bytes after it (binary_data_size)"
        )
    text = bytes(text)
    arrays = _data_arrays(text)
    other_bytes = len(text) - sum(each.end - each.start for each in arrays)
    if other_bytes > _MAX_OTHER_BYTES:
        raise RequestTooLargeError(
            f"{other_bytes:,} bytes of JSON besides arrays of numbers; expected at most "
            f"{_MAX_OTHER_BYTES:,}"
        )
    others, copied = b"", 0
    for number, (_, start, end) in enumerate(arrays):
        others += b'%b"array %d"' % (text[copied:start], number)
        copied = end
    try:
        request = orjson.loads(others + text[copied:])
    except orjson.JSONDecodeError as error:
        raise BadRequestError(
            f"the request is not JSON: {error}; expected a JSON object{example()}"
        ) from error
    if not isinstance(request, dict):
        raise BadRequestError(f"the request is {shown(request)}; expected a JSON object{example()}")
    return request, {f"array {number}": array for number, array in enumerate(arrays)}


def _data_arrays(text: bytes) -> list[JsonArray]:
    """Return the arrays of numbers in JSON that are called data, with text that may follow."""
    arrays, place = list[JsonArray](), 0
    for _ in range(_MAX_ARRAYS):
        place = text.find(_DATA, place)
        if place < 0:
            return arrays
        # Within a string, a backslash would stand before the quote.
        found = _BEFORE_ARRAY.match(text, place - 1)
        place += len(_DATA)
        if found is not None:
            start = found.end()
            quote = text.find(b'"', start)
            end = quote if quote >= 0 else len(text)
            brace = text.find(b"}", start, end)
            end = text.rfind(b"]", start, brace if brace >= 0 else end) + 1
            if end:
                arrays.append(JsonArray(text, start, end))
                place = end
    raise RequestTooLargeError(f"the JSON contains data {_MAX_ARRAYS:,} times; expected fewer")


def tensor_from_json(
    data: Any, arrays: Mapping[str, JsonArray], datatype: str, shape: Sequence[int]
) -> Sliced[Payload]:
    """Return the bytes of an array of ``json_object``, flat or nested like ``shape``.

    Raise BadRequestError.
    """
    if not (isinstance(data, str) and data in arrays):
        raise BadRequestError(f'"data" is {shown(data)}; expected an array of {datatype}')
    (text, start, end), size = arrays[data], prod(shape)
    packed, nesting, elements = bytearray(), bytearray(), 0
    while start <= end and elements <= size:
        comma = text.find(b",", start + _SLICE_BYTES, end)
        piece = text[start : comma if comma >= 0 else end]
        compact = piece.translate(None, _SPACES)
        if len(piece) > 2 * _SLICE_BYTES or _MISPLACED.search(compact):
            raise _wrong_nesting(shape)
        try:
            numbers = orjson.loads(b"[%b]" % piece.translate(_BRACKETS_AS_SPACES))
        except orjson.JSONDecodeError as error:
            raise BadRequestError(f'"data" is not an array of numbers: {error}') from error
        packed += pack_elements(numbers, datatype)
        nesting += compact.translate(None, _NOT_NESTING) + b","
        elements += len(numbers)
        start += len(piece) + 1
        yield
    if elements != size:
        more = " or more" if start <= end else ""
        raise BadRequestError(
            f'"data" has {elements:,} elements{more}; expected {size:,}, for the shape '
            f"{list(shape)}"
        )
    if nesting[:-1] not in (_nesting([elements]), _nesting(shape)):
        raise _wrong_nesting(shape)
    return memoryview(packed)


def pack_elements(elements: Sequence[Any], datatype: str) -> bytes:
    """Return the bytes of numbers or booleans from JSON. Raise BadRequestError."""
    try:
        types = set(map(type, elements))  # struct converts anything to BOOL, and true to numbers
        if types - {bool} if datatype == "BOOL" else bool in types:
            raise struct.error("expected true and false for BOOL, and only for BOOL")
        # Stricter than NumPy, which takes "1" and null for numbers and pads every string to the
        # length of the longest; and twice as fast.
        return struct.pack(f"<{len(elements)}{TYPE_CODES[datatype]}", *elements)
    except (struct.error, OverflowError) as error:
        raise BadRequestError(f'"data" holds more than numbers of {datatype}: {error}') from error


def _wrong_nesting(shape: Sequence[int]) -> BadRequestError:
    return BadRequestError(
        f'"data" is not nested like its shape {list(shape)}; expected that, or all elements in one '
        f"array"
    )


def _nesting(shape: Sequence[int]) -> bytes:
    """Return the brackets and commas of an array of this shape; "" without elements."""
    *outer, last = shape if shape and prod(shape) else (0,)
    nesting = b"[%b]" % (b"," * (last - 1))
    for size in reversed(outer):
        nesting = b"[%b]" % b",".join([nesting] * size)
    return nesting


def sliced_json(slices: Iterable[Any]) -> Sliced[orjson.Fragment]:
    """Return the JSON of an array from slices of its elements: lists, or arrays of NumPy."""
    pieces = list[bytes]()
    for number, each in enumerate(slices):
        if number:
            yield
        pieces.append(orjson.dumps(each, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
    return orjson.Fragment(b"[%b]" % b",".join(pieces))
