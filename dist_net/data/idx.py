"""Files in the IDX format of the MNIST database.

Source: Yann LeCun, "The MNIST database", section "The IDX file format": two zero bytes, a code for
the element type, the number of dimensions, each dimension as a big-endian 32-bit integer, and then
the elements, big-endian, the last dimension changing fastest.
"""

import math
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import DatasetError

MAX_DIMENSIONS = 64
"""NumPy's limit."""

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

    The file is mapped into memory, so that processes that read it share the page cache. Multi-byte
    elements keep the file's byte order. Raise ``DatasetError`` if the file cannot be read, is not
    IDX, or is shorter or longer than its header declares.
    """
    try:
        with path.open("rb") as file:
            dtype, shape, offset = _read_header(path, file)
            expected, found = math.prod(shape) * dtype.itemsize, file.seek(0, 2) - offset
            if found != expected:
                raise DatasetError(
                    f"{path}: offset {offset}: cut short or too long: found {found} bytes of "
                    f"elements, expected {expected} for shape {shape}"
                )
            # A plain view: indexing np.memmap itself costs a Python call for every result.
            return np.asarray(np.memmap(file, dtype, "r", offset, shape))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error


def _read_header(path: Path, file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return element type, shape and the offset of the first element."""
    start = file.read(4)
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
    dimensions = file.read(4 * rank)
    if len(dimensions) < 4 * rank:
        raise DatasetError(
            f"{path}: offset 4: cut short in the header: found {len(dimensions)} bytes, "
            f"expected {4 * rank} for {rank} dimensions"
        )
    shape = struct.unpack(f">{rank}I", dimensions)
    if 0 in shape:
        raise DatasetError(f"{path}: offset 4: found shape {shape}, expected no dimension of 0")
    return ELEMENT_TYPES[start[2]], shape, 4 + 4 * rank
