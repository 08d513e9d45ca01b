"""Training in one process over real sockets: every sample once an epoch, as the weights show."""

import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.data import Dataset
from dist_net.errors import (
    CheckpointError,
    FileWriteError,
    JoinRefusedError,
    ProcessFailedError,
    RunOverdueError,
    WorkerRefusedError,
)
from dist_net.nets.checkpoint import read_checkpoint, write_checkpoint
from dist_net.nets.observer import Observer
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential
from dist_net.optim import SGD
from dist_net.training.run import in_process
from dist_net.training.run.in_process import LocalCluster
from dist_net.training.server import loop as process
from dist_net.training.server.journal import read_journal
from dist_net.training.worker.step import TrainingStep
from dist_net.vector import Vector
from dist_net.wire.security import ROLES, add_keys, create_keys
from naming import naming
from small_disk import small_disk

OpenCluster = Callable[..., AbstractContextManager[LocalCluster]]
Check = Callable[..., None]
Disturb = Callable[[int], float | None]


class Disturbed:
    """A training step that is told after each run, from 1, what to fill its gradient with."""

    def __init__(self, step: TrainingStep, disturb: Disturb) -> None:
        self._step = step
        self._disturb = disturb
        self._runs = 0
        self.gather = step.gather
        self.unbind = step.unbind

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        result = self._step.run(weights, gradient)
        self._runs += 1
        filling = self._disturb(self._runs)
        if filling is not None:
            gradient[7] = filling
        return result


def disturbed(recipe: Recipe, disturb: Disturb) -> Callable[[int], Disturbed]:
    """What ``start_worker`` takes as ``step_of``."""
    return lambda seed: Disturbed(TrainingStep(recipe.model, recipe.load_dataset(), seed), disturb)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("arrays", ["in shared memory", "as frames"])
def test_each_sample_is_applied_once_an_epoch(
    cluster: OpenCluster, recipe: Recipe, assert_exact: Check, workers: int, arrays: str
) -> None:
    all_at_work = threading.Barrier(workers)

    def wait_for_the_others(runs: int) -> None:
        if runs == 1:
            all_at_work.wait(60)

    with cluster() as run:
        started = [
            run.start_worker(
                step_of=disturbed(recipe, wait_for_the_others),
                shares_memory=arrays == "in shared memory",
            )
            for _ in range(workers)
        ]
        report = run.wait()
        assert_exact(run.snapshot().weights)
        assert all(worker.result().finished for worker in started)
    assert report["samples"] == report["samples_total"] == 5 * 256
    assert report["version"] == report["pushes_applied"] == 5 * 256 // 8
    # A worker whose heartbeats a loaded machine delays is lost, and joins again.
    assert report["workers_joined"] - report["workers_lost"] == workers
    assert report["workers_lost"] or not report["pushes_rejected"]


def test_with_keys(cluster: OpenCluster, assert_exact: Check, tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    for role in ROLES:
        add_keys(tmp_path / "keys", role)
    with cluster(keys=tmp_path / "keys") as run:
        workers = [run.start_worker(shares_memory=False), run.start_worker()]
        run.wait()
        assert_exact(run.snapshot().weights)
        assert all(worker.result().finished for worker in workers)


@pytest.mark.parametrize("parameters", [10_000, 262_360, 5_000_000])
def test_models_of_every_size_train_over_keys(parameters: int, tmp_path: Path) -> None:
    """From 262,136 parameters on a gradient is longer than any header may be."""
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


def test_over_a_unix_socket(cluster: OpenCluster, assert_exact: Check, tmp_path: Path) -> None:
    with cluster(listen=f"ipc://{tmp_path}/server") as run:
        run.start_worker()
        run.wait()
        assert_exact(run.snapshot().weights)


def test_a_worker_may_join_in_mid_run(
    cluster: OpenCluster, recipe: Recipe, assert_exact: Check
) -> None:
    joined = threading.Event()

    def pause(runs: int) -> None:
        if runs == 40:
            assert joined.wait(60)

    with cluster() as run:
        run.start_worker(step_of=disturbed(recipe, pause))
        run.wait(lambda report: report["pushes_applied"] == 39)
        run.start_worker()
        run.wait(lambda report: report["pushes_applied"] > 39)
        joined.set()
        run.wait()
        assert_exact(run.snapshot().weights)


def test_a_worker_may_leave_in_mid_run(
    cluster: OpenCluster, recipe: Recipe, assert_exact: Check
) -> None:
    left = threading.Event()

    def pause(runs: int) -> None:
        if runs == 20:
            assert left.wait(60)

    with cluster() as run:
        leaves, _ = run.start_worker(), run.start_worker(step_of=disturbed(recipe, pause))
        run.wait(lambda report: len(report["workers"]) == 2 and report["samples"] > 256)
        leaves.stop("has better things to do")
        done = leaves.result()
        left.set()
        report = run.wait()
        assert_exact(run.snapshot().weights)
    assert not done.finished
    assert done.reason == "has better things to do"
    assert report["workers_joined"] - report["workers_lost"] == 2


def test_staleness_is_recorded(cluster: OpenCluster, recipe: Recipe, assert_exact: Check) -> None:
    """One worker holds its first gradient back until the other has pushed several."""
    pushed, taken = threading.Event(), threading.Event()

    def hold_back(runs: int) -> None:
        if runs == 1:
            assert pushed.wait(60)

    def wait_for_the_other(runs: int) -> None:
        if runs == 20:
            assert taken.wait(60)

    with cluster() as run:
        run.start_worker(step_of=disturbed(recipe, hold_back))
        run.wait(lambda report: len(report["workers"]) == 1)
        run.start_worker(step_of=disturbed(recipe, wait_for_the_other))
        run.wait(lambda report: report["version"] >= 10)
        pushed.set()
        run.wait(lambda report: report["staleness_max"] >= 10)
        taken.set()
        report = run.wait()
        assert_exact(run.snapshot().weights)
    assert sum(report["staleness_histogram"]) == report["pushes_applied"]
    assert sum(report["staleness_histogram"][4:]) > 0  # 8 and more


def test_a_gradient_that_is_not_finite_is_refused_and_computed_again(
    cluster: OpenCluster, recipe: Recipe, assert_exact: Check, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(runs: int) -> float | None:
        # The run after each of these was under way by then, on a lease that is released.
        return np.nan if runs in (3, 6, 11) else None

    with cluster() as run:
        run.start_worker(step_of=disturbed(recipe, spoil))
        report = run.wait()
        assert_exact(run.snapshot().weights)
    assert report["gradients_refused"] == 3
    assert report["workers_joined"] - report["workers_lost"] == 1
    refusals = [text for text in caplog.messages if text.startswith("gradient_refused")]
    assert len(refusals) == 3
    assert all("name=worker-0" in text for text in refusals)


@pytest.mark.parametrize("shares_memory", [True, False])
def test_a_worker_that_diverges_is_dismissed_and_others_do_its_work(
    cluster: OpenCluster, recipe: Recipe, assert_exact: Check, shares_memory: bool
) -> None:
    def spoil(_runs: int) -> float:
        return np.inf

    with cluster() as run:
        diverges = run.start_worker(step_of=disturbed(recipe, spoil), shares_memory=shares_memory)
        with pytest.raises(
            WorkerRefusedError, match=naming("'worker-0'", "3 gradients", "learning rate")
        ):
            diverges.result()
        run.start_worker()
        report = run.wait()
        assert_exact(run.snapshot().weights)
    assert report["gradients_refused"] == 3
    assert report["workers_joined"] - report["workers_lost"] == 1


def test_a_run_without_workers_left_fails_with_the_last_ones_error(
    cluster: OpenCluster, recipe: Recipe
) -> None:
    def fail(_runs: int) -> None:
        raise ZeroDivisionError("a step of the user's own")

    with cluster() as run:
        run.start_worker(step_of=disturbed(recipe, fail))
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
        with pytest.raises(JoinRefusedError, match=r"data [0-9a-f]{64}.* data [0-9a-f]{64}"):
            stranger.result()
        run.start_worker()
        report = run.wait()
        assert_exact(run.snapshot().weights)
    assert report["workers_joined"] - report["workers_lost"] == 1


def test_a_run_is_resumed_in_mid_epoch(
    cluster: OpenCluster, assert_exact: Check, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    with cluster(checkpoint, epochs=1000) as run:
        workers = [run.start_worker() for _ in range(3)]
        run.wait(lambda report: report["workers_joined"] >= 3 and report["samples"] > 300)
    assert not any(worker.result().finished for worker in workers)
    left = read_checkpoint(checkpoint)
    assert left.weights.min() < left.weights.max()

    epochs = left.ledger["next_epoch"] + 2
    with cluster(checkpoint, epochs=epochs, resume=True) as run:
        run.start_worker()
        run.start_worker()
        report = run.wait()
        assert_exact(run.snapshot().weights, epochs)
    assert_exact(read_checkpoint(checkpoint).weights, epochs)
    assert report["version"] == report["pushes_applied"] == epochs * 256 // 8
    assert report["workers_joined"] > 3


def test_a_run_is_not_resumed_as_another_one(cluster: OpenCluster, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    with cluster(checkpoint):
        pass
    with pytest.raises(CheckpointError, match=naming("seed", 0, 1)):
        cluster(checkpoint, seed=1, resume=True).__enter__()


class Disk:
    """Stands in for the disk: so many writes fail, and none ends while it is not quick."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = 0
        self.is_quick = threading.Event()
        self.is_quick.set()
        monkeypatch.setattr(process, "write_checkpoint", self._write)

    def _write(self, *arguments: Any) -> None:
        assert self.is_quick.wait(30)
        if self.failures > 0:
            self.failures -= 1
            raise FileWriteError("no space left")
        write_checkpoint(*arguments)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(in_process, "CHECKPOINT_EVERY_S", 0.05)
    monkeypatch.setattr(process, "RETRY_AFTER_S", 0.0)
    return Disk(monkeypatch)


def test_there_is_a_checkpoint_before_the_first_worker_joins(
    cluster: OpenCluster, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    with cluster(checkpoint) as run:
        assert run.report()["checkpoint_version"] == 0
        assert read_checkpoint(checkpoint).version == 0


def test_a_run_that_cannot_be_kept_does_not_begin(
    cluster: OpenCluster, disk: Disk, tmp_path: Path
) -> None:
    disk.failures = 1
    with (
        pytest.raises(FileWriteError, match="no space left"),
        cluster(tmp_path / "checkpoint.safetensors"),
    ):
        pass


def test_a_report_says_what_a_worker_has_and_how_long_its_messages_take(
    cluster: OpenCluster,
) -> None:
    with cluster(epochs=10_000) as run:
        run.start_worker()
        report = run.wait(
            lambda report: any(each["round_trip_s"] > 0 for each in report["workers"])
        )
    [worker] = report["workers"]
    assert 0 < worker["round_trip_s"] < 30
    assert worker["host"] == socket.gethostname()
    assert (worker["threads"], worker["starts"]) == (1, 1)
    assert worker["cores"] >= 1
    assert worker["blas"]


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
    monkeypatch.setattr(in_process, "CHECKPOINT_EVERY_S", 0.05)
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


def test_the_last_checkpoint_is_tried_again(
    cluster: OpenCluster, disk: Disk, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    with cluster(checkpoint) as run:
        run.start_worker()
        version = run.wait()["version"]
        disk.failures = 2
        shut_down(run)
    assert read_checkpoint(checkpoint).version == version


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
