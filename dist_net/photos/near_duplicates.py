"""Groups of images that must not be split: the same pixels saved again, and bursts of one scene.

The perceptual hash of an image is its thumbnail: 16x16 grey levels, which another file format,
quality or size changes little.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.data.samples import SampleIndices, Samples
from dist_net.errors import SettingError

SIDE = 16
MAX_DIFFERENCE = 3.0
"""The largest root mean square difference of two near-duplicates, in grey levels of 255."""
ROWS_AT_ONCE = 1024

Thumbnails = NDArray[np.uint8]


def thumbnails_and_digests(samples: Samples) -> tuple[Thumbnails, list[bytes]]:
    """Return the thumbnail of each image, (N, 256), and the SHA-256 of its pixels."""
    thumbnails, digests = np.empty((len(samples), SIDE * SIDE), np.uint8), []
    image = np.empty((1, *samples.shape), np.uint8)
    for index, thumbnail in enumerate(thumbnails):
        samples.read(np.array([index]), image)
        grey = Image.fromarray(image[0].squeeze()).convert("L")
        thumbnail[...] = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX)).ravel()
        digests.append(hashlib.sha256(image.data).digest())
    return thumbnails, digests


def groups_of(
    thumbnails: Thumbnails, labels: NDArray[np.int64], scenes: Sequence[str]
) -> SampleIndices:
    """Return the group of each image, (N,): the index of its first image.

    Near-duplicates of one class share a group. Images of one scene do too, unless the scene is "".
    """
    first_of = np.arange(len(labels))

    def root(index: int) -> int:
        while first_of[index] != index:
            first_of[index] = first_of[first_of[index]]
            index = int(first_of[index])
        return index

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        first_of[high] = low

    of_scene: dict[str, int] = {}
    for index, scene in enumerate(scenes):
        if scene:
            join(of_scene.setdefault(scene, index), index)
    for label in range(int(labels.max(initial=-1)) + 1):
        rows = np.flatnonzero(labels == label)
        grey = thumbnails[rows].astype(np.float32)
        squares = (grey * grey).sum(1)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            distances = squares[part, None] + squares - 2 * grey[part] @ grey.T
            pairs = np.argwhere(distances <= thumbnails.shape[1] * MAX_DIFFERENCE**2)
            for one, other in pairs.tolist():
                if one + start < other:
                    join(int(rows[one + start]), int(rows[other]))
    return np.array([root(index) for index in range(len(labels))], np.int64)


def scene_of_each(paths: Sequence[str], pattern: str | None) -> list[str]:
    """Return the match of ``pattern`` in each path, or its first group; "" without a match.

    Raise SettingError if ``pattern`` is not a regular expression.
    """
    if pattern is None:
        return [""] * len(paths)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingError(
            f"group_by={pattern!r}: {error}; expected a regular expression, such as 'scene[0-9]+'"
        ) from error
    matches = map(compiled.search, paths)
    return [match[1 if compiled.groups else 0] or "" if match else "" for match in matches]
