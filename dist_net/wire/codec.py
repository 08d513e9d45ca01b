"""Messages to frames and back; pure functions, no I/O.

The first frame is a msgpack array ``[PROTOCOL_VERSION, type's name, *fields]``. An array field is
described there as ``["<f4", [length]]``, and its bytes are the second frame. Payloads are not
described: each further frame is one. What a peer sent is checked in full before an array is made
of it; the checks are derived, once, from the annotations in `dist_net.wire.messages` and
`dist_net.wire.serving_messages`.
"""

import sys
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, cast, get_args, get_type_hints

import msgpack
import numpy as np

from dist_net.errors import ProtocolError
from dist_net.wire.messages import Message, Vector
from dist_net.wire.serving_messages import Payloads

PROTOCOL_VERSION = 1
MAX_HEADER_BYTES = 2**20
MAX_ARRAY_BYTES = 2**30
MAX_PAYLOADS = 1024

Frame = bytes | memoryview

_ARRAY_DTYPE = np.dtype("<f4")
_MAX_INTEGER = 2**63 - 1
# `msgpack.packb` would make a Packer and its buffer for each call.
_pack = msgpack.Packer().pack
# No deeper, longer or other containers than a header has, so that a short hostile one cannot
# make msgpack reserve much memory.
_UNPACK_LIMITS = {"use_list": False, "max_array_len": 16, "max_map_len": 0, "max_ext_len": 0}

# -1 in these says that arrays travel as frames.
_MAY_BE_ABSENT = {"gradient_descriptor", "weights_descriptor", "snapshot", "slot"}
# A diverging worker's loss is not finite, and the server wants to hear of it.
_MAY_BE_NOT_FINITE = {"loss_sum"}


class _Field(NamedTuple):
    """What a plain field's value must be; without bounds if ``low`` is None."""

    name: str
    types: tuple[type, ...]
    low: float | None
    high: float


class _Layout(NamedTuple):
    """What a message's header must hold."""

    kind: Any
    fields: tuple[_Field, ...]
    array: str | None
    array_is_optional: bool
    has_payloads: bool


class _Plain(NamedTuple):
    """What suffices for a header without an array: its values' types, and no negative integer."""

    kind: Any
    types: list[type]
    integers: Callable[[Any], tuple[int, ...]]


def _field(name: str, hint: Any) -> _Field:
    if hint is int:
        return _Field(name, (int,), -1 if name in _MAY_BE_ABSENT else 0, _MAX_INTEGER)
    if hint is float:
        low = None if name in _MAY_BE_NOT_FINITE else 0
        return _Field(name, (float, int), low, sys.float_info.max)
    if hint in (str, bytes, bool):
        return _Field(name, (hint,), None, 0)
    raise TypeError(f"message field {name!r} is of type {hint}, which the codec does not know")


def _layout(kind: Any) -> _Layout:
    hints = get_type_hints(kind)
    array = next((n for n, hint in hints.items() if hint in (Vector, Vector | None)), None)
    has_payloads = Payloads in hints.values()
    framed = "payloads" if has_payloads else array
    if framed is not None and framed != kind._fields[-1]:
        raise TypeError(f"{kind.__name__}.{framed}: what travels as frames must be the last field")
    fields = tuple(_field(name, hint) for name, hint in hints.items() if name != framed)
    is_optional = array is not None and hints[array] == Vector | None
    return _Layout(kind, fields, array, is_optional, has_payloads)


def _plain(layout: _Layout) -> _Plain | None:
    if layout.has_payloads or (layout.array and not layout.array_is_optional):
        return None
    if any(field.types[0] is float and field.low is not None for field in layout.fields):
        return None
    types = [int, str, *(field.types[0] for field in layout.fields)]
    integers = (i for i, kind in enumerate(types) if kind is int)
    if layout.array:
        types.append(type(None))
    # The version comes twice, so that there are always two: with one, itemgetter makes no tuple.
    return _Plain(layout.kind, types, itemgetter(0, *integers))


_LAYOUTS = {kind.__name__: _layout(kind) for kind in get_args(Message)}
_PLAINS = {name: plain for name, layout in _LAYOUTS.items() if (plain := _plain(layout))}


def encode(message: Message) -> list[Frame]:
    """The frames that carry ``message``.

    Payloads, and an array if it is contiguous, are borrowed, not copied. Raises
    `ProtocolError` for an array that is not 1-D float32 and for a header over `MAX_HEADER_BYTES`.
    """
    name = type(message).__name__
    values: tuple[Any, ...] = message
    layout = _LAYOUTS[name]
    array = values[-1] if layout.array else None
    if layout.has_payloads:
        frames: list[Frame] = [_pack((PROTOCOL_VERSION, name, *values[:-1])), *values[-1]]
    elif array is None:
        frames = [_pack((PROTOCOL_VERSION, name, *values))]
    else:
        vector = _checked_vector(name, array)
        spec = (_ARRAY_DTYPE.str, vector.shape)
        header = _pack((PROTOCOL_VERSION, name, *values[:-1], spec))
        frames = [header, vector.data.cast("B")]
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"a {name} message needs a header of {len(frames[0])} bytes; "
            f"at most {MAX_HEADER_BYTES} are allowed: send less text at once"
        )
    return frames


def decode(frames: Sequence[Frame]) -> Message:
    """The message that ``frames`` carry.

    An array and payloads are read-only views of their frames, not copies. Raises `ProtocolError`,
    and nothing else, for whatever is not a message of this protocol.
    """
    if not frames or len(frames[0]) > MAX_HEADER_BYTES:
        size = len(frames[0]) if frames else 0
        raise ProtocolError(
            f"got {len(frames)} frames with a header of {size} bytes; expected one or two "
            f"frames with a header of at most {MAX_HEADER_BYTES} bytes"
        )
    try:
        values = msgpack.unpackb(frames[0], **_UNPACK_LIMITS)
    except ValueError as error:
        raise ProtocolError(
            f"the header {_shortened(bytes(frames[0][:64]))} is not msgpack ({error}); expected "
            f"[{PROTOCOL_VERSION}, type, fields...]"
        ) from error
    message = _decode_plain(values) if len(frames) == 1 else None
    return _decode_carefully(values, frames) if message is None else message


def _decode_plain(values: Any) -> Message | None:
    """The message of a header without an array, if all of it is right at one look.

    Most are; looking at each field would take a tenth of a round trip over ipc.
    """
    try:
        kind, types, integers = _PLAINS[values[1]]
    except (TypeError, IndexError, KeyError):
        return None
    if [*map(type, values)] != types or values[0] != PROTOCOL_VERSION:
        return None
    numbers = integers(values)
    if min(numbers) < 0 or max(numbers) > _MAX_INTEGER:
        return None
    return cast(Message, kind._make(values[2:]))


def _decode_carefully(values: Any, frames: Sequence[Frame]) -> Message:
    """The message of a header, looked at field by field; says what is wrong."""
    layout = _layout_of(values)
    fields = values[2:]
    for (name, types, low, high), value in zip(layout.fields, fields, strict=False):
        if type(value) not in types or (low is not None and not low <= value <= high):
            raise _field_error(layout, name, value)
    if layout.has_payloads:
        fields = (*fields, _payloads(layout, frames))
    elif layout.array:
        fields = (*fields[:-1], _decode_array(layout, fields[-1], frames))
    elif len(frames) != 1:
        raise ProtocolError(f"{layout.kind.__name__} came in {len(frames)} frames; expected 1")
    return cast(Message, layout.kind._make(fields))


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
            f"unknown message type {_shortened(name)}; expected one of {', '.join(_LAYOUTS)}"
        )
    expected = layout.kind._fields[:-1] if layout.has_payloads else layout.kind._fields
    if len(values) - 2 != len(expected):
        raise ProtocolError(
            f"{name} came with {len(values) - 2} fields; expected {len(expected)}: "
            f"{', '.join(expected)}"
        )
    return layout


def _checked_vector(message_name: str, array: Vector) -> Vector:
    if array.dtype != _ARRAY_DTYPE or array.ndim != 1 or not 0 < array.nbytes <= MAX_ARRAY_BYTES:
        raise ProtocolError(
            f"a {message_name} message was given a {array.dtype} array of shape {array.shape}; "
            f"expected a 1-D float32 array of 1 to {MAX_ARRAY_BYTES // 4} elements"
        )
    return np.ascontiguousarray(array)


def _decode_array(layout: _Layout, spec: Any, frames: Sequence[Frame]) -> Vector | None:
    name = f"{layout.kind.__name__}.{layout.array}"
    if spec is None and layout.array_is_optional:
        if len(frames) != 1:
            raise ProtocolError(f"{name} is nil, but {len(frames)} frames came; expected 1")
        return None
    length = _array_length(spec)
    if length is None:
        raise ProtocolError(
            f"{name} is described as {_shortened(spec)}; expected "
            f'["{_ARRAY_DTYPE.str}", [length]] with a length of 1 to {MAX_ARRAY_BYTES // 4}'
        )
    sizes = [memoryview(frame).nbytes for frame in frames[1:]]
    if sizes != [4 * length]:
        raise ProtocolError(
            f"{name} came in frames of {_shortened(sizes)} bytes; expected one of {4 * length}"
        )
    vector = np.frombuffer(frames[1], _ARRAY_DTYPE)
    vector.setflags(write=False)
    return vector


def _payloads(layout: _Layout, frames: Sequence[Frame]) -> Payloads:
    if len(frames) - 1 > MAX_PAYLOADS:
        raise ProtocolError(
            f"{layout.kind.__name__} came with {len(frames) - 1} payloads or more; "
            f"expected at most {MAX_PAYLOADS}"
        )
    return tuple(memoryview(frame).toreadonly() for frame in frames[1:])


def _array_length(spec: Any) -> int | None:
    """The number of elements that an array's description promises; None: it is not valid."""
    if type(spec) is not tuple or len(spec) != 2 or spec[0] != _ARRAY_DTYPE.str:
        return None
    shape = spec[1]
    if type(shape) is not tuple or len(shape) != 1 or type(shape[0]) is not int:
        return None
    length = shape[0]
    return length if 0 < length <= MAX_ARRAY_BYTES // 4 else None


def _field_error(layout: _Layout, name: str, value: Any) -> ProtocolError:
    field = next(field for field in layout.fields if field.name == name)
    expected = field.types[0].__name__
    if field.low is not None:
        expected += f" from {field.low} to {field.high}"
    return ProtocolError(
        f"{layout.kind.__name__}.{name} is {_shortened(value)} "
        f"({type(value).__name__}); expected {expected}"
    )


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
