"""How long a whole net is tuned, and the distance of its features."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from dist_net.data.image_split import TRAIN, VALIDATION
from dist_net.data.prepared_images import ImagePreprocessing, PreparedImages
from dist_net.data.samples import ArraySamples
from dist_net.nets.recipes.image_recipe import ImageRecipe, small_base
from dist_net.photos.fine_tuning import (
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    HopelessTuning,
    set_distance,
    usual_epochs,
)
from dist_net.photos.head_training import outputs_of
from dist_net.photos.unknown_images import DIRECTIONS
from drawn_images import cats_and_dogs


def test_fewer_images_are_tuned_on_for_more_epochs_within_limits() -> None:
    epochs = [usual_epochs(images) for images in (1, 100, 200, 300, 400, 100_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert (epochs[0], epochs[-1]) == (MOST_EPOCHS, FEWEST_EPOCHS)
    assert len(set(epochs)) > 2


def test_a_tuned_net_is_less_certain_of_images_unlike_those_of_its_folder(tmp_path: Path) -> None:
    folder = cats_and_dogs(tmp_path / "photos", 30)
    base = small_base(16)
    recipe = ImageRecipe("pets", base, folder.class_names, DIRECTIONS)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (len(folder.images), *base.input_shape), np.uint8)
    preprocessing = ImagePreprocessing(base.input_shape, base.fitting)
    weights = np.abs(generator.normal(size=recipe.model.layout.size)).astype(np.float32)
    for name, view in recipe.model.layout.views(weights).items():
        if name.startswith("head/distance"):
            view[...] = 0

    def logits(inputs: np.ndarray) -> np.ndarray:
        return outputs_of(recipe.model, weights, ArraySamples(inputs))

    strange = np.zeros((3, *base.input_shape), np.uint8)
    with PreparedImages(folder, preprocessing, pixels, {}, BytesIO()) as images:
        known = pixels[images.rows(VALIDATION)]
        before = logits(known), logits(strange)
        set_distance(recipe, weights, images)
        assert len(images.rows(TRAIN)) > len(known)
    shares = [
        after / old for after, old in zip((logits(known), logits(strange)), before, strict=True)
    ]
    assert np.isclose(shares[0], 1, atol=1e-3).all(1).mean() >= 0.8
    assert (shares[1] < 0.5).all()


@pytest.mark.parametrize(
    ("losses", "stops_after"),
    [
        ([2.0] * 8, 4),  # a quarter of the run after the rates have risen
        ([2.0, 2.0, 0.5, 2.0, 2.0, 2.0, 2.0, 2.0], 5),
        ([2.0, 2.0, 2.0, 0.5, 2.0, 0.5, 2.0, 0.5], None),
        ([1.1] * 8, None),  # within two standard errors
    ],
)
def test_tuning_stops_once_it_is_certainly_worse_than_the_head(
    losses: list[float], stops_after: int | None
) -> None:
    of_head = np.array([0.5, 1.5] * 20)  # 1.0, with a standard error of 0.08
    is_hopeless = HopelessTuning(of_head, np.arange(40), samples=800)
    told = [epoch for epoch, loss in enumerate(losses, 1) if is_hopeless(100 * epoch, loss)]
    assert told[:1] == ([] if stops_after is None else [stops_after])
