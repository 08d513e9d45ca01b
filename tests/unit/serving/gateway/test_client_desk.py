"""What the gateway answers a client: that knows a model as it was before, or that it fails on."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from described import with_input
from dist_net.serving.gateway.client_desk import ClientDesk
from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.pool.description import known, summary_of
from dist_net.serving.pool.requests import Result, Status
from dist_net.wire.messages import Message
from dist_net.wire.serving_messages import Ask, Describe, Ping, Pong, Reload, Unload
from fake_service import ANIMALS, DIGITS, FakeService, served

IMAGE = b"\xff\xd8\xff any image"
OUTPUTS = bytes(12)
ANSWERED = Result(Status.OK, 7, OUTPUTS, labels=ANIMALS.labels)


def socket_of(sent: list[Message], **more: Any) -> Any:
    """A fake of a socket that keeps what is sent, all of which is read at once."""
    fakes: dict[str, Any] = {
        "send": lambda _, message: sent.append(message) or True,
        "sender": lambda _: ("", "127.0.0.1"),
        "sent_bytes": lambda _: 0,
        "read_bytes": lambda _: 0,
    }
    return SimpleNamespace(**fakes | more)


def answer(service: FakeService, ask: Message, may_rule: bool = True) -> Any:
    sent: list[Message] = []
    socket = socket_of(sent)

    async def run() -> None:
        desk = ClientDesk(service, socket, b"g", ClientLedger(1 << 20), may_rule)
        desk._receive_soon = lambda: None  # type: ignore[method-assign]
        desk._loop = asyncio.get_running_loop()
        desk._handle(b"client", ask)
        await asyncio.sleep(0)

    asyncio.run(run())
    (answer,) = sent
    return answer


@pytest.mark.parametrize("labels", [ANIMALS.labels, ("dog", "cat"), ()])
def test_an_answer_brings_the_labels_of_its_version_if_the_client_knows_others(
    labels: tuple[str, ...],
) -> None:
    payloads = IMAGE, known(replace(summary_of(served(ANIMALS), 8), labels=labels))
    got = answer(FakeService(scripted=[ANSWERED]), Ask(1, "animals", "", True, 0, payloads))
    outputs, *brought = got.payloads
    assert (got.status, outputs) == (Status.OK, OUTPUTS)
    is_known = labels == ANIMALS.labels
    assert [tuple(json.loads(each)) for each in brought] == ([] if is_known else [ANIMALS.labels])


@pytest.mark.parametrize("known_threshold", [0.0, 0.5, 0.75])
def test_an_answer_brings_the_threshold_too_if_the_client_knows_another(
    known_threshold: float,
) -> None:
    summary = replace(summary_of(served(ANIMALS), 8), unknown_below=known_threshold)
    scripted = [replace(ANSWERED, unknown_below=0.75)]
    service = FakeService({"animals": served(replace(ANIMALS, unknown_below=0.75))}, scripted)
    ask = Ask(1, "animals", "", True, 0, (IMAGE, known(summary)))
    _, *brought = answer(service, ask).payloads
    told = [] if known_threshold == 0.75 else [list(ANIMALS.labels), 0.75]
    assert [json.loads(each) for each in brought] == told


def test_one_that_says_nothing_of_what_it_knows_gets_the_outputs_alone() -> None:
    got = answer(FakeService(scripted=[ANSWERED]), Ask(1, "animals", "", True, 0, (IMAGE,)))
    assert got.payloads == (OUTPUTS,)


@pytest.mark.parametrize("change", [{"shape": (2, 2)}, {"datatype": "UINT8"}])
def test_rows_of_another_shape_or_type_are_refused_though_their_bytes_would_do(
    change: dict[str, Any],
) -> None:
    service = FakeService()
    payloads = bytes(16), known(summary_of(served(with_input(DIGITS, **change)), 8))
    got = answer(service, Ask(1, "digits", "", False, 0, payloads))
    assert got.status == Status.BAD_INPUT
    assert "FP32 (4,)" in got.reason
    assert not service.requests


@pytest.mark.parametrize("said", [b"", b"x", bytes(17)])
def test_what_the_client_knows_is_two_digests(said: bytes) -> None:
    got = answer(FakeService(), Ask(1, "digits", "", False, 0, (bytes(16), said)))
    assert got.status == Status.BAD_INPUT
    assert "2 payloads" in got.reason


def test_a_message_whose_handling_fails_is_answered_and_the_next_one_too() -> None:
    class Failing(FakeService):
        def models(self) -> Any:
            raise ZeroDivisionError("a fault of our own")

    arrived = [(b"one", Describe(1)), (b"other", Ping())]
    sent: list[Message] = []
    failed: list[Message] = []
    socket = socket_of(
        sent,
        waiting=lambda most: iter(arrived[:most]),
        has_message=lambda: False,
        answer_failure=lambda _, message: failed.append(message),
    )
    desk = ClientDesk(Failing(), socket, b"g", ClientLedger(1 << 20))
    desk._receive_soon = lambda: None  # type: ignore[method-assign]
    desk._receive()
    assert failed == [Describe(1)]
    (pong,) = sent
    assert isinstance(pong, Pong)
    assert b"other".hex() not in pong.gateway  # whoever knows an id could take it


def test_requests_of_a_client_that_is_gone_are_dropped() -> None:
    service = FakeService(is_silent=True)
    socket = socket_of([], send=lambda node, _: node != b"gone")

    async def run() -> list[bool]:
        desk = ClientDesk(service, socket, b"g", ClientLedger(1 << 20))
        desk._receive_soon = lambda: None  # type: ignore[method-assign]
        desk._loop = asyncio.get_running_loop()
        for node, request_id in ((b"gone", 1), (b"here", 1), (b"gone", 2)):
            desk._handle(node, Ask(request_id, "animals", "", True, 0, (IMAGE,)))
        desk._look_for_clients()
        desk._timer.cancel()
        await asyncio.sleep(0)
        assert [list(peer.futures) for peer in desk._peers.values()] == [[1]]
        assert desk._ledger.total_bytes > 0
        return [future.cancelled() for future in service.futures]

    assert asyncio.run(run()) == [True, False, True]


def test_a_client_that_has_lost_its_connection_is_told_so_by_the_name_of_the_new_one() -> None:
    sent: list[Message] = []
    socket = socket_of(sent)
    desk = ClientDesk(FakeService(), socket, b"g", ClientLedger(1 << 20))
    desk._receive_soon = lambda: None  # type: ignore[method-assign]
    for node in (b"first", b"first", b"second"):
        desk._handle(node, Ping())
    names = [message.gateway for message in sent if isinstance(message, Pong)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("message", [Reload(3, "animals"), Unload(3, "animals")])
@pytest.mark.parametrize("may_rule", [True, False])
def test_without_a_key_clients_of_a_pool_with_tokens_may_only_ask(
    message: Message, may_rule: bool
) -> None:
    service = FakeService()
    got = answer(service, message, may_rule)
    assert (got.request_id, "--keys" in got.reason) == (3, not may_rule)
    assert bool(service.done_to_models) is may_rule
    described = answer(service, Describe(4), may_rule)
    assert described.request_id == 4
