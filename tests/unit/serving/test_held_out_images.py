"""Images to try a model with: which ones, and that they are what the net was judged by."""

from io import BytesIO

import numpy as np
import pytest

from dist_net.data import Dataset
from dist_net.images.fitting import FITTINGS, fit_image
from dist_net.serving import model_reading as module
from dist_net.serving.model_reading import first_of_each_class, sample_images

LABELS = ("cat", "dog", "hen")


def held_out(*shape: int, targets: tuple[int, ...] = (0, 0, 0, 1, 2, 2)) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (len(targets), *shape), np.uint8)
    labels = np.array(targets)
    return Dataset("animals", images, labels, images, labels, LABELS)


def test_every_class_has_its_turn_before_one_has_a_second_image() -> None:
    assert first_of_each_class(np.array([2, 0, 0, 2, 2, 1])).tolist() == [1, 5, 0, 2, 3, 4]
    labels = [label for label, _ in sample_images(held_out(8, 8, 3), LABELS, "crop")]
    assert labels == ["cat", "dog", "hen", "cat", "hen", "cat"]


@pytest.mark.parametrize("fitting", FITTINGS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (15, 15, 3), (56, 56, 3), (9, 9, 1), (9, 9)])
def test_what_is_sent_is_fitted_to_what_was_held_out(fitting: str, shape: tuple[int, ...]) -> None:
    dataset = held_out(*shape)
    sent = sample_images(dataset, LABELS, fitting)
    fitted = [fit_image(BytesIO(png), shape, fitting) for _, png in sent]
    np.testing.assert_array_equal(fitted, dataset.test_inputs[[0, 3, 4, 1, 5, 2]])


def test_there_are_few_and_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    many = held_out(4, 4, 3, targets=(0, 1, 2) * 9)
    assert len(sample_images(many, LABELS, "pad")) == module.MAX_SAMPLES
    for max_bytes, count in ((5 * 48, 5), (47, 0)):
        monkeypatch.setattr(module, "MAX_SAMPLE_BYTES", max_bytes)
        assert len(sample_images(many, LABELS, "pad")) == count
