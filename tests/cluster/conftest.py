"""A cluster in this process, on the recipe that counts how often each sample was applied."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.ground.checkpoint import read_checkpoint
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import Recipe, load_recipe
from dist_net.training.run.local_cluster import LocalCluster
from journaled import assert_each_sample_once

COUNTING = Path(__file__).parents[1] / "recipes" / "counting.py"


@pytest.fixture
def recipe() -> Recipe:
    """The counting recipe."""
    return load_recipe(str(COUNTING)).recipe


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The checkpoint of the test's cluster."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "checkpoint.safetensors"


@pytest.fixture
def cluster(recipe: Recipe, kept: Path) -> Callable[..., AbstractContextManager[LocalCluster]]:
    """Open a cluster of that recipe without workers, with the given settings."""

    def open_cluster(
        epochs: int = recipe.epochs, **settings: Any
    ) -> AbstractContextManager[LocalCluster]:
        return LocalCluster(replace(recipe, epochs=epochs), kept, **settings)

    return open_cluster


@pytest.fixture
def assert_exact(recipe: Recipe, kept: Path) -> Callable[..., None]:
    """Check, after the end of a cluster, that each sample was applied once in each epoch."""

    def check(epochs: int = recipe.epochs) -> None:
        samples = len(recipe.load_dataset().train_targets)
        assert assert_each_sample_once(kept.parent, samples, "checkpoint.journal") == epochs
        assert read_checkpoint(kept).ledger["remaining"] == []

    return check


@pytest.fixture
def assert_counted(recipe: Recipe) -> Callable[..., None]:
    """Check that the weights of one worker alone have seen every sample once in each epoch."""

    def check(weights: Vector, epochs: int = recipe.epochs) -> None:
        np.testing.assert_array_equal(weights, np.float32(-epochs))

    return check
