"""A recipe of a gradient function: its layout, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net import Recipe
from dist_net.errors import ModelSourceError, RecipeError, SettingError
from dist_net.ground.shared_facts import difference
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nn import Dense
from dist_net.training.run.run_options import RunOptions
from naming import naming

LINE = Path(__file__).parents[3] / "recipes" / "line.py"
ROWS = np.arange(4)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(str(LINE)).recipe


def test_parameters_precede_buffers_whose_next_values_the_function_returns(recipe: Recipe) -> None:
    assert recipe.layout.shapes == (("slope", (5,)), ("mean", (5,)))
    assert recipe.layout.momenta == (0.0,)
    rule = recipe.update_rule("SGD()")
    state = rule.initial(recipe.initial_weights(0))
    following = np.empty_like(state)
    _, gradient = recipe.trained.at(state[:10], ROWS)
    rule.step(state, gradient, 0.5, following)
    np.testing.assert_array_equal(following[:5], -0.5 * gradient[:5])
    np.testing.assert_array_equal(following[5:10], gradient[5:])


def test_without_names_the_weights_are_one_parameter(recipe: Recipe) -> None:
    assert replace(recipe, parameters=None, buffers={}).layout.shapes == (("weights", (10,)),)


def test_its_run_counts_its_samples_and_no_classes() -> None:
    loaded = load_recipe(str(LINE))
    dataset = loaded.recipe.load_dataset()
    settings = RunOptions("line").on(loaded, dataset).settings(loaded)
    assert (settings.samples, settings.has_classes, settings.momenta) == (640, False, (0.0,))
    more = replace(loaded.recipe, samples=639)
    assert replace(loaded, recipe=more).digest(more.load_dataset()) != settings.recipe_digest


def test_there_is_no_model_to_serve(recipe: Recipe) -> None:
    with pytest.raises(ModelSourceError, match=naming("network")):
        recipe.model  # noqa: B018


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"weights": None}, ["weights"]),
        ({"weights": np.zeros(10)}, ["weights", "float32"]),
        ({"weights": np.full(10, np.nan, np.float32)}, ["finite"]),
        ({"weights": np.zeros(9, np.float32)}, [9, 10]),
        ({"samples": 0}, ["samples", 0]),
        ({"network": Dense(1)}, ["network", "gradient"]),
    ],
)
def test_what_does_not_fit_together_is_refused(
    recipe: Recipe, changed: dict[str, Any], named: list[Any]
) -> None:
    with pytest.raises((RecipeError, SettingError), match=naming(*named)):
        replace(recipe, **changed)


@pytest.mark.parametrize(
    ("result", "named"),
    [
        (3.0, ["3.0", "loss_sum"]),
        ((3.0, np.zeros(9, np.float32)), ["float32[9]", "float32[10]"]),
        ((3.0, np.zeros(10)), ["float64[10]"]),
        (("much", np.zeros(10, np.float32)), ["much"]),
    ],
)
def test_another_result_than_a_loss_and_a_gradient_is_refused(
    recipe: Recipe, result: Any, named: list[Any]
) -> None:
    with pytest.raises(RecipeError, match=naming(*named)):
        replace(recipe, gradient=lambda *_: result).trained.at(np.zeros(10, np.float32), ROWS)


@pytest.mark.parametrize("result", [0.5, {"test_accuracy": 1.0}, {"test_loss": "low"}])
def test_another_evaluation_is_refused(recipe: Recipe, result: Any) -> None:
    with pytest.raises(RecipeError, match=naming("test_loss")):
        replace(recipe, evaluate=lambda _: result).trained.evaluation_at(np.zeros(10, np.float32))


def test_a_function_that_fails_or_writes_to_the_weights_is_named(recipe: Recipe) -> None:
    def writes(weights: Any, rows: Any) -> Any:  # noqa: ARG001
        weights[0] = 1

    for function, named in ((writes, "read-only"), (lambda *_: 1 // 0, "ZeroDivisionError")):
        with pytest.raises(RecipeError, match=naming("gradient", named)):
            replace(recipe, gradient=function).trained.at(np.zeros(10, np.float32), ROWS)
    with pytest.raises(RecipeError, match=naming("join")):
        replace(recipe, gradient=None).trained.at(np.zeros(10, np.float32), ROWS)


def test_hosts_compare_initial_weights_and_the_gradient_of_some_rows(recipe: Recipe) -> None:
    def facts(**changed: Any) -> str:
        return "; ".join(replace(recipe, **changed).trained.facts)

    def other_samples(weights: Any, rows: Any) -> Any:
        assert recipe.gradient is not None
        return recipe.gradient(weights, (rows + 100) % recipe.samples)

    def rounded(weights: Any, rows: Any) -> Any:
        assert recipe.gradient is not None
        loss, gradient = recipe.gradient(weights, rows)
        return loss, gradient * np.float32(1 + 1e-5)

    own = facts()
    assert difference(facts(gradient=rounded), own) is None
    other = difference(facts(gradient=other_samples), own)
    assert other is not None
    assert other[0].startswith("gradient")
    drawn = difference(facts(weights=np.ones(10, np.float32)), own)
    assert drawn is not None
    assert drawn[0].startswith("weights")
    same = facts(gradient=other_samples, digest="samples 1")
    assert difference(same, facts(digest="samples 1")) is None
    assert difference(same, facts(digest="samples 2")) is not None


def test_numbers_and_shapes_of_numpy_are_plain(recipe: Recipe) -> None:
    shapes = {"slope": (np.int64(5),)}
    of_numpy = replace(recipe, samples=np.int64(640), parameters=shapes, epochs=np.int32(8))
    assert type(of_numpy.samples) is type(of_numpy.layout.shapes[0][1][0]) is int
    assert repr(of_numpy.layout.shapes) == repr(recipe.layout.shapes)
