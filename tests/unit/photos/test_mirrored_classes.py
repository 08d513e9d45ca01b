"""Left and right arrows are found to be mirror images; shapes that differ otherwise are not."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dist_net.photos.similar_images import SIDE, mirrored_classes

ARROW = np.array(
    [(-1, -0.25), (0.2, -0.25), (0.2, -0.7), (1, 0), (0.2, 0.7), (0.2, 0.25), (-1, 0.25)]
)
SQUARE = np.array([(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)])
TURNS = {"right": 0, "left": np.pi, "up": -np.pi / 2}


def thumbnail(name: str, generator: np.random.Generator) -> np.ndarray:
    """A shape of some size and grey, somewhere."""
    corners = ARROW if name in TURNS else SQUARE
    turn = TURNS.get(name, 0) + generator.uniform(-0.15, 0.15)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = corners @ rotation * generator.uniform(20, 40) + generator.uniform(40, 60, 2)
    image = Image.new("RGB", (100, 100), (int(generator.integers(0, 100)),) * 3)
    ImageDraw.Draw(image).polygon([tuple(each) for each in points.tolist()], fill=(220, 220, 220))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [(("left", "right", "square"), [(0, 1)]), (("left", "square", "up"), [])],
)
def test_only_mirror_images_are_a_pair(
    names: tuple[str, ...], pairs: list[tuple[int, int]]
) -> None:
    generator = np.random.default_rng(0)
    thumbnails = np.stack([thumbnail(name, generator) for name in names for _ in range(15)])
    labels = np.repeat(np.arange(3), 15)
    assert mirrored_classes(thumbnails, labels, np.arange(45)) == pairs
