"""The Mahalanobis distance of features to the nearest class, which detects unknown images.

The covariance within classes is shrunk towards a multiple of the identity, so
that it can be inverted for fewer images than features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dist_net.photos.head import ClassIndices, FeatureRows

DIRECTIONS = 32
SHRINKAGE = 0.5
MAX_ROWS = 512
"""The maximum number of rows, evenly spread, from which the covariance is estimated."""
USUAL_SHARE = 0.9
"""Distances up to this quantile of the images out of fold do not change the logits."""


class Distance(NamedTuple):
    """The squared distance of features x to the nearest class, over the usual distance.

    x² · ``scale`` - (x @ ``directions``)² - max(x @ ``kernel`` + ``bias``) over the classes, with
    ``directions`` (F, DIRECTIONS), ``kernel`` (F, classes) and ``bias`` (classes,), all float32.
    """

    scale: NDArray[np.float32]
    directions: FeatureRows
    kernel: FeatureRows
    bias: NDArray[np.float32]

    def __call__(self, features: FeatureRows) -> NDArray[np.float32]:
        whole = self.scale * (features * features).sum(1)
        within = np.square(features @ self.directions).sum(1)
        nearest = (features @ self.kernel + self.bias).max(1)
        return np.asarray(whole - within - nearest)

    def over(self, usual: float) -> Distance:
        """Return the distance divided by the ``usual`` distance."""
        root = np.float32(np.sqrt(usual))
        unit = np.float32(usual)
        return Distance(
            self.scale / unit, self.directions / root, self.kernel / unit, self.bias / unit
        )


def distance_of(features: FeatureRows, labels: ClassIndices, classes: int) -> Distance:
    """Return the distance fitted to the classes of (N, F) features; every class must have a row."""
    means = np.stack([features[labels == label].mean(0) for label in range(classes)])
    means = means.astype(np.float64)
    step = -(-len(features) // MAX_ROWS)
    residuals = (features - means[labels])[::step]
    count, width = residuals.shape
    isotropic = max(float((residuals * residuals).mean()), 1e-9)
    with threadpool_limits(1, "blas"):
        variances, vectors = np.linalg.eigh(residuals @ residuals.T / count)
        variances, vectors = variances[-DIRECTIONS:], vectors[:, -DIRECTIONS:]
        is_kept = variances > 1e-6 * max(variances[-1], 1e-9)
        variances, vectors = variances[is_kept], vectors[:, is_kept]
        axes = residuals.T @ vectors / np.sqrt(variances * count)
        precision = 1 / (SHRINKAGE * isotropic)
        lessened = precision - 1 / ((1 - SHRINKAGE) * variances + SHRINKAGE * isotropic)
        directions = np.zeros((width, DIRECTIONS))
        directions[:, : len(variances)] = axes * np.sqrt(lessened)
        towards = precision * means - means @ directions @ directions.T
    bias = -(means * towards).sum(1)
    parts = (np.array([precision]), directions, 2 * towards.T, bias)
    return Distance(*(part.astype(np.float32) for part in parts))


def tempered_by(distances: NDArray[np.float32], logits: NDArray[np.float32]) -> FeatureRows:
    """Return ``(N, classes)`` logits, less certain for images far from every class."""
    return np.asarray(logits / np.square(np.maximum(distances, 1))[:, None], np.float32)
