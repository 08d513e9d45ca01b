"""Folders of JPEG images of 64 to 500 pixels, drawn: shapes or arrows before a background.

Shapes lie anywhere, turned, in any colour, with other strokes over them, so that a net has
something to learn. Arrows point to one of four sides, within 15 degrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "star": 10, "circle": 48}
MIN_SIDE, LARGEST_SIDE = 64, 500
ARROWS = {"right": 0, "down": 1, "left": 2, "up": 3}
"""The direction of each class of arrows, in right angles."""
TIP = (1, 0), (0.2, 0.7), (0.2, 0.3), (-1, 0.3), (-1, -0.3), (0.2, -0.3), (0.2, -0.7)
STAR_SHARE = 0.5  # of the radius, where every other corner of a star lies
STROKES = 6


def draw_folder(
    root: Path, count: int, seed: int, part: str = "", names: Iterable[str] = CORNERS
) -> Path:
    """Draws ``count`` images of each class into ``root/part/CLASS``; returns ``root``."""
    # An own stream for each part, so that none has the images of another.
    generator = np.random.default_rng([seed, *part.encode()])
    for name in names:
        folder = root / part / name
        folder.mkdir(parents=True)
        for number in range(count):
            drawn(name, generator).save(folder / f"{number:04}.jpg", quality=90)
    return root


def drawn(name: str, generator: np.random.Generator) -> Image.Image:
    """An image of one shape, somewhere and turned."""
    width, height = generator.integers(MIN_SIDE, LARGEST_SIDE + 1, 2).tolist()
    coarse = generator.integers(40, 220, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    radius = min(width, height) * generator.uniform(0.2, 0.4)
    middle = np.array([width, height]) * generator.uniform(0.4, 0.6, 2)
    pen.polygon(outline(name, radius, middle, generator.uniform(0, 2 * np.pi)), fill=ink(generator))
    for ends in generator.random((STROKES, 2, 2)) * (width, height):
        pen.line([tuple(each) for each in ends.tolist()], fill=ink(generator), width=2)
    return grained(image, generator)


def outline(
    name: str, radius: float, middle: NDArray[np.float64], turn: float
) -> Sequence[tuple[float, float]]:
    """The corners of a shape; an arrow is turned by up to 15 degrees only."""
    if name in ARROWS:
        turn = (ARROWS[name] + (turn / np.pi - 1) / 6) * np.pi / 2
        turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        return [tuple(point) for point in (np.array(TIP) @ turned * radius + middle).tolist()]
    corner = np.arange(CORNERS[name])
    radii = np.where(corner % 2 * (name == "star"), STAR_SHARE * radius, radius)
    angles = turn + 2 * np.pi * corner / len(corner)
    points = middle + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
    return [tuple(point) for point in points.tolist()]


def ink(generator: np.random.Generator) -> tuple[int, ...]:
    """Any colour."""
    return tuple(generator.integers(0, 256, 3).tolist())


def grained(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """With noise as of a camera, which makes a file as large as a photograph's."""
    pixels = np.asarray(image, np.int16)
    noise = generator.integers(-9, 10, pixels.shape, np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
