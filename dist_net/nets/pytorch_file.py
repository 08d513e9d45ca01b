"""Tensors in a file of PyTorch's old format, read without PyTorch and without running a pickle.

The file is five pickles, one after the other: magic number, protocol, system, the tensors by name,
and the keys of the storages; then for each storage a count of 8 bytes, and its elements. A pickle
is a program, whose instructions may call any function. Here only those are carried out that make
plain data, and of the names that they may call, the four that tensors are described with: nothing
is imported or called. All of it happens after the file's checksum was compared.
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
from dist_net.errors import WeightsFileError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ELEMENTS: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ORDERED_DICT = "collections OrderedDict"
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"


class _Name(NamedTuple):
    """A function or class that a pickle names; it is not looked up."""

    name: str


class _Storage(NamedTuple):
    """Elements in the file, that tensors show."""

    dtype: np.dtype[Any]
    key: str
    length: int


class _Tensor(NamedTuple):
    """A storage and how it is seen."""

    storage: _Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(path: Path, size_bytes: int, sha256: str) -> dict[str, Array]:
    """The tensors of a file by name: read-only, in the memory that the file was read into.

    Raises WeightsFileError unless the file has this size and checksum; and if what it holds is
    no such tensors, each with a storage of its own.
    """
    content = _published(path, size_bytes, sha256)
    try:
        return _tensors(content)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = error if isinstance(error, ValueError) else f"is damaged ({error})"
        raise WeightsFileError(
            f"{path}: {reason}; expected tensors in PyTorch's format before its version 1.6"
        ) from error


def _published(path: Path, size_bytes: int, sha256: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(size_bytes + 1)
    except OSError as error:
        raise WeightsFileError(
            f"{path}: {error.strerror}; expected a file of {size_bytes:,} bytes"
        ) from error
    if len(content) != size_bytes or hashlib.sha256(content).hexdigest() != sha256:
        raise WeightsFileError(
            f"{path}: is not the file that was published; expected {size_bytes:,} bytes with the "
            f"SHA-256 {sha256}: install the package that brings it again"
        )
    return content


def _tensors(content: bytes) -> dict[str, Array]:
    stream = BytesIO(content)
    magic, protocol, system, state, keys = (_plain_data(stream) for _ in range(5))
    if (magic, protocol, system["little_endian"]) != (MAGIC, PROTOCOL, True):
        raise ValueError("does not begin as such a file of little-endian numbers does")
    declared = {tensor.storage.key: tensor.storage for tensor in state.values()}
    if sorted(keys) != sorted(declared) or len(declared) != len(state):
        raise ValueError("its tensors and its storages are not as many, or have other keys")
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
    """The tensor, which has as many elements as its storage, and lies in it with any strides."""
    shape, strides = tensor.shape, tensor.strides
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) != len(elements) or not 0 <= last < max(len(elements), 1):
        raise ValueError(f"a tensor of shape {shape} is not the whole of its storage")
    steps = [stride * elements.itemsize for stride in strides]
    return as_strided(elements, shape, steps, writeable=False)


def _plain_data(stream: BytesIO) -> Any:
    """What the pickle that begins here describes: numbers, texts, lists, dicts and tensors.

    Raises ValueError for an instruction or a name that such files do without.
    """
    stack: list[Any] = []
    marks: list[int] = []
    known: dict[int, Any] = {}

    def popped(count: int) -> Any:
        if not 0 <= count <= len(stack) - (marks[-1] if marks else 0):
            raise ValueError("a pickle takes more than it has made")
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
                popped(1)  # what PyTorch notes of its version
            case name:
                raise ValueError(f"a pickle has the instruction {name}")
    raise ValueError("a pickle has no end")


def _texts(keys: list[Any]) -> list[str]:
    """Keys of a dict: a nest of tuples could take for ever to hash."""
    if any(type(key) is not str for key in keys):
        raise ValueError("a dict has keys that are no texts")
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
    """What a call of one of the names would make."""
    match function, arguments:
        case _Name(name=name), () if name == ORDERED_DICT:
            return {}
        case _Name(name=name), (_Storage() as storage, 0, shape, strides, _, _) if (
            name == REBUILD_TENSOR
        ):
            return _Tensor(storage, _lengths(shape), _lengths(strides))
    raise ValueError("a pickle calls what makes no tensor and no empty dict")


def _lengths(numbers: Any) -> tuple[int, ...]:
    if type(numbers) is not tuple or any(type(each) is not int or each < 0 for each in numbers):
        raise ValueError("a tensor's shape or strides are no integers from 0 up")
    return numbers
