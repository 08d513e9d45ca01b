"""How long a whole net is tuned, and the distance of its features."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from dist_net.data.image_split import TRAIN, VALIDATION
from dist_net.data.prepared_images import ImagePreprocessing, PreparedImages
from dist_net.data.samples import ArraySamples
from dist_net.nets.recipes.image_recipe import ImageRecipe, small_base
from dist_net.photos import fine_tuning
from dist_net.photos.fine_tuning import (
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    TuningJudge,
    may_pay,
    set_distance,
    usual_epochs,
)
from dist_net.photos.head_training import outputs_of
from dist_net.photos.photo_statistics import JudgedImages
from dist_net.photos.unknown_images import DIRECTIONS
from drawn_images import cats_and_dogs
from naming import naming


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


CLASSES, HELD_OUT = 3, 40
TARGETS = np.arange(HELD_OUT) % CLASSES


def logits_of(right: int) -> np.ndarray:
    """Logits of which so many are right, the first ones, all with the same confidence."""
    answers = np.where(np.arange(HELD_OUT) < right, TARGETS, (TARGETS + 1) % CLASSES)
    return np.eye(CLASSES, dtype=np.float32)[answers] * 2


def judge_of_nets(monkeypatch: pytest.MonkeyPatch) -> TuningJudge:
    """A judge of nets in a run of 1,000 samples; a net's "weights" are its number of right answers.

    The head has 20 right. The logits of nets are fakes.
    """

    class Images:
        def rows(self, part: str) -> np.ndarray:
            return np.arange({TRAIN: 100, VALIDATION: HELD_OUT}[part])

    def fake(_: object, right: int, *__: object) -> JudgedImages:
        return JudgedImages((), TARGETS, logits_of(right), np.arange(HELD_OUT), None)

    monkeypatch.setattr(fine_tuning, "judged_by", fake)
    recipe = ImageRecipe("pets", small_base(16), ("a", "b", "c"), epochs=10)
    return TuningJudge(recipe, logits_of(20), Images(), np.arange(140))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("right", "stops_after"),
    [
        ([20] * 10, 8),
        ([10] * 10, 8),
        ([21] * 10, 8),  # better by less than the standard error
        ([20, 20, 20, 20, 20, 32, 20, 20, 20, 20], 9),
        ([10, 10, 10, 10, 10, 10, 20, 32, 32, 32], None),  # late, as with Fashion-MNIST
    ],
)
def test_tuning_stops_late_if_no_net_was_better_in_a_quarter_of_the_run(
    right: list[int], stops_after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of_nets(monkeypatch)
    for epoch, each in enumerate(right, 1):
        evaluation, reason = judge(100 * epoch, each)  # type: ignore[arg-type]
        assert evaluation.accuracy == each / HELD_OUT
        if reason:
            assert epoch == stops_after
            return
    assert stops_after is None


def test_a_run_that_is_resumed_has_a_quarter_more(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of_nets(monkeypatch)
    reasons = [judge(samples, 20)[1] for samples in range(700, 1001, 50)]  # type: ignore[arg-type]
    assert [bool(each) for each in reasons].index(True) == 5


def test_the_figures_of_head_and_net_are_stated_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = judge_of_nets(monkeypatch)
    better, worse = judge.compare(32), judge.compare(8)  # type: ignore[arg-type]
    assert re.match(naming("same 40 images", "20 right", "32", "lower", "net is used"), str(better))
    assert re.match(naming("same 40 images", "20 right", "8", "higher", "head is kept"), str(worse))
    assert better.is_better
    assert not worse.is_better
    assert not judge.compare(20).is_better  # type: ignore[arg-type]


def test_only_heads_with_few_mistakes_are_not_worth_tuning() -> None:
    assert [may_pay(accuracy) for accuracy in (0.43, 0.89, 0.91, 1.0)] == [True, True, False, False]
