"""Read, check and write Darknet's .weights files: a network's parameters and buffers.

The format is the Darknet program's (its ``load_weights_upto``): three little-endian int32 for the
version, the number of images seen in training, and then, layer by layer, float32 numbers without
names or lengths. Only the length shows whether a file fits a network.
"""

import struct
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ModelFileError
from dist_net.ground.files import written
from dist_net.ground.vector import Vector
from dist_net.nets.darknet.darknet_layers import Stored
from dist_net.nets.darknet.darknet_network import DarknetNetwork, PlacedLayer

NUMBERS = np.dtype("<f4")
VERSION = struct.Struct("<iii")
SEEN_EARLY = struct.Struct("<i")
SEEN = struct.Struct("<Q")
WRITTEN_VERSION = (0, 2, 0)

CHUNK_SIZE = 1 << 17
"""Numbers to read or write at a time: few enough for the cache, in which transposing a kernel's
axes is twice as fast."""


def read_weights(path: Path, network: DarknetNetwork) -> Vector:
    """Return the weights of ``network`` in the file ``path``, in a new vector of its layout.

    Kernels are transposed from Darknet's order of axes to ours. Raise ``ModelFileError`` for an
    unreadable file, a length other than the network needs, nan, infinity and a negative variance.
    """
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(0)
            header_bytes, transposed = _read_header(path, file)
            _check_length(path, network, header_bytes, size_bytes)
            vector = np.empty(network.layout.size, np.float32)
            for layer, stored, array in _arrays(network, vector, transposed):
                _read_array(path, file, layer, stored, array)
    except OSError as error:
        raise unreadable(path, error) from error
    return vector


def unreadable(path: Path, error: OSError) -> ModelFileError:
    return ModelFileError(f"{path}: cannot be read: {error.strerror}; expected a .weights file")


def write_weights(path: Path, network: DarknetNetwork, vector: Vector, seen: int = 0) -> None:
    """Write ``vector`` and ``seen``, a number of images. Raise FileWriteError, ModelFileError."""
    with written(path) as file:
        file.write(VERSION.pack(*WRITTEN_VERSION) + SEEN.pack(seen))
        for layer, stored, array in _arrays(network, vector, transposed=False):
            for part in _parts(array):
                numbers = np.ascontiguousarray(part, NUMBERS)
                _check_numbers(path, layer, stored, numbers)
                file.write(numbers.data)


def _read_header(path: Path, file: IO[bytes]) -> tuple[int, bool]:
    """Return the length of the header, and whether connected kernels are transposed."""
    major, minor, _ = VERSION.unpack(_header_part(path, file, VERSION.size))
    transposed = major > 1000 or minor > 1000
    late = major * 10 + minor >= 2 and major < 1000 and minor < 1000
    _header_part(path, file, SEEN.size if late else SEEN_EARLY.size)
    return file.tell(), transposed


def _header_part(path: Path, file: IO[bytes], size: int) -> bytes:
    part = file.read(size)
    if len(part) < size:
        raise ModelFileError(
            f"{path}: ends after {file.tell()} bytes, in its header; expected a .weights file"
        )
    return part


def _check_length(path: Path, network: DarknetNetwork, header_bytes: int, found: int) -> None:
    expected = header_bytes + NUMBERS.itemsize * network.layout.size
    name = network.configuration.name
    if found > expected:
        raise ModelFileError(
            f"{path}: {found} bytes are {found - expected} more than the network of {name} "
            f"needs; expected {expected}: use the .cfg that belongs to this file"
        )
    if found < expected:
        raise ModelFileError(
            f"{path}: ends after {found} bytes, in {_place_of(network, found - header_bytes)}; "
            f"expected {expected} bytes for the network of {name}: copy the file again, or use "
            f"the .cfg that belongs to it"
        )


def _place_of(network: DarknetNetwork, offset_bytes: int) -> str:
    """Return the position in the network at ``offset_bytes`` after the file's header."""
    for layer, stored in _stored(network):
        offset_bytes -= NUMBERS.itemsize * prod(stored.shape)
        if offset_bytes < 0:
            return _named(layer, stored)
    return "its end"


def _named(layer: PlacedLayer, stored: Stored) -> str:
    section = layer.section
    return f"the {stored.name} of layer {layer.name} ({section.source}:{section.line})"


def _stored(network: DarknetNetwork) -> Iterator[tuple[PlacedLayer, Stored]]:
    for layer in network.layers:
        for stored in layer.layer.stored(layer.input_shape, layer.output_shape):
            yield layer, stored


def _arrays(
    network: DarknetNetwork, vector: Vector, transposed: bool
) -> Iterator[tuple[PlacedLayer, Stored, NDArray[np.float32]]]:
    """Yield every array in the file's order and shape, as a view of ``vector``."""
    views = network.layout.views(vector)
    for layer, stored in _stored(network):
        if transposed and layer.section.kind == "connected" and stored.name == "kernel":
            outputs, *inputs = stored.shape  # the file is older than version 0.1
            stored = replace(stored, shape=(*inputs, outputs), axes=(1, 2, 0, 3))
        shape = [stored.shape[i] for i in stored.axes]
        ours = views[f"{layer.name}/{stored.name}"].reshape(shape, copy=False)
        yield layer, stored, ours.transpose(np.argsort(stored.axes))


def _parts(array: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield parts of ``array`` of about ``CHUNK_SIZE`` along the first axis."""
    rows = max(CHUNK_SIZE // prod(array.shape[1:]), 1)
    return (array[start : start + rows] for start in range(0, len(array), rows))


def _read_array(
    path: Path, file: IO[bytes], layer: PlacedLayer, stored: Stored, array: NDArray[np.float32]
) -> None:
    for part in _parts(array):
        content = file.read(part.nbytes)
        if len(content) < part.nbytes:
            raise ModelFileError(
                f"{path}: was truncated while reading {_named(layer, stored)}; try again"
            )
        numbers = np.frombuffer(content, NUMBERS).reshape(part.shape, copy=False)
        _check_numbers(path, layer, stored, numbers)
        part[...] = numbers


def _check_numbers(
    path: Path, layer: PlacedLayer, stored: Stored, numbers: NDArray[np.float32]
) -> None:
    if not np.isfinite(numbers).all():
        bad = numbers[~np.isfinite(numbers)][0]
        raise ModelFileError(
            f"{path}: {_named(layer, stored)} has {bad}; expected finite numbers: the file is "
            f"damaged, or its training diverged"
        )
    if stored.name == "variance" and numbers.min() < 0:
        raise ModelFileError(
            f"{path}: {_named(layer, stored)} has {numbers.min()}; expected no variance below 0: "
            f"the file is damaged or belongs to another network"
        )
