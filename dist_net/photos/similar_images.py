"""Groups of similar images, and classes that are mirror images of each other.

Near-duplicates, whatever their class, and images of one scene form groups that must not be split.
Near-duplicates are the same in every place, such as one photo saved twice. An image is a thumbnail
of ``SIDE`` x ``SIDE`` grey levels, and in each cell an interval around the level: another format,
quality or size changes it little, and most at edges. Two images are near-duplicates if their
intervals overlap in every cell, so that a small object that moved makes another image.

Features of pretrained nets hardly change when an image is mirrored, so they cannot separate left
and right arrows. Such classes are found by the edges of thumbnails, on a grid around their centre.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.data.samples import SampleIndices, Samples
from dist_net.errors import SettingError
from dist_net.photos.head import ClassIndices, FeatureRows, fold_of_each, train_heads

SIDE = 32
MAX_DIFFERENCE = 6.0
"""The largest difference of near-duplicates in cells without edges, in grey levels of 255."""
EDGE_SHARE = 0.2
"""The further difference, as a share of the range of the cell and its neighbours."""
MAX_LEAF = 128
FEW = 31
"""The distance of the cells that are compared first."""
ROWS_AT_ONCE = 1024

EDGES_SIDE = 16
FOLDS = 3
PENALTY = 10.0
MAX_ROWS = 1500
"""The maximum number of images to compare, evenly spread."""
CELLS, REACH = 8, 2.5
"""The grid's cells along each axis, and its reach in standard deviations of the edges."""
MIRRORED_SHARE = 0.75

Thumbnails = NDArray[np.uint8]
Counts = NDArray[np.int64]


def near_duplicates(thumbnails: Thumbnails) -> Iterator[tuple[int, SampleIndices]]:
    """Yield an image and its near-duplicates among later images, for ``(N, SIDE²)`` thumbnails.

    A near-duplicate of an earlier image is compared no further: chains of images, each a little
    different from the next, do not become one.

    Pairs are searched like in an interval tree: images are divided by a level of a cell, and those
    whose interval contains the level are on either side. Time and memory are about linear in the
    number of images, unless cells differ by less than their intervals.
    """
    chunks = [
        _intervals(thumbnails[start : start + ROWS_AT_ONCE])
        for start in range(0, len(thumbnails), ROWS_AT_ONCE)
    ]
    low, high = (np.concatenate(each) for each in zip(*chunks, strict=True))
    waiting = [np.arange(len(thumbnails))]
    while waiting:
        rows = waiting.pop()
        parts = _divided(rows, low, high) if len(rows) > MAX_LEAF else []
        if parts:
            waiting += parts
        else:
            yield from _compared(rows, low, high)


def _intervals(thumbnails: Thumbnails) -> tuple[Thumbnails, Thumbnails]:
    """Return the lowest and highest level of each cell, (N, SIDE²) each."""
    levels = thumbnails.reshape(-1, SIDE, SIDE, copy=False)
    around = np.pad(levels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = [around[:, y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
    spread = np.maximum.reduce(windows) - np.minimum.reduce(windows)
    margin = np.uint8(MAX_DIFFERENCE / 2) + (EDGE_SHARE / 2 * spread).astype(np.uint8)
    low = levels - np.minimum(margin, levels)
    high = levels + np.minimum(margin, 255 - levels)
    return low.reshape(thumbnails.shape, copy=False), high.reshape(thumbnails.shape, copy=False)


def _divided(rows: SampleIndices, low: Thumbnails, high: Thumbnails) -> list[SampleIndices]:
    """Divide images by levels of cells, so that near-duplicates share a part; [] if impossible.

    A few of the cells divide most images. A level is used if fewer images are on both sides.
    """
    parts = []
    for cells in (np.arange(0, SIDE * SIDE, FEW), np.arange(SIDE * SIDE)):
        below, above = _counts(rows, low, cells), len(rows) - _counts(rows, high, cells)
        saved = _pairs_saved(below, above, len(rows))
        levels, best = saved.argmax(1), saved.max(1)
        for index in np.argsort(-best, kind="stable")[: np.count_nonzero(best)].tolist():
            is_below = low[rows, cells[index]] <= levels[index]
            is_above = high[rows, cells[index]] > levels[index]
            if _pairs_saved(is_below.sum(), is_above.sum(), len(rows)):
                smaller, larger = sorted((rows[is_below], rows[is_above]), key=len)
                parts.append(smaller)
                rows = larger
        if parts:
            return [*parts, rows]
    return []


def _pairs_saved(below: Counts, above: Counts, total: int) -> Counts:
    """Return how many pairs of images a division saves; 0 if too many images are on both sides."""
    only_below, only_above = total - above, total - below
    is_useful = below + above - total <= np.minimum(only_below, only_above)
    return is_useful * only_below * only_above


def _counts(rows: SampleIndices, levels: Thumbnails, cells: Counts) -> Counts:
    """Return how many images have at most a level in a cell, (cells, 256)."""
    bins = 256 * np.arange(len(cells))
    counts = np.zeros(256 * len(cells), np.int64)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        at = bins + levels[rows[start : start + ROWS_AT_ONCE, None], cells]
        counts += np.bincount(at.ravel(), minlength=len(counts))
    return counts.reshape(-1, 256, copy=False).cumsum(1)


def _compared(
    rows: SampleIndices, low: Thumbnails, high: Thumbnails
) -> Iterator[tuple[int, SampleIndices]]:
    """Yield each image that is no near-duplicate of an earlier one, and its near-duplicates."""
    low, high = low[rows], high[rows]
    few_low, few_high = low[:, ::FEW].T.copy(), high[:, ::FEW].T.copy()
    is_open = np.full(len(rows), True)
    for first in range(len(rows)):
        if is_open[first]:
            is_open[first] = False
            one = slice(first, first + 1)
            is_likely = (few_low <= few_high[:, one]) & (few_high >= few_low[:, one])
            likely = np.flatnonzero(is_likely.all(0) & is_open)
            is_alike = (low[likely] <= high[first]) & (high[likely] >= low[first])
            alike = likely[is_alike.all(1)]
            is_open[alike] = False
            if len(alike):
                yield int(rows[first]), rows[alike]


def thumbnails_and_digests(samples: Samples) -> tuple[Thumbnails, list[bytes]]:
    """Return the thumbnail of each image, (N, SIDE²), and the SHA-256 of its pixels."""
    thumbnails, digests = np.empty((len(samples), SIDE * SIDE), np.uint8), []
    image = np.empty((1, *samples.shape), np.uint8)
    for index, thumbnail in enumerate(thumbnails):
        samples.read(np.array([index]), image)
        grey = Image.fromarray(image[0].squeeze()).convert("L")
        thumbnail[...] = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX)).ravel()
        digests.append(hashlib.sha256(image.data).digest())
    return thumbnails, digests


def groups_of(
    scenes: Sequence[str], near_duplicates: Iterable[tuple[int, SampleIndices]]
) -> SampleIndices:
    """Return the group of each image, (N,): the index of its first image.

    Near-duplicates share a group, and so do images of one scene that is not "".
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
    for one, others in near_duplicates:
        for other in others.tolist():
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

    Out of fold, the heads must separate the two classes, and classify three quarters of the
    mirrored images of either class as the other class.
    """
    step = -(-len(labels) // MAX_ROWS)
    thumbnails, labels, groups = thumbnails[::step], labels[::step], groups[::step]
    if len(np.unique(groups)) < FOLDS:
        return []
    folds = fold_of_each(labels, groups, FOLDS, seed=0)
    cells = SIDE // EDGES_SIDE
    grey = thumbnails.reshape(-1, EDGES_SIDE, cells, EDGES_SIDE, cells, copy=False).mean((2, 4))
    heads = train_heads(_edges(grey), labels, int(labels.max()) + 1, folds, (PENALTY,))
    flipped, mirrored = _edges(grey[:, :, ::-1]), np.empty_like(heads.logits)
    for fold, head in enumerate(heads.of_folds):
        mirrored[folds == fold] = head(flipped[folds == fold])

    def are_mirrored(one: int, other: int) -> bool:
        is_one = labels == one
        seen, turned = (logits[is_one] for logits in (heads.logits, mirrored))
        if not is_one.any():
            return False
        told_apart = float((seen[:, one] > seen[:, other]).mean())
        confused = float((turned[:, other] > turned[:, one]).mean())
        return min(told_apart, confused) >= MIRRORED_SHARE

    pairs = np.argwhere(np.triu(np.ones((heads.logits.shape[1],) * 2), 1)).tolist()
    return [(a, b) for a, b in pairs if are_mirrored(a, b) and are_mirrored(b, a)]


def _edges(grey: NDArray[np.float64]) -> FeatureRows:
    """Return the share of edges in each cell of a grid that is fitted to them, (N, cells)."""
    strength = np.hypot(*np.gradient(grey, axis=(1, 2)))
    strength = np.maximum(strength - strength.mean((1, 2), keepdims=True), 0) + 1e-6
    down, across = np.mgrid[:EDGES_SIDE, :EDGES_SIDE].reshape(2, -1, copy=False)
    found = np.empty((len(grey), CELLS * CELLS), np.float32)
    for cells, image in zip(found, strength.reshape(len(grey), -1, copy=False), strict=True):
        share = image / image.sum()
        y, x = (axis - (share * axis).sum() for axis in (down, across))
        spread = np.sqrt((share * (y * y + x * x)).sum() / 2) + 1e-3
        extent = [[-REACH, REACH], [-REACH, REACH]]
        counts, *_ = np.histogram2d(y / spread, x / spread, CELLS, extent, weights=share)
        cells[...] = counts.ravel()
    return found
