"""Random variants of images: the same for the same seed, epoch and sample."""

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_net.errors import SettingError
from dist_net.images.augmentation import Augmentation
from naming import naming

AS_IT_IS = Augmentation(smallest_crop=1, flip=False)


def images(number: int = 4, height: int = 12, width: int = 9) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (number, height, width, 3), np.uint8)


def ramp() -> NDArray[np.uint8]:
    """One image that grows brighter from left to right, by 8 a pixel."""
    return np.tile(np.arange(0, 256, 8, dtype=np.uint8)[:, None], (1, 32, 1, 3))


def applied(
    augmentation: Augmentation, to: NDArray[np.uint8], seed: int = 0, epoch: int = 0, first: int = 0
) -> NDArray[np.uint8]:
    changed = to.copy()
    augmentation.apply(changed, seed, epoch, range(first, first + len(to)))
    return changed


def test_nothing_is_changed_where_nothing_may_be() -> None:
    np.testing.assert_array_equal(applied(AS_IT_IS, images()), images())


def test_a_variant_is_the_same_for_ever() -> None:
    everything = Augmentation(rotation=30, brightness=0.2, contrast=0.2, saturation=0.2)
    digest = hashlib.sha256(applied(everything, images(), seed=5, epoch=2).tobytes())
    assert digest.hexdigest()[:16] == "0071c4ee18635bf2"


def test_a_variant_does_not_depend_on_the_minibatch() -> None:
    together = applied(Augmentation(), images())
    alone = applied(Augmentation(), images()[2:3], first=2)
    np.testing.assert_array_equal(alone, together[2:3])


def test_seed_epoch_and_sample_each_change_it() -> None:
    one = images(1, 32, 32)
    variants = [
        applied(Augmentation(), one, *drawn).tobytes()
        for drawn in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(set(variants)) == 4


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    same = np.repeat(ramp(), 200, axis=0)
    flipped = applied(Augmentation(smallest_crop=1), same)
    is_mirrored = flipped[:, 0, 0, 0] == 248
    np.testing.assert_array_equal(flipped[is_mirrored], same[is_mirrored][:, :, ::-1])
    np.testing.assert_array_equal(flipped[~is_mirrored], same[~is_mirrored])
    assert 70 < is_mirrored.sum() < 130


def test_a_crop_keeps_at_least_the_given_part_of_each_side() -> None:
    same = np.repeat(ramp(), 200, axis=0)
    rows = applied(Augmentation(smallest_crop=0.5, flip=False), same)[:, 0, :, 0].astype(int)
    assert (np.diff(rows) >= 0).all()
    kept = (rows[:, -1] - rows[:, 0]) / 248
    assert 0.47 < kept.min() < 0.55
    assert kept.max() > 0.95
    assert rows[:, 0].min() == 0
    assert rows[:, -1].max() == 248


def test_a_rotation_turns_about_the_middle_by_up_to_its_angle_either_way() -> None:
    half = np.zeros((200, 33, 33, 3), np.uint8)
    half[:, :, 16:] = 200
    turned = applied(Augmentation(smallest_crop=1, flip=False, rotation=90), half)[..., 0] == 200
    assert turned[:, 16, 24].all()
    np.testing.assert_array_equal(turned[:, 8, 16], ~turned[:, 25, 16])
    assert 70 < turned[:, 8, 16].sum() < 130


def test_the_edge_fills_the_corners_of_a_turned_image() -> None:
    white = np.full((9, 20, 30, 3), 255, np.uint8)
    np.testing.assert_array_equal(applied(Augmentation(0.5, rotation=180), white), white)


def test_grey_images_have_variants_too() -> None:
    grey = images()[:, :, :, :1].copy()
    everything = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2)
    assert (applied(everything, grey) != grey).any()


def test_brightness_scales_every_value() -> None:
    changed = applied(Augmentation(1, False, brightness=0.5), np.full((50, 2, 2, 3), 100, np.uint8))
    assert 50 <= changed.min() < 60
    assert 140 < changed.max() <= 150
    assert (changed == changed[:, :1, :1, :1]).all()


def test_contrast_keeps_the_mean() -> None:
    two = np.full((50, 2, 2, 3), 80, np.uint8)
    two[:, 0] = 120
    changed = applied(Augmentation(1, False, contrast=0.5), two).astype(int)
    np.testing.assert_allclose(changed.mean(axis=(1, 2, 3)), 100, atol=1)
    spread = changed[:, 0, 0, 0] - changed[:, 1, 0, 0]
    assert 20 <= spread.min() < 25
    assert 55 < spread.max() <= 61


def test_saturation_leaves_grey_alone_and_keeps_the_brightness() -> None:
    grey = np.full((9, 2, 2, 3), 77, np.uint8)
    colourful = Augmentation(1, False, saturation=1)
    np.testing.assert_array_equal(applied(colourful, grey), grey)
    orange = np.broadcast_to(np.array([150, 100, 60], np.uint8), (50, 2, 2, 3))
    luma = applied(colourful, orange) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(luma, orange[0, 0, 0] @ np.array([0.299, 0.587, 0.114]), atol=2)


def test_values_end_at_black_and_white() -> None:
    two = np.full((50, 1, 2, 3), 100, np.uint8)
    two[:, :, 1] = 200
    changed = applied(Augmentation(1, False, brightness=1, contrast=1), two)
    assert (changed[:, :, 1] >= changed[:, :, 0]).all()
    assert changed.max() == 255


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"smallest_crop": 0}, 1),
        ({"smallest_crop": 1.1}, 1),
        ({"rotation": -1}, 180),
        ({"contrast": 2}, 1),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, float], most: int) -> None:
    with pytest.raises(
        SettingError, match=naming(*("{}={}".format(*each) for each in options.items()), most)
    ):
        Augmentation(**options)  # type: ignore[arg-type]
