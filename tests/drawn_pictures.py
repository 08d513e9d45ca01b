"""Folders of pictures that tests draw."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dist_net.data.picture_folder import PictureFolder


def drawn_folder(root: Path, names: Iterable[str]) -> PictureFolder:
    """Pictures of noise, each of its own, of sizes that differ; listed."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (10 + number % 7, 9 + number % 5, 3)
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(path)
    return PictureFolder.read(root)


def cats_and_dogs(root: Path, each: int = 10) -> PictureFolder:
    """So many pictures of each of two classes."""
    names = [f"{name}/{index:02}.png" for name in ("cat", "dog") for index in range(each)]
    return drawn_folder(root, names)
