"""Read tensors from a file in PyTorch's old format, without PyTorch and without running a pickle.

The file consists of five pickles: magic number, protocol, system, the tensors by name, and the keys
of the storages. Each storage follows as a count of 8 bytes and its elements. A pickle is a program
that can call any function. This module verifies the file's checksum first, and interprets only the
instructions that create plain data: names of functions remain texts, and nothing is called.
"""

from __future__ import annotations

import hashlib
import pickletools
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dist_net.autodiff import Array
from dist_net.errors import ModelFileError

ELEMENTS: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch LongStorage": np.dtype("<i8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ORDERED_DICT = "collections OrderedDict"


def read_tensors(path: Path, size_bytes: int, sha256: str) -> dict[str, Array]:
    """Return the tensors of a file by name: read-only views of the file's content in memory.

    Raise ModelFileError unless the file has this size and checksum and holds tensors that share
    no storage.
    """
    content = _published(path, size_bytes, sha256)
    try:
        return _tensors(content)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: {error}; expected tensors in PyTorch's format before its version 1.6"
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
    _magic, _protocol, _system, state, keys = (_plain_data(stream) for _ in range(5))
    described = {}
    for name, (storage, _offset, shape, strides, *_) in state.items():
        _, elements, key, *_ = storage
        described[key] = name, ELEMENTS[elements], shape, strides
    tensors: dict[str, Array] = {}
    place = stream.tell()
    for key in keys:
        name, dtype, shape, strides = described[key]
        steps = [stride * dtype.itemsize for stride in strides]
        tensors[name] = np.ndarray(shape, dtype, content, place + 8, steps)
        place += 8 + tensors[name].nbytes
    return tensors


def _plain_data(stream: BytesIO) -> Any:
    """Return the numbers, texts, lists and dicts of the stream's next pickle.

    A tensor is the tuple of the arguments of its function: its storage, which is a tuple of its
    kind, the type of its elements, its key and more, an offset, a shape, strides and more. Raise
    ValueError for other instructions.
    """
    stack: list[Any] = []
    marks: list[int] = []
    known: dict[int, Any] = {}

    def popped(start: int) -> list[Any]:
        taken = stack[start:]
        del stack[start:]
        return taken

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "BINPERSID":  # a storage remains its description
                pass
            case "STOP":
                return stack.pop()
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "GLOBAL":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_LIST" | "EMPTY_DICT":
                stack.append([] if opcode.name == "EMPTY_LIST" else {})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(popped(-int(opcode.name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(popped(marks.pop())))
            case "APPEND" | "APPENDS":
                items = popped(-1 if opcode.name == "APPEND" else marks.pop())
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = popped(-2 if opcode.name == "SETITEM" else marks.pop())
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                known[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(known[argument])
            case "REDUCE":
                function, arguments = popped(-2)
                stack.append({} if function == ORDERED_DICT else arguments)
            case "BUILD":
                stack.pop()  # PyTorch's version
            case name:
                raise ValueError(f"a pickle has the instruction {name}")
    raise ValueError("a pickle has no end")
