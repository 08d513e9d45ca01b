"""A cluster in this process, on the recipe that counts how often each sample was applied."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.nets.recipes.recipe import Recipe, load_recipe
from dist_net.training.run.in_process import LocalCluster
from dist_net.vector import Vector

COUNTING = Path(__file__).parents[1] / "recipes" / "counting.py"


@pytest.fixture
def recipe() -> Recipe:
    """The counting recipe."""
    return load_recipe(str(COUNTING)).recipe


@pytest.fixture
def cluster(recipe: Recipe) -> Callable[..., AbstractContextManager[LocalCluster]]:
    """Opens a cluster of that recipe without workers; what else it is given goes to the server."""

    def open_cluster(
        *arguments: Any, epochs: int = recipe.epochs, **settings: Any
    ) -> AbstractContextManager[LocalCluster]:
        return LocalCluster(replace(recipe, epochs=epochs), *arguments, **settings)

    return open_cluster


@pytest.fixture
def assert_exact(recipe: Recipe) -> Callable[..., None]:
    """Checks that weights have seen every sample once in each epoch."""

    def check(weights: Vector, epochs: int = recipe.epochs) -> None:
        np.testing.assert_array_equal(weights, np.float32(-epochs))

    return check
