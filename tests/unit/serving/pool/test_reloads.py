"""Who waits for a reload, and what each is told."""

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dist_net.serving.pool.description import ServedModel
from dist_net.serving.pool.reloads import Reloads
from dist_net.serving.pool.requests import Outcome, Status
from dist_net.wire.serving_messages import ModelPrepared


def served(*versions: int, reason: str = "") -> dict[str, ServedModel]:
    newest: Any = SimpleNamespace(version=versions[-1]) if versions else None
    return {"m": ServedModel("m", newest, versions, bool(versions), reason)}


class Desk:
    """Reloads of one model, with how many of its versions came, and are done with."""

    def __init__(self, future: Callable[[], asyncio.Future[Outcome]]) -> None:
        self.came = self.done = 0
        self.reloads = Reloads(lambda _: self.came, lambda _: self.done)
        self._future = future

    def asks(self, asked: int) -> asyncio.Future[Outcome]:
        future = self._future()
        self.reloads.wait("m", asked, future)
        return future

    def comes(self, version: int, asked: int) -> None:
        self.came += 1
        self.reloads.prepared(ModelPrepared("m", version, "", "", asked))

    def advance(self, *versions: int, done: int, reason: str = "") -> None:
        self.done = done
        self.reloads.advance(served(*versions, reason=reason))


@pytest.fixture
def desk() -> Iterator[Desk]:
    loop = asyncio.new_event_loop()
    yield Desk(loop.create_future)
    loop.close()


def test_a_reload_ends_when_workers_have_done_with_it(desk: Desk) -> None:
    reload = desk.asks(1)
    desk.advance(1, done=0)
    desk.comes(2, asked=1)
    desk.advance(1, done=0)
    assert not reload.done()
    desk.advance(1, 2, done=1)
    assert (reload.result().status, reload.result().version) == (Status.OK, 2)
    assert not desk.reloads.is_waiting


def test_one_that_no_worker_could_load_says_why(desk: Desk) -> None:
    reload = desk.asks(1)
    desk.comes(2, asked=1)
    desk.advance(1, done=1, reason="no memory")
    assert (reload.result().status, reload.result().reason) == (Status.FAILED, "no memory")


def test_one_that_could_not_be_read_says_why(desk: Desk) -> None:
    reload = desk.asks(1)
    desk.reloads.prepared(ModelPrepared("m", 2, "", "no such file", 1))
    assert reload.result() == Outcome(Status.BAD_INPUT, reason="no such file")


def test_what_comes_unasked_or_was_read_before_it_was_asked_does_not_end_it(desk: Desk) -> None:
    first, second = desk.asks(1), desk.asks(2)
    desk.comes(700, asked=0)
    desk.reloads.prepared(ModelPrepared("another", 2, "", "no such file", 2))
    desk.advance(700, done=1)
    assert not first.done()
    desk.comes(701, asked=1)
    desk.advance(701, done=2)
    assert first.result().version == 701
    assert not second.done()
    desk.comes(702, asked=2)
    desk.advance(702, done=3)
    assert second.result().version == 702


def test_one_answer_does_for_all_that_were_asked_before_it_was_read(desk: Desk) -> None:
    reloads = [desk.asks(number) for number in (1, 2)]
    desk.comes(2, asked=2)  # the loader that was asked first has been replaced
    desk.advance(2, done=1)
    assert [reload.result().version for reload in reloads] == [2, 2]


def test_versions_that_keep_coming_do_not_keep_it_from_ending(desk: Desk) -> None:
    reload = desk.asks(1)
    desk.comes(10, asked=1)
    for version in range(11, 14):
        desk.comes(version, asked=0)
        desk.advance(9, done=0)
    assert not reload.done()
    desk.advance(9, 10, done=1)
    assert reload.result().version == 10


def test_a_newer_version_that_took_its_place_will_do(desk: Desk) -> None:
    reload = desk.asks(1)
    desk.comes(2, asked=1)
    desk.comes(3, asked=0)
    desk.advance(3, done=2)
    assert reload.result().version == 3


def test_a_training_run_that_began_anew_has_a_lower_version(desk: Desk) -> None:
    reload = desk.asks(1)
    desk.comes(5, asked=1)
    desk.advance(700, 5, done=1)
    assert (reload.result().status, reload.result().version) == (Status.OK, 5)
