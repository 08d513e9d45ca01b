"""Which models the pool has read, and how reloads end."""

from itertools import count

from children import KnownChildren
from described import described
from dist_net.serving.pool.catalogue import Catalogue
from dist_net.serving.pool.description import EncodedImage
from dist_net.serving.pool.membership import PoolMembership
from dist_net.serving.pool.requests import (
    EndRequest,
    PoolSettings,
    ReadModel,
    RemoveArrays,
    Result,
    Status,
)
from dist_net.wire.serving_messages import JoinPool, ModelPrepared


def prepared(model: str, version: int, requested: int = 0, reason: str = "") -> ModelPrepared:
    text = described(model, version).to_json()
    return ModelPrepared(model, version, "" if reason else text, reason, requested)


class Desk:
    """A catalogue, one worker, and how each reload that was asked for has ended."""

    def __init__(self, *names: str) -> None:
        self.catalogue = Catalogue(names)
        self.results: dict[int, Result] = {}
        self._dropped: list[int] = []
        self._ids = count(1)
        self._workers = PoolMembership(PoolSettings(), count(1), KnownChildren())
        self._worker = self._workers.add(b"worker", JoinPool("worker", "host", 1), 0.0)

    def requests(self) -> list[tuple[str, int]]:
        """What is to be read now."""
        requested = []
        for command in self.catalogue.advance():
            match command:
                case ReadModel(model, number):
                    requested.append((model, number))
                case RemoveArrays(_, number):
                    self._dropped.append(number)
                case EndRequest(request_id, result):
                    assert request_id not in self.results
                    self.results[request_id] = result
        return requested

    def drops(self) -> list[int]:
        """The versions whose files are to be removed since the last call."""
        self.requests()
        dropped, self._dropped = sorted(self._dropped), []
        return dropped

    def reload(self, model: str = "m") -> int:
        request_id = next(self._ids)
        self.catalogue.reload(model, request_id)
        return request_id

    def comes(self, version: int, requested: int = 0, reason: str = "") -> None:
        self.catalogue.prepared(prepared("m", version, requested, reason))

    def load(self, reason: str = "") -> None:
        """The worker loads the next version that it is told to, or cannot."""
        model = self.catalogue.models["m"]
        model.advance(self._workers, 0.0)
        for _, version in [*self._worker.loading]:
            model.load_ended(self._worker, version, reason)
        for _ in range(2):
            model.refresh(self._workers)
            model.advance(self._workers, 0.0)
        model.refresh(self._workers)
        self.requests()


def test_every_model_is_read_once() -> None:
    desk = Desk("m", "n")
    assert desk.requests() == [("m", 1), ("n", 1)]
    assert not desk.requests()


def test_versions_go_on_from_the_newest_that_came() -> None:
    desk = Desk("m")
    assert desk.requests() == [("m", 1)]
    desk.comes(700, requested=1)  # a training run's
    desk.reload()
    assert desk.requests() == [("m", 701)]


def test_a_reload_replaces_an_unanswered_request() -> None:
    desk = Desk("m")
    assert desk.requests() == [("m", 1)]
    reloads = [desk.reload(), desk.reload()]
    assert desk.requests() == [("m", 3)]
    desk.comes(1, requested=1)  # it was on its way
    assert not desk.requests()
    assert not desk.results
    desk.comes(3, requested=3, reason="no such file")
    assert not desk.requests()
    assert [desk.results[each].reason for each in reloads] == 2 * ["no such file"]


def test_the_files_of_versions_that_are_not_used_are_removed_and_of_no_other() -> None:
    desk = Desk("m")
    desk.comes(1, requested=1)
    desk.load()
    for number in (2, 3, 4, 5):
        desk.comes(number)
        desk.load("it is refused")
    assert desk.drops() == [2, 3, 4, 5]
    desk.comes(6)
    desk.load()
    assert desk.drops() == [1]
    desk.comes(7)
    desk.comes(8)  # before the seventh has begun to load
    assert desk.drops() == [7]
    desk.catalogue.unload("m", "on request")
    desk.load()
    assert desk.drops() == [6, 8]
    desk.comes(9)
    assert desk.drops() == [9]


def test_a_model_whose_arrays_were_removed_is_read_again_unless_it_is_read_or_unwanted() -> None:
    desk = Desk("m")
    desk.catalogue.prepare_again("m")
    assert desk.requests() == [("m", 1)]
    desk.comes(1, requested=1)
    desk.catalogue.prepare_again("m")
    desk.catalogue.prepare_again("m")
    assert desk.requests() == [("m", 2)]
    desk.comes(2, requested=2)
    assert not desk.requests()
    desk.catalogue.unload("m", "on request")
    desk.catalogue.prepare_again("m")
    assert not desk.requests()


def test_versions_of_an_unloaded_model_are_not_taken_in_until_it_is_reloaded() -> None:
    desk = Desk("m")
    desk.catalogue.unload("m", "on request")
    desk.comes(700)
    assert desk.catalogue.models["m"].came == 0
    desk.reload()
    desk.comes(701)
    assert desk.catalogue.models["m"].came == 1


def test_a_reload_before_an_unload_does_not_load_the_model_again() -> None:
    desk = Desk("m")
    reload = desk.reload()
    desk.catalogue.unload("m", "on request")
    desk.comes(2, requested=2)
    desk.load()
    assert desk.results[reload].status is Status.FAILED
    assert not desk.catalogue.models["m"].is_ready
    again = desk.reload()
    desk.comes(3, requested=3)
    desk.load()
    assert desk.results[again].status is Status.OK


def test_a_failed_reload_leaves_an_unloaded_model_unloaded() -> None:
    desk = Desk("m")
    desk.catalogue.unload("m", "on request")
    desk.reload()
    desk.comes(2, requested=2, reason="no such file")
    assert desk.catalogue.models["m"].is_unloaded
    assert desk.catalogue.models["m"].reason == "no such file"


def test_a_reload_ends_when_workers_have_loaded_it() -> None:
    desk = Desk("m")
    reload = desk.reload()
    assert desk.requests() == [("m", 2)]
    desk.comes(2, requested=2)
    assert not desk.requests()
    assert not desk.results
    desk.load()
    assert desk.results == {reload: Result(Status.OK, version=2)}


def test_one_that_no_worker_could_load_says_why() -> None:
    desk = Desk("m")
    reload = desk.reload()
    desk.comes(2, requested=2)
    desk.load(reason="no memory")
    assert desk.results[reload].status is Status.FAILED
    assert "no memory" in desk.results[reload].reason


def test_what_comes_unasked_or_was_read_before_it_was_asked_does_not_end_it() -> None:
    desk = Desk("m", "another")
    first, second = desk.reload(), desk.reload()
    desk.comes(700)
    desk.catalogue.prepared(prepared("another", 2, 3, "no such file"))
    desk.load()
    assert not desk.results
    desk.comes(701, requested=2)
    desk.load()
    assert desk.results == {first: Result(Status.OK, version=701)}
    desk.comes(702, requested=3)
    desk.load()
    assert desk.results[second].version == 702


def test_one_answer_does_for_all_that_were_asked_before_it_was_read() -> None:
    desk = Desk("m")
    reloads = [desk.reload() for _ in range(2)]
    desk.comes(3, requested=3)
    desk.load()
    assert [desk.results[each].version for each in reloads] == [3, 3]


def test_versions_that_keep_coming_do_not_keep_it_from_ending() -> None:
    desk = Desk("m")
    desk.comes(9, requested=1)
    desk.load()
    reload = desk.reload()
    desk.comes(10, requested=10)
    desk.catalogue.models["m"].advance(desk._workers, 0.0)
    for version in range(11, 14):
        desk.comes(version)
        desk.requests()
    assert not desk.results
    desk.load()
    assert desk.results[reload].version == 10


def test_a_newer_version_that_took_its_place_will_do() -> None:
    desk = Desk("m")
    reload = desk.reload()
    desk.comes(2, requested=2)
    desk.comes(3)
    desk.load()
    assert desk.results[reload].version == 3


def test_a_training_run_that_began_anew_has_a_lower_version() -> None:
    desk = Desk("m")
    desk.comes(700, requested=1)
    desk.load()
    reload = desk.reload()
    desk.comes(5, requested=701)
    desk.load()
    assert desk.results == {reload: Result(Status.OK, version=5)}


def test_images_to_try_a_model_with_are_those_of_its_newest_version() -> None:
    desk = Desk("m")
    for version, payloads in ((1, (b"cat", b"png", b"\xff", b"other")), (2, ())):
        message = prepared("m", version)._replace(payloads=tuple(map(memoryview, payloads)))
        desk.catalogue.prepared(message)
        desk.load()
        expected = (
            (EncodedImage("cat", b"png"), EncodedImage("\ufffd", b"other")) if payloads else ()
        )
        assert desk.catalogue.served()["m"].samples == expected
