"""A net with batch norm, trained in one process over real sockets: its moving averages arrive."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_net import nn
from dist_net.data import dataset_named
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.recipes.recipe import Recipe
from dist_net.optim import Adam, Cosine
from dist_net.training.run.evaluation import Evaluator
from dist_net.training.run.local_cluster import LocalCluster

RECIPE = Recipe(
    network=nn.Sequential(
        nn.Rescale(),
        nn.Flatten(),
        nn.Dense(24),
        nn.BatchNorm(activation=nn.leaky_relu),
        nn.Dense(10),
    ),
    dataset="digits",
    input_shape=(8, 8),
    optimizer=Adam(),
    learning_rate=0.01,
    schedule=Cosine(),
    batch_size=32,
    epochs=4,
)


def buffers(run: LocalCluster) -> np.ndarray:
    """The moving averages as they stand."""
    return run.snapshot().weights[RECIPE.model.layout.trained_size :]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("shares_memory", [True, False])
def test_a_net_with_batch_norm_learns(workers: int, shares_memory: bool) -> None:
    with LocalCluster(RECIPE) as run:
        np.testing.assert_array_equal(buffers(run), [0] * 24 + [1] * 24)
        for _ in range(workers):
            run.start_worker(shares_memory=shares_memory)
        report = run.wait()
        weights = run.snapshot().weights
    assert report["samples"] == report["samples_total"]
    assert report["gradients_refused"] == 0
    digits = dataset_named("digits")
    assert Evaluator(RECIPE.model, digits)(weights).accuracy > 0.85

    # The averages are close to what the last weights show on all the samples.
    views = RECIPE.model.layout.views(weights)
    pixels = digits.train_inputs.reshape(-1, 64) / 255
    hidden = pixels @ views["dense/kernel"] + views["dense/bias"]
    distance = (views["batchnorm/mean"] - hidden.mean(0)) / hidden.std(0)
    assert np.abs(distance).max() < 0.5 < np.abs(hidden.mean(0) / hidden.std(0)).max()
    ratio = views["batchnorm/variance"] / hidden.var(0)
    assert 0.5 < ratio.min() <= ratio.max() < 2


def test_moving_averages_survive_a_resume(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    with LocalCluster(replace(RECIPE, epochs=10_000), checkpoint) as run:
        run.start_worker()
        run.wait(lambda report: report["samples"] > 200)
    left = read_checkpoint(checkpoint)
    trained = RECIPE.model.layout.trained_size
    assert left.weights[-24:].max() < 1
    assert left.optimizer_state["mean"].shape == (trained,)
    epochs = left.ledger["next_epoch"] + 4
    with LocalCluster(replace(RECIPE, epochs=epochs), checkpoint, resume=True) as run:
        np.testing.assert_array_equal(buffers(run), left.weights[trained:])
        run.start_worker()
        run.start_worker()
        report = run.wait()
        weights = run.snapshot().weights
    assert report["version"] > left.version
    np.testing.assert_array_equal(read_checkpoint(checkpoint).weights, weights)
    assert Evaluator(RECIPE.model, dataset_named("digits"))(weights).accuracy > 0.85
