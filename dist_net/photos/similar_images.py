"""Groups of similar images: copies of a photo, images of one scene, and mirrored classes.

Copies are what augmentation makes: mirrored, turned, cropped, brighter, smaller. An image is a
thumbnail of ``SIDE`` x ``SIDE`` colours. It is compared with the images of the most correlated
coarse grey levels, in any of eight orientations. Each such pair is aligned, from coarse to fine, by
an affine map, a gain and a bias (Lucas and Kanade 1981). The images are copies if in every cell no
more difference of brightness and colour remains than resampling leaves: a small object that moved
makes another image.

Features of pretrained nets hardly change when an image is mirrored, so they cannot separate left
and right arrows. Such classes are found by thumbnails.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.data.samples import SampleIndices, Samples
from dist_net.errors import SettingError
from dist_net.photos.head import ClassIndices, require_wanted
from dist_net.processes.equipment import available_cores

SIDE = 32
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
COARSE, PLAIN = 8, 16.0
"""The cells to correlate along each side, and the deviation below which an image is plain."""
NEAREST, MIN_CORRELATION = 8, 0.7
"""The images to compare with each. A group may be larger, as copies of copies belong to it."""
ROWS_AT_ONCE, PAIRS_AT_ONCE = 512, 256

STEPS, MAX_STEP = 3, 0.1
"""The steps at each level, and the largest change of a number of the map by one of them."""
UNCHANGED = np.array([1, 0, 0, 0, 1, 0, 1, 0], np.float32)
"""The numbers of an alignment: an affine map with coordinates from -1 to 1, then the gain and the
bias. A change of 0.1 shifts an image by 5 % of its side, or turns it by 6 degrees.
"""
MAX_CHANGE = np.array([0.3] * 6 + [1, 64], np.float32)
STIFFNESS = np.array([2.5, 2.5, 7.5, 2.5, 2.5, 7.5, 10, 0.01], np.float32)
"""The stiffness of the map, the gain and the bias, per cell, in squared grey levels."""
GAIN_OF_1 = np.array([0, 0, 0, 0, 0, 0, 1, 0], np.float32)
MAX_GAIN, MIN_OVERLAP = 2.0, 0.7

MAX_LEFT, NOISE = 0.35, 3.0
"""The difference that remains at each level, as a share of the deviation beside the noise."""
DARKEST, BRIGHTEST = 4, 247
"""Levels beyond these may have been cut off."""
DIFFERENCE, BLURRED_DIFFERENCE, EDGE_SHARE = 6.0, 8.0, 0.2
"""The difference of copies in a cell, in grey levels and as a share of the range around it. Where
it is blurred, its signs cancel at edges, but not at an object: all cells must be alike then.
"""
MOST_CELLS, OUTLIER = 0.98, 8.0
"""The share of cells with such differences; ``OUTLIER`` times their largest bounds all others."""
UNMOVED, UNMOVED_OUTLIER = 0.01, 1.2
"""If the map changes less, resampling does too: the largest difference, as of a fixed camera."""
MAX_COLOUR, COLOUR_NOISE, MAX_SATURATION = 0.25, 4.5, 3.0
"""The colour that remains as a share of the image's beside the noise; the saturation of copies."""

MAX_ROWS = 1500
"""The maximum number of images to compare with their mirror images, evenly spread."""
MIRRORED_SHARE = 0.65

ImageLevels = NDArray[np.float32]
"""(N, side, side) or (N, side, side, channels)."""
Thumbnails = NDArray[np.uint8]
"""(N, SIDE, SIDE, 3)."""
ImageRows = NDArray[np.int64]
Alignments = NDArray[np.float32]
"""(N, 8): see ``UNCHANGED``."""


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


def image_copies(thumbnails: Thumbnails) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that are copies of one photo.

    The time is quadratic in the number of images above some 20,000; with fewer, comparing the
    likely pairs takes longer than finding them.
    """
    ones, others, turns = _likely_pairs(thumbnails)

    def are_copies(start: int) -> NDArray[np.bool_]:
        few = slice(start, start + PAIRS_AT_ONCE)
        turned = map(_turned, thumbnails[others[few]], turns[few].tolist())
        return _are_copies(thumbnails[ones[few]], np.stack([*turned]))

    found = []
    with ThreadPoolExecutor(available_cores()) as pool:
        for each in pool.map(are_copies, range(0, len(ones), PAIRS_AT_ONCE)):
            require_wanted()
            found.append(each)
    is_pair = np.concatenate(found) if found else np.empty(0, bool)
    yield from zip(ones[is_pair].tolist(), others[is_pair].tolist(), strict=True)


def _likely_pairs(thumbnails: Thumbnails) -> tuple[ImageRows, ImageRows, ImageRows]:
    """Return pairs of images, and the turn of each second one that makes it like the first."""
    grey = thumbnails @ LUMA
    turned = [coarse_levels(_turned(grey, turn, (1, 2))) for turn in range(8)]
    nearest, found = min(NEAREST, len(grey) - 1), []
    for start in range(0, len(grey), ROWS_AT_ONCE):
        require_wanted()
        some = turned[0][start : start + ROWS_AT_ONCE]
        best = np.full((len(some), len(grey)), -np.inf, np.float32)
        turn_of = np.empty(best.shape, np.int8)
        for turn, each in enumerate(turned):
            alike = some @ each.T
            turn_of[alike > best] = turn
            np.maximum(best, alike, out=best)
        best[np.arange(len(some)), np.arange(start, start + len(some))] = -np.inf  # itself
        is_near = np.zeros(best.shape, bool)
        np.put_along_axis(is_near, np.argpartition(-best, nearest - 1, 1)[:, :nearest], True, 1)
        ones, others = np.nonzero(is_near & (best > MIN_CORRELATION))
        found.append(np.column_stack([ones + start, others, turn_of[ones, others]]))
    pairs = np.concatenate(found)
    _, first = np.unique(np.sort(pairs[:, :2], 1), axis=0, return_index=True)
    ones, others, turns = pairs[first].T
    return ones, others, turns


def _turned(image: NDArray[Any], turn: int, axes: tuple[int, int] = (0, 1)) -> NDArray[Any]:
    turned = np.rot90(image, turn % 4, axes)
    return np.flip(turned, axes[0]) if turn >= 4 else turned


def coarse_levels(grey: ImageLevels) -> ImageLevels:
    """Return the coarse levels of images, (N, COARSE² + 1), as vectors of length 1."""
    cells = np.ascontiguousarray(_shrunk(grey, SIDE // COARSE)).reshape(len(grey), -1, copy=False)
    cells -= cells.mean(1, keepdims=True)
    cells = np.column_stack([cells, np.full(len(cells), PLAIN, np.float32)])
    return np.asarray(cells / np.linalg.norm(cells, axis=1, keepdims=True))


def _shrunk(images: ImageLevels, factor: int) -> ImageLevels:
    parts = [images[:, y::factor, x::factor] for y in range(factor) for x in range(factor)]
    return reduce(np.add, parts) / np.float32(factor**2)


def _neighbours(images: ImageLevels) -> list[ImageLevels]:
    """Return the images moved by one cell in each direction, their edges repeated."""
    side = images.shape[1]
    around = np.pad(images, ((0, 0), (1, 1), (1, 1), *((0, 0),) * (images.ndim - 3)), mode="edge")
    return [around[:, y : y + side, x : x + side] for y in range(3) for x in range(3)]


def _blurred(images: ImageLevels) -> ImageLevels:
    weights = 1, 2, 1, 2, 4, 2, 1, 2, 1
    weighted = (w * each for w, each in zip(weights, _neighbours(images), strict=True))
    return reduce(np.add, weighted) / np.float32(16)


def _are_copies(first: Thumbnails, second: Thumbnails) -> NDArray[np.bool_]:
    """Return which pairs of images, turned alike, are copies of one photo, (N,)."""
    greys = [_blurred(each @ LUMA) for each in (first, second)]
    halves = [_shrunk(each, 2) for each in greys]
    coarse = [_blurred(_blurred(each)) for each in halves]
    left, numbers = np.arange(len(first)), np.tile(UNCHANGED, (len(first), 1))
    for one, other in (coarse, halves, greys):
        numbers = _aligned(one[left], other[left], numbers)
        is_inside, level = _sampled(other[left, ..., None], numbers)
        wanted = one[left].reshape(level[..., 0].shape, copy=False)
        difference = _unexplained(wanted, level[..., 0], is_inside, numbers)
        is_likely = _root_mean_square(difference) < MAX_LEFT * (wanted.std(1) + NOISE)
        is_likely &= is_inside.mean(1) > MIN_OVERLAP
        is_likely &= (np.abs(numbers - UNCHANGED) < MAX_CHANGE).all(1)
        left, numbers = left[is_likely], numbers[is_likely]
    is_copy = np.zeros(len(first), bool)
    is_copy[left] = _match(first[left], second[left], numbers)
    return is_copy


def _aligned(one: ImageLevels, other: ImageLevels, numbers: Alignments) -> Alignments:
    """Return better numbers for grey images, (N, side, side), by Gauss-Newton steps."""
    count, side, _ = one.shape
    grid, wanted = _grid(side), one.reshape(count, side * side, copy=False)
    values = np.stack([other, *np.gradient(other, 2 / side, axis=(1, 2))], 3)
    for _ in range(STEPS):
        is_inside, sampled = _sampled(values, numbers)
        level, down, across = np.split(sampled, 3, 2)
        columns = np.concatenate([down * grid, across * grid, level, np.ones_like(level)], 2)
        is_used = is_inside & ~_may_be_cut(wanted) & ~_may_be_cut(level[..., 0])
        weighted = np.swapaxes(columns * is_used[..., None], 1, 2)
        squares = weighted @ columns + side * side * np.diag(STIFFNESS)
        products = weighted @ wanted[..., None] + side * side * (STIFFNESS * GAIN_OF_1)[:, None]
        solved = np.linalg.solve(squares.astype(np.float64), products)[..., 0]
        gain = np.clip(solved[:, 6:7], 1 / MAX_GAIN, MAX_GAIN)
        steps = np.clip(solved[:, :6] / gain, -MAX_STEP, MAX_STEP)
        numbers = np.column_stack([numbers[:, :6] + steps, solved[:, 6:]]).astype(np.float32)
    return numbers


@cache
def _grid(side: int) -> ImageLevels:
    """Return y, x and 1 for each cell, (cells, 3), from -1 to 1."""
    centres = (2 * np.arange(side, dtype=np.float32) + 1) / side - 1
    down, across = np.meshgrid(centres, centres, indexing="ij")
    return np.stack([down.ravel(), across.ravel(), np.ones(side * side, np.float32)], 1)


def _sampled(images: ImageLevels, numbers: Alignments) -> tuple[NDArray[np.bool_], ImageLevels]:
    """Return whether each cell is inside of the mapped image, and its values by interpolation.

    ``images`` is (N, side, side, channels); returns (N, cells) and (N, cells, channels).
    """
    count, side, _, channels = images.shape
    places = _grid(side) @ numbers[:, :6].reshape(count, 2, 3, copy=False).swapaxes(1, 2)
    cells = np.clip((places + 1) * side / 2 - 0.5, 0, side - 1.001)
    first = np.floor(cells)
    down, across = np.split(cells - first, 2, 2)
    at = np.arange(count)[:, None] * side * side + (first @ [side, 1]).astype(np.int64)
    flat = np.ascontiguousarray(images).reshape(-1, channels, copy=False)
    corners = [flat.take(at + step, 0) for step in (0, 1, side, side + 1)]
    upper, lower = (left + across * (right - left) for left, right in (corners[:2], corners[2:]))
    return (np.abs(places) <= 1).all(2), upper + down * (lower - upper)


def _unexplained(
    wanted: ImageLevels, level: ImageLevels, is_inside: NDArray[np.bool_], numbers: Alignments
) -> ImageLevels:
    """Return the differences, (N, cells), that gain, bias and cut-off levels do not explain."""
    difference = wanted - np.clip(numbers[:, 6:7] * level + numbers[:, 7:], 0, 255)
    is_lower = (wanted >= BRIGHTEST) | (level <= DARKEST)
    is_higher = (wanted <= DARKEST) | (level >= BRIGHTEST)
    lowest, highest = np.where(is_lower, 0, -np.inf), np.where(is_higher, 0, np.inf)
    return np.asarray(is_inside * np.clip(difference, lowest, highest))


def _may_be_cut(level: ImageLevels) -> NDArray[np.bool_]:
    return (level <= DARKEST) | (level >= BRIGHTEST)


def _match(first: Thumbnails, second: Thumbnails, numbers: Alignments) -> NDArray[np.bool_]:
    """Return which aligned images, (N, SIDE, SIDE, 3), are equal but for resampling, (N,)."""
    one, other = (_blurred(each.astype(np.float32)) for each in (first, second))
    grey, other_grey = one @ LUMA, other @ LUMA
    values = np.concatenate([other_grey[..., None], other - other_grey[..., None]], 3)
    is_inside, sampled = _sampled(values, numbers)
    level, gain = sampled[..., 0], numbers[:, 6]
    difference = _unexplained(grey.reshape(level.shape, copy=False), level, is_inside, numbers)
    difference = difference.reshape(grey.shape, copy=False)
    ranges = _range(grey), gain[:, None, None] * _range(level.reshape(grey.shape, copy=False))
    edges = EDGE_SHARE * np.maximum(*ranges)
    share = (np.abs(difference) / (DIFFERENCE + edges)).reshape(level.shape, copy=False)
    most = np.quantile(share, MOST_CELLS, axis=1)
    is_unmoved = (np.abs(numbers - UNCHANGED)[:, :6] < UNMOVED).all(1)
    largest = np.where(is_unmoved, UNMOVED_OUTLIER, np.maximum(1, OUTLIER * most))
    is_alike = (most <= 1) & (share.max(1) <= largest)
    blurred = np.abs(_blurred(_blurred(difference)))
    is_alike &= (blurred <= BLURRED_DIFFERENCE + edges).all((1, 2))
    is_alike &= gain > 1 / MAX_GAIN
    mask = is_inside.reshape(*grey.shape, 1, copy=False)
    colours = [
        _shrunk(mask * each, SIDE // COARSE).reshape(len(one), COARSE * COARSE * 3, copy=False)
        for each in (one - grey[..., None], sampled[..., 1:].reshape(one.shape, copy=False))
    ]
    has_colours = _has_colours(*colours) | _has_colours(*colours[::-1])
    return np.asarray(is_alike & has_colours)


def _has_colours(one: ImageLevels, other: ImageLevels) -> NDArray[np.bool_]:
    """Return which colours, (N, numbers), another image has, more or less saturated."""
    saturation = (one * other).sum(1) / ((other * other).sum(1) + 1)
    rest = np.asarray(one - np.clip(saturation, 0, MAX_SATURATION)[:, None] * other, np.float32)
    return np.asarray(
        _root_mean_square(rest) <= MAX_COLOUR * np.hypot(_root_mean_square(one), COLOUR_NOISE)
    )


def _root_mean_square(rows: ImageLevels) -> ImageLevels:
    return np.asarray(np.sqrt(np.square(rows).mean(1)))


def _range(images: ImageLevels) -> ImageLevels:
    around = _neighbours(images)
    return np.asarray(reduce(np.maximum, around) - reduce(np.minimum, around))
