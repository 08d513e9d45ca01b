"""A net with batch norm, trained in one process over real sockets: its moving averages arrive."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_net import nn
from dist_net.data import Dataset, dataset_named
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.recipes.recipe import Recipe
from dist_net.optim import Adam, Cosine
from dist_net.training.run.evaluation import Evaluator
from dist_net.training.run.local_cluster import LocalCluster
from dist_net.training.server.journal import Applied, read_journal

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


def with_channels() -> Dataset:
    """Return the digits as images of one channel."""
    digits = dataset_named("digits")
    train, test = digits.train_inputs[..., None], digits.test_inputs[..., None]
    return replace(digits, train_inputs=train, test_inputs=test)


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


def test_the_average_is_evaluated_and_kept_while_training_goes_on_from_the_weights(
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    recipe = replace(RECIPE, average_decay=0.99, clip_norm=1.0)
    with LocalCluster(recipe, checkpoint) as run:
        run.start_worker()
        run.wait()
        average = run.snapshot().weights
    left, trained = read_checkpoint(checkpoint), RECIPE.model.layout.trained_size
    np.testing.assert_array_equal(left.evaluated_weights, average)
    np.testing.assert_array_equal(left.optimizer_state["weight_average"], average[:trained])
    np.testing.assert_array_equal(left.weights[trained:], average[trained:])
    assert not np.array_equal(left.weights[:trained], average[:trained])
    assert Evaluator(RECIPE.model, dataset_named("digits"))(average).accuracy > 0.85


def test_workers_share_the_minibatches_of_a_convolutional_net_with_batch_norm(
    tmp_path: Path,
) -> None:
    recipe = replace(
        RECIPE,
        network=nn.Sequential(
            nn.Rescale(),
            nn.Conv2D(8, 3),
            nn.BatchNorm(activation=nn.relu),
            nn.MaxPool(2),
            nn.Flatten(),
            nn.Dense(10),
        ),
        input_shape=(8, 8, 1),
        dataset=with_channels,
    )
    checkpoint = tmp_path / "checkpoint.safetensors"
    with LocalCluster(recipe, checkpoint, workers=2) as run:
        run.wait()
        weights = run.snapshot().weights
    records = read_journal(checkpoint.with_suffix(".journal")).records()
    sizes = [each.steps.batch_size for each in records if isinstance(each, Applied)]
    assert sizes.count(recipe.batch_size // 2) > len(sizes) / 2
    assert Evaluator(recipe.model, with_channels())(weights).accuracy > 0.85
    assert recipe.model.layout.views(weights)["batchnorm/variance"].min() > 0
