"""The digits of the package."""

from importlib import resources

import numpy as np
import pytest

from dist_net.data import DATASETS, dataset_named
from dist_net.errors import DatasetError
from naming import naming


@pytest.fixture(scope="module")
def digits():
    return dataset_named("digits")


def test_their_number_shape_and_range(digits):
    assert digits.train_inputs.shape == (1437, 8, 8)
    assert digits.test_inputs.shape == (360, 8, 8)
    assert digits.input_shape == (8, 8)
    assert digits.class_names == tuple("0123456789")
    for images in (digits.train_inputs, digits.test_inputs):
        assert (images.dtype, images.min(), images.max()) == (np.uint8, 0, 255)


def test_images_and_labels_belong_together(digits):
    """The nearest neighbour in the training part has the right label, as is known of this data."""
    train = digits.train_inputs.reshape(-1, 64).astype(np.float32)
    test = digits.test_inputs.reshape(-1, 64).astype(np.float32)
    distances = (train**2).sum(1) - 2 * test @ train.T
    nearest = digits.train_targets[distances.argmin(axis=1)]
    assert (nearest == digits.test_targets).mean() > 0.97


def test_the_licence_lies_beside_the_file():
    licence = resources.files("dist_net.data").joinpath("digits.licence.txt").read_text()
    assert "CC BY 4.0" in licence


def test_an_unknown_dataset_is_refused_with_the_known_ones():
    with pytest.raises(DatasetError, match=naming("'digit'", "fashion-mnist", "digits")):
        dataset_named("digit")
    assert DATASETS == ("fashion-mnist", "digits")
