"""Recipes by name and by file, and the digest by which hosts compare theirs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_net.data import dataset_named
from dist_net.errors import RecipeError, UnknownRecipeError
from dist_net.recipe import load_recipe, recipe_names

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "recipe.py"

TEXT = """
from dist_net import Recipe
from dist_net.nn import Dense, Flatten, Sequential, Rescale
recipe = Recipe(Sequential(Rescale(), Flatten(), Dense(10)), "digits", (8, 8))
"""


def test_every_built_in_recipe_loads_by_its_name() -> None:
    assert recipe_names() == ["digits", "fashion-mnist", "fashion-mnist-conv"]
    for name in recipe_names():
        assert load_recipe(name).name == load_recipe(name).reference == name


def test_the_example_is_a_recipe() -> None:
    assert load_recipe(str(EXAMPLE)).recipe.model.layout.size == 101_770


def test_a_file_is_a_recipe_by_its_absolute_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TEXT)
    loaded = load_recipe(str(path))
    assert (loaded.name, loaded.reference) == ("mine", str(path))
    assert loaded.recipe.load_dataset().image_shape == (8, 8)


def test_first_weights_follow_from_the_seed() -> None:
    recipe = load_recipe("digits").recipe
    np.testing.assert_array_equal(recipe.initial_weights(3), recipe.initial_weights(3))
    assert not np.array_equal(recipe.initial_weights(3), recipe.initial_weights(4))


def test_the_digest_tells_files_and_data_apart(tmp_path: Path) -> None:
    digits = dataset_named("digits")
    digests = set()
    for name, text in (("a", TEXT), ("b", TEXT), ("c", TEXT.replace("Dense(10)", "Dense( 10)"))):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        digests.add(load_recipe(str(path)).digest(digits))
    assert len(digests) == 2  # wherever it lies, the same file is the same recipe
    labels = digits.train_labels.copy()
    labels[[0, 1]] = [1, 2]
    changed = replace(digits, train_labels=labels)
    assert load_recipe("digits").digest(changed) != load_recipe("digits").digest(digits)


@pytest.mark.parametrize("reference", ["nothing", "missing.py", "/"])
def test_what_is_no_recipe_is_refused_with_the_names_there_are(reference: str) -> None:
    with pytest.raises(UnknownRecipeError, match="expected one of digits, fashion-mnist"):
        load_recipe(reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("(8, 8)", "(9, 9)"), r"images of shape \(8, 8\), the recipe's input_shape is \(9, 9\)"),
        (("Dense(10)", "Dense(7)"), "has 10 classes, the network has 7 outputs"),
    ],
)
def test_data_that_does_not_fit_the_network_is_refused(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TEXT.replace(*change))
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path)).recipe.load_dataset()
