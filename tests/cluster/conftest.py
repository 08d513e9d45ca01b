"""A cluster in this process, on the recipe that counts how often each sample was applied."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dist_net.cluster.in_process import InProcessCluster, in_process_cluster
from dist_net.recipe import Recipe, load_recipe
from dist_net.wire.messages import Vector

COUNTING = Path(__file__).parents[1] / "recipes" / "counting.py"


@pytest.fixture
def recipe() -> Recipe:
    """The counting recipe."""
    return load_recipe(str(COUNTING)).recipe


@pytest.fixture
def cluster(recipe: Recipe) -> Callable[..., AbstractContextManager[InProcessCluster]]:
    """Opens a cluster of that recipe without workers; what it is given goes to the server."""
    return partial(in_process_cluster, recipe)


@pytest.fixture
def assert_exact(recipe: Recipe) -> Callable[[Vector], None]:
    """Checks that weights have seen every sample once in each epoch."""

    def check(weights: Vector) -> None:
        np.testing.assert_array_equal(weights, np.float32(-recipe.epochs))

    return check
