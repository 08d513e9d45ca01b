"""Which images of a folder are trained on and which are held back; no input or output.

An image's content, given as any text that equal files share, decides together with its class: what
contradicts itself is left out, and equal images never lie on both sides of a split.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")

Contents = Mapping[str, str]
"""The content of images by their paths."""


class LabelledImage(NamedTuple):
    """A file of a folder of images; ``path`` is relative to the folder, with slashes.

    ``part`` is one of PARTS, or empty until it is decided.
    """

    path: str
    class_name: str
    part: str
    size_bytes: int
    modified_ns: int


class LeftOut(NamedTuple):
    """A file that is not used, and why; a row of ``skipped.csv``."""

    path: str
    reason: str


def without_contradictions(
    images: Sequence[LabelledImage], contents: Contents
) -> tuple[list[LabelledImage], list[LeftOut]]:
    """The images that may be used, and those whose content contradicts that.

    What lies in several classes has no known label, and is left out altogether. What lies in
    several given parts stays in the one that is held back furthest: test, then validation.
    """
    # Of each content, the first image of every class, and the one that is held back furthest.
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


def with_validation_split_off(
    images: Sequence[LabelledImage], contents: Contents, share: float, seed: int
) -> list[LabelledImage]:
    """The images in their order, those of no part now of train or, a ``share``, of validation.

    Each class is split in proportion, and has at least one image on either side if it has two
    that differ. The choice depends on the seed and the paths alone, on every host; an image that
    is added to a folder moves few others.
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
    """About a ``share`` of one class's paths; a group of equal images stays together."""
    shuffled = sorted(groups, key=lambda group: _rank(group[0], seed))
    if len(shuffled) < 2:
        return []
    room = max(1, round(share * sum(map(len, shuffled))))
    # At least one group, the smallest if none has room, and at least one is left to train on.
    chosen: list[list[str]] = []
    for group in shuffled:
        if len(group) <= room and len(chosen) < len(shuffled) - 1:
            chosen.append(group)
            room -= len(group)
    return [path for group in chosen or [min(shuffled, key=len)] for path in group]


def _rank(path: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {path}".encode(errors="surrogateescape")).digest()
