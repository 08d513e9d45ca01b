"""Images of unknown classes: the distance that detects them, and how well heads do without a class.

The distance of features to the nearest class is Mahalanobis'. The covariance within classes is
shrunk towards a multiple of the identity, to be invertible for fewer images than features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dist_net.nn.inference import softmax
from dist_net.photos.head import ClassIndices, FeatureRows, TrainedHeads
from dist_net.photos.photo_statistics import JudgedImages

DIRECTIONS = 32
SHRINKAGE = 0.5
MAX_ROWS = 512
"""The maximum number of rows, evenly spread, from which the covariance is estimated."""
USUAL_SHARE = 0.9
"""Distances up to this quantile of the images out of fold do not change the logits."""

MAX_LEFT_OUT, MAX_IMAGES = 10, 2000
ALL_ROWS = slice(None)


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

    def over(self, usual: float) -> Self:
        unit, directions = np.float32(usual), self.directions / np.float32(np.sqrt(usual))
        scale, kernel, bias = self.scale / unit, self.kernel / unit, self.bias / unit
        return self._replace(scale=scale, directions=directions, kernel=kernel, bias=bias)


def distance_of(features: FeatureRows, labels: ClassIndices, classes: int) -> Distance:
    """Return the distance fitted to the classes of (N, F) features; every class must have a row."""
    means = np.stack([features[labels == label].mean(0) for label in range(classes)])
    means = means.astype(np.float64)
    step = -(-len(features) // MAX_ROWS)
    residuals = features[::step] - means[labels[::step]]
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


def distances_out_of_fold(
    features: FeatureRows,
    labels: ClassIndices,
    classes: int,
    folds: ClassIndices,
    judged: ClassIndices | slice = ALL_ROWS,
) -> tuple[FeatureRows, Distance]:
    """Return the distances of the rows out of fold, (N,), and the distance fitted to all rows.

    Out of fold, a row is compared with the classes of the other folds. Both results are in units
    of the usual distance out of fold of the rows ``judged``.
    """
    distances = np.zeros(len(labels), np.float32)
    for fold in np.unique(folds):
        is_out = folds == fold
        others = labels[~is_out]
        present, closed_up = np.unique(others, return_inverse=True)
        distance = distance_of(features[~is_out], closed_up, len(present))
        distances[is_out] = distance(features[is_out])
    usual = max(float(np.quantile(distances[judged], USUAL_SHARE)), 1e-9)
    return distances / np.float32(usual), distance_of(features, labels, classes).over(usual)


@dataclass(frozen=True)
class LeftOutClass:
    """The answers of a head to a class on which it was not trained.

    ``images`` counts the images of the class, ``others`` the images of the other classes.
    ``unknown`` is the share of the class that is classified as unknown; ``known_lost`` is the same
    share of the other classes, out of fold.
    """

    name: str
    images: int
    others: int
    unknown: float
    known_lost: float


def left_out_classes(
    features: FeatureRows,
    heads: TrainedHeads,
    judged: JudgedImages,
    folds: ClassIndices,
    names: Sequence[str],
    precision: float,
) -> list[LeftOutClass]:
    """Leave out each of the first ten classes of ``features``, (N, F); return [] for two.

    For a share, ``MAX_IMAGES`` images suffice: the first, which are random, as digests order them.
    """
    rows = np.arange(min(MAX_IMAGES, len(features)))
    of_views = rows + np.arange(0, len(heads.logits), len(features))[:, None]
    features, folds, judged = features[rows], folds[rows], judged.of(rows)
    found = []
    for label, name in enumerate(names[:MAX_LEFT_OUT] if len(names) > 2 else ()):
        is_known = judged.targets != label
        known = judged.targets[is_known] - (judged.targets[is_known] > label)
        if np.unique(folds[is_known]).size < 2:
            continue
        distances = np.empty(len(features), np.float32)
        distances[is_known], distance = distances_out_of_fold(
            features[is_known], known, len(names) - 1, folds[is_known]
        )
        distances[~is_known] = distance(features[~is_known])
        logits = tempered_by(distances, heads.without_class(label, of_views.ravel())[: len(rows)])
        of_known = JudgedImages((), known, logits[is_known], judged.groups[is_known], judged.folds)
        calibration = of_known.calibrate(precision)
        probabilities = softmax(logits / np.float32(calibration.temperature))
        is_unknown = probabilities.max(1) < calibration.threshold
        unknown, known_lost = (float(is_unknown[of].mean()) for of in (~is_known, is_known))
        found.append(LeftOutClass(name, int((~is_known).sum()), len(known), unknown, known_lost))
    return found
