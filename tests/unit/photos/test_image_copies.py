"""Copies of photos that augmentation makes are found, and no other images."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from dist_net.images.augmentation import Augmentation
from dist_net.images.fitting import fit_image
from dist_net.photos.similar_images import SIDE, groups_of, image_copies

PHOTOS = 24
SHAPE = 224, 224, 3


def photo(generator: np.random.Generator) -> Image.Image:
    """Large and small blobs of colour, with noise."""
    levels = np.zeros((192, 256, 3))
    for cells, share in ((3, 0.5), (7, 0.3), (20, 0.2)):
        colours = generator.integers(0, 256, (cells, cells, 3), np.uint8)
        scaled = Image.fromarray(colours).resize((256, 192), Image.Resampling.BICUBIC)
        levels += share * np.asarray(scaled)
    levels += generator.normal(0, 4, levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def photos(seed: int) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [photo(generator) for _ in range(PHOTOS)]


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def turned(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_90)


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((2, 0, image.width, image.height - 2))


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


def eighth(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 8, image.height // 8))


def saved(image: Image.Image) -> np.ndarray:
    """The pixels of the image as a JPEG file, fitted as for a net."""
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return fit_image(file.getvalue(), SHAPE, "imagenet")


def groups(images: list[np.ndarray]) -> np.ndarray:
    small = [
        np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BOX))
        for each in images
    ]
    return groups_of([""] * len(images), image_copies(np.stack(small)))


@pytest.mark.parametrize("seed", range(3))
def test_a_photo_and_its_versions_are_one_group(seed: int) -> None:
    made = Image.Image.copy, mirrored, turned, cropped, brighter, eighth
    images = [saved(make(image)) for make in made for image in photos(seed)]
    assert groups(images).tolist() == [*range(PHOTOS)] * len(made)


def test_most_variants_of_training_are_found() -> None:
    originals = [saved(each) for each in photos(0)]
    variants = np.stack(originals)
    augmentation = Augmentation(0.9, rotation=5.0, brightness=0.2, contrast=0.2, saturation=0.2)
    augmentation.apply(variants, 0, 0, range(PHOTOS))
    found = groups([*originals, *variants])
    assert (found[:PHOTOS] == np.arange(PHOTOS)).all()
    others = found[PHOTOS:]
    is_found = others == np.arange(PHOTOS)
    assert is_found.mean() >= 0.75
    assert (is_found | (others >= PHOTOS)).all()  # none is in another photo's group


def test_a_small_object_before_an_equal_background_makes_another_image() -> None:
    background = np.asarray(fit_image(np.asarray(photos(0)[0]), SHAPE, "crop")).astype(int) // 2
    generator = np.random.default_rng(0)
    images = []
    for number in range(40):
        image = background + generator.integers(-3, 4, SHAPE)
        y, x = 20 + number // 8 * 30, 20 + number % 8 * 24
        image[y : y + 16, x : x + 16] += 50
        images.append(image.clip(0, 255).astype(np.uint8))
    again = images[7][:, ::-1]
    assert groups([*images, again]).tolist() == [*range(40), 7]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_any_number_of_equal_images_is_one_group(count: int) -> None:
    images = [saved(photos(0)[0])] * count
    assert groups(images).tolist() == [0] * count


def test_copies_of_other_colours_are_other_images() -> None:
    images = [saved(each) for each in photos(0)]
    swapped = [each[..., [2, 0, 1]] for each in images]
    assert len(set(groups([*images, *swapped]).tolist())) == 2 * PHOTOS
