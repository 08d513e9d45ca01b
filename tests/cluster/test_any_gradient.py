"""Runs of a gradient function: by worker threads, and by loops of the caller's own."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dist_net import LocalCluster
from dist_net.errors import JoinRefusedError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.recipes.recipe import LoadedRecipe, load_recipe
from dist_net.training.run.replayed_run import Replay
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.journal import read_journal
from dist_net.training.worker.local_steps import gradient_function
from journaled import assert_each_sample_once

LINE = load_recipe(str(Path(__file__).parents[1] / "recipes" / "line.py")).recipe


@pytest.mark.parametrize("consistency", Consistency)
def test_a_gradient_function_trains_with_its_buffers_and_is_replayed(
    consistency: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with LocalCluster(LINE, path, workers=2, consistency=str(consistency)) as cluster:
        report = cluster.wait()
    assert report["samples"] == 8 * LINE.samples
    assert assert_each_sample_once(tmp_path, LINE.samples, "checkpoint.journal") == 8
    trained = read_checkpoint(path)
    assert LINE.trained.evaluation_at(trained.weights)[0] < 1
    np.testing.assert_allclose(trained.weights[5:], 1, atol=0.5)  # the mean of the inputs
    loaded, dataset = LoadedRecipe("in-process", "in-process", {}, LINE), LINE.load_dataset()
    settings = RunOptions("in-process", consistency=str(consistency)).on(loaded, dataset)
    journal = read_journal(path.with_suffix(".journal"))
    gradient_of = partial(gradient_function, LINE, dataset, 0)
    replay = Replay(settings.settings(loaded), journal, gradient_of, LINE.initial_weights(0))
    assert replay.run().matches
    np.testing.assert_array_equal(replay.checkpoint().weights, trained.weights)


def test_one_worker_in_a_thread_calls_at_a_time() -> None:
    calls = []

    def gradient(weights, rows):
        calls.append(1)
        assert len(calls) == 1
        result = LINE.gradient(weights, rows)
        calls.pop()
        return result

    with LocalCluster(replace(LINE, gradient=gradient), workers=3) as cluster:
        assert cluster.wait()["samples"] == 8 * LINE.samples


def test_a_worker_that_reads_other_samples_is_refused() -> None:
    """As workers do whose recipes draw a random split without a seed."""

    def other_split(weights, rows):
        return LINE.gradient(weights, np.random.default_rng(5).permutation(LINE.samples)[rows])

    with LocalCluster(LINE) as cluster:
        stranger = cluster.start_worker(recipe=replace(LINE, gradient=other_split))
        with pytest.raises(JoinRefusedError, match=r"gradient .* seed"):
            stranger.result()
        cluster.start_worker()
        assert cluster.wait()["samples"] == 8 * LINE.samples
