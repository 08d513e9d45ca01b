"""Prepared weights on disk, which processes map instead of preparing them again.

A safetensors file: 8 bytes for the length of the header, the header as JSON, the arrays. Processes
share the mapped pages, which are read on first use.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dist_net.autodiff import Array
from dist_net.autodiff.expression import Constant, topological_order
from dist_net.autodiff.kernels.gemm import fastest_gemm
from dist_net.errors import PreparedKernelsError
from dist_net.ground.files import replacing
from dist_net.ground.vector import Vector
from dist_net.nn.inference import Prepared, prepared_shapes
from dist_net.nn.model import Model
from dist_net.nn.parameters import Scope

logger = logging.getLogger(__name__)

KEY = "dist_net_prepared"
CHECKSUMS = "checksums"
FORMAT = 1  # increase when the preparation of an operation changes
MAX_HEADER = 1 << 20
DTYPES = {"F32": np.float32, "F64": np.float64, "U8": np.uint8}


def write_prepared(path: Path, arrays: Mapping[str, Array], key: str) -> None:
    """Write the arrays of the source ``key`` atomically; raise ``PreparedKernelsError``."""
    checksums = {name: _checksum(name, np.ascontiguousarray(each)) for name, each in arrays.items()}
    try:
        with replacing(path) as partial:
            save_file(dict(arrays), partial, {KEY: key, CHECKSUMS: json.dumps(checksums)})
    except (OSError, SafetensorError) as error:
        raise PreparedKernelsError(
            f"cannot write the prepared kernels to {path}: {error}; "
            f"expected a directory with {sum(each.nbytes for each in arrays.values()):,} bytes free"
        ) from error


def map_prepared(path: Path, key: str) -> Prepared | None:
    """Map a file's arrays read-only; return None if there is no file with this ``key``.

    Every array is verified against its checksum. A damaged file is treated as missing.
    """
    try:
        content = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(content[:8].tobytes(), "little")
        if not 0 < size <= min(MAX_HEADER, len(content) - 8):
            return None
        header = json.loads(content[8 : 8 + size].tobytes())
        metadata = header.pop("__metadata__", {})
        if metadata.get(KEY) != key:
            return None
        arrays = {name: _array(content[8 + size :], entry) for name, entry in header.items()}
        checksums = {name: _checksum(name, array) for name, array in arrays.items()}
        if checksums != json.loads(metadata[CHECKSUMS]):
            logger.warning("prepared_kernels_damaged file=%s action=prepare_again", path)
            return None
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _array(content: NDArray[np.uint8], entry: dict[str, Any]) -> Array:
    start, stop = entry["data_offsets"]
    array: Array = content[start:stop].view(DTYPES[entry["dtype"]])
    return array.reshape(entry["shape"], copy=False)


def _checksum(name: str, array: Array) -> int:
    """Return the CRC-32 of the array, its name, dtype and shape; detects damage, not tampering."""
    described = repr((name, array.dtype.str, array.shape)).encode()
    return crc32(array.reshape(-1, copy=False).view(np.uint8).data, crc32(described))


def key_of(model: Model, weights: Path) -> str:
    """Return the key of arrays made from a file: of model, BLAS and content. Raise ``OSError``."""
    with weights.open("rb") as file:
        return _key(model, hashlib.file_digest(file, "sha256").digest())


def key_of_vector(model: Model, weights: Vector) -> str:
    """Return the key of arrays prepared from a weight vector, as in ``key_of``."""
    return _key(model, hashlib.sha256(np.ascontiguousarray(weights).data).digest())


def _key(model: Model, weights: bytes) -> str:
    """Return the SHA-256 of what determines the arrays: ``weights``, layout and graph.

    The graph is its operations with their settings, its connections and constants.
    """
    digest = hashlib.sha256(weights)
    shapes = prepared_shapes(model, fastest_gemm())
    digest.update(repr((FORMAT, shapes)).encode())
    nodes = topological_order([model.network(model.input(1), Scope())])
    number_of = {id(node): number for number, node in enumerate(nodes)}
    for node in nodes:
        operation = node.operation
        digest.update(f"{type(operation).__module__}.{type(operation).__qualname__}".encode())
        if isinstance(operation, Constant):
            digest.update(operation.value.tobytes())
        else:
            with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
                digest.update(repr(operation).encode())
        inputs = [number_of[id(each)] for each in node.inputs]
        digest.update(repr((inputs, node.shape, node.dtype.str)).encode())
    return digest.hexdigest()
