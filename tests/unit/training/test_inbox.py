"""What a worker receives, of a note and of messages; its socket is a list here."""

import platform
from types import SimpleNamespace
from typing import Any

import pytest

from dist_net.training.inbox import Inbox
from dist_net.wire.messages import Message, Stop, Wait, Work
from dist_net.wire.segment import NOTE_BYTES
from dist_net.wire.work_note import noted


def work(lease_id: int, version: int) -> Work:
    return Work(lease_id, 0, 32, 64, version, 2, 5, None)


class Desk:
    """A note, a socket's messages, and an inbox for both."""

    def __init__(self) -> None:
        self.note = bytearray(NOTE_BYTES)
        self.messages: list[Message] = []
        socket: Any = SimpleNamespace(
            has_message=lambda: bool(self.messages),
            receive=lambda timeout_s: self.messages.pop(0) if self.messages else None,  # noqa: ARG005
        )
        self.inbox = Inbox(socket, memoryview(self.note))

    def answer(self, work: Work) -> None:
        """As a server does."""
        self.note[:] = noted(work)
        self.messages.append(work)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return Desk()


def test_a_note_is_there_before_the_message(desk: Desk) -> None:
    assert not desk.inbox.has_message()
    assert desk.inbox.receive(0) is None
    desk.note[:] = noted(work(1, 7))
    assert desk.inbox.has_message()
    assert desk.inbox.has_message()
    assert desk.inbox.receive(0) == work(1, 7)
    assert not desk.inbox.has_message()
    assert desk.inbox.receive(0) is None


def test_the_message_comes_all_the_same_and_so_do_others(desk: Desk) -> None:
    desk.answer(work(1, 7))
    desk.messages.append(Stop("enough", finished=False))
    received = [desk.inbox.receive(0) for _ in range(4)]
    assert received == [work(1, 7), work(1, 7), Stop("enough", finished=False), None]


def test_the_newest_of_several_notes_is_read_first(desk: Desk) -> None:
    for version in (7, 8, 9):
        desk.answer(work(1, version))
    received = [desk.inbox.receive(0) for _ in range(4)]
    assert received == [work(1, 9), work(1, 7), work(1, 8), work(1, 9)]


@pytest.mark.parametrize("newer", [work(1, 7), work(1, 8), work(2, 7)])
def test_a_note_is_no_news_after_a_message_as_new(desk: Desk, newer: Work) -> None:
    desk.messages += [newer, Wait(0.01)]
    assert desk.inbox.receive(0) == newer
    desk.note[:] = noted(work(1, 7))
    assert desk.inbox.receive(0) == Wait(0.01)
    assert not desk.inbox.has_message()


def test_a_note_that_is_half_written_is_waited_for(desk: Desk) -> None:
    note = noted(work(1, 7))
    desk.note[:9] = note[:9]
    assert not desk.inbox.has_message()
    assert desk.inbox.receive(0) is None
    desk.note[:] = note
    assert desk.inbox.receive(0) == work(1, 7)


def test_what_the_last_server_said_does_not_count_with_the_next(desk: Desk) -> None:
    desk.answer(work(5, 70))
    assert desk.inbox.receive(0) == work(5, 70)
    desk.note[:] = noted(work(6, 71))
    desk.messages.clear()
    desk.inbox.forget()
    assert desk.inbox.receive(0) is None
    desk.note[:] = noted(work(2, 30))
    assert desk.inbox.receive(0) == work(2, 30)


def test_where_stores_are_seen_out_of_order_only_messages_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    desk = Desk()
    desk.note[:] = noted(work(1, 7))
    assert not desk.inbox.has_message()
    assert desk.inbox.receive(0) is None
    desk.answer(work(1, 8))
    assert desk.inbox.receive(0) == work(1, 8)


def test_without_shared_memory_there_are_only_messages() -> None:
    socket: Any = SimpleNamespace(has_message=lambda: True, receive={0.2: Wait(0.01)}.get)
    inbox = Inbox(socket, None)
    assert inbox.has_message()
    assert inbox.receive(0.2) == Wait(0.01)
