"""Groups of similar images, and classes that are mirror images of each other.

Copies of one photo, whatever their class, and images of one scene form groups that must not be
split.

Features of pretrained nets hardly change when an image is mirrored, so they cannot separate left
and right arrows. Such classes are found by thumbnails.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from PIL import Image

from dist_net.data.samples import SampleIndices, Samples
from dist_net.errors import SettingError
from dist_net.photos.head import ClassIndices
from dist_net.photos.image_copies import LUMA, SIDE, Thumbnails, coarse_levels

MAX_ROWS = 1500
"""The maximum number of images to compare with their mirror images, evenly spread."""
MIRRORED_SHARE = 0.65


def thumbnails_and_digests(samples: Samples) -> tuple[Thumbnails, list[bytes]]:
    thumbnails, digests = np.empty((len(samples), SIDE, SIDE, 3), np.uint8), []
    image = np.empty((1, *samples.shape), np.uint8)
    for index, thumbnail in enumerate(thumbnails):
        samples.read(np.array([index]), image)
        colours = Image.fromarray(image[0].squeeze()).convert("RGB")
        thumbnail[...] = np.asarray(colours.resize((SIDE, SIDE), Image.Resampling.BOX))
        digests.append(hashlib.sha256(image.data).digest())
    return thumbnails, digests


def groups_of(scenes: Sequence[str], copies: Iterable[tuple[int, int]]) -> SampleIndices:
    """Return the group of each image, (N,): the index of its first image.

    Pairs of copies share a group, and so do images of one scene that is not "".
    """
    first_of = list(range(len(scenes)))

    def root(index: int) -> int:
        while first_of[index] != index:
            first_of[index] = first_of[first_of[index]]
            index = first_of[index]
        return index

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        first_of[high] = low

    of_scene: dict[str, int] = {}
    for index, scene in enumerate(scenes):
        if scene:
            join(of_scene.setdefault(scene, index), index)
    for one, other in copies:
        join(one, other)
    return np.array([root(index) for index in range(len(scenes))], np.int64)


def scene_of_each(paths: Sequence[str], pattern: str | None) -> list[str]:
    """Return the match of ``pattern`` in each path, its first group, or "". Raise SettingError."""
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


def mirrored_classes(
    thumbnails: Thumbnails, labels: ClassIndices, groups: ClassIndices
) -> list[tuple[int, int]]:
    """Return each pair of classes in which the mirrored images of each class look like the other.

    An image looks like the class of the most similar image of another group.
    """
    step = -(-len(labels) // MAX_ROWS)
    grey, labels, groups = thumbnails[::step] @ LUMA, labels[::step], groups[::step]
    images, mirrored = coarse_levels(grey), coarse_levels(grey[:, :, ::-1])
    is_same_group = groups[:, None] == groups
    looks_like, turned_like = (
        labels[np.where(is_same_group, -1, each @ images.T).argmax(1)]
        for each in (images, mirrored)
    )

    def are_mirrored(one: int, other: int) -> bool:
        is_one = labels == one
        told_apart, confused = looks_like[is_one] == one, turned_like[is_one] == other
        return bool(is_one.any()) and min(told_apart.mean(), confused.mean()) >= MIRRORED_SHARE

    pairs = combinations(range(int(labels.max()) + 1), 2)
    return [(a, b) for a, b in pairs if are_mirrored(a, b) and are_mirrored(b, a)]
