"""Images as the inputs of a dataset: the same whether they were prepared or are decoded now."""

from pathlib import Path

import numpy as np
import pytest

from dist_net import fit_image
from dist_net.data import AugmentedSamples, Samples
from dist_net.data.prepared_images import (
    AugmentedImages,
    DecodedImages,
    ImagePreprocessing,
)
from dist_net.data.samples import ArraySamples
from dist_net.errors import DatasetError
from dist_net.images.augmentation import Augmentation
from drawn_images import cats_and_dogs
from naming import naming

SIX = ImagePreprocessing((6, 6, 3), "stretch")
PATHS = [f"cat/{index:02}.png" for index in range(4)]


@pytest.fixture
def decoded(tmp_path: Path) -> DecodedImages:
    cats_and_dogs(tmp_path, each=4)
    return DecodedImages(tmp_path, PATHS, SIX)


def read(samples: Samples, *indices: int) -> np.ndarray:
    out = np.empty((len(indices), *samples.shape), samples.dtype)
    samples.read(np.array(indices), out)
    return out


def test_mapped_rows_are_read_by_their_place_in_the_part() -> None:
    pixels = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    samples = ArraySamples(pixels, np.array([1, 3, 4]))
    assert (len(samples), samples.shape, samples.dtype) == (3, (2, 2, 3), np.uint8)
    np.testing.assert_array_equal(read(samples, 2, 0), pixels[[4, 1]])


def test_images_are_decoded_when_they_are_read(decoded: DecodedImages, tmp_path: Path) -> None:
    expected = [fit_image(tmp_path / path, (6, 6, 3), "stretch") for path in PATHS]
    np.testing.assert_array_equal(read(decoded, 3, 0), [expected[3], expected[0]])
    assert (len(decoded), decoded.shape, decoded.dtype) == (4, (6, 6, 3), np.uint8)


def test_an_image_that_was_damaged_since_is_named(decoded: DecodedImages, tmp_path: Path) -> None:
    (tmp_path / PATHS[2]).write_bytes(b"no more")
    with pytest.raises(DatasetError, match=naming("cat/02.png")):
        read(decoded, 2)


@pytest.mark.parametrize("shape", [(6, 6, 3), (6, 6, 1), (6, 6)])
def test_training_sees_variants_and_evaluation_does_not(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    plain = ArraySamples(pixels, np.arange(5))
    augmented = AugmentedImages(plain, Augmentation())
    assert isinstance(augmented, AugmentedSamples)
    assert not isinstance(plain, AugmentedSamples)
    np.testing.assert_array_equal(read(augmented, 1, 4), pixels[[1, 4]])
    together, alone = np.empty((2, *shape), np.uint8), np.empty((1, *shape), np.uint8)
    augmented.read_augmented(np.array([1, 4]), together, 3, 2)
    augmented.read_augmented(np.array([4]), alone, 3, 2)
    np.testing.assert_array_equal(together[1:], alone)
    assert (together != pixels[[1, 4]]).any()
