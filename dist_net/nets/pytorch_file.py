"""Read tensors from a file in PyTorch's old format, without PyTorch and without running a pickle.

The file consists of five pickles: magic number, protocol, system, the tensors by name, and the keys
of the storages. Each storage follows as a count of 8 bytes and its elements. A pickle is a program
that can call any function. This module interprets only the instructions that create plain data, and
accepts only four names, which describe tensors: it imports and calls nothing. It verifies the
file's checksum first.
"""

from __future__ import annotations

import hashlib
import math
import pickletools
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dist_net.autodiff import Array
from dist_net.errors import ModelFileError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ELEMENTS: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ORDERED_DICT = "collections OrderedDict"
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"


class _Name(NamedTuple):
    """A function or class named in a pickle; it is never imported."""

    name: str


class _Storage(NamedTuple):
    """The elements of a tensor in the file."""

    dtype: np.dtype[Any]
    key: str
    length: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: Path, size_bytes: int, sha256: str) -> dict[str, Array]:
    """Return the tensors of a file by name: read-only views of the file's content in memory.

    Raise ModelFileError unless the file has this size and checksum and holds tensors that share
    no storage.
    """
    content = _published(path, size_bytes, sha256)
    try:
        return _tensors(content)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = error if isinstance(error, ValueError) else f"is damaged ({error})"
        raise ModelFileError(
            f"{path}: {reason}; expected tensors in PyTorch's format before its version 1.6"
        ) from error


def _published(path: Path, size_bytes: int, sha256: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(size_bytes + 1)
    except OSError as error:
        raise ModelFileError(
            f"{path}: {error.strerror}; expected a file of {size_bytes:,} bytes"
        ) from error
    if len(content) != size_bytes or hashlib.sha256(content).hexdigest() != sha256:
        raise ModelFileError(
            f"{path}: is not the published file; expected {size_bytes:,} bytes with the SHA-256 "
            f"{sha256}: reinstall the package that contains it"
        )
    return content


def _tensors(content: bytes) -> dict[str, Array]:
    stream = BytesIO(content)
    magic, protocol, system, state, keys = (_plain_data(stream) for _ in range(5))
    if (magic, protocol, system["little_endian"]) != (MAGIC, PROTOCOL, True):
        raise ValueError("does not begin with the header of a little-endian file")
    declared = {tensor.storage.key: tensor.storage for tensor in state.values()}
    if sorted(keys) != sorted(declared) or len(declared) != len(state):
        raise ValueError("its tensors and its storages differ in number or keys")
    storages: dict[str, Array] = {}
    place = stream.tell()
    for key in keys:
        dtype, _, length = declared[key]
        if int.from_bytes(content[place : place + 8], "little") != length:
            raise ValueError(f"storage {key} has another length than its tensor")
        storages[key] = np.frombuffer(content, dtype, length, place + 8)
        place += 8 + storages[key].nbytes
    if place != len(content):
        raise ValueError(f"has {len(content) - place:,} bytes after its last storage")
    return {name: _shaped(tensor, storages[tensor.storage.key]) for name, tensor in state.items()}


def _shaped(tensor: _Tensor, elements: Array) -> Array:
    """Return the tensor: a view of its whole storage, with any strides."""
    shape, strides = tensor.shape, tensor.strides
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) != len(elements) or not 0 <= last < max(len(elements), 1):
        raise ValueError(f"a tensor of shape {shape} is not the whole of its storage")
    steps = [stride * elements.itemsize for stride in strides]
    return as_strided(elements, shape, steps, writeable=False)


def _plain_data(stream: BytesIO) -> Any:
    """Return the numbers, texts, lists, dicts and tensors of the stream's next pickle.

    Raise ValueError for other instructions and names.
    """
    stack: list[Any] = []
    marks: list[int] = []
    known: dict[int, Any] = {}

    def popped(count: int) -> Any:
        if not 0 <= count <= len(stack) - (marks[-1] if marks else 0):
            raise ValueError("a pickle pops more values than it pushed")
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    def popped_to_mark() -> Any:
        return popped(len(stack) - marks.pop())

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                (value,) = popped(1)
                return value
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_LIST" | "EMPTY_DICT":
                stack.append([] if opcode.name == "EMPTY_LIST" else {})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(popped(int(opcode.name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(popped_to_mark()))
            case "APPEND" | "APPENDS":
                items = popped(1) if opcode.name == "APPEND" else popped_to_mark()
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = popped(2) if opcode.name == "SETITEM" else popped_to_mark()
                stack[-1].update(zip(_texts(items[::2]), items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                known[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(known[argument])
            case "GLOBAL":
                stack.append(_named(argument))
            case "BINPERSID":
                stack.append(_storage(*popped(1)))
            case "REDUCE":
                stack.append(_made_by(*popped(2)))
            case "BUILD":
                popped(1)  # PyTorch's version
            case name:
                raise ValueError(f"a pickle has the instruction {name}")
    raise ValueError("a pickle has no end")


def _texts(keys: list[Any]) -> list[str]:
    """Check that a dict's keys are strings: nested tuples could take very long to hash."""
    if any(type(key) is not str for key in keys):
        raise ValueError("a dict has keys that are not strings")
    return keys


def _named(name: str) -> _Name:
    if name not in (ORDERED_DICT, REBUILD_TENSOR, *ELEMENTS):
        raise ValueError(f"a pickle names {name[:80]!r}")
    return _Name(name)


def _storage(told: Any) -> _Storage:
    _, elements, key, _, length, _ = told
    if not isinstance(elements, _Name) or type(key) is not str or type(length) is not int:
        raise ValueError("a storage is not described by type, key and length")
    return _Storage(ELEMENTS[elements.name], key, length)


def _made_by(function: Any, arguments: Any) -> Any:
    """Return the result of calling one of the four names."""
    match function, arguments:
        case _Name(name=name), () if name == ORDERED_DICT:
            return {}
        case _Name(name=name), (_Storage() as storage, 0, shape, strides, _, _) if (
            name == REBUILD_TENSOR
        ):
            return _Tensor(storage, _lengths(shape), _lengths(strides))
    raise ValueError("a pickle calls a function that creates neither a tensor nor an empty dict")


def _lengths(numbers: Any) -> tuple[int, ...]:
    if type(numbers) is not tuple or any(type(each) is not int or each < 0 for each in numbers):
        raise ValueError("a tensor's shape or strides are not integers of at least 0")
    return numbers
