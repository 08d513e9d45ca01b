"""Prepared kernels on disk, where processes map them instead of computing them again.

A safetensors file: 8 bytes with the length of the header, the header as JSON, the arrays. It is
read by mapping: pages come from the file when they are first used, and all processes share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dist_net.autodiff import Array
from dist_net.errors import PreparedKernelsError
from dist_net.nn.blas import quickest_products
from dist_net.nn.inference import Prepared, prepared_shapes
from dist_net.nn.model import Model
from dist_net.nn.parameters import Vector
from dist_net.replacing import replacing

KEY = "dist_net_prepared"
FORMAT = 1  # to be counted up when kernels of the same shapes come to hold other values
LONGEST_HEADER = 1 << 20
DTYPES = {"F32": np.float32, "F64": np.float64}


def write_prepared(path: Path, arrays: Mapping[str, Array], key: str) -> None:
    """Writes the arrays; a reader sees the file whole or not at all. ``key`` says of what they are.

    Raises PreparedKernelsError if the file cannot be written.
    """
    try:
        with replacing(path) as partial:
            save_file(dict(arrays), partial, metadata={KEY: key})
    except (OSError, SafetensorError) as error:
        raise PreparedKernelsError(
            f"the prepared kernels cannot be written to {path}: {error}; "
            f"expected a directory with {sum(each.nbytes for each in arrays.values()):,} bytes free"
        ) from error


def map_prepared(path: Path, key: str) -> Prepared | None:
    """The arrays of a file, mapped and read-only; None if there is none of that ``key``.

    A file that is cut short or damaged counts as none: it is only a copy of what can be computed.
    """
    try:
        content = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(content[:8].tobytes(), "little")
        if not 0 < size <= min(LONGEST_HEADER, len(content) - 8):
            return None
        header = json.loads(content[8 : 8 + size].tobytes())
        if header.pop("__metadata__", {}).get(KEY) != key:
            return None
        return {name: _array(content[8 + size :], entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _array(content: NDArray[np.uint8], entry: dict[str, Any]) -> Array:
    start, stop = entry["data_offsets"]
    array: Array = content[start:stop].view(DTYPES[entry["dtype"]])
    return array.reshape(entry["shape"])


def key_of(model: Model, weights: Path) -> str:
    """What changes when the kernels are prepared differently, or the file of weights changes.

    That file is not read for it: its size and its time stand for it.
    """
    status = weights.stat()
    return _key(model, status.st_size, status.st_mtime_ns)


def key_of_vector(model: Model, weights: Vector) -> str:
    """What changes when the kernels are prepared differently, or the weights are others."""
    return _key(model, hashlib.sha256(np.ascontiguousarray(weights).data).hexdigest())


def _key(model: Model, *facts: int | str) -> str:
    shapes = prepared_shapes(model, quickest_products())
    return hashlib.sha256(repr((FORMAT, shapes, *facts)).encode()).hexdigest()
