"""What a peer may send to a parameter server: the run goes on, whatever it is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from dist_net.data import Dataset
from dist_net.errors import SettingError
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential
from dist_net.optim import SGD
from dist_net.training.run.local_cluster import LocalCluster
from dist_net.training.server.protocol import ParameterServer
from dist_net.training.server.settings import RunSettings
from dist_net.wire.codec import PROTOCOL_VERSION, decode, encode
from dist_net.wire.messages import (
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    Snapshot,
    SnapshotRequest,
    StatusRequest,
    Welcome,
    Work,
)
from naming import naming

OpenCluster = Callable[..., AbstractContextManager[LocalCluster]]
Check = Callable[..., None]

ANSWER_MS = 10_000
ZEROS = "\0" * 300_000


@pytest.fixture(autouse=True)
def forget_logged_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What pytest keeps of a logged error holds its frames, and those hold shared memory."""
    yield
    caplog.get_records("call").clear()


@contextmanager
def stranger_at(address: str, unread: int = 1000) -> Iterator[zmq.Socket[bytes]]:
    """A peer that speaks ZeroMQ, sends what it likes, and lets some messages wait unread."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.rcvtimeo = ANSWER_MS
        stranger.rcvhwm = unread
        stranger.connect(address)
        yield stranger


def frames(kind: type[Message], *fields: Any) -> list[bytes]:
    """A message's frames, whether its fields are allowed or not."""
    return [msgpack.packb((PROTOCOL_VERSION, kind.__name__, *fields))]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def finishes(run: LocalCluster, assert_counted: Check) -> None:
    """A worker does the whole run, as if nothing had been."""
    run.start_worker()
    report = run.wait()
    assert report["samples"] == report["samples_total"]
    assert_counted(run.snapshot().weights)


@pytest.mark.parametrize("field", ["name", "recipe_digest"])
def test_a_join_with_a_long_field_is_refused_and_the_run_continues(
    cluster: OpenCluster, assert_counted: Check, field: str
) -> None:
    join = Join("stranger", 1, "digest", 256)._replace(**{field: ZEROS})
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send_multipart(frames(Join, *join))
        refuse = decode(stranger.recv_multipart())
        assert isinstance(refuse, Refuse)
        assert f"Join.{field}" in refuse.reason
        finishes(run, assert_counted)


@pytest.mark.parametrize("size", [0, 1, 2**62, 2**63 - 1])
def test_a_join_with_a_model_of_any_size_allocates_nothing(
    cluster: OpenCluster, assert_counted: Check, size: int
) -> None:
    with cluster() as run, stranger_at(run.address) as stranger:
        before = open_files()
        for identity in range(20):
            join = Join("stranger", identity, "digest", size, shares_memory=True)
            stranger.send_multipart(encode(join))
            refuse = decode(stranger.recv_multipart())
            assert isinstance(refuse, Refuse)
            assert "the worker has digest" in refuse.reason
        assert open_files() < before + 20
        finishes(run, assert_counted)


@pytest.mark.parametrize(
    "state",
    [
        None,
        np.zeros(1, np.float32),
        np.zeros(257, np.float32),  # a state that is not packed
        np.full(66, np.nan, np.float32),
    ],
    ids=["none", "short", "not packed", "nan"],
)
def test_a_push_of_no_state_of_the_run_is_refused_and_its_samples_are_computed_by_another(
    cluster: OpenCluster, recipe: Recipe, assert_counted: Check, state: Any
) -> None:
    loaded = LoadedRecipe("in-process", "in-process", {}, recipe)
    digest = loaded.digest(recipe.load_dataset())
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send_multipart(encode(Join("stranger", 1, digest, 256)))
        welcome = decode(stranger.recv_multipart())
        assert isinstance(welcome, Welcome)
        stranger.send_multipart(encode(Pull(welcome.worker_id, 1, 1)))
        work = decode(stranger.recv_multipart())
        for request_id in (2, 3, 4):
            assert isinstance(work, Work)
            push = Push(welcome.worker_id, 1, request_id, work.lease_id, 0.0, 0, 0.0, state)
            stranger.send_multipart(encode(push))
            work = decode(stranger.recv_multipart())
            if isinstance(work, Refuse):
                break
        assert isinstance(work, Refuse)
        assert not work.may_rejoin
        finishes(run, assert_counted)


def test_a_worker_of_another_version_is_told_what_to_do_and_the_run_goes_on(
    cluster: OpenCluster, assert_counted: Check
) -> None:
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send(msgpack.packb((PROTOCOL_VERSION - 1, "Join", "old", 1, "digest")))
        refuse = decode(stranger.recv_multipart())
        assert isinstance(refuse, Refuse)
        for words in (f"version {PROTOCOL_VERSION - 1}", f"{PROTOCOL_VERSION};", "same release"):
            assert words in refuse.reason
        assert "\n" not in refuse.reason
        assert not refuse.may_rejoin
        finishes(run, assert_counted)


def test_a_message_whose_handling_fails_is_answered_and_the_run_goes_on(
    cluster: OpenCluster,
    assert_counted: Check,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr(ParameterServer, "_leave", fail)
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send_multipart(encode(Leave(1)))
        refuse = decode(stranger.recv_multipart())
        assert isinstance(refuse, Refuse)
        assert "handling Leave failed" in refuse.reason
        assert refuse.may_rejoin
        monkeypatch.undo()
        finishes(run, assert_counted)
    assert "a fault of our own" in caplog.text


@pytest.mark.parametrize("method", ["_join", "_answer", "_push"])
def test_a_server_short_of_memory_for_a_moment_keeps_its_worker(
    cluster: OpenCluster, assert_counted: Check, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    handle, calls = getattr(ParameterServer, method), []

    def fail_at_first(*arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 1:
            raise MemoryError
        return handle(*arguments)

    monkeypatch.setattr(ParameterServer, method, fail_at_first)
    with cluster() as run:
        finishes(run, assert_counted)
    assert len(calls) > 1


@pytest.mark.parametrize(
    "message",
    [StatusRequest(2**63 - 1), Pull(2**63 - 1, 2**63 - 1, 2**63 - 1)],
    ids=lambda each: type(each).__name__,
)
def test_numbers_without_sense_are_answered(
    cluster: OpenCluster, assert_counted: Check, message: Message
) -> None:
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send_multipart(encode(message))
        decode(stranger.recv_multipart())
        finishes(run, assert_counted)


def test_snapshots_that_nobody_reads_do_not_pile_up() -> None:
    pixels, requests = 200_000, 40
    labels = np.arange(2, dtype=np.uint8)
    images = np.repeat(labels[:, np.newaxis, np.newaxis], pixels, axis=2)
    dataset = Dataset("stripes", images, labels, images, labels, tuple("0123456789"))
    network = Sequential(Rescale(), Flatten(), Dense(10))
    recipe = Recipe(network, lambda: dataset, (1, pixels), optimizer=SGD(), batch_size=1)
    with LocalCluster(recipe) as run, stranger_at(run.address, unread=1) as stranger:
        for _ in range(requests):
            stranger.send_multipart(encode(SnapshotRequest()))
        assert run.snapshot().weights.size == 10 * (pixels + 1)  # another one is served meanwhile
        answers = [decode(stranger.recv_multipart()) for _ in range(requests)]
    snapshots = [answer for answer in answers if isinstance(answer, Snapshot)]
    assert 1 <= len(snapshots) <= requests // 4
    assert all(isinstance(answer, Snapshot | Refuse) for answer in answers)


def test_a_model_whose_weights_could_not_be_sent_is_not_begun() -> None:
    too_large = (("weights", (2**14, 2**15)),)
    with pytest.raises(SettingError, match=naming("536870912 parameters", 268435456)):
        RunSettings("big", "digest", too_large, samples=1, epochs=1, batch_size=1)
    assert np.dtype(np.float32).itemsize * 268435456 == 2**30
