"""A function of a tree of parameters as a recipe, by JAX."""

import numpy as np
import pytest

from dist_net.errors import RecipeError
from naming import naming

jax = pytest.importorskip("jax")
from dist_net.adapters.jax import Task  # noqa: E402

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = X @ np.array([1, 2, 3], np.float32) + 4
FIRST = {"slope": np.zeros(3, np.float32), "more": {"offset": np.float32(0)}}


def loss(parameters, x, y):
    return ((x @ parameters["slope"] + parameters["more"]["offset"] - y) ** 2).mean()


def test_a_gradient_is_the_mean_of_its_rows_in_the_order_of_the_tree() -> None:
    recipe = Task(loss, FIRST, X, Y).recipe(epochs=2)
    assert recipe.layout.shapes == (("more/offset", ()), ("slope", (3,)))
    weights = np.array([0.5, 1, 1, 1], np.float32)
    rows = np.array([3, 1, 19])
    error = X[rows].sum(1) + np.float32(0.5) - Y[rows]
    loss_sum, gradient = recipe.trained.at(weights, rows)
    assert loss_sum == pytest.approx(error @ error, rel=1e-5)
    by_hand = [2 * error.mean(), *(2 / 3 * error @ X[rows])]
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4)
    state = recipe.state_dict(weights)
    np.testing.assert_array_equal(state["slope"], [1, 1, 1])
    assert recipe.samples == 20
    assert recipe.trained.evaluation_at(weights) == (None, None)


def test_the_tree_is_evaluated() -> None:
    task = Task(loss, FIRST, X, Y, evaluate=lambda tree: {"test_loss": loss(tree, X, Y)})
    exact = np.array([4, 1, 2, 3], np.float32)
    figures = task.recipe().trained.evaluation_at(exact)
    assert figures == (pytest.approx(0, abs=1e-6), None)


def test_only_float32_is_trained() -> None:
    with pytest.raises(RecipeError, match=naming("float32")):
        Task(loss, {"slope": np.zeros(3, np.float16)}, X, Y)
