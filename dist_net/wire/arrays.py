"""The arrays of messages to frames and back; pure functions, no I/O.

A message's header says what follows it: ``["<f4", [length]]`` is one array of float32, and
``["<f4", [count, length]]`` are several of one length. Each one's bytes are a frame.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dist_net.errors import ProtocolError
from dist_net.vector import Vector, Vectors

MAX_ARRAY_BYTES = 2**30

Frame = bytes | memoryview

_DTYPE_NAME = "<f4"
_DTYPE = np.dtype(_DTYPE_NAME)


def encode_arrays(
    message_name: str, arrays: Vector | Vectors | None
) -> tuple[tuple[str, tuple[int, ...]] | None, list[Frame]]:
    """What the header says of the arrays, None if there are none, and their frames.

    They are borrowed if they are contiguous. Raises `ProtocolError` unless all are 1-D float32 of
    one length.
    """
    several = isinstance(arrays, tuple)
    given = arrays if isinstance(arrays, tuple) else () if arrays is None else (arrays,)
    for array in given:
        is_vector = array.dtype == _DTYPE and array.ndim == 1
        if not is_vector or not 0 < array.nbytes <= MAX_ARRAY_BYTES or array.size != given[0].size:
            raise ProtocolError(
                f"a {message_name} message was given a {array.dtype} array of shape {array.shape}; "
                f"expected a 1-D float32 array of 1 to {MAX_ARRAY_BYTES // 4} elements, and "
                f"several of one length"
            )
    if not given:
        return None, []
    shape = (len(given), given[0].size) if several else (given[0].size,)
    return (_DTYPE_NAME, shape), [np.ascontiguousarray(array).data.cast("B") for array in given]


def decode_arrays(name: str, spec: Any, frames: Sequence[Frame], absent: Any) -> Any:
    """The arrays that ``spec`` promises, as read-only views of ``frames``.

    ``name`` is the field's, for errors. ``absent`` is what it holds without arrays: None of one,
    () of several; ``...``: there must be one. Raises `ProtocolError` when they are not as promised.
    """
    if spec is None and absent is not ...:
        if frames:
            raise ProtocolError(f"{name} is nil, but {len(frames)} frames of arrays came")
        return absent
    several = absent == ()
    count, length = _promised(spec, several)
    if not length:
        raise ProtocolError(
            f"{name} is described as {shortened(spec)}; expected "
            f'["{_DTYPE_NAME}", [{"count, " if several else ""}length]] '
            f"with a length of 1 to {MAX_ARRAY_BYTES // 4}"
        )
    sizes = [*map(len, frames)]  # frames are bytes, or views of them
    if len(sizes) != count or {*sizes} != {4 * length}:
        raise ProtocolError(
            f"{name} came in frames of {shortened(sizes)} bytes; expected {count} of {4 * length}"
        )
    vectors = [np.frombuffer(frame, _DTYPE) for frame in frames]
    for vector in vectors:
        vector.setflags(write=False)
    return tuple(vectors) if several else vectors[0]


def _promised(spec: Any, several: bool) -> tuple[int, int]:
    """The number of arrays and their length; zeros if the description is not valid."""
    if type(spec) is not tuple or len(spec) != 2 or spec[0] != _DTYPE_NAME:
        return 0, 0
    shape = spec[1]
    if type(shape) is not tuple or [*map(type, shape)] != [int] * (1 + several):
        return 0, 0
    count, length = shape if several else (1, *shape)
    return (count, length) if count > 0 and 0 < length <= MAX_ARRAY_BYTES // 4 else (0, 0)


def shortened(value: object) -> str:
    """A value as an error shows it, however long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
