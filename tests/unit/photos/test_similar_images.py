"""Groups: the same pixels saved again share one, other images do not; scenes by their paths."""

from contextvars import copy_context
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_net.errors import SettingError
from dist_net.images.fitting import fit_image
from dist_net.photos.head import INTERRUPTION
from dist_net.photos.similar_images import (
    groups_of,
    image_copies,
    scene_of_each,
    thumbnails_and_digests,
)
from drawn_images import draw_shapes


def saved(path: Path, quality: int, side: int | None = None) -> np.ndarray:
    """The image at a path as another file, fitted as for a net."""
    image = Image.open(path)
    if side is not None:
        image = image.resize((side, side * image.height // image.width))
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return fit_image(file.getvalue(), (64, 64, 3), "crop")


class Rows:
    """Images in memory, as samples."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self.shape, self.dtype = images.shape[1:], images.dtype

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices, out) -> None:
        out[...] = self._images[indices]


def grouped(images: list[np.ndarray]) -> np.ndarray:
    thumbnails, _ = thumbnails_and_digests(Rows(np.stack(images)))
    return groups_of([""] * len(images), image_copies(thumbnails))


def test_what_was_saved_again_shares_a_group_and_other_images_do_not(tmp_path: Path) -> None:
    root = draw_shapes(tmp_path / "drawn", 30, classes=("square",))
    paths = sorted((root / "square").iterdir())
    images = [saved(path, 90) for path in paths]
    again = [saved(paths[0], 40), saved(paths[1], 80, side=50)]
    groups = grouped([*images, *again])
    assert groups[30] == 0
    assert groups[31] == 1
    assert len(set(groups[:30].tolist())) == 30


def test_a_small_object_before_an_equal_background_makes_another_image() -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(40, 200, (8, 8), np.uint8)
    background = np.asarray(Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC))
    images = []
    for number in range(40):
        image = np.repeat(background[..., None], 3, axis=2).astype(int)
        y, x = 20 + number // 8 * 30, 20 + number % 8 * 24
        image[y : y + 14, x : x + 14] += 50
        image += generator.integers(-3, 4, image.shape)
        images.append(image.clip(0, 255).astype(np.uint8))
    assert grouped([*images, images[7]]).tolist() == [*range(40), 7]


def test_images_of_one_scene_share_a_group() -> None:
    paths = ["cat/s1-a.jpg", "cat/s1-b.jpg", "dog/s2-a.jpg", "dog/x.jpg", "dog/s1-c.jpg"]
    scenes = scene_of_each(paths, r"(s[0-9]+)-")
    assert scenes == ["s1", "s1", "s2", "", "s1"]
    assert groups_of(scenes, []).tolist() == [0, 0, 2, 3, 0]
    assert groups_of(scenes, [(2, 3), (2, 4)]).tolist() == [0, 0, 0, 0, 0]


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(SettingError, match="group_by"):
        scene_of_each([], "(")


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_comparison_that_is_not_wanted_any_more_ends(steps: int) -> None:
    generator = np.random.default_rng(3)
    images = generator.integers(0, 10, (60, 64, 64, 3)) + np.arange(64)[:, None]
    thumbnails, _ = thumbnails_and_digests(Rows(images.astype(np.uint8)))  # of 300 likely pairs
    looks = count()

    def compare() -> None:
        INTERRUPTION.set(lambda: None if next(looks) < steps else pytest.fail("ends"))
        [*image_copies(thumbnails)]

    with pytest.raises(pytest.fail.Exception, match="ends"):
        copy_context().run(compare)
    assert next(looks) == steps + 1
