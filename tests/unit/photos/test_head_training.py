"""The head of a folder: figures that hold for scenes of similar images; folds of every class."""

import numpy as np
import pytest

from dist_net.data.image_split import divided_groups
from dist_net.nn.inference import softmax
from dist_net.photos.head_training import HeadTraining

CLASSES, SCENES, FRAMES = 3, 6, 20
PRECISION = 0.95
FOLDERS = 40


def scenes(
    means: np.ndarray, count: int, frames: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and scenes of ``frames`` images of each of ``count`` scenes of a class."""
    labels = np.repeat(np.arange(CLASSES), count)
    of_scenes = means[labels] + generator.normal(size=(len(labels), means.shape[1]))
    rows = np.repeat(np.arange(len(labels)), frames)
    noise = 0.3 * generator.normal(size=(len(rows), means.shape[1]))
    return (of_scenes[rows] + noise).astype(np.float32), labels[rows], rows


@pytest.mark.thorough
def test_figures_of_scenes_of_frames_hold_on_fresh_scenes() -> None:
    in_interval = below = answering = 0
    for seed in range(FOLDERS):
        generator = np.random.default_rng(seed)
        means = 0.53 * generator.normal(size=(CLASSES, 32))
        features, labels, groups = scenes(means, SCENES, FRAMES, generator)
        fresh, truth, _ = scenes(means, 200, 2, generator)
        head = HeadTraining(features[None], labels, groups, (), seed, np.arange(len(labels)))
        judged = head.judged
        is_right = judged.logits.argmax(1) == labels
        interval = judged.interval(is_right, np.full(len(labels), True))
        calibration = judged.calibrate(PRECISION)
        logits = head(fresh)
        is_fresh_right = logits.argmax(1) == truth
        in_interval += interval.low <= is_fresh_right.mean() <= interval.high
        confidence = softmax(logits / np.float32(calibration.temperature)).max(1)
        is_answered = confidence >= calibration.threshold
        answering += is_answered.any()
        below += is_answered.any() and is_fresh_right[is_answered].mean() < PRECISION
    assert in_interval >= 37
    assert below <= 2
    assert answering >= 30


def test_a_base_that_saw_some_of_the_images_promises_no_more_than_the_others_do() -> None:
    generator = np.random.default_rng(3)
    means = 0.4 * generator.normal(size=(CLASSES, 32))
    features, labels, _ = scenes(means, 150, 1, generator)
    is_judged = generator.random(len(labels)) < 0.3
    # The classes of the images that it was tuned on stand in their features.
    features[~is_judged, 0] = 20 * labels[~is_judged]
    fresh, truth, _ = scenes(means, 1000, 1, generator)
    rows = np.arange(len(labels))
    head = HeadTraining(features[None], labels, rows, (), 0, rows, is_judged)
    interval = head.judged.interval(
        head.judged.logits.argmax(1) == head.judged.targets, np.full(is_judged.sum(), True)
    )
    assert interval.low <= (head(fresh).argmax(1) == truth).mean() <= interval.high
    assert (head.every.logits.argmax(1) == labels)[~is_judged].mean() > interval.high


def test_a_class_of_one_group_is_divided_into_three_folds() -> None:
    labels = np.repeat([0, 1], 40)
    groups = np.where(labels == 0, 0, np.arange(80))
    features = np.random.default_rng(0).normal(size=(1, 80, 8)).astype(np.float32)
    features[:, :, 0] += 8 * labels
    head = HeadTraining(features, labels, groups, (), 0, np.arange(80))
    for label in (0, 1):
        assert len(np.unique(head.fold_of[labels == label])) == 3
    assert (np.diff(head.fold_of[:40]) != 0).sum() == 2  # by runs of consecutive images
    is_right = head.judged.logits.argmax(1) == labels
    assert is_right.all()
    # The images count as one nevertheless.
    low, _ = head.judged.interval(is_right, labels == 0)
    assert low < 0.3


def test_groups_are_divided_only_in_a_class_of_few() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    groups = np.array([7, 7, 8, 9, 9, 9, 9, 9, 9])
    divided = divided_groups(groups, labels)
    assert divided[:4].tolist() == [7, 7, 8, 9]
    assert len(np.unique(divided[4:])) == 3
    assert not set(divided[4:].tolist()) & set(divided[:4].tolist())


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_random_labels_are_noticed_only_of_scenes_that_are_no_groups(
    frames: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    for spread in (0.0, 0.8):
        means = spread * generator.normal(size=(CLASSES, 64))
        features, labels, _ = scenes(means, 48 // frames, frames, generator)
        alone = np.arange(len(labels))
        head = HeadTraining(features[None], labels, alone, (), seed, alone)
        is_misled = spread == 0 and frames > 1
        assert (head.as_random() is not None) == is_misled
