"""A note of a piece of work: what is read there, and what is not."""

from typing import get_type_hints

from hypothesis import given
from hypothesis import strategies as st

from dist_net.wire.messages import Work
from dist_net.wire.segment import NOTE_BYTES
from dist_net.wire.work_note import noted, work_in

INTEGERS = st.integers(-1, 2**63 - 1)
WORKS = st.tuples(*[INTEGERS] * (len(Work._fields) - 1)).map(lambda fields: Work(*fields, None))


def test_all_of_a_work_but_its_weights_is_an_integer():
    kinds = list(get_type_hints(Work).items())
    assert kinds[-1][0] == "weights"
    assert all(kind is int for _, kind in kinds[:-1])


@given(WORKS)
def test_what_was_noted_is_read(work):
    assert len(noted(work)) == NOTE_BYTES
    assert work_in(noted(work)) == work


def test_nothing_is_noted_in_memory_that_is_new():
    assert work_in(bytes(NOTE_BYTES)) is None


@given(WORKS, WORKS, st.integers(0, NOTE_BYTES), st.booleans())
def test_a_note_that_is_half_written_is_none(before, after, written, is_written_backwards):
    old, new = noted(before), noted(after)
    if is_written_backwards:
        old, new = new, old
    assert work_in(new[:written] + old[written:]) in (None, before, after)
