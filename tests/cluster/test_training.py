"""Training in one process over real sockets: every sample once an epoch, as the weights show."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from dist_net import nn
from dist_net.data import Dataset
from dist_net.errors import (
    FileWriteError,
    JoinRefusedError,
    NoAnswerError,
    NotFiniteError,
    ProcessFailedError,
    RunOverdueError,
)
from dist_net.ground.checkpoint import read_checkpoint, write_checkpoint
from dist_net.ground.vector import Vector
from dist_net.nets.observer import Observer
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential
from dist_net.optim import SGD, AdamW, Cosine, LearningRate
from dist_net.training.run import local_cluster
from dist_net.training.run.fit import SingleProcess
from dist_net.training.run.local_cluster import LocalCluster
from dist_net.training.server import loop as process
from dist_net.training.server import server_files
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.journal import read_journal
from dist_net.training.server.state import OUTER_MOMENTUM
from dist_net.training.worker.cycle import Ended
from dist_net.training.worker.local_steps import (
    LocalSteps,
    LocalStepsOf,
    Minibatch,
    MinibatchGradient,
    TrainingStep,
)
from dist_net.wire.messages import StepSettings
from dist_net.wire.security import ROLES, add_keys, create_keys
from naming import naming
from small_disk import small_disk

OpenCluster = Callable[..., AbstractContextManager[LocalCluster]]
Check = Callable[..., None]
Disturb = Callable[[int], float | None]


class Disturbed:
    """A training step that calls ``disturb`` after each run, counted from 1.

    The number that it returns replaces an element of the gradient.
    """

    def __init__(self, step: TrainingStep, disturb: Disturb) -> None:
        self._step = step
        self._disturb = disturb
        self._runs = 0

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        result = self._step(weights, minibatch)
        self._runs += 1
        filling = self._disturb(self._runs)
        if filling is not None:
            result.gradient[7] = filling
        return result


def disturbed(recipe: Recipe, disturb: Disturb) -> LocalStepsOf:
    """Return the ``local_of`` of a worker with such a step."""

    def local_of(settings: StepSettings) -> LocalSteps:
        dataset = recipe.load_dataset()
        step = TrainingStep(recipe.model, dataset, settings.seed)
        schedule = recipe.schedule, len(dataset.train_targets), settings.epochs
        rate = LearningRate(settings.learning_rate, *schedule)
        rule = recipe.update_rule(settings.optimizer)
        return LocalSteps(Disturbed(step, disturb), rule, settings.batch_size, rate)

    return local_of


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("states", ["in shared memory", "as frames"])
@pytest.mark.parametrize("consistency", Consistency)
def test_each_sample_is_applied_once_an_epoch(
    cluster: OpenCluster,
    recipe: Recipe,
    assert_exact: Check,
    workers: int,
    states: str,
    consistency: str,
) -> None:
    all_are_there = threading.Event()

    def wait_for_the_others(runs: int) -> None:
        if runs == 1:
            assert all_are_there.wait(60)

    with cluster(consistency=consistency) as run:
        started = [
            run.start_worker(
                local_of=disturbed(recipe, wait_for_the_others),
                shares_memory=states == "in shared memory",
            )
            for _ in range(workers)
        ]
        run.wait(lambda report: report["worker_count"] == workers)
        all_are_there.set()
        report = run.wait()
        assert all(worker.result().finished for worker in started)
    assert_exact()
    assert report["samples"] == report["samples_total"] == 5 * 256
    assert (report["bytes_sent_per_sample"] > 0) == (states == "as frames")
    # A worker whose heartbeats a loaded machine delays is lost, and joins again.
    assert report["workers_joined"] - report["workers_lost"] == workers
    assert report["workers_lost"] or not report["pushes_rejected"]


WITH_ALL_SETTINGS = Recipe(
    network=nn.Sequential(
        nn.Rescale(),
        nn.Flatten(),
        nn.Dense(80),  # enough parameters for compiled loops
        nn.BatchNorm(activation=nn.relu),
        nn.Dropout(0.2),
        nn.Dense(10),
    ),
    dataset="digits",
    input_shape=(8, 8),
    optimizer=AdamW(),
    learning_rate=0.01,
    schedule=Cosine(),
    batch_size=32,
    epochs=2,
    clip_norm=1.0,
    average_decay=0.9,
)


@pytest.mark.parametrize(
    ("consistency", "local_steps"),
    [("rounds", None), ("rounds", 7), ("async", None), ("async", 1), ("bsp", None)],
)
def test_one_worker_computes_bit_for_bit_what_one_process_computes(
    kept: Path, consistency: str, local_steps: int | None
) -> None:
    recipe = WITH_ALL_SETTINGS
    modes: dict[str, Any] = {"consistency": consistency, "local_steps": local_steps}
    with LocalCluster(recipe, kept, workers=1, seed=5, **modes) as run:
        report = run.wait()
        evaluated = run.snapshot().weights
    with threadpool_limits(1):
        alone = SingleProcess(recipe, recipe.load_dataset(), seed=5)
        losses = [result.loss for result in alone.epochs()]
    trained = read_checkpoint(kept)
    np.testing.assert_array_equal(trained.weights, alone.weights)
    np.testing.assert_array_equal(evaluated, alone.evaluated_weights)
    for name, vector in alone._local.rule.parts(alone._state).items():
        np.testing.assert_array_equal(trained.optimizer_state[name], vector)
    assert not np.any(trained.optimizer_state[OUTER_MOMENTUM])
    assert losses[-1] < losses[0]
    assert report["version"] == report["pushes_applied"]


@pytest.mark.parametrize("parameters", [10_000, 262_360, 5_000_000])
def test_models_of_every_size_train_over_keys(parameters: int, tmp_path: Path) -> None:
    """From 262,136 parameters on a state is longer than any header may be."""
    create_keys(tmp_path / "keys")
    for role in ROLES:
        add_keys(tmp_path / "keys", role)
    pixels = parameters // 10 - 1  # and 10 biases
    labels = np.arange(8, dtype=np.uint8)
    images = np.repeat(labels[:, np.newaxis, np.newaxis], pixels, axis=2)
    dataset = Dataset("stripes", images, labels, images, labels, tuple("0123456789"))
    network = Sequential(Rescale(), Flatten(), Dense(10))
    recipe = Recipe(network, lambda: dataset, (1, pixels), optimizer=SGD(), batch_size=2, epochs=1)
    assert recipe.model.layout.size == parameters
    with LocalCluster(recipe, keys=tmp_path / "keys") as run:
        worker = run.start_worker(shares_memory=False)
        report = run.wait()
        assert worker.result().finished
    assert report["samples"] == 8
    assert report["workers_joined"] - report["workers_lost"] == 1


def test_a_worker_in_mid_lease_leaves_when_the_run_is_shut_down(
    cluster: OpenCluster, recipe: Recipe
) -> None:
    """The answer to a heartbeat ends it, not the answer to its push, seconds later."""
    is_computing, never = threading.Event(), threading.Event()
    steps: list[int] = []

    def compute_slowly(runs: int) -> None:
        steps.append(runs)
        is_computing.set()
        never.wait(0.1)

    with cluster(local_steps=32) as run:
        worker = run.start_worker(local_of=disturbed(recipe, compute_slowly))
        assert is_computing.wait(60)
        shut_down(run)
        done = worker.result(60)
    assert done == Ended("enough", finished=False)
    assert len(steps) < 32


def test_a_run_that_diverges_ends_with_the_cause_and_keeps_the_checkpoint_before(
    cluster: OpenCluster, recipe: Recipe, kept: Path
) -> None:
    def spoil(runs: int) -> float | None:
        return np.nan if runs > 5 else None

    def train() -> None:
        with cluster(local_steps=1) as run:
            assert not run.start_worker(local_of=disturbed(recipe, spoil)).result().finished

    with pytest.raises(NotFiniteError, match=naming("diverges", "learning rate", "version 0")):
        train()
    assert read_checkpoint(kept).version == 0


def test_a_run_without_workers_left_fails_with_the_last_ones_error(
    cluster: OpenCluster, recipe: Recipe
) -> None:
    def fail(_runs: int) -> None:
        raise ZeroDivisionError("a step of the user's own")

    with cluster() as run:
        run.start_worker(local_of=disturbed(recipe, fail))
        with pytest.raises(ZeroDivisionError, match="of the user's own"):
            run.wait()
    with cluster() as run:
        run.start_worker().stop()
        with pytest.raises(ProcessFailedError, match=naming("last worker")):
            run.wait()


def test_a_worker_with_other_data_is_refused(
    cluster: OpenCluster, recipe: Recipe, assert_exact: Check
) -> None:
    dataset = recipe.load_dataset()
    smaller = replace(
        dataset, train_inputs=dataset.train_inputs[1:], train_targets=dataset.train_targets[1:]
    )
    with cluster() as run:
        stranger = run.start_worker(recipe=replace(recipe, dataset=lambda: smaller))
        with pytest.raises(JoinRefusedError, match=r"data [0-9a-f]{35}.* data [0-9a-f]{35}"):
            stranger.result()
        run.start_worker()
        report = run.wait()
    assert_exact()
    assert report["workers_joined"] - report["workers_lost"] == 1


class Disk:
    """Stands in for the disk: so many writes fail, and none ends while it is not quick."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = 0
        self.is_quick = threading.Event()
        self.is_quick.set()
        monkeypatch.setattr(server_files, "write_checkpoint", self._write)

    def _write(self, *arguments: Any) -> None:
        assert self.is_quick.wait(30)
        if self.failures > 0:
            self.failures -= 1
            raise FileWriteError("no space left")
        write_checkpoint(*arguments)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(local_cluster, "CHECKPOINT_EVERY_S", 0.05)
    monkeypatch.setattr(process, "RETRY_AFTER_S", 0.0)
    return Disk(monkeypatch)


def test_there_is_a_checkpoint_before_the_first_worker_joins(
    cluster: OpenCluster, kept: Path
) -> None:
    with cluster() as run:
        assert run.report()["checkpoint_version"] == 0
        assert read_checkpoint(kept).version == 0


def test_a_run_that_cannot_be_kept_does_not_begin(cluster: OpenCluster, disk: Disk) -> None:
    disk.failures = 1
    with pytest.raises(FileWriteError, match="no space left"), cluster():
        pass


def test_threads_that_ask_a_cluster_take_turns(cluster: OpenCluster) -> None:
    with cluster(epochs=10_000) as run, ThreadPoolExecutor(4) as threads:
        run.start_worker()
        weights = threads.map(lambda _: run.snapshot().weights.shape, range(50))
        reports = threads.map(lambda _: run.report()["recipe"], range(50))
        assert {*weights} == {(run.recipe.layout.size,)}
        assert {*reports} == {"in-process"}
    with pytest.raises(NoAnswerError, match=naming(run.address, "closed")):
        run.report()


def test_a_checkpoint_that_fails_is_reported_until_one_is_written(
    cluster: OpenCluster, disk: Disk
) -> None:
    with cluster(epochs=10**6) as run:
        run.start_worker()  # an unchanged version is not written again
        run.wait(lambda report: report["checkpoint_error"] is None)
        disk.failures = 10**6
        run.wait(lambda report: report["checkpoint_error"] == "no space left")
        disk.failures = 0
        run.wait(lambda report: report["checkpoint_error"] is None)


def test_a_run_goes_on_while_its_disk_is_full_and_nothing_is_missing_later(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cluster, "CHECKPOINT_EVERY_S", 0.05)
    with small_disk(tmp_path / "disk") as full:
        path = full.path / "checkpoint.safetensors"
        with LocalCluster(replace(recipe, epochs=10_000), path, workers=2) as run:
            run.wait(lambda report: report["version"] > 10)
            full.fill()
            report = run.wait(lambda report: report["journal_error"] and report["checkpoint_error"])
            assert "No space left on device" in report["journal_error"]
            assert "No space left on device" in report["checkpoint_error"]
            later = report["version"] + 50
            run.wait(lambda report: report["version"] > later)
            full.empty()
            report = run.wait(
                lambda report: not (report["journal_error"] or report["checkpoint_error"])
            )
            assert report["checkpoints_failed"] > 0
            assert report["journal_failures"] > 0
        journal, checkpoint = read_journal(path.with_suffix(".journal")), read_checkpoint(path)
        assert (journal.fault, journal.version) == (None, checkpoint.version)


def test_the_last_checkpoint_is_tried_again(cluster: OpenCluster, disk: Disk, kept: Path) -> None:
    with cluster() as run:
        run.start_worker()
        version = run.wait()["version"]
        disk.failures = 2
        shut_down(run)
    assert read_checkpoint(kept).version == version


def shut_down(run: LocalCluster) -> None:
    with Observer(run.address) as observer:
        observer.shut_down("enough")


def test_workers_are_told_to_stop_while_the_last_checkpoint_is_written(
    cluster: OpenCluster, disk: Disk
) -> None:
    with cluster(epochs=1000) as run:
        worker = run.start_worker()
        run.wait(lambda report: report["samples"] > 0)
        disk.is_quick.clear()
        try:
            shut_down(run)
            done = worker.result()
            assert run.report()["workers"] == []
        finally:
            disk.is_quick.set()
    assert (done.reason, done.finished) == ("enough", False)


def test_a_wait_has_an_end(cluster: OpenCluster) -> None:
    with cluster() as run, pytest.raises(RunOverdueError, match=naming("0 of 1280", "0.01 s")):
        run.wait(timeout_s=0.01)
