"""Messages to frames and back; pure functions, no I/O.

The first frame, the header, is a msgpack array ``[PROTOCOL_VERSION, type's name, *fields]``. Each
array and each payload is a further frame. The header's last field describes the arrays:
``["<f4", [length]]`` is one of float32, ``["<f4", [count, length]]`` are several of one length.
Nothing describes payloads.

Whatever a peer sent is checked in full before a message is made of it. The checks are derived,
once, from the annotations in `dist_net.wire.messages` and `dist_net.wire.serving_messages`.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, cast, get_args, get_type_hints

import msgpack
import numpy as np

from dist_net.errors import ProtocolError
from dist_net.vector import Vector, Vectors
from dist_net.wire.messages import Integers, Message
from dist_net.wire.serving_messages import Payloads

PROTOCOL_VERSION = 4
MAX_HEADER_BYTES = 2**20
MAX_ARRAY_BYTES = 2**30
MAX_PAYLOADS = 1024

Frame = bytes | memoryview

_MAX_INTEGER = 2**63 - 1
_DTYPE_NAME = "<f4"
_DTYPE = np.dtype(_DTYPE_NAME)

# The most characters or bytes of a field; 1,024 unless it is named here. Reasons are for people:
# one that is too long is cut when it is sent, and one of several lines becomes one.
_LONGEST = {
    "name": 128,
    "host": 255,
    "blas": 128,
    "reason": 4096,
    "statuses": MAX_PAYLOADS,
} | dict.fromkeys(("report", "models", "description", "class_names"), MAX_HEADER_BYTES)
_MENDED = "reason"
# The greatest numbers of a field that is only shown: more than any machine has.
_GREATEST = dict.fromkeys(("host_cores", "cores", "core_quota", "threads"), 65_536) | {
    "round_trip_s": 86_400
}
# These are logged and shown as they came: a peer must not be able to write lines of its own.
_ONE_LINE = {"name", "host", "blas", "recipe_digest", "reason"}
_CONTROL_CHARACTER = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
# Where -1 means that arrays travel as frames.
_MAY_BE_ABSENT = {"gradient_descriptor", "weights_descriptor", "snapshot"}
# A diverging worker's loss is not finite, and the server wants to know.
_MAY_BE_NOT_FINITE = {"loss_sum"}

# `msgpack.packb` would make a Packer and its buffer for each call. A text may hold a path that is
# not UTF-8.
_pack = msgpack.Packer(unicode_errors="replace").pack
# No deeper, longer or other containers than a header has, so that a short hostile one cannot
# make msgpack reserve much memory.
_UNPACK_LIMITS = {"use_list": False, "max_array_len": 16, "max_map_len": 0, "max_ext_len": 0}


class _Field(NamedTuple):
    """What a field's value must be; ``high`` is the greatest length of a text or bytes."""

    name: str
    types: tuple[type, ...]
    low: float | None
    high: float

    @property
    def has_length(self) -> bool:
        return self.types[0] in (str, bytes)


class _Layout(NamedTuple):
    """What the header of a message must hold.

    ``texts`` are the indices of texts and bytes in ``fields``, with their greatest lengths.
    ``absent`` is what stands for arrays that did not come: None for one, () for several, and
    ``...`` if they must come.
    """

    kind: Any
    fields: tuple[_Field, ...]
    texts: tuple[tuple[int, int], ...]
    array: str | None
    absent: Any
    has_payloads: bool


def _field(name: str, hint: Any) -> _Field:
    if hint is int:
        least = -1 if name in _MAY_BE_ABSENT else 0
        return _Field(name, (int,), least, _GREATEST.get(name, _MAX_INTEGER))
    if hint is float:
        low = None if name in _MAY_BE_NOT_FINITE else 0
        return _Field(name, (float, int), low, _GREATEST.get(name, sys.float_info.max))
    if hint in (str, bytes):
        return _Field(name, (hint,), None, _LONGEST.get(name, 1024))
    if hint is bool:
        return _Field(name, (hint,), None, 0)
    if hint == Integers:
        return _Field(name, (tuple,), None, 0)
    raise TypeError(f"message field {name!r} is of type {hint}, which the codec does not know")


def _layout(kind: Any) -> _Layout:
    hints = get_type_hints(kind)
    absent_of = {Vector: ..., Vector | None: None, Vectors: ()}
    array = next((n for n, hint in hints.items() if hint in absent_of), None)
    has_payloads = Payloads in hints.values()
    framed = "payloads" if has_payloads else array
    if framed is not None and framed != kind._fields[-1]:
        raise TypeError(f"{kind.__name__}.{framed}: what travels as frames must be the last field")
    fields = tuple(_field(name, hint) for name, hint in hints.items() if name != framed)
    texts = tuple((i, int(field.high)) for i, field in enumerate(fields) if field.has_length)
    absent = absent_of[hints[array]] if array else ...
    return _Layout(kind, fields, texts, array, absent, has_payloads)


_LAYOUTS = {kind.__name__: _layout(kind) for kind in get_args(Message)}


def encode(message: Message) -> list[Frame]:
    """The frames that carry ``message``.

    Payloads, and arrays if they are contiguous, are borrowed, not copied. A reason that is too long
    is cut, and has "?" in place of control characters. Raises `ProtocolError` for arrays that are
    not 1-D float32 of one length, for another text that is too long, and for a header over
    `MAX_HEADER_BYTES`.
    """
    name = type(message).__name__
    layout = _LAYOUTS[name]
    values: tuple[Any, ...] = message
    for place, longest in layout.texts:
        field, value = layout.fields[place], values[place]
        if field.name == _MENDED:
            if len(value) > longest:
                value = value[: longest - 3] + "..."
            value = _CONTROL_CHARACTER.sub("?", value)
            values = (*values[:place], value, *values[place + 1 :])
        elif len(value) > longest:
            raise _field_error(layout, field, value)
    frames: Sequence[Frame] = ()
    if layout.has_payloads:
        values, frames = values[:-1], values[-1]
    elif layout.array is not None:
        spec, frames = _encode_arrays(name, values[-1])
        values = (*values[:-1], spec)
    header = _pack((PROTOCOL_VERSION, name, *values))
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"a {name} message needs a header of {len(header)} bytes; "
            f"at most {MAX_HEADER_BYTES} are allowed: send less text at once"
        )
    return [header, *frames]


def _encode_arrays(
    message_name: str, arrays: Vector | Vectors | None
) -> tuple[tuple[str, tuple[int, ...]] | None, list[Frame]]:
    """The description of arrays for the header, None if there are none, and their frames."""
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


def decode(frames: Sequence[Frame]) -> Message:
    """The message that ``frames`` carry.

    An array and payloads are read-only views of their frames, not copies. Raises `ProtocolError`,
    and nothing else, for whatever is not a message of this protocol.
    """
    if not frames or len(frames[0]) > MAX_HEADER_BYTES:
        size = len(frames[0]) if frames else 0
        raise ProtocolError(
            f"got {len(frames)} frames with a header of {size} bytes; expected one or two "
            f"frames, the first of at most {MAX_HEADER_BYTES} bytes"
        )
    try:
        values = msgpack.unpackb(frames[0], **_UNPACK_LIMITS)
    except ValueError as error:
        raise ProtocolError(
            f"the header {_shortened(bytes(frames[0][:64]))} is not msgpack ({error}); expected "
            f"[{PROTOCOL_VERSION}, type, fields...]"
        ) from error
    layout = _layout_of(values)
    plain = values[2:-1] if layout.array else values[2:]
    for field, value in zip(layout.fields, plain, strict=True):
        name, types, low, high = field
        kind = type(value)
        if (
            kind not in types
            or (low is not None and not low <= value <= high)
            or ((kind is str or kind is bytes) and len(value) > high)
            or (kind is tuple and not all(map(_is_natural, value)))
            or (name in _ONE_LINE and _CONTROL_CHARACTER.search(value))
        ):
            raise _field_error(layout, field, value)
    if layout.has_payloads:
        plain = (*plain, _payloads(layout, frames))
    elif layout.array:
        plain = (*plain, _decode_arrays(layout, values[-1], frames[1:]))
    elif len(frames) != 1:
        raise ProtocolError(f"{layout.kind.__name__} came in {len(frames)} frames; expected 1")
    return cast(Message, layout.kind._make(plain))


def _layout_of(values: Any) -> _Layout:
    """The layout that a header names, when version and number of fields are right."""
    if type(values) is not tuple or len(values) < 2 or type(values[1]) is not str:
        raise ProtocolError(
            f"the header is {_shortened(values)}; expected [{PROTOCOL_VERSION}, type, fields...]"
        )
    version, name = values[:2]
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the peer speaks protocol version {_shortened(version)}; this side speaks "
            f"{PROTOCOL_VERSION}: install the same release of dist-net on both hosts"
        )
    layout = _LAYOUTS.get(name)
    if layout is None:
        raise ProtocolError(
            f"unknown message type {_shortened(name)}; expected one of the {len(_LAYOUTS)} "
            f"that this release knows, such as Heartbeat: install the same release of dist-net on "
            f"both hosts"
        )
    expected = layout.kind._fields[:-1] if layout.has_payloads else layout.kind._fields
    if len(values) - 2 != len(expected):
        raise ProtocolError(
            f"{name} came with {len(values) - 2} fields; expected {len(expected)}: "
            f"{', '.join(expected)}"
        )
    return layout


def _payloads(layout: _Layout, frames: Sequence[Frame]) -> Payloads:
    if len(frames) - 1 > MAX_PAYLOADS:
        raise ProtocolError(
            f"{layout.kind.__name__} came with {len(frames) - 1} payloads or more; "
            f"expected at most {MAX_PAYLOADS}"
        )
    return tuple(memoryview(frame).toreadonly() for frame in frames[1:])


def _decode_arrays(layout: _Layout, spec: Any, frames: Sequence[Frame]) -> Any:
    """The arrays that ``spec`` describes, as read-only views of ``frames``."""
    name = f"{layout.kind.__name__}.{layout.array}"
    if spec is None and layout.absent is not ...:
        if frames:
            raise ProtocolError(f"{name} is nil, but {len(frames)} frames of arrays came")
        return layout.absent
    several = layout.absent == ()
    count, length = _promised(spec, several)
    if not length:
        raise ProtocolError(
            f"{name} is described as {_shortened(spec)}; expected "
            f'["{_DTYPE_NAME}", [{"count, " if several else ""}length]] '
            f"with a length of 1 to {MAX_ARRAY_BYTES // 4}"
        )
    sizes = [*map(len, frames)]  # frames are bytes, or views of them
    if len(sizes) != count or {*sizes} != {4 * length}:
        raise ProtocolError(
            f"{name} came in frames of {_shortened(sizes)} bytes; expected {count} of {4 * length}"
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


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_INTEGER


def _field_error(layout: _Layout, field: _Field, value: Any) -> ProtocolError:
    expected = field.types[0].__name__
    if field.types == (tuple,):
        expected = f"several integers from 0 to {_MAX_INTEGER}"
    if field.has_length:
        expected += f" of length 0 to {field.high}"
    if field.name in _ONE_LINE:
        expected += " without control characters"
    if field.low is not None:
        expected += f" from {field.low} to {field.high}"
    return ProtocolError(
        f"{layout.kind.__name__}.{field.name} is {_shortened(value)} "
        f"({type(value).__name__}); expected {expected}"
    )


def _shortened(value: object) -> str:
    """A value as an error shows it, however long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
