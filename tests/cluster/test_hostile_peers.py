"""What a peer may send to a parameter server: the run goes on, whatever it is."""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from dist_net.data import Dataset
from dist_net.errors import SettingError
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential
from dist_net.optim import SGD
from dist_net.training.run.in_process import LocalCluster
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import ParameterServer
from dist_net.wire.codec import PROTOCOL_VERSION, decode, encode
from dist_net.wire.messages import (
    Join,
    Leave,
    Message,
    Pull,
    Refuse,
    SegmentAddress,
    Snapshot,
    SnapshotRequest,
    StatusRequest,
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


def finishes(run: LocalCluster, assert_exact: Check) -> None:
    """A worker does the whole run, as if nothing had been."""
    run.start_worker()
    report = run.wait()
    assert report["samples"] == report["samples_total"]
    assert_exact(run.snapshot().weights)


@pytest.mark.parametrize("field", ["name", "recipe_digest", "segment.token"])
def test_a_join_with_a_long_field_is_refused_and_the_run_goes_on(
    cluster: OpenCluster, assert_exact: Check, field: str
) -> None:
    join = Join("stranger", 1, "digest", 256)
    if field == "segment.token":
        join = join._replace(segment=SegmentAddress(os.getpid(), 0, ZEROS.encode()))
    else:
        join = join._replace(**{field: ZEROS})
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send_multipart(frames(Join, *join))
        refuse = decode(stranger.recv_multipart())
        assert isinstance(refuse, Refuse)
        assert f"Join.{field}" in refuse.reason
        finishes(run, assert_exact)


@pytest.mark.parametrize("size", [0, 1, 2**62, 2**63 - 1])
def test_a_join_with_memory_of_a_size_made_by_hand_is_refused_and_the_run_goes_on(
    cluster: OpenCluster, assert_exact: Check, size: int
) -> None:
    token = bytes(16)
    descriptor = os.memfd_create("dist-net", os.MFD_ALLOW_SEALING)
    os.write(descriptor, token + size.to_bytes(8, "little"))
    os.ftruncate(descriptor, 3 * mmap.PAGESIZE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send_multipart(
            encode(
                Join("stranger", 1, "digest", size, SegmentAddress(os.getpid(), descriptor, token))
            )
        )
        refuse = decode(stranger.recv_multipart())
        assert isinstance(refuse, Refuse)
        assert "the worker has digest" in refuse.reason  # its memory was passed over
        finishes(run, assert_exact)
    os.close(descriptor)


def test_a_worker_of_another_version_is_told_what_to_do_and_the_run_goes_on(
    cluster: OpenCluster, assert_exact: Check
) -> None:
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send(msgpack.packb((PROTOCOL_VERSION - 1, "Join", "old", 1, "digest")))
        refuse = decode(stranger.recv_multipart())
        assert isinstance(refuse, Refuse)
        for words in (f"version {PROTOCOL_VERSION - 1}", f"{PROTOCOL_VERSION};", "same release"):
            assert words in refuse.reason
        assert "\n" not in refuse.reason
        assert not refuse.may_rejoin
        finishes(run, assert_exact)


def test_a_message_whose_handling_fails_is_answered_and_the_run_goes_on(
    cluster: OpenCluster,
    assert_exact: Check,
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
        finishes(run, assert_exact)
    assert "a fault of our own" in caplog.text


@pytest.mark.parametrize("method", ["_join", "_answer", "_push"])
def test_a_server_short_of_memory_for_a_moment_keeps_its_worker(
    cluster: OpenCluster, assert_exact: Check, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    handle, calls = getattr(ParameterServer, method), []

    def fail_at_first(*arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 1:
            raise MemoryError
        return handle(*arguments)

    monkeypatch.setattr(ParameterServer, method, fail_at_first)
    with cluster() as run:
        finishes(run, assert_exact)
    assert len(calls) > 1


@pytest.mark.parametrize(
    "message",
    [StatusRequest(2**63 - 1), Pull(2**63 - 1, 2**63 - 1, 2**63 - 1)],
    ids=lambda each: type(each).__name__,
)
def test_numbers_without_sense_are_answered(
    cluster: OpenCluster, assert_exact: Check, message: Message
) -> None:
    with cluster() as run, stranger_at(run.address) as stranger:
        stranger.send_multipart(encode(message))
        decode(stranger.recv_multipart())
        finishes(run, assert_exact)


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
