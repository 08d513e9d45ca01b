"""Split the images of a folder into training, validation and test images; no input or output.

The content of an image is any text that only equal files share. Equal images of different classes
contradict each other and are left out; equal images of a class are never on both sides of a split.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")

MIN_GROUPS = 3
"""The number of groups into which the images of a class are divided at least, to be split."""

Contents = Mapping[str, str]
"""Maps the path of each image to its content."""


class LabelledImage(NamedTuple):
    """An image file; ``path`` is relative to the folder, with slashes.

    ``part`` is one of ``PARTS``, or empty until the split assigns it.
    """

    path: str
    class_name: str
    part: str
    size_bytes: int
    modified_ns: int


class LeftOut(NamedTuple):
    """An unused file and the reason; a row of ``skipped.csv``."""

    path: str
    reason: str


def without_contradictions(
    images: Sequence[LabelledImage], contents: Contents
) -> tuple[list[LabelledImage], list[LeftOut]]:
    """Return the usable images, and the images left out because an equal image contradicts them.

    Equal images in several classes have no known label: all are left out. Equal images in several
    parts stay only in the part held back furthest: test, else validation.
    """
    # For each content: the first image of every class, and the image held back furthest.
    of_class: dict[str, dict[str, LabelledImage]] = defaultdict(dict)
    furthest: dict[str, LabelledImage] = {}
    for image in images:
        content = contents[image.path]
        of_class[content].setdefault(image.class_name, image)
        if _held_back(image) > _held_back(furthest.setdefault(content, image)):
            furthest[content] = image
    kept, left_out = [], []
    for image in images:
        content = contents[image.path]
        others = (each for name, each in of_class[content].items() if name != image.class_name)
        if other := next(others, None):
            reason = f"the same image as {other.path}, which is of class {other.class_name!r}"
            left_out.append(LeftOut(image.path, reason))
        elif _held_back(image) < _held_back(furthest[content]):
            reason = f"the same image as {furthest[content].path}, which is held back"
            left_out.append(LeftOut(image.path, reason))
        else:
            kept.append(image)
    return kept, left_out


def _held_back(image: LabelledImage) -> int:
    return PARTS.index(image.part) if image.part else 0


def divided_groups(groups: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the groups of images, (N,), divided where a class has less than ``MIN_GROUPS``.

    Without an image of every class in training and in evaluation, the figures would be those of
    another task. Such a class is divided into runs of consecutive images, which are most alike.
    """
    divided = groups.astype(np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(np.unique(groups[rows])) < MIN_GROUPS:
            for run in np.array_split(rows, MIN_GROUPS):
                divided[run] = divided.max() + 1
    return divided


def with_validation_split_off(
    images: Sequence[LabelledImage], contents: Contents, share: float, seed: int
) -> list[LabelledImage]:
    """Assign images without a part: about ``share`` to validation, the rest to train.

    Returns the images in the same order. Every class is split in proportion; a class with two
    different images has at least one on either side. The choice depends only on the paths, the
    contents and the seed, so it is the same on every host; adding an image to the folder moves few
    others.
    """
    of_class: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, class_name, part, *_ in images:
        if not part:
            of_class[class_name][contents[path]].append(path)
    chosen = {
        path for equal in of_class.values() for path in _split_off(equal.values(), share, seed)
    }
    return [
        image if image.part else image._replace(part=VALIDATION if image.path in chosen else TRAIN)
        for image in images
    ]


def _split_off(groups: Iterable[list[str]], share: float, seed: int) -> list[str]:
    """Return about a ``share`` of one class's paths; a group of equal images stays together."""
    shuffled = sorted(groups, key=lambda group: _rank(group[0], seed))
    if len(shuffled) < 2:
        return []
    room = max(1, round(share * sum(map(len, shuffled))))
    # Choose at least one group (the smallest if none fits), and leave at least one for training.
    chosen: list[list[str]] = []
    for group in shuffled:
        if len(group) <= room and len(chosen) < len(shuffled) - 1:
            chosen.append(group)
            room -= len(group)
    return [path for group in chosen or [min(shuffled, key=len)] for path in group]


def _rank(path: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {path}".encode(errors="surrogateescape")).digest()
