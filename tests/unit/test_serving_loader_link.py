"""Whom the gateway takes for its model loader, and what it asks of it."""

import pytest

from dist_net.serving.loader_link import LoaderLink
from dist_net.wire.serving_messages import Enlisted, EnlistLoader, Prepare, Prepared


@pytest.fixture
def sent():
    return []


@pytest.fixture
def link(sent):
    return LoaderLink(b"secret", lambda node, message: sent.append((node, message)))


def test_only_who_has_the_token_is_the_loader(link, sent):
    assert not link.enlisted(b"worker", EnlistLoader(1, b"guess"))
    assert not link.is_there
    assert not sent
    assert link.enlisted(b"loader", EnlistLoader(1, b"secret"))
    assert link.is_there
    assert [(node, type(message)) for node, message in sent] == [(b"loader", Enlisted)]


def test_only_the_loader_says_what_versions_there_are(link):
    link.enlisted(b"loader", EnlistLoader(1, b"secret"))
    assert not link.prepared(b"worker", Prepared("m", 9, "", ""))
    assert "m" not in link.unreadable
    assert link.prepared(b"loader", Prepared("m", 2, "", "no such file"))
    assert link.unreadable == {"m": "no such file"}
    assert link.prepared_version("m") == 2


def test_versions_go_on_from_the_newest_that_came(link, sent):
    link.enlisted(b"loader", EnlistLoader(1, b"secret"))
    link.prepare("m")
    link.prepared(b"loader", Prepared("m", 700, "", ""))  # a training run's
    link.unloaded.add("m")
    link.prepare("m")
    assert [message for _, message in sent[1:]] == [Prepare("m", 1), Prepare("m", 701)]
    assert not link.unloaded
