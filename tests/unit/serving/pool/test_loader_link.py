"""Whom the gateway takes for its model loader, and what it asks of it."""

import pytest

from dist_net.serving.pool.loader_link import LoaderLink
from dist_net.wire.messages import Message
from dist_net.wire.serving_messages import Enlisted, EnlistLoader, ModelPrepared, PrepareModel

OWN = EnlistLoader(1, b"secret")
Sent = list[tuple[bytes, Message]]


@pytest.fixture
def sent() -> Sent:
    return []


@pytest.fixture
def link(sent: Sent) -> LoaderLink:
    return LoaderLink(b"secret", lambda node, message: sent.append((node, message)) is None)


def asked(sent: Sent, node: bytes) -> list[Message]:
    return [message for to, message in sent if to == node and isinstance(message, PrepareModel)]


def test_only_who_has_the_token_is_the_loader(link: LoaderLink, sent: Sent) -> None:
    assert not link.enlisted(b"worker", EnlistLoader(1, b"guess"))
    assert not sent
    assert link.enlisted(b"loader", OWN)
    assert [(node, type(message)) for node, message in sent] == [(b"loader", Enlisted)]


def test_only_the_loader_says_what_versions_there_are(link: LoaderLink) -> None:
    link.enlisted(b"loader", OWN)
    assert not link.prepared(b"worker", ModelPrepared("m", 9, "", ""))
    assert "m" not in link.unreadable
    assert link.prepared(b"loader", ModelPrepared("m", 2, "", "no such file"))
    assert link.unreadable == {"m": "no such file"}


def test_versions_go_on_from_the_newest_that_came(link: LoaderLink, sent: Sent) -> None:
    link.enlisted(b"loader", OWN)
    assert link.prepare("m") == 1
    link.prepared(b"loader", ModelPrepared("m", 700, "", "", 1))  # a training run's
    link.unloaded.add("m")
    assert link.prepare("m") == 701
    assert asked(sent, b"loader") == [PrepareModel("m", 1), PrepareModel("m", 701)]
    assert not link.unloaded


def test_a_loader_is_asked_what_there_was_nobody_to_ask(link: LoaderLink, sent: Sent) -> None:
    link.prepare("m")
    link.prepare("n")
    link.enlisted(b"first", OWN)
    link.prepared(b"first", ModelPrepared("m", 1, "", "", 1))
    assert link.ended(1, "killed") is None
    link.enlisted(b"second", EnlistLoader(2, b"secret"))
    assert asked(sent, b"first") == [PrepareModel("m", 1), PrepareModel("n", 1)]
    assert asked(sent, b"second") == [PrepareModel("n", 1)]


def test_a_model_that_ends_one_loader_after_the_other_is_not_tried_again(
    link: LoaderLink, sent: Sent
) -> None:
    link.prepare("bad")
    link.prepare("good")
    for process_id in (1, 2):
        link.enlisted(b"%d" % process_id, EnlistLoader(process_id, b"secret"))
        assert link.ended(77, "a worker, which is another matter") is None
        answer = link.ended(process_id, "killed by signal 11")
    assert answer is not None
    assert (answer.model, answer.asked) == ("bad", 1)
    assert "ended the model loader 2 times" in answer.reason
    assert "signal 11" in link.unreadable["bad"]
    link.enlisted(b"3", EnlistLoader(3, b"secret"))
    assert asked(sent, b"3") == [PrepareModel("good", 1)]
    assert link.prepare("bad") == 2


def test_a_loader_that_takes_no_more_is_asked_nothing() -> None:
    link = LoaderLink(b"secret", lambda _, message: not isinstance(message, PrepareModel))
    link.enlisted(b"loader", OWN)
    assert link.prepare("m") is None
