"""Messages to frames and back; pure functions, no I/O.

The first frame is a msgpack array ``[PROTOCOL_VERSION, type's name, *fields]``. Arrays are
described there, see `dist_net.wire.arrays`, and each is a further frame; so is each payload, which
nothing describes. What a peer sent is checked in full before an array is made of it; the checks
are derived, once, from the annotations in `dist_net.wire.messages` and
`dist_net.wire.serving_messages`.
"""

import sys
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, cast, get_args, get_type_hints

import msgpack

from dist_net.errors import ProtocolError
from dist_net.vector import Vector, Vectors
from dist_net.wire.arrays import Frame, decode_arrays, encode_arrays, shortened
from dist_net.wire.messages import Integers, Message
from dist_net.wire.serving_messages import Payloads

PROTOCOL_VERSION = 2
MAX_HEADER_BYTES = 2**20
MAX_PAYLOADS = 1024

_MAX_INTEGER = 2**63 - 1
# How many characters or bytes a field may have; 1,024 unless it is named here. Reasons are for
# people: one that is too long is cut when it is sent.
_LONGEST = {"name": 128, "reason": 4096, "statuses": MAX_PAYLOADS} | dict.fromkeys(
    ("report", "models", "description"), MAX_HEADER_BYTES
)
_CUT = "reason"

# `msgpack.packb` would make a Packer and its buffer for each call. A path that is not UTF-8 may
# stand in a text.
_pack = msgpack.Packer(unicode_errors="replace").pack
# No deeper, longer or other containers than a header has, so that a short hostile one cannot
# make msgpack reserve much memory.
_UNPACK_LIMITS = {"use_list": False, "max_array_len": 16, "max_map_len": 0, "max_ext_len": 0}

# -1 in these says that arrays travel as frames.
_MAY_BE_ABSENT = {"gradient_descriptor", "weights_descriptor", "snapshot"}
# A diverging worker's loss is not finite, and the server wants to hear of it.
_MAY_BE_NOT_FINITE = {"loss_sum"}


class _Field(NamedTuple):
    """What a plain field's value must be; a number without bounds if ``low`` is None.

    Of a text or bytes ``high`` is the greatest length.
    """

    name: str
    types: tuple[type, ...]
    low: float | None
    high: float

    @property
    def has_length(self) -> bool:
        """Whether ``high`` is a length."""
        return self.types[0] in (str, bytes)


class _Layout(NamedTuple):
    """What a message's header must hold. ``absent`` stands for an array that is not there.

    ``()``: for several arrays; ``...``: it must be there. ``texts``: the places among ``fields`` of
    texts and bytes, and their greatest lengths.
    """

    kind: Any
    fields: tuple[_Field, ...]
    texts: tuple[tuple[int, int], ...]
    array: str | None
    absent: Any
    has_payloads: bool


class _Plain(NamedTuple):
    """What suffices for a header: its values' types, but for an array's, and no negative integer.

    ``sequences`` are the places of what holds several integers.
    """

    layout: _Layout
    types: list[type]
    integers: Callable[[Any], tuple[int, ...]]
    sequences: tuple[int, ...]


def _field(name: str, hint: Any) -> _Field:
    if hint is int:
        return _Field(name, (int,), -1 if name in _MAY_BE_ABSENT else 0, _MAX_INTEGER)
    if hint is float:
        low = None if name in _MAY_BE_NOT_FINITE else 0
        return _Field(name, (float, int), low, sys.float_info.max)
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


def _plain(layout: _Layout) -> _Plain | None:
    if layout.has_payloads:
        return None
    if any(field.types[0] is float and field.low is not None for field in layout.fields):
        return None
    types = [int, str, *(field.types[0] for field in layout.fields)]
    integers = (i for i, kind in enumerate(types) if kind is int)
    sequences = tuple(i for i, kind in enumerate(types) if kind is tuple)
    # The version comes twice, so that there are always two: with one, itemgetter makes no tuple.
    return _Plain(layout, types, itemgetter(0, *integers), sequences)


_LAYOUTS = {kind.__name__: _layout(kind) for kind in get_args(Message)}
_PLAINS = {name: plain for name, layout in _LAYOUTS.items() if (plain := _plain(layout))}


def encode(message: Message) -> list[Frame]:
    """The frames that carry ``message``.

    Payloads, and arrays if they are contiguous, are borrowed, not copied. A reason that is too long
    is cut. Raises `ProtocolError` for arrays that are not 1-D float32 of one length, for another
    text that is too long, and for a header over `MAX_HEADER_BYTES`.
    """
    name = type(message).__name__
    layout = _LAYOUTS[name]
    values: tuple[Any, ...] = message
    for place, longest in layout.texts:
        if len(values[place]) > longest:
            values = _shortened_message(layout, values, place)
    if layout.has_payloads:
        frames: list[Frame] = [_pack((PROTOCOL_VERSION, name, *values[:-1])), *values[-1]]
    elif layout.array is None:
        frames = [_pack((PROTOCOL_VERSION, name, *values))]
    else:
        spec, array_frames = encode_arrays(name, values[-1])
        frames = [_pack((PROTOCOL_VERSION, name, *values[:-1], spec)), *array_frames]
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"a {name} message needs a header of {len(frames[0])} bytes; "
            f"at most {MAX_HEADER_BYTES} are allowed: send less text at once"
        )
    return frames


def _shortened_message(layout: _Layout, values: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    """The values of a message one of whose texts is too long, if that may be cut."""
    field = layout.fields[place]
    if field.name != _CUT:
        raise _field_error(layout, field.name, values[place])
    cut = values[place][: int(field.high) - 3] + "..."
    return (*values[:place], cut, *values[place + 1 :])


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
            f"the header {shortened(bytes(frames[0][:64]))} is not msgpack ({error}); expected "
            f"[{PROTOCOL_VERSION}, type, fields...]"
        ) from error
    message = _decode_plain(values, frames)
    return _decode_carefully(values, frames) if message is None else message


def _decode_plain(values: Any, frames: Sequence[Frame]) -> Message | None:
    """The message of a header, if all of it but an array is right at one look.

    Most are; looking at each field would take a tenth of a round trip over ipc.
    """
    try:
        layout, types, integers, sequences = _PLAINS[values[1]]
    except (TypeError, IndexError, KeyError):
        return None
    plain = values[:-1] if layout.array else values
    if [*map(type, plain)] != types or values[0] != PROTOCOL_VERSION:
        return None
    numbers = integers(values)
    for place in sequences:
        numbers += values[place]
    if sequences and {*map(type, numbers)} != {int}:
        return None
    if min(numbers) < 0 or max(numbers) > _MAX_INTEGER:
        return None
    if any(len(plain[2 + place]) > longest for place, longest in layout.texts):
        return None
    return _completed(layout, plain[2:], values[-1], frames)


def _decode_carefully(values: Any, frames: Sequence[Frame]) -> Message:
    """The message of a header, looked at field by field; says what is wrong."""
    layout = _layout_of(values)
    fields = values[2:]
    for field, value in zip(layout.fields, fields, strict=False):
        name, types, low, high = field
        if type(value) not in types or (low is not None and not low <= value <= high):
            raise _field_error(layout, name, value)
        if field.has_length and len(value) > high:
            raise _field_error(layout, name, value)
        if type(value) is tuple and not all(_is_natural(each) for each in value):
            raise _field_error(layout, name, value)
    plain = fields[:-1] if layout.array else fields
    return _completed(layout, plain, values[-1], frames)


def _completed(
    layout: _Layout, plain: tuple[Any, ...], spec: Any, frames: Sequence[Frame]
) -> Message:
    """The message of these fields, and of what travels as frames; ``spec`` describes an array."""
    if layout.has_payloads:
        plain = (*plain, _payloads(layout, frames))
    elif layout.array:
        name = f"{layout.kind.__name__}.{layout.array}"
        plain = (*plain, decode_arrays(name, spec, frames[1:], layout.absent))
    elif len(frames) != 1:
        raise ProtocolError(f"{layout.kind.__name__} came in {len(frames)} frames; expected 1")
    return cast(Message, layout.kind._make(plain))


def _layout_of(values: Any) -> _Layout:
    """The layout that a header names, when version and number of fields are right."""
    if type(values) is not tuple or len(values) < 2 or type(values[1]) is not str:
        raise ProtocolError(
            f"the header is {shortened(values)}; expected [{PROTOCOL_VERSION}, type, fields...]"
        )
    version, name = values[:2]
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the peer speaks protocol version {shortened(version)}; this side speaks "
            f"{PROTOCOL_VERSION}: install the same release of dist-net on both hosts"
        )
    layout = _LAYOUTS.get(name)
    if layout is None:
        raise ProtocolError(
            f"unknown message type {shortened(name)}; expected one of {', '.join(_LAYOUTS)}"
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


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_INTEGER


def _field_error(layout: _Layout, name: str, value: Any) -> ProtocolError:
    field = next(field for field in layout.fields if field.name == name)
    expected = field.types[0].__name__
    if field.types == (tuple,):
        expected = f"several integers from 0 to {_MAX_INTEGER}"
    if field.has_length:
        expected += f" of length 0 to {field.high}"
    if field.low is not None:
        expected += f" from {field.low} to {field.high}"
    return ProtocolError(
        f"{layout.kind.__name__}.{name} is {shortened(value)} "
        f"({type(value).__name__}); expected {expected}"
    )
