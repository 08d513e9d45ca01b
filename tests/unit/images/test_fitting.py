"""How images are made to fit a net: the same way for training and for asking."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dist_net import fit_image, nn
from dist_net.errors import ImageError, SettingError, ShapeError
from dist_net.images.fitting import FITTINGS, ImageInputs
from naming import naming


def halves(height: int = 20, width: int = 40) -> NDArray[np.uint8]:
    """Black on the left, white on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return pixels


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_an_image_is_padded_cropped_or_stretched() -> None:
    wide = np.full((10, 40, 3), 200, np.uint8)
    wide[:, :10] = 0
    padded, cropped, stretched = (
        fit_image(wide, (20, 20, 3), fitting)[:, :, 0] for fitting in ("pad", "crop", "stretch")
    )
    assert padded[[0, 6, 13, 19], 15].tolist() == [0, 0, 0, 0]
    assert padded[10].tolist()[8:] == [200] * 12
    assert (cropped == 200).all()
    assert (stretched[:, 8:] == 200).all()
    assert (stretched[:, :3] == 0).all()


@pytest.mark.parametrize(
    ("size", "shape", "kept"),
    [
        ((500, 500), (224, 224), (31, 31, 437, 437)),
        ((768, 576), (224, 224), (132, 36, 504, 504)),
        ((576, 768), (224, 224), (36, 132, 504, 504)),
        ((768, 576), (224, 448), (48, 120, 672, 336)),
        ((1, 1), (4, 4), (0, 0, 1, 1)),
    ],
)
def test_for_imagenet_seven_eighths_of_the_middle_are_resized_by_pillows_bicubic_filter(
    size: tuple[int, int], shape: tuple[int, int], kept: tuple[int, int, int, int]
) -> None:
    (width, height), (left, top, across, down) = size, kept
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    middle = Image.fromarray(pixels).crop((left, top, left + across, top + down))
    expected = middle.resize(shape[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit_image(pixels, (*shape, 3), "imagenet"), expected)


@pytest.mark.parametrize("fitting", ["pad", "crop", "stretch", "imagenet"])
def test_each_channel_is_resized_by_itself(fitting: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    together = FITTINGS[fitting](pixels, 20, 30)
    for channel in range(3):
        alone = FITTINGS[fitting](pixels[:, :, channel : channel + 1], 20, 30)
        np.testing.assert_array_equal(together[:, :, channel : channel + 1], alone)


def test_an_image_that_may_not_be_resized_has_to_fit() -> None:
    same = halves(8, 12)
    np.testing.assert_array_equal(fit_image(same, (8, 12, 3), "exact"), same)
    with pytest.raises(ImageError, match=naming("40x20", "12x8", "pad", "crop", "stretch")):
        fit_image(halves(), (8, 12, 3), "exact")


@pytest.mark.parametrize("fitting", FITTINGS)
@pytest.mark.parametrize("shape", [(20, 40), (20, 40, 1), (20, 40, 3)])
def test_a_net_is_asked_with_what_it_was_trained_on(
    shape: tuple[int, ...], fitting: str, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(halves()))
    model = nn.Model(nn.Sequential(nn.Rescale(), nn.Flatten(), nn.Dense(2)), shape)
    asked = ImageInputs(model, fitting=fitting).fit(path)
    for image in (halves(), path, path.read_bytes(), path.open("rb")):
        trained_on = fit_image(image, shape, fitting)
        assert (trained_on.shape, trained_on.dtype) == (shape, np.uint8)
        np.testing.assert_array_equal(trained_on, asked)


def test_grey_pixels_make_a_image_of_three_channels() -> None:
    grey = np.arange(96, dtype=np.uint8).reshape(8, 12)
    for pixels in (grey, grey[..., np.newaxis]):
        found = fit_image(pixels, (8, 12, 3), "exact")
        np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 1)])
@pytest.mark.parametrize("fitting", ["pad", "crop", "stretch"])
def test_the_narrowest_images_fit(shape: tuple[int, int], fitting: str) -> None:
    assert fit_image(np.ones(shape, np.uint8), (7, 5, 3), fitting).shape == (7, 5, 3)


@pytest.mark.parametrize(
    "pixels", [np.zeros((3, 3)), np.zeros((3, 3, 4), np.uint8), np.zeros((0, 3), np.uint8)]
)
def test_pixels_that_are_no_image_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match=naming(pixels.shape)):
        fit_image(pixels, (8, 12), "pad")


def test_what_cannot_be_asked_for_is_refused() -> None:
    with pytest.raises(SettingError, match=naming("fitting='squeeze'", "pad", "crop", "stretch")):
        fit_image(halves(), (8, 12), "squeeze")
    with pytest.raises(ShapeError, match=naming((96,), "(H, W, 3)")):
        fit_image(halves(), (96,), "pad")
