"""Recipes by name and by file, and the digest by which hosts compare theirs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_net import nn
from dist_net.darknet.configuration import read_configuration, write_configuration
from dist_net.darknet.network import DarknetNetwork
from dist_net.darknet.weights import read_weights, write_weights
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


def test_what_the_convolutional_recipe_trains_can_be_written_for_the_darknet_program(
    tmp_path: Path,
) -> None:
    recipe = load_recipe("fashion-mnist-conv").recipe
    assert isinstance(recipe.network, nn.Sequential)
    network = recipe.network.layers[-1]
    assert isinstance(network, DarknetNetwork)
    random = np.random.default_rng(0)
    weights = recipe.initial_weights(0)
    buffers = weights[recipe.model.layout.trained_size :]
    buffers[:] = random.uniform(0.5, 1.5, buffers.shape)
    write_configuration(network.configuration, tmp_path / "net.cfg")
    write_weights(tmp_path / "net.weights", network, weights)

    read = DarknetNetwork(read_configuration(tmp_path / "net.cfg"))
    model = nn.Model(read, (28, 28, 1), input_dtype=np.float32)
    images = random.integers(0, 256, (3, 28, 28), np.uint8)
    logits = nn.Predictor(recipe.model, weights)(images)
    pixels = images[..., None].astype(np.float32) / np.float32(255)
    vector = read_weights(tmp_path / "net.weights", read)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        nn.Predictor(model, vector)(pixels), shares / shares.sum(1, keepdims=True), rtol=1e-3
    )


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
