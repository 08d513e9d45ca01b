"""Messages to frames and back, and what becomes of frames that are no messages."""

from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.errors import ProtocolError
from dist_net.ground.vector import Vector
from dist_net.wire.codec import PROTOCOL_VERSION, decode, encode
from dist_net.wire.fields import MAX_HEADER_BYTES, MAX_PAYLOADS, Limits, Payloads
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import (
    Alive,
    Equipment,
    Heartbeat,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    SegmentAddress,
    Snapshot,
    StatusReport,
    StepSettings,
    Stop,
    Welcome,
    Work,
)
from dist_net.wire.serving_messages import RunBatch
from naming import naming

PUSH = Push(3, 5, 9, 17, 34.5, 28, 0.25, None)
JOIN = Join("w", 7, "d", 6)
SEGMENT = SegmentAddress(1, 2, b"token")
STEPS = StepSettings(0, 32, 10, "SGD()", 0.1)
WELCOME = Welcome(1, 7, STEPS, 0.5, 2.0)
INF = float("inf")
WEIGHTS = np.arange(6, dtype=np.float32)

vectors = st.lists(st.floats(width=32), min_size=1, max_size=20).map(
    lambda values: np.array(values, np.float32)
)
one_line = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=20)
by_hint = {
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
    Vector: vectors,
    Vector | None: st.none() | vectors,
    Payloads: st.lists(st.binary(max_size=20), max_size=3).map(tuple),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of a field, within the limits that its annotation states."""
    limits = Limits()
    if get_origin(hint) is Annotated:
        hint, limits = get_args(hint)
    if hint in by_hint:
        return by_hint[hint]
    if hint is int:
        return st.integers(limits.low, limits.high or 2**63 - 1)
    if hint is float:
        return st.floats(limits.low, limits.high, allow_infinity=False, allow_nan=False)
    if hint is str:
        return one_line if limits.one_line else st.text(max_size=20)
    if hint == SegmentAddress | None:
        return st.none() | made(SegmentAddress)
    return made(hint)


def made(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{name: values_of(hint) for name, hint in hints.items()})


messages = st.one_of(map(made, get_args(Message)))
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


def header(*values: object) -> bytes:
    return msgpack.packb(values)


def assert_refused(frames, *expected_words: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(frames)
    for word in expected_words:
        assert word in str(caught.value)


def several(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


@settings(deadline=None)
@given(messages)
def test_every_message_comes_back_as_it_was(message):
    decoded = decode([bytes(frame) for frame in encode(message)])
    assert type(decoded) is type(message)
    for sent, received in zip(message, decoded, strict=True):
        assert type(sent) is type(received)
        for one, other in zip(*map(several, (sent, received)), strict=True):
            if isinstance(one, np.ndarray):
                assert other.dtype == np.float32
                assert one.tobytes() == other.tobytes()
            else:
                assert one == other


def test_payloads_are_borrowed_both_ways():
    payload = bytes(1000)
    frames = encode(RunBatch(1, "m", 2, False, (payload, b"")))
    assert frames[1] is payload
    received = decode(frames).payloads
    assert [each.readonly for each in received] == [True, True]
    assert received[0].obj is payload


def test_too_many_payloads_are_refused():
    frames = encode(RunBatch(1, "m", 2, False, (b"",) * (MAX_PAYLOADS + 1)))
    assert_refused(frames, "RunBatch", str(MAX_PAYLOADS))
    assert len(decode(frames[:-1]).payloads) == MAX_PAYLOADS


def test_a_payload_does_not_stand_in_for_a_field():
    assert_refused([header(PROTOCOL_VERSION, "RunBatch", 1, "m", 2), b""], "3 fields", "expected 4")


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -1.5])
def test_a_diverging_loss_is_carried(loss):
    (frame,) = encode(PUSH._replace(loss_sum=loss))
    assert str(decode([frame]).loss_sum) == str(loss)


@pytest.mark.parametrize(
    "message",
    [
        JOIN,
        WELCOME,
        WELCOME._replace(segment=SEGMENT),
        Work(3, 9, 1, LeaseSteps(0, 0, 32, 0, 2, 2), None),
        Work(3, 9, 1, LeaseSteps(0, 0, 32, 0, 2, 2, 32), None),
        PUSH,
    ],
)
def test_states_may_be_in_shared_memory(message):
    decoded = decode(encode(message))
    assert decoded == message
    for sent, received in zip(message, decoded, strict=True):
        assert type(received) is type(sent)  # records too


@pytest.mark.parametrize(
    "segment",
    [(1, 2), (1, 2, b"", 3), (1, -1, b""), (1, 2, "text"), (1, 2, bytes(1025)), 7, True, ()],
)
def test_a_record_that_is_not_one_is_refused(segment):
    welcome = WELCOME._replace(segment=segment)
    assert_refused([header(PROTOCOL_VERSION, "Welcome", *welcome)], "Welcome.segment")


def test_a_record_that_is_required_is_not_none():
    join = JOIN._replace(equipment=None)
    assert_refused([header(PROTOCOL_VERSION, "Join", *join)], "Join.equipment", "host_cores")


def test_a_text_in_a_record_that_is_too_long_is_not_sent():
    with pytest.raises(ProtocolError, match="equipment"):
        encode(JOIN._replace(equipment=Equipment(blas="x" * 129)))


def test_a_peer_of_another_protocol_version_is_refused_in_one_line():
    with pytest.raises(ProtocolError) as caught:
        decode([header(PROTOCOL_VERSION - 1, "Join", *JOIN)])
    assert f"version {PROTOCOL_VERSION - 1}" in str(caught.value)
    assert "same release" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_contiguous_array_is_not_copied_on_the_way_out():
    _, frame = encode(PUSH._replace(state=WEIGHTS))
    assert np.shares_memory(np.frombuffer(frame, np.float32), WEIGHTS)


def test_an_array_with_gaps_is_carried():
    _, frame = encode(PUSH._replace(state=WEIGHTS[::2]))
    assert bytes(frame) == WEIGHTS[::2].tobytes()


def test_a_received_array_is_a_read_only_view_of_its_frame():
    frames = [bytes(frame) for frame in encode(Snapshot(1, 32, WEIGHTS))]
    weights = decode(frames).weights
    assert np.shares_memory(weights, np.frombuffer(frames[1], np.float32))
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 1


@pytest.mark.parametrize(
    "array", [WEIGHTS.astype(np.float64), WEIGHTS.reshape(2, 3), WEIGHTS[:0], np.float32(1)]
)
def test_only_float32_vectors_are_sent(array):
    with pytest.raises(ProtocolError, match=naming("Push", array.dtype, array.shape)):
        encode(PUSH._replace(state=array))


def test_a_message_that_cannot_be_packed_does_not_spoil_the_next():
    with pytest.raises(TypeError):
        encode(Heartbeat(np.int64(1)))
    assert decode(encode(Heartbeat(2))) == Heartbeat(2)


def test_a_text_too_long_for_a_header_is_not_sent():
    with pytest.raises(ProtocolError, match=str(MAX_HEADER_BYTES)):
        encode(StatusReport("x" * MAX_HEADER_BYTES))


@pytest.mark.parametrize("kind", get_args(Message))
def test_every_text_is_bounded_on_the_way_in_and_out(kind):
    hints = get_type_hints(kind)
    plain = {int: 1, float: 0.5, bool: True, str: "", bytes: b""}
    plain |= {Equipment: Equipment(), SegmentAddress | None: None, StepSettings: STEPS}
    plain[LeaseSteps] = LeaseSteps(0, 0, 32, 0, 2, 2)
    framed = {Payloads, Vector, Vector | None}
    fields = {name: plain[hint] for name, hint in hints.items() if hint not in framed}
    for name, hint in hints.items():
        if hint in (str, bytes):
            too_long = fields | {name: hint() + MAX_HEADER_BYTES * ("\0" if hint is str else b"\0")}
            assert_refused([header(PROTOCOL_VERSION, kind.__name__, *too_long.values())])
            if name != "reason":
                payloads = {each: () for each, hint in hints.items() if hint == Payloads}
                with pytest.raises(ProtocolError):
                    encode(kind(**too_long, **payloads))


def test_a_name_that_is_too_long_is_named():
    assert_refused(
        [header(PROTOCOL_VERSION, "Join", *JOIN._replace(name="x" * 129))],
        *["Join.name", "length 0 to 128"],
    )


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x85", "\u2028"])
def test_a_name_cannot_begin_a_line_of_the_log(character):
    name = f"worker{character}2026-01-01 INFO all is well"
    assert_refused(
        [header(PROTOCOL_VERSION, "Join", *JOIN._replace(name=name))],
        *["Join.name", "without control characters"],
    )
    join = JOIN._replace(recipe_digest=f"d{character}")
    assert_refused([header(PROTOCOL_VERSION, "Join", *join)], "Join.recipe_digest")


def test_a_reason_that_is_too_long_is_cut():
    refuse = decode(encode(Refuse("because " * 100_000, may_rejoin=False)))
    assert refuse.reason.startswith("because because")
    assert len(refuse.reason) <= 4096


def test_a_reason_is_one_line_without_what_a_terminal_obeys():
    refuse = Refuse("no recipe a\n\x1b[31m.py", may_rejoin=False)
    assert decode(encode(refuse)).reason == "no recipe a??[31m.py"
    assert_refused([header(PROTOCOL_VERSION, "Refuse", "\x1b[31m", False)], "Refuse.reason")


def test_a_text_that_is_not_unicode_is_sent_all_the_same():
    assert decode(encode(Refuse("recipe \udcff.py", may_rejoin=True))).reason == "recipe ?.py"


@settings(deadline=None)
@given(st.lists(plain_values, max_size=10), st.lists(st.binary(max_size=8), max_size=2))
def test_a_header_of_random_values_is_refused(values, frames):
    assert_refused([header(*values), *frames])


@settings(deadline=None)
@given(messages, st.data())
def test_a_damaged_message_raises_nothing_but_a_protocol_error(message, data):
    frames = [bytearray(frame) for frame in encode(message)]
    frame = data.draw(st.sampled_from([each for each in frames if each]))  # a payload may be empty
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(1, len(frame))) :]
    try:
        decoded = decode([bytes(frame) for frame in frames])
    except ProtocolError:
        return
    assert isinstance(decoded, get_args(Message))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], ["0 frames"]),
        ([b"\xc1"], ["not msgpack"]),
        ([b"\x93\x01" * 1000], ["not msgpack"]),
        ([bytes(MAX_HEADER_BYTES + 1)], [str(MAX_HEADER_BYTES)]),
        ([header(1)], ["(1,)", "expected"]),
        ([header(1, "Alive")], ["version 1", f"version {PROTOCOL_VERSION}", "same release"]),
        ([header(True, "Alive")], ["version True"]),
        ([header(PROTOCOL_VERSION, "Explode")], ["'Explode'", "Heartbeat"]),
        ([header(PROTOCOL_VERSION, "Leave")], ["0 fields", "worker_id"]),
        ([header(PROTOCOL_VERSION, "Leave", 1, 2, 3)], ["3 fields"]),
        (
            [header(PROTOCOL_VERSION, "Leave", True, 1)],
            ["Leave.worker_id", "True", "bool", "int"],
        ),
        ([header(PROTOCOL_VERSION, "Leave", "7", 1)], ["'7'", "str"]),
        ([header(PROTOCOL_VERSION, "Leave", -1, 1)], ["-1", "from 0"]),
        ([header(PROTOCOL_VERSION, "Leave", 2**63, 1)], [str(2**63)]),
        ([header(PROTOCOL_VERSION, "Stop", "done", 1)], ["Stop.finished", "bool"]),
        ([header(PROTOCOL_VERSION, "Work", 1, 1, 1, [*[1] * 6, 0])], ["parts", "0", "from 1"]),
        ([header(PROTOCOL_VERSION, "Work", 1, 1, 1, [*[1] * 6, 33])], ["steps.parts", "33"]),
        ([header(PROTOCOL_VERSION, "Work", 1, 1, 1, [*[1] * 5, 0, 1])], ["batch_size", "from 1"]),
        ([header(PROTOCOL_VERSION, "Push", *PUSH[:4], 1.0, 0, -0.5)], ["computed_s", "-0.5"]),
        ([header(PROTOCOL_VERSION, "Push", *PUSH[:4], 1.0, 0, INF)], ["computed_s", "inf"]),
        ([header(PROTOCOL_VERSION, "Leave", 1, 1), b"more"], ["2 frames", "expected 1"]),
        ([header(PROTOCOL_VERSION, "StatusReport", b"\xff")], ["StatusReport.report", "bytes"]),
        ([b"\x93\x01\xa6Status\xa1\xff"], ["not msgpack"]),
    ],
)  # fmt: skip
def test_what_was_wrong_is_named(frames, words):
    assert_refused(frames, *words)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], ["0 frames", "expected 1"]),
        ([b""], ["of 0 bytes", "multiple of 4"]),
        ([bytes(7)], ["of 7 bytes", "multiple of 4"]),
        ([bytes(8), bytes(8)], ["2 frames"]),
    ],
)
def test_frames_that_are_not_one_array_are_refused(frames, words):
    snapshot = header(PROTOCOL_VERSION, "Snapshot", 1, 32)
    assert_refused([snapshot, *frames], "Snapshot.weights", *words)


def test_an_array_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("dist_net.wire.codec.MAX_ARRAY_BYTES", 8)
    assert_refused([*encode(PUSH), bytes(12)], "Push.state", "12 bytes", "up to 8")
    assert decode([*encode(PUSH), bytes(8)]).state.size == 2


def test_a_short_header_cannot_claim_much_memory():
    deep = b"\xdd\x00\x0f\xff\xff" * 500
    assert_refused([deep], "exceeds max_array_len")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threads", 10**6),
        ("core_quota", 1e300),
        ("core_quota", float("nan")),
        ("cores", -1),
        ("blas", "x" * 129),
        ("blas", "\x1b[31mred"),
        ("host", "two\nlines"),
    ],
)
def test_what_a_worker_says_of_itself_is_bounded(field, value):
    join = JOIN._replace(equipment=Equipment(**{field: value}))
    assert_refused([header(PROTOCOL_VERSION, "Join", *join)], f"Join.equipment.{field}")


def test_an_error_stays_short_whatever_the_peer_sent():
    with pytest.raises(ProtocolError) as caught:
        decode([header(PROTOCOL_VERSION, "x" * 100_000)])
    assert len(str(caught.value)) < 500


def test_messages_without_fields_and_with_one_are_small():
    messages = Leave(1), Pull(1, 2, 3), Alive(), Stop("done", finished=True)
    assert [len(encode(message)[0]) for message in messages] == [10, 10, 20, 13]
