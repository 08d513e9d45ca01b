"""Convert messages to frames and back. Pure functions, no I/O.

The first frame, the header, is a msgpack array ``[PROTOCOL_VERSION, message name, *fields]``; a
record is a nested array. The last field of some messages is not in the header: its array,
little-endian float32, or each of its payloads is a further frame.

A message is constructed only after all its fields were checked. The checks are derived once, from
the annotations of the message classes; ``dist_net.wire.fields`` defines the limits.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, cast, get_args, get_origin, get_type_hints

import msgpack
import numpy as np

from dist_net.errors import ProtocolError
from dist_net.ground.vector import Vector
from dist_net.wire.fields import MAX_HEADER_BYTES, MAX_INTEGER, MAX_PAYLOADS, Limits, Payloads
from dist_net.wire.messages import Message

PROTOCOL_VERSION = 9
MAX_ARRAY_BYTES = 2**30

Frame = bytes | memoryview

_DTYPE = np.dtype("<f4")
_CONTROL_CHARACTER = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")

# ``msgpack.packb`` would create a Packer and its buffer for each call. A path may not be UTF-8.
_pack = msgpack.Packer(unicode_errors="replace").pack
# A short hostile header must not make msgpack reserve much memory.
_UNPACK_LIMITS = {"use_list": False, "max_array_len": 20, "max_map_len": 0, "max_ext_len": 0}

_Check = tuple[tuple[type, ...], float | None, float, Callable[[Any], bool] | None]
"""The allowed types, the range of a number, and a check of other values."""


class _Field(NamedTuple):
    name: str
    check: _Check
    expected: str
    text_limits: Limits | None = None
    record: "_Layout | None" = None


class _Layout(NamedTuple):
    """The fields of a message or a record in the header, and the last field if it is frames."""

    name: str
    kind: Any
    fields: tuple[_Field, ...]
    texts: tuple[tuple[int, Limits], ...]
    records: tuple[tuple[int, "_Layout"], ...]
    framed: str = ""
    unframe: Callable[[str, Sequence[Frame]], Any] | None = None


def _field(owner: str, name: str, hint: Any) -> _Field:
    limits = Limits()
    if get_origin(hint) is Annotated:
        hint, limits = get_args(hint)
    low, high = limits.low, limits.high
    if hint is int:
        high = MAX_INTEGER if high is None else high
        return _Field(name, ((int,), low, high, None), f"int from {low} to {high}")
    if hint is float:
        high = sys.float_info.max if high is None else high
        return _Field(name, ((float, int), low, high, None), f"float from {low} to {high}")
    if hint in (str, bytes):
        expected = f"{hint.__name__} of length 0 to {limits.max_length}"
        expected += " without control characters" * limits.one_line
        longest, find = limits.max_length, _CONTROL_CHARACTER.search if limits.one_line else None
        is_valid = lambda value: len(value) <= longest and not (find and find(value))  # noqa: E731
        return _Field(name, ((hint,), None, 0, is_valid), expected, limits)
    if hint is bool:
        return _Field(name, ((bool,), None, 0, None), "bool")
    kind, *optional = get_args(hint) or (hint,)
    if hasattr(kind, "_fields"):
        record = _layout(kind, f"{owner}.{name}")
        size = len(kind._fields)
        check = (tuple, *optional), None, 0, lambda value: value is None or len(value) == size
        return _Field(name, check, f"{size} fields: {', '.join(kind._fields)}", record=record)
    raise TypeError(f"message field {name!r} is of type {hint}, which the codec does not know")


def _layout(kind: Any, name: str) -> _Layout:
    hints = get_type_hints(kind, include_extras=True)
    framed = next((each for each, hint in hints.items() if hint in _UNFRAME), None)
    if framed is not None and framed != kind._fields[-1]:
        raise TypeError(f"{name}.{framed} travels as frames; expected it to be the last field")
    fields = tuple(_field(name, each, hint) for each, hint in hints.items() if each != framed)
    texts = tuple((i, each.text_limits) for i, each in enumerate(fields) if each.text_limits)
    records = tuple((i, each.record) for i, each in enumerate(fields) if each.record)
    unframe = None if framed is None else _UNFRAME[hints[framed]]
    return _Layout(name, kind, fields, texts, records, f"{name}.{framed}", unframe)


def _payloads(name: str, frames: Sequence[Frame]) -> Payloads:
    if len(frames) > MAX_PAYLOADS:
        raise ProtocolError(
            f"{name} arrived in {len(frames)} frames or more; expected at most {MAX_PAYLOADS}"
        )
    return tuple(memoryview(frame).toreadonly() for frame in frames)


def _vector_or_none(name: str, frames: Sequence[Frame]) -> Vector | None:
    """Return the array, as a read-only view of its frame."""
    if not frames:
        return None
    size = len(frames[0])  # frames are bytes, or views of bytes
    if len(frames) > 1 or size % 4 or not 0 < size <= MAX_ARRAY_BYTES:
        raise ProtocolError(
            f"{name} arrived in {len(frames)} frames, the first of {size} bytes; expected at most "
            f"1, of a multiple of 4 up to {MAX_ARRAY_BYTES}"
        )
    vector: Vector = np.frombuffer(frames[0], _DTYPE)
    vector.setflags(write=False)
    return vector


def _vector(name: str, frames: Sequence[Frame]) -> Vector:
    vector = _vector_or_none(name, frames)
    if vector is None:
        raise ProtocolError(f"{name} arrived in 0 frames; expected 1")
    return vector


_UNFRAME: dict[Any, Callable[[str, Sequence[Frame]], Any]] = {
    Vector: _vector,
    Vector | None: _vector_or_none,
    Payloads: _payloads,
}
_LAYOUTS = {kind.__name__: _layout(kind, kind.__name__) for kind in get_args(Message)}


def encode(message: Message) -> list[Frame]:
    """Return the frames of ``message``.

    Payloads and contiguous arrays are borrowed, not copied. A reason is truncated to its maximum
    length, and "?" replaces its control characters. Raise ``ProtocolError`` for an array that is
    not 1-D float32, and for other texts and headers that are too long.
    """
    name = type(message).__name__
    layout = _LAYOUTS[name]
    values: tuple[Any, ...] = message
    if layout.texts or layout.records:
        values = _sendable(layout, values)
    frames: Sequence[Frame] = ()
    if layout.unframe is not None:
        values, framed = values[:-1], values[-1]
        if layout.unframe is _payloads:
            frames = framed
        elif framed is not None:
            if (
                framed.dtype != _DTYPE
                or framed.ndim != 1
                or not 0 < framed.nbytes <= MAX_ARRAY_BYTES
            ):
                raise ProtocolError(
                    f"a {name} message contains a {framed.dtype} array of shape {framed.shape}; "
                    f"expected a 1-D float32 array of 1 to {MAX_ARRAY_BYTES // 4} elements"
                )
            frames = [np.ascontiguousarray(framed).data.cast("B")]
    header = _pack((PROTOCOL_VERSION, name, *values))
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"a {name} message needs a header of {len(header)} bytes; "
            f"at most {MAX_HEADER_BYTES} are allowed: send less text at once"
        )
    return [header, *frames]


def _sendable(layout: _Layout, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the fields with reasons repaired; raise ``ProtocolError`` for a text too long."""
    for place, limits in layout.texts:
        value, longest = values[place], limits.max_length
        if limits.mended and value:
            if len(value) > longest:
                value = value[: longest - 3] + "..."
            value = _CONTROL_CHARACTER.sub("?", value)
            values = (*values[:place], value, *values[place + 1 :])
        elif len(value) > longest:
            raise _field_error(layout, layout.fields[place], value)
    for place, record in layout.records:
        if values[place] is not None:
            _sendable(record, values[place])
    return values


def decode(frames: Sequence[Frame]) -> Message:
    """Return the message in ``frames``.

    Arrays and payloads are read-only views of their frames. Raise only ``ProtocolError``, for
    anything that is not a message of this protocol version.
    """
    if not frames or len(frames[0]) > MAX_HEADER_BYTES:
        size = len(frames[0]) if frames else 0
        raise ProtocolError(
            f"received {len(frames)} frames with a header of {size} bytes; expected at least one "
            f"frame, the first of at most {MAX_HEADER_BYTES} bytes"
        )
    try:
        values = msgpack.unpackb(frames[0], **_UNPACK_LIMITS)
    except ValueError as error:
        raise ProtocolError(
            f"the header {_shortened(bytes(frames[0][:64]))} is not msgpack ({error}); expected "
            f"[{PROTOCOL_VERSION}, type, fields...]"
        ) from error
    layout = _layout_of(values)
    plain = _checked(layout, values[2:])
    if layout.unframe is not None:
        plain = (*plain, layout.unframe(layout.framed, frames[1:]))
    elif len(frames) != 1:
        raise ProtocolError(f"{layout.name} arrived in {len(frames)} frames; expected 1")
    return cast(Message, layout.kind._make(plain))


def _checked(layout: _Layout, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check all fields; return them with records converted. Raise ``ProtocolError``."""
    for field, value in zip(layout.fields, values, strict=True):
        types, low, high, is_valid = field.check
        if (
            type(value) not in types
            or (low is not None and not low <= value <= high)
            or (is_valid is not None and not is_valid(value))
        ):
            raise _field_error(layout, field, value)
    for place, record in layout.records:
        if values[place] is not None:
            made = record.kind._make(_checked(record, values[place]))
            values = (*values[:place], made, *values[place + 1 :])
    return values


def _layout_of(values: Any) -> _Layout:
    """Return the layout of a header; raise ``ProtocolError`` for another version or field count."""
    if type(values) is not tuple or len(values) < 2 or type(values[1]) is not str:
        raise ProtocolError(
            f"the header is {_shortened(values)}; expected [{PROTOCOL_VERSION}, type, fields...]"
        )
    version, name = values[:2]
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the peer uses protocol version {_shortened(version)}, this side version "
            f"{PROTOCOL_VERSION}; install the same release of dist-net on both hosts"
        )
    layout = _LAYOUTS.get(name)
    if layout is None:
        raise ProtocolError(
            f"unknown message type {_shortened(name)}; expected one of {len(_LAYOUTS)} types such "
            f"as Heartbeat: install the same release of dist-net on both hosts"
        )
    if len(values) - 2 != len(layout.fields):
        raise ProtocolError(
            f"{name} arrived with {len(values) - 2} fields; expected {len(layout.fields)}: "
            f"{', '.join(field.name for field in layout.fields)}"
        )
    return layout


def _field_error(layout: _Layout, field: _Field, value: Any) -> ProtocolError:
    return ProtocolError(
        f"{layout.name}.{field.name} is {_shortened(value)} ({type(value).__name__}); "
        f"expected {field.expected}"
    )


def _shortened(value: object) -> str:
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
