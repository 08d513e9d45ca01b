"""Near-duplicates: images that are the same in every place, such as one photo saved twice.

An image is a thumbnail of ``SIDE`` x ``SIDE`` grey levels, and in each cell an interval around the
level: another format, quality or size changes it little, and most at edges. Two images are
near-duplicates if their intervals overlap in every cell, so that a small object that moved before
an equal background makes another image.

Pairs are searched like in an interval tree: images are divided by a level of a cell, and those
whose interval contains the level are on either side. Time and memory are about linear in the number
of images, unless cells differ by less than their intervals.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dist_net.data.samples import SampleIndices

SIDE = 32
MAX_DIFFERENCE = 6.0
"""The largest difference of near-duplicates in cells without edges, in grey levels of 255."""
EDGE_SHARE = 0.2
"""The further difference, as a share of the range of the cell and its neighbours."""
MAX_LEAF = 128
FEW = 31
"""The distance of the cells that are compared first."""
ROWS_AT_ONCE = 1024

Thumbnails = NDArray[np.uint8]
Counts = NDArray[np.int64]


def near_duplicates(thumbnails: Thumbnails) -> Iterator[tuple[int, SampleIndices]]:
    """Yield an image and its near-duplicates among later images, for ``(N, SIDE²)`` thumbnails.

    A near-duplicate of an earlier image is compared no further: chains of images, each a little
    different from the next, do not become one.
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

    Most images differ in a few of the cells already. A level is used if fewer images are on both
    sides than on either side alone.
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
