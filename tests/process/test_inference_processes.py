"""The inference worker and the model readers as processes, of a gateway of few words."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.data import dataset_named
from dist_net.nets.architecture import FolderArchitecture, RecipeArchitecture
from dist_net.nets.recipe_origins import origin_of
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nets.recipes.recipe_files import sha256
from dist_net.nets.sources.found_model import FoundModel
from dist_net.nn.inference import Inference, key_of_vector, prepare, softmax
from dist_net.processes.launcher import Child, ProcessSpec
from dist_net.serving.model_reading import described
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import Status
from dist_net.wire.messages import Alive, Heartbeat, Leave, Message, Refuse, Stop
from dist_net.wire.serving_messages import (
    ArraysPiece,
    BatchDone,
    Drop,
    FetchArrays,
    JoinPool,
    Load,
    Loaded,
    PoolWelcome,
    RunBatch,
)
from dist_net.wire.transport import ServerSocket
from marked_code import CODE, MarkedCode

pytestmark = pytest.mark.main_path

DEADLINE_S = 60.0
TAKEN_IN = PoolWelcome(7, 0.05, 20.0)


class Gateway:
    """Speaks to one child; answers heartbeats as it is told to."""

    def __init__(self, socket: ServerSocket) -> None:
        self._socket = socket
        self.address = socket.contact_addresses[0]
        self.heartbeat_answer: Alive | Refuse | None = Alive()
        self._heartbeats = 0
        self._node = b""

    def hears(self, kind: type[Any], child: Child) -> Any:
        """The child's next message, which is of this kind; heartbeats are no messages here."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if (message := self._receive()) is not None:
                assert isinstance(message, kind), message
                return message
        pytest.fail(f"no {kind.__name__}: {child.log.read_text()}")

    def answers_heartbeats(self, count: int) -> None:
        """Hears so many of them, and nothing else."""
        enough = self._heartbeats + count
        while self._heartbeats < enough:
            assert self._receive() is None

    def _receive(self) -> Message | None:
        received = self._socket.receive(0.1)
        if received is None:
            return None
        node, message = received
        if isinstance(message, Heartbeat):
            self._heartbeats += 1
            if isinstance(self.heartbeat_answer, Alive):
                self._socket.send(node, Alive(message.sent_s))
            elif self.heartbeat_answer is not None:
                self._socket.send(node, self.heartbeat_answer)
            return None
        self._node = node
        return message

    def tells(self, message: Any) -> None:
        """Sends to who was heard last."""
        assert self._socket.send(self._node, message)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with ServerSocket([f"ipc://{tmp_path}/gateway"]) as socket:
        yield Gateway(socket)


@pytest.fixture
def child(gateway: Gateway, tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Starts one; those that still run at the end are killed."""
    started: list[Child] = []
    directory = tmp_path / "own"
    directory.mkdir()

    def start_child(module: str, *arguments: str) -> Child:
        logs = tmp_path / f"child-{len(started)}"
        logs.mkdir()
        arguments = ("--connect", gateway.address, "--directory", str(directory), *arguments)
        started.append(Child(ProcessSpec("child", f"dist_net.serving.{module}", arguments), logs))
        return started[-1]

    yield start_child
    for each in started:
        each.kill()


@pytest.fixture
def worker(gateway: Gateway, child: Callable[..., Child]) -> Child:
    """A worker that has been taken in."""
    started = child("worker.inference_worker_process", "--name", "w")
    join = gateway.hears(JoinPool, started)
    assert (join.name, join.process_id) == ("w", started.process_id)
    gateway.tells(TAKEN_IN)
    return started


@pytest.fixture
def digits(tmp_path: Path) -> ModelDescription:
    """A version of a model whose arrays lie on this host."""
    return described(digits_model(), "digits", 1, tmp_path)


def digits_model(seed: int = 0) -> FoundModel:
    loaded = load_recipe("digits")
    model, weights = loaded.recipe.model, loaded.recipe.initial_weights(seed)
    prepared, key = prepare(model, weights), key_of_vector(model, weights)
    labels = tuple("0123456789")
    return FoundModel(
        model,
        origin_of(loaded.reference).architecture_of(loaded),
        labels,
        prepared,
        key,
        lambda: weights,
        True,
    )


def load(gateway: Gateway, worker: Child, description: ModelDescription) -> Loaded:
    gateway.tells(Load(description.name, description.version, description.to_json()))
    loaded: Loaded = gateway.hears(Loaded, worker)
    return loaded


def exit_code(child: Child) -> int | None:
    assert child.wait(DEADLINE_S)
    return child.exit_code


def test_a_worker_answers_what_it_loaded_and_leaves_when_told(
    gateway: Gateway, worker: Child, digits: ModelDescription
) -> None:
    assert load(gateway, worker, digits) == Loaded("digits", 1, "")
    images = dataset_named("digits").test_inputs[:3]
    payloads = (images[:2].tobytes(), b"short", images[2:].tobytes())
    gateway.tells(RunBatch(5, "digits", 1, False, payloads))
    done = gateway.hears(BatchDone, worker)
    assert done.batch_id == 5
    assert list(done.statuses) == [Status.OK, Status.BAD_INPUT, Status.OK]
    outputs = np.frombuffer(b"".join([done.payloads[0], done.payloads[2]]), "<f4").reshape(3, 10)
    found = digits_model()
    session = Inference(found.model, found.prepared)
    np.testing.assert_allclose(outputs, softmax(session(np.asarray(images))), atol=1e-5)
    session.close()
    assert b"5 bytes" in bytes(done.payloads[1])
    gateway.tells(Drop("digits", 1))
    gateway.tells(RunBatch(6, "digits", 1, False, payloads))
    assert set(gateway.hears(BatchDone, worker).statuses) == {Status.UNAVAILABLE}
    gateway.tells(Stop("done", finished=True))
    assert gateway.hears(Leave, worker) == Leave(7)
    assert exit_code(worker) == 0


def test_a_description_that_names_a_python_file_is_refused(
    gateway: Gateway, worker: Child, digits: ModelDescription, tmp_path: Path
) -> None:
    code = MarkedCode(tmp_path)
    evil = replace(digits, architecture=FolderArchitecture(code.recipe))
    assert "no built-in recipe" in load(gateway, worker, evil).reason
    files = (("recipe.py", sha256(CODE.encode())),)
    named = RecipeArchitecture(str(code.file), str(code.file), files)
    by_path = replace(digits, architecture=named)
    assert code.file.name in load(gateway, worker, replace(by_path, version=2)).reason
    copied = str(code.file.rename(tmp_path / "recipe.py"))
    unconfirmed = replace(by_path, version=3, architecture=replace(named, path=copied))
    assert "--trust-recipe" in load(gateway, worker, unconfirmed).reason
    assert not code.was_run


def test_arrays_of_another_host_are_fetched(
    gateway: Gateway, worker: Child, digits: ModelDescription, tmp_path: Path
) -> None:
    content = Path(digits.arrays_path).read_bytes()
    elsewhere = ModelDescription.from_json(
        digits.to_json().replace(digits.arrays_path, "/elsewhere/kernels")
    )
    gateway.tells(Load("digits", 1, elsewhere.to_json()))
    asked = gateway.hears(FetchArrays, worker)
    assert asked == FetchArrays("digits", 1, 0, len(content))
    gateway.tells(ArraysPiece("digits", 1, 0, len(content), (content,)))
    assert gateway.hears(Loaded, worker).reason == ""
    (kept,) = (tmp_path / "own").iterdir()
    assert kept.read_bytes() == content


def test_a_worker_that_is_refused_later_joins_again(gateway: Gateway, worker: Child) -> None:
    gateway.heartbeat_answer = Refuse("who are you?", may_rejoin=True)
    gateway.hears(JoinPool, worker)
    gateway.heartbeat_answer = Alive()
    gateway.tells(PoolWelcome(8, 0.05, 20.0))
    gateway.tells(Stop("done", finished=True))
    assert gateway.hears(Leave, worker) == Leave(8)


def test_a_worker_that_is_not_wanted_ends(gateway: Gateway, child: Callable[..., Child]) -> None:
    started = child("worker.inference_worker_process")
    gateway.hears(JoinPool, started)
    gateway.tells(Refuse("another release", may_rejoin=False))
    assert exit_code(started) == 2
    assert "refuses this worker: another release" in str(started.failure())


def test_a_worker_ends_when_the_gateway_is_silent(
    gateway: Gateway, child: Callable[..., Child]
) -> None:
    started = child("worker.inference_worker_process")
    gateway.hears(JoinPool, started)
    gateway.tells(PoolWelcome(1, 0.05, 0.3))
    assert exit_code(started) == 1
    assert "no message from the gateway" in str(started.failure())


def test_heartbeats_are_enough_to_go_on(gateway: Gateway, child: Callable[..., Child]) -> None:
    started = child("worker.inference_worker_process")
    gateway.hears(JoinPool, started)
    gateway.tells(PoolWelcome(1, 0.02, 0.2))
    gateway.answers_heartbeats(50)  # for longer than it would bear silence
    assert started.exit_code is None
    gateway.tells(Stop("done", finished=True))
    assert gateway.hears(Leave, started) == Leave(1)


def test_a_child_of_the_gateway_bears_any_silence_while_its_parent_is_there(
    gateway: Gateway, child: Callable[..., Child]
) -> None:
    started = child("worker.inference_worker_process", "--parent", str(os.getpid()))
    gateway.hears(JoinPool, started)
    gateway.tells(PoolWelcome(1, 0.02, 0.04))
    gateway.heartbeat_answer = None
    gateway.answers_heartbeats(50)  # for longer than another would bear silence
    assert started.exit_code is None
    gateway.tells(Stop("done", finished=True))
    assert gateway.hears(Leave, started) == Leave(1)


def test_a_child_leaves_when_its_parent_is_gone(child: Callable[..., Child]) -> None:
    started = child("worker.inference_worker_process", "--parent", "1")
    assert exit_code(started) == 130


def test_a_terminated_worker_leaves(gateway: Gateway, worker: Child) -> None:
    os.kill(worker.process_id, signal.SIGTERM)
    assert gateway.hears(Leave, worker) == Leave(7)
    assert exit_code(worker) == 130
