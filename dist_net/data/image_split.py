"""Split the images of a folder into training, validation and test images; no input or output.

The content of an image is any text that only equal files share. Equal images of different classes
contradict each other and are left out; equal images of a class are never on both sides of a split.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.ground.printable import counted

TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")

MIN_GROUPS = 3
"""The number of groups into which the images of a class are divided at least, to be split."""

MIN_NEW_IMAGES = 5
"""The number of images, in ``MIN_GROUPS`` groups, with which a new class takes part."""

Contents = Mapping[str, str]
"""Maps the path of each image to its content."""


class LabelledImage(NamedTuple):
    """An image file; ``path`` is relative, with slashes; ``part`` is "" until it is split."""

    path: str
    class_name: str
    part: str
    size_bytes: int
    modified_ns: int


class LeftOut(NamedTuple):
    """An unused file and the reason; a row of ``skipped.csv``."""

    path: str
    reason: str


class WaitingClass(NamedTuple):
    """A new class that does not take part yet; ``groups``: None while it lacks images."""

    name: str
    images: int
    groups: int | None

    @property
    def missing(self) -> str:
        if self.groups is None:
            return counted(MIN_NEW_IMAGES - self.images, "image")
        return f"images in {counted(MIN_GROUPS - self.groups, 'more group')}"

    def __str__(self) -> str:
        return (
            f"class {self.name!r} lacks {self.missing}: a new class needs {MIN_NEW_IMAGES} images "
            f"in {MIN_GROUPS} groups, which no copies of one photo are"
        )


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

    Return the images in the same order. Images of equal content stay together, also of different
    classes. Every class is split in proportion; a class with two different images has at least one
    on either side. The choice depends only on the paths, the contents and the seed, so it is the
    same on every host; adding an image to the folder moves few others.
    """
    groups: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in images:
        if not image.part:
            groups[contents[image.path]].append(image)
    split_off = _split_off([*groups.values()], share, seed)
    chosen = {image.path for group in split_off for image in group}
    return [
        image if image.part else image._replace(part=VALIDATION if image.path in chosen else TRAIN)
        for image in images
    ]


def _split_off(
    groups: Sequence[list[LabelledImage]], share: float, seed: int
) -> list[list[LabelledImage]]:
    """Return groups with about a ``share`` of each class's images: at least one, never all."""
    counts = [Counter(image.class_name for image in group) for group in groups]
    left = Counter(name for count in counts for name in count)
    totals = Counter(image.class_name for group in groups for image in group)
    room = Counter({name: max(1, round(share * total)) for name, total in totals.items()})
    texts = [f"{seed} {group[0].path}".encode(errors="surrogateescape") for group in groups]
    order = sorted(range(len(groups)), key=lambda index: hashlib.sha256(texts[index]).digest())
    chosen: list[int] = []
    represented: set[str] = set()

    def choose(index: int) -> None:
        chosen.append(index)
        room.subtract(counts[index])
        left.subtract(counts[index].keys())
        represented.update(counts[index])

    for index in order:
        if all(count <= room[name] and left[name] > 1 for name, count in counts[index].items()):
            choose(index)
    for index in sorted(order, key=lambda index: len(groups[index])):
        if counts[index].keys() - represented and all(left[name] > 1 for name in counts[index]):
            choose(index)
    return [groups[index] for index in chosen]
