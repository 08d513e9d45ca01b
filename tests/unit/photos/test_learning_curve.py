"""Whether more images help: figures by number of images, that hold for twice as many."""

from itertools import pairwise

import numpy as np
import pytest

from dist_net.photos.head_training import HeadTraining
from dist_net.photos.learning_curve import advice, extrapolated, learning_curve, nested_parts
from dist_net.photos.photo_statistics import Interval

CLASSES = 3
FOLDERS = 20


def point(images: float, error: float) -> dict[str, object]:
    return {"images": images, "right": 1 - error, "interval": Interval(0.5, 1 - error / 2)}


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.5])
def test_a_power_law_is_continued(exponent: float) -> None:
    found = extrapolated([point(1000, 0.2)], 1000, 500, exponent)
    *_, last = found["points"]
    assert last["images"] == 2000
    assert 1 - last["right"] == pytest.approx(0.2 * 2**-exponent, rel=0.01)
    assert found["gain"] == pytest.approx(0.2 * (1 - 1.5**-exponent), rel=0.01)
    assert last["interval"].low == 0.5
    assert last["interval"].high == pytest.approx(1 - 0.1 * 2**-0.5)


def test_eight_right_answers_do_not_prove_that_a_class_has_enough_images() -> None:
    few, many = (extrapolated([point(each, 0.0)], each, 30, 0.3) for each in (8, 80))
    assert many["is_enough"]
    assert not few["is_enough"]
    assert few["points"][-1]["right"] == 1.0


def test_the_class_with_the_largest_gain_is_named_and_those_that_need_none() -> None:
    cases = {"many": (1000, 0.2), "stop": (30, 0.2), "yield": (900, 0.0)}
    classes = [
        {"name": name, **extrapolated([point(count, error)], count, 30, 0.4)}
        for name, (count, error) in cases.items()
    ]
    expected = "30 more images of 'stop' would help most; none are needed of 'yield'. In all, with"
    assert advice(classes[0], classes, 30).startswith(expected)
    assert advice(classes[0], classes[2:], 30).startswith("No class needs more images")


def folder(seed: int, count: int) -> tuple[HeadTraining, np.ndarray, np.ndarray, np.ndarray]:
    """A head of two thirds of its classes' images, and fresh features with their labels."""
    generator = np.random.default_rng(seed)
    means = 0.45 * generator.normal(size=(CLASSES, 32))
    labels = np.tile(np.arange(CLASSES), 3 * count + 500)
    features = (means[labels] + generator.normal(size=(len(labels), 32))).astype(np.float32)
    few = slice(CLASSES * count)
    groups = np.arange(CLASSES * count) // 2  # two images of two classes
    head = HeadTraining(features[None, few], labels[few], groups, (), seed, np.arange(len(groups)))
    return head, features, labels, groups


def test_parts_are_nested_and_of_whole_groups_with_some_of_each_class() -> None:
    head, _, _, groups = folder(0, 12)
    parts = nested_parts(head.judged, head.fold_of)
    for fold in range(head.folds):
        for part, larger in pairwise(parts):
            assert not (part & ~larger)[:, fold].any()
        for part in parts:
            trained = head.fold_of != fold
            assert not part[~trained, fold].any()
            of_group = {*zip(groups[trained], part[trained, fold], strict=True)}
            assert len(of_group) == len({group for group, _ in of_group})
            assert (np.bincount(head.labels[part[:, fold]]) >= 2).all()
        assert parts[-1][:, fold].sum() == (head.fold_of != fold).sum()
        assert parts[0].sum() < 0.6 * parts[-1].sum()


def test_the_interval_holds_with_twice_as_many_images() -> None:
    covered, error, unchanged = 0, 0.0, 0.0
    for seed in range(FOLDERS):
        count = (10, 30)[seed % 2]
        head, features, labels, _ = folder(seed, count)
        found = learning_curve("abc", head.judged, head.fold_of, head.logits_without)
        assert found is not None
        *_, present, twice = found["whole"]["points"]
        more = 2 * CLASSES * count
        rows = np.arange(more)
        larger = HeadTraining(features[None, :more], labels[:more], rows // 2, (), seed, rows)
        right = (larger(features[more:]).argmax(1) == labels[more:]).mean()
        covered += twice["interval"].low <= right <= twice["interval"].high
        error += abs(twice["right"] - right)
        unchanged += abs(present["right"] - right)
    assert covered >= FOLDERS - 1
    assert error < unchanged


def test_too_few_images_have_no_curve() -> None:
    head, *_ = folder(0, 3)
    assert learning_curve("abc", head.judged, head.fold_of, head.logits_without) is None
