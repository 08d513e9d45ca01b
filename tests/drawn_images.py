"""Folders of images that tests draw."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dist_net.data.image_folder import ImageFolder

CORNERS = {"circle": 40, "square": 4, "triangle": 3}


def drawn_folder(root: Path, names: Iterable[str]) -> ImageFolder:
    """Images of noise, each of its own, of sizes that differ; listed."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (10 + number % 7, 9 + number % 5, 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(path)
    return ImageFolder.read(root)


def cats_and_dogs(root: Path, each: int = 10) -> ImageFolder:
    """So many images of each of two classes."""
    names = [f"{name}/{index:02}.png" for name in ("cat", "dog") for index in range(each)]
    return drawn_folder(root, names)


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
    image = Image.new("RGB", (width, height), ground)
    radius = min(width, height) * generator.uniform(0.3, 0.45)
    turn = generator.uniform(0, 2 * np.pi)
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    x, y = width / 2 + radius * np.cos(angles), height / 2 + radius * np.sin(angles)
    ImageDraw.Draw(image).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=ink)
    return image
