"""Files in the IDX format of the MNIST database, plain or compressed with gzip.

Source: Yann LeCun, "The MNIST database", section "The IDX file format": two zero bytes, a code for
the element type, the number of dimensions, each dimension as a big-endian 32-bit integer, and then
the elements, big-endian, the last dimension changing fastest.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import DatasetError

GZIP_MAGIC = b"\x1f\x8b"

MAX_DIMENSIONS = 64
"""As many as NumPy's arrays have at most."""

ELEMENT_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array in the IDX file ``path``, in the file's shape and read-only.

    A plain file is mapped into memory, so that processes that read it share the page cache; a
    gzip file (known by its content, not by its name) is decompressed. Multi-byte elements keep
    the file's byte order. Raises ``DatasetError`` when the file cannot be read, is not IDX, or
    is shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] == GZIP_MAGIC:
                with gzip.GzipFile(fileobj=file) as content:
                    return _read_compressed(path, content)
            return _map_plain(path, file)
    except (EOFError, zlib.error, OSError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def _read_header(
    path: Path, content: IO[bytes] | gzip.GzipFile
) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return element type, shape and the offset of the first element."""
    start = content.read(4)
    if not (
        len(start) == 4
        and start[:2] == b"\0\0"
        and start[2] in ELEMENT_TYPES
        and 1 <= start[3] <= MAX_DIMENSIONS
    ):
        codes = ", ".join(f"{code:02x}" for code in ELEMENT_TYPES)
        raise DatasetError(
            f"{path}: offset 0: not an IDX file: found bytes {start.hex(' ')!r}, expected 00 00, "
            f"an element type ({codes}) and the number of dimensions (1 to {MAX_DIMENSIONS})"
        )
    rank = start[3]
    dimensions = content.read(4 * rank)
    if len(dimensions) < 4 * rank:
        raise DatasetError(
            f"{path}: offset 4: cut short in the header: found {len(dimensions)} bytes, "
            f"expected {4 * rank} for {rank} dimensions"
        )
    shape = struct.unpack(f">{rank}I", dimensions)
    if 0 in shape:
        raise DatasetError(f"{path}: offset 4: found shape {shape}, expected no dimension of 0")
    return ELEMENT_TYPES[start[2]], shape, 4 + 4 * rank


def _check_length(path: Path, offset: int, shape: tuple[int, ...], found: int, size: int) -> None:
    """Raise ``DatasetError`` unless exactly the elements of ``shape`` follow the header."""
    if found != size:
        problem = "cut short: found" if found < size else "too long: found at least"
        raise DatasetError(
            f"{path}: offset {offset}: {problem} {found} bytes of elements, "
            f"expected {size} for shape {shape}"
        )


def _map_plain(path: Path, file: IO[bytes]) -> NDArray[Any]:
    dtype, shape, offset = _read_header(path, file)
    size = math.prod(shape) * dtype.itemsize
    _check_length(path, offset, shape, file.seek(0, 2) - offset, size)
    # A plain view: indexing np.memmap itself costs a Python call for every result.
    return np.asarray(np.memmap(file, dtype, "r", offset, shape))


def _read_compressed(path: Path, content: IO[bytes] | gzip.GzipFile) -> NDArray[Any]:
    dtype, shape, offset = _read_header(path, content)
    size = math.prod(shape) * dtype.itemsize
    found = bytearray()
    # Chunks: nothing is allocated for what a corrupt header merely claims.
    while len(found) <= size and (chunk := content.read(1 << 20)):
        found += chunk
    _check_length(path, offset, shape, len(found), size)
    return np.frombuffer(bytes(found), dtype).reshape(shape, copy=False)
