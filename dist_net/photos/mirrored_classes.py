"""Classes that are mirror images of each other, such as left and right arrows.

Features of pretrained nets hardly change when an image is mirrored, so they cannot separate such
classes. This module compares the edges of thumbnails, counted on a grid around their centre.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dist_net.photos.head import ClassIndices, FeatureRows, fold_of_each, train_heads
from dist_net.photos.near_duplicates import SIDE, Thumbnails

FOLDS = 3
PENALTY = 10.0
MAX_ROWS = 1500
"""The maximum number of images to compare, evenly spread."""
CELLS, REACH = 8, 2.5
"""The grid's cells along each axis, and its reach in standard deviations of the edges."""
MIRRORED_SHARE = 0.75


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
    grey = thumbnails.reshape(-1, SIDE, SIDE, copy=False).astype(np.float64)
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
    down, across = np.mgrid[:SIDE, :SIDE].reshape(2, -1, copy=False)
    found = np.empty((len(grey), CELLS * CELLS), np.float32)
    for cells, image in zip(found, strength.reshape(len(grey), -1, copy=False), strict=True):
        share = image / image.sum()
        y, x = (axis - (share * axis).sum() for axis in (down, across))
        spread = np.sqrt((share * (y * y + x * x)).sum() / 2) + 1e-3
        extent = [[-REACH, REACH], [-REACH, REACH]]
        counts, *_ = np.histogram2d(y / spread, x / spread, CELLS, extent, weights=share)
        cells[...] = counts.ravel()
    return found
