"""Recipes of images as data: what they build, and what is refused of a file."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dist_net.data import Dataset
from dist_net.errors import RecipeError
from dist_net.images.augmentation import Augmentation
from dist_net.nets.recipes.image_recipe import Base, ImageRecipe, small_base
from dist_net.nn import Predictor
from dist_net.photos.bases import FoundBase, joined_weights
from dist_net.photos.head import HeadWeights
from dist_net.photos.unknown_images import DIRECTIONS, distance_of, tempered_by

NET = """
[net]
height=8
width=8
channels=3
[convolutional]
filters=4
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=10
size=1
stride=1
activation=linear
[avgpool]
[softmax]
"""
BASE = Base("darknet", "tiny", (8, 8, 3), "crop", NET)
WHOLE = ImageRecipe("photos", BASE, ("cat", "dog"), augmentation=Augmentation(flip=False))
FAR = replace(WHOLE, directions=3)


@pytest.mark.parametrize("recipe", [WHOLE, FAR, ImageRecipe("p", small_base(), ("a", "b"))])
def test_a_recipe_is_the_same_after_it_was_a_file(recipe):
    text = recipe.to_json()
    assert ImageRecipe.from_json(text) == recipe
    assert ImageRecipe.from_json(text).to_json() == text


def test_where_a_host_keeps_its_images_is_no_difference_between_hosts():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    dataset = Dataset("photos", images, np.arange(2), images, np.arange(2), ("cat", "dog"))

    def digest(recipe):
        return recipe.loaded().digest(dataset)

    here, there = (replace(WHOLE, name=name, data=f"/{name}") for name in ("here", "there"))
    assert digest(here) == digest(there)
    assert here.loaded().file_digests != there.loaded().file_digests
    assert digest(here) != digest(replace(here, augmentation=None))


def test_a_run_on_images_is_a_base_in_turn():
    base = Base("pictures", "before", (8, 8, 3), "crop", WHOLE.as_net().to_json())
    assert ImageRecipe("next", base, ("a", "b", "c")).model.output_shape == (3,)


def test_head_and_base_together_are_the_whole_net():
    generator = np.random.default_rng(0)
    base = FoundBase(BASE, BASE.model.layout.initial(generator))
    images = generator.integers(0, 256, (6, 8, 8, 3), np.uint8)
    by_name = BASE.model.layout.views(base.weights)
    of_features = np.concatenate([by_name[name].ravel() for name, _ in BASE.features.layout.shapes])
    features = Predictor(BASE.features, of_features)(images)

    head = HeadWeights(*(generator.normal(size=shape).astype("f4") for shape in ((4, 2), 2)))
    whole = joined_weights(WHOLE, base, head)
    np.testing.assert_allclose(Predictor(WHOLE.model, whole)(images), head(features), rtol=1e-4)
    cooled = Predictor(WHOLE.model, WHOLE.tempered(whole, 2.0))(images)
    np.testing.assert_allclose(cooled, head(features) / 2, rtol=1e-4, atol=1e-6)

    recipe = replace(WHOLE, directions=DIRECTIONS)
    distance = distance_of(features[:4], np.array([0, 0, 1, 1]), 2)
    far = Predictor(recipe.model, joined_weights(recipe, base, head, distance))(images)
    expected = tempered_by(distance(features), head(features))
    np.testing.assert_allclose(far, expected, rtol=1e-2, atol=1e-6)
    near = Predictor(recipe.model, joined_weights(recipe, base, head))(images)
    np.testing.assert_allclose(near, head(features), rtol=1e-4)


def test_a_recipe_of_an_earlier_release_is_read():
    told = json.loads(WHOLE.to_json()) | {"stage": "whole"}
    del told["directions"]
    assert ImageRecipe.from_json(json.dumps(told)) == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"class_names": ["one"]},
        {"class_names": [1, 2]},
        {"stage": "head"},
        {"directions": -1},
        {"more": 1},
        {"base": {"kind": "python", "name": "x", "input_shape": [8, 8, 3], "fitting": "crop"}},
        {"base": {"kind": "small", "name": "x", "input_shape": [1 << 40, 8, 3], "fitting": "crop"}},
        {"base": {"kind": "small", "name": "x", "input_shape": [8, 8, 3], "fitting": "bend"}},
        {"base": None},
        {"base": {"kind": "small", "name": "x", "input_shape": [8, 8, 4], "fitting": "crop"}},
        {"epochs": "many"},
        {"learning_rate": None},
    ],
)
def test_what_no_run_writes_is_refused(change):
    with pytest.raises(RecipeError, match="JSON"):
        ImageRecipe.from_json(json.dumps(json.loads(WHOLE.to_json()) | change))


def test_brackets_without_end_are_refused():
    with pytest.raises(RecipeError, match="JSON"):
        ImageRecipe.from_json("[" * 200_000)
