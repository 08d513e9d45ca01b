"""The digits of the package, and what any dataset is held to."""

import dataclasses
from importlib import resources

import numpy as np
import pytest

from dist_net.data import DATASETS, Dataset, dataset_named
from dist_net.errors import DatasetError, UnknownDatasetError


@pytest.fixture(scope="module")
def digits():
    return dataset_named("digits")


def test_their_number_shape_and_range(digits):
    assert digits.train_images.shape == (1437, 8, 8)
    assert digits.test_images.shape == (360, 8, 8)
    assert digits.image_shape == (8, 8)
    assert digits.class_names == tuple("0123456789")
    for images in (digits.train_images, digits.test_images):
        assert (images.dtype, images.min(), images.max()) == (np.uint8, 0, 255)


def test_the_split_keeps_the_classes_in_proportion(digits):
    train, test = (
        np.bincount(labels, minlength=10) for labels in (digits.train_labels, digits.test_labels)
    )
    # The counts of the 1,797 as UCI publishes them.
    assert (train + test).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.abs(test - (train + test) / 5).max() < 1


def test_no_digit_is_in_both_parts(digits):
    train, test = (
        {image.tobytes() for image in images}
        for images in (digits.train_images, digits.test_images)
    )
    assert not train & test


def test_images_and_labels_belong_together(digits):
    """The nearest neighbour in the training part has the right label, as is known of this data."""
    train = digits.train_images.reshape(-1, 64).astype(np.float32)
    test = digits.test_images.reshape(-1, 64).astype(np.float32)
    distances = (train**2).sum(1) - 2 * test @ train.T
    nearest = digits.train_labels[distances.argmin(axis=1)]
    assert (nearest == digits.test_labels).mean() > 0.97


def test_the_licence_lies_beside_the_file():
    licence = resources.files("dist_net.data").joinpath("digits.licence.txt").read_text()
    assert "CC BY 4.0" in licence


def test_an_unknown_dataset_is_refused_with_the_known_ones():
    with pytest.raises(UnknownDatasetError, match="'digit': expected one of fashion-mnist, digits"):
        dataset_named("digit")
    assert DATASETS == ("fashion-mnist", "digits")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": np.zeros((4, 2, 2), np.float32)}, "train images of dtype float32"),
        ({"test_labels": np.zeros(3, np.int64)}, "test labels of dtype int64"),
        ({"train_images": np.zeros((4, 4), np.uint8)}, r"shape \(4, 4\): expected \(N, H, W\)"),
        ({"train_labels": np.zeros(5, np.uint8)}, r"\(5,\) for 4 images"),
        ({"test_images": np.zeros((3, 2, 3), np.uint8)}, r"\(2, 2\) and test images .*\(2, 3\)"),
        ({"train_labels": np.array([0, 1, 2, 0], np.uint8)}, "label 2 at index 2: .*classes, 2"),
        (
            {"test_images": np.zeros((0, 2, 2), np.uint8), "test_labels": np.zeros(0, np.uint8)},
            "no test images",
        ),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(changes, words):
    good = Dataset(
        name="toy",
        train_images=np.zeros((4, 2, 2), np.uint8),
        train_labels=np.array([0, 1, 1, 0], np.uint8),
        test_images=np.zeros((3, 2, 2), np.uint8),
        test_labels=np.zeros(3, np.uint8),
        class_names=("no", "yes"),
    )
    with pytest.raises(DatasetError, match=f"dataset toy: .*{words}"):
        dataclasses.replace(good, **changes)
