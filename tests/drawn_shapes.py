"""Folders of shapes that tests draw, in random colours, places and sizes."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CORNERS = {"circle": 40, "square": 4, "triangle": 3}


def draw_shapes(root: Path, count: int, seed: int = 0, classes: tuple[str, ...] = ()) -> Path:
    """``root`` with ``count`` JPEG files of each class, a folder each."""
    generator = np.random.default_rng(seed)
    for name in classes or tuple(CORNERS):
        (root / name).mkdir(parents=True)
        for number in range(count):
            _drawn(generator, CORNERS[name]).save(root / name / f"{number:03}.jpg")
    return root


def _drawn(generator: np.random.Generator, corners: int) -> Image.Image:
    width, height = generator.integers(64, 160, 2).tolist()
    ground, ink = (tuple(generator.integers(0, 256, 3).tolist()) for _ in range(2))
    picture = Image.new("RGB", (width, height), ground)
    radius = min(width, height) * generator.uniform(0.3, 0.45)
    turn = generator.uniform(0, 2 * np.pi)
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    x, y = width / 2 + radius * np.cos(angles), height / 2 + radius * np.sin(angles)
    ImageDraw.Draw(picture).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=ink)
    return picture
