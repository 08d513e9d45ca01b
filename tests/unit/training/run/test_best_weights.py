"""The best weights of a run: which are kept, and when the run has not got better for too long."""

from dataclasses import replace

import numpy as np
import pytest

from dist_net.errors import CheckpointError, FileWriteError
from dist_net.ground.checkpoint import read_checkpoint, write_checkpoint
from dist_net.training.run.evaluation import BestWeights
from dist_net.training.server.settings import RunSettings
from naming import naming


def settings(size=3):
    return RunSettings("r", "d", (("w", (size,)),), samples=10, epochs=1, batch_size=2)


def weights(value):
    return np.full(3, value, np.float32)


def test_the_highest_accuracy_is_kept_and_of_equal_ones_the_lowest_loss(tmp_path):
    path = tmp_path / "best.safetensors"
    best = BestWeights(path, settings())
    assert best.take(0.5, 1.0, 1, weights(1))
    assert best.take(0.5, 0.9, 2, weights(2))
    assert not best.take(0.5, 0.95, 3, weights(3))
    assert not best.take(0.4, 0.1, 4, weights(4))
    found = read_checkpoint(path)
    assert (found.version, found.weights[0]) == (2, 2)


def test_without_classes_the_lowest_loss_is_kept(tmp_path):
    best = BestWeights(tmp_path / "best.safetensors", settings())
    assert best.take(None, 1.0, 1, weights(1))
    assert not best.take(None, 1.5, 2, weights(2))
    assert best.take(None, 0.5, 3, weights(3))


def test_patience_ends_after_so_many_evaluations_in_a_row(tmp_path):
    best = BestWeights(tmp_path / "best.safetensors", settings(), patience=2)
    best.take(0.5, 1.0, 1, weights(1))
    best.take(0.4, 1.0, 2, weights(1))
    best.take(0.6, 1.0, 3, weights(1))
    best.take(0.5, 1.0, 4, weights(1))
    assert not best.is_out_of_patience
    best.take(0.6, 1.0, 5, weights(1))
    assert best.is_out_of_patience


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([-1.0, -1.001, -1.002], True),  # such as of a density
        ([-1.0, -1.1, -1.2], False),
        ([0.5, 0.0, -0.5], False),
        ([0.02, -0.00001, -0.000011, -0.000012], True),
        ([1.0, 0.0003, 0.0002, 0.0001], True),  # noise
        ([1.0, 0.5, 0.498], False),
        ([0.0, 0.0, 0.0], True),
    ],
)
def test_progress_is_measured_on_the_scale_of_the_losses(tmp_path, losses, ends):
    best = BestWeights(tmp_path / "best.safetensors", settings(), patience=2)
    for version, loss in enumerate(losses, 1):
        best.take(None, loss, version, weights(1))
    assert best.is_out_of_patience == ends


def test_a_run_that_goes_on_has_to_do_better_than_what_is_there(tmp_path):
    path = tmp_path / "best.safetensors"
    BestWeights(path, settings()).take(0.9, 1.0, 1, weights(1))
    resumed = BestWeights(path, settings())
    assert not resumed.take(0.8, 0.5, 2, weights(2))
    assert read_checkpoint(path).version == 1


def test_weights_that_could_not_be_written_are_not_taken_for_the_best(tmp_path):
    directory = tmp_path / "later"
    best = BestWeights(directory / "best.safetensors", settings())
    with pytest.raises(FileWriteError):
        best.take(0.9, 1.0, 1, weights(1))
    directory.mkdir()
    assert best.take(0.8, 1.0, 2, weights(2))


def test_the_best_of_another_model_are_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    BestWeights(path, settings()).take(0.9, 1.0, 1, weights(1))
    with pytest.raises(CheckpointError):
        BestWeights(path, settings(size=4))


def test_the_best_of_a_run_that_goes_on_with_other_options_stay_with_its_recipe(tmp_path):
    path = tmp_path / "best.safetensors"
    BestWeights(path, settings()).take(0.9, 1.0, 1, weights(1))
    changed = replace(settings(), recipe_record={"as": "it is now"})
    resumed = BestWeights(path, changed)
    found = read_checkpoint(path)
    assert (found.recipe_record, found.version, found.weights[0]) == ({"as": "it is now"}, 1, 1)
    assert not resumed.take(0.8, 0.5, 2, weights(2))


def test_weights_that_do_not_say_how_good_they_are_are_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    BestWeights(path, settings()).take(0.9, 1.0, 1, weights(1))
    write_checkpoint(path, replace(read_checkpoint(path), counters={}))
    with pytest.raises(CheckpointError, match=naming(path, "accuracy", "loss")):
        BestWeights(path, settings())
