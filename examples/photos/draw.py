"""Draws a folder of images to try things on: road signs in the wild, a folder a kind.

python examples/photos/draw.py FOLDER [COUNT]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# The corners of each kind, the angle of the first one, and the colour.
KINDS = {
    "give way": (3, 90, (214, 40, 40)),
    "priority road": (4, 0, (240, 190, 30)),
    "stop": (8, 22.5, (190, 20, 30)),
    "no entry": (60, 0, (200, 30, 40)),
}


def draw(folder: Path, count: int = 60, seed: int = 0) -> None:
    """Draws ``count`` images of each kind into ``folder``."""
    generator = np.random.default_rng(seed)
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            sign(kind, generator).save(folder / kind / f"{number:03}.jpg", quality=85)


def sign(kind: str, generator: np.random.Generator) -> Image.Image:
    """An image of one sign: somewhere, a little turned, in some light."""
    corners, first, colour = KINDS[kind]
    width, height = generator.integers(120, 360, 2).tolist()
    clouds = generator.integers(60, 200, (5, 5, 3), np.uint8)
    image = Image.fromarray(clouds).resize((width, height), Image.Resampling.BICUBIC)
    radius = min(width, height) * generator.uniform(0.25, 0.42)
    x, y = generator.uniform(0.4, 0.6, 2) * (width, height)
    pen = ImageDraw.Draw(image)
    pen.rectangle((x - radius / 12, y, x + radius / 12, height), fill=(120, 120, 120))
    angles = np.radians(first + generator.uniform(-8, 8) + 360 * np.arange(corners) / corners)
    outline = np.column_stack([np.cos(angles), np.sin(angles)])
    for size, ink in ((1.0, (235, 235, 235)), (0.88, colour)):
        pen.polygon([tuple(each) for each in (x, y) + size * radius * outline], fill=ink)
    if kind in ("stop", "no entry"):
        bar = (x - 0.55 * radius, y - 0.14 * radius, x + 0.55 * radius, y + 0.14 * radius)
        pen.rectangle(bar, fill=(235, 235, 235))
    light = generator.uniform(0.5, 1.2)
    blurred = image.filter(ImageFilter.GaussianBlur(generator.uniform(0, 1.5)))
    return blurred.point(lambda value: int(min(255, value * light)))


if __name__ == "__main__":
    draw(Path(sys.argv[1]), *map(int, sys.argv[2:]))
