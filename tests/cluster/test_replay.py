"""A run of two workers over real sockets is computed again in one process, bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dist_net import nn
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe, load_recipe
from dist_net.optim import RMSprop
from dist_net.training.run.local_cluster import InProcessWorker, LocalCluster
from dist_net.training.run.replayed_run import Replay
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import Applied
from dist_net.training.worker.local_steps import TrainingStep, local_steps
from dist_net.training.worker.loop import WorkerLoop
from dist_net.wire.messages import Join
from dist_net.wire.transport import ServerAccess

PLAIN = replace(load_recipe("digits").recipe, epochs=20)  # two workers meet
ENOUGH_TO_MEET = 6  # epochs of BSP, each step of which waits for both
WITH_DROPOUT_AND_BUFFERS = replace(
    PLAIN,
    network=nn.Sequential(
        nn.Rescale(),
        nn.Flatten(),
        nn.Dense(24),
        nn.BatchNorm(activation=nn.leaky_relu),
        nn.Dropout(0.2),
        nn.Dense(10),
    ),
    optimizer=RMSprop(),
    clip_norm=1.0,
    average_decay=0.9,
)


def assert_replayed(recipe: Recipe, path: Path, consistency: str) -> None:
    """Check that the replay of the run's journal ends with the run's checkpoint, bit for bit."""
    trained, journal = read_checkpoint(path), read_journal(path.with_suffix(".journal"))
    assert journal.fault is None
    assert journal.version == trained.version
    dataset = recipe.load_dataset()
    loaded = LoadedRecipe("in-process", "in-process", {}, recipe)
    options = RunOptions("in-process", seed=3, consistency=consistency).on(loaded, dataset)
    settings = options.settings(loaded)
    replay = Replay(
        settings,
        journal,
        lambda threads: TrainingStep(recipe.model, dataset, 3, threads),
        recipe.initial_weights(3),
    )
    result = replay.run()
    assert (result.matches, result.matched_version) == (True, trained.version)
    replayed = replay.checkpoint()
    np.testing.assert_array_equal(replayed.weights, trained.weights)
    assert replayed.optimizer_state.keys() == trained.optimizer_state.keys()
    for name, vector in trained.optimizer_state.items():
        np.testing.assert_array_equal(replayed.optimizer_state[name], vector)
    assert replayed.ledger["remaining"] == trained.ledger["remaining"]


@pytest.mark.parametrize("states", ["in memory", "as frames", "both"])
@pytest.mark.parametrize("consistency", Consistency)
def test_a_run_of_two_workers_is_replayed(tmp_path: Path, states: str, consistency: str) -> None:
    path, recipe = tmp_path / "checkpoint.safetensors", WITH_DROPOUT_AND_BUFFERS
    if consistency == Consistency.BSP:
        recipe = replace(recipe, epochs=ENOUGH_TO_MEET)
    with LocalCluster(recipe, path, seed=3, consistency=consistency) as cluster:
        cluster.start_worker(shares_memory=states != "as frames")
        cluster.start_worker(shares_memory=states == "in memory")
        report = cluster.wait()
    assert (report["bytes_sent_per_sample"] > 0) == (states != "in memory")
    assert read_checkpoint(path).ledger["remaining"] == []
    assert_replayed(recipe, path, consistency)


@pytest.mark.parametrize("consistency", Consistency)
def test_a_run_that_was_resumed_with_other_settings_is_replayed(
    tmp_path: Path, consistency: str
) -> None:
    """In mid-epoch, with minibatches of another size, more epochs and another learning rate."""
    path = tmp_path / "checkpoint.safetensors"
    first = replace(WITH_DROPOUT_AND_BUFFERS, epochs=1000)
    with LocalCluster(first, path, workers=2, seed=3, consistency=consistency) as cluster:
        cluster.wait(lambda report: report["samples"] > 2000)
    left = read_checkpoint(path)
    changed = replace(
        first,
        batch_size=24,
        epochs=left.ledger["next_epoch"] + 1,
        learning_rate=first.learning_rate / 3,
        clip_norm=0.0,
        average_decay=0.5,
    )
    modes = {"consistency": consistency, "resume": True}
    with LocalCluster(changed, path, workers=2, seed=3, **modes) as cluster:
        cluster.wait()
    assert read_checkpoint(path).version > left.version > 0
    assert read_checkpoint(path).ledger["remaining"] == []
    assert_replayed(changed, path, consistency)


@pytest.mark.parametrize("consistency", Consistency)
def test_a_lease_of_several_parts_is_replayed(tmp_path: Path, consistency: str) -> None:
    """One worker stands for three processes; another host's worker has one."""
    path = tmp_path / "checkpoint.safetensors"
    epochs = ENOUGH_TO_MEET if consistency == Consistency.BSP else PLAIN.epochs
    recipe = replace(PLAIN, epochs=epochs)
    dataset = recipe.load_dataset()
    digest = LoadedRecipe("in-process", "in-process", {}, recipe).digest(dataset)
    request = Join("host", 0, digest, recipe.model.layout.size, parts=3)
    with (
        LocalCluster(recipe, path, seed=3, consistency=consistency) as cluster,
        ThreadPoolExecutor() as threads,
    ):
        local_of = partial(local_steps, recipe, dataset)
        server = ServerAccess(cluster.address, None)
        host = InProcessWorker(WorkerLoop(local_of, server, request), threads)
        cluster.wait(lambda report: report["samples"] > 0)
        cluster.start_worker()
        cluster.wait()
        host.result()
    journal = read_journal(path.with_suffix(".journal"))
    assert max(each.steps.parts for each in journal.records() if isinstance(each, Applied)) == 3
    assert_replayed(recipe, path, consistency)
