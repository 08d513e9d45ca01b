"""Calibration and confidence intervals, from logits of images outside the training data.

Similar images, such as frames of a scene, are right or wrong together: a group counts as one.
``logits`` and ``probabilities`` are (N, classes) float32; ``targets`` are (N,) class indices.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dist_net.images.labels import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, lowest_threshold
from dist_net.nn.inference import softmax

Scores = NDArray[np.float32]
Targets = NDArray[np.integer]
Losses = NDArray[np.float64]
Groups = NDArray[np.integer]
"""The group of each image, (N,): a number of at least 0 that only similar images share."""

BINS = 15
STEPS = 200
"""The most thresholds that are tested, evenly spread over the logarithm of the images answered."""
CONFIDENCE = 0.95
"""The confidence of every interval and bound in this module."""


class Interval(NamedTuple):
    """The bounds of a share of 1."""

    low: float
    high: float


class JudgedImages(NamedTuple):
    """Images on which a net was not trained, and the net's logits for them.

    ``logits`` is (N, classes) float32, before calibration; ``targets`` and ``groups`` are (N,).
    ``folds`` is the number of heads that computed the logits out of fold, or None for one net.
    """

    names: Sequence[str]
    targets: Targets
    logits: Scores
    groups: Groups
    folds: int | None

    def of(self, rows: Groups) -> Self:
        """Return some of the images."""
        names = [self.names[row] for row in rows.tolist()] if len(self.names) else ()
        return type(self)(
            names, self.targets[rows], self.logits[rows], self.groups[rows], self.folds
        )

    def calibrate(self, precision: float) -> Calibration:
        """Return the temperature and the threshold at which the answers reach ``precision``.

        If the images are too few to prove it, the threshold is ``precision`` itself: the model then
        answers only with a calibrated probability of at least ``precision``.
        """
        share = independent_share(self.folds)
        independent = share * effective_count(self.groups)
        temperature = temperature_of(self.logits, self.targets, independent)
        probabilities = softmax(self.logits / np.float32(temperature))
        proven = proven_precisions(probabilities, self.targets, self.groups, share)
        threshold = lowest_threshold(proven, precision)
        return Calibration(
            temperature, precision if threshold is None else threshold, precision, proven
        )

    def probabilities(self, calibration: Calibration) -> Scores:
        return softmax(self.logits / np.float32(calibration.temperature))

    def loss(self, calibration: Calibration) -> float:
        logits = self.logits / np.float32(calibration.temperature)
        return float(cross_entropies(logits, self.targets).mean())

    def interval(self, is_right: NDArray[np.bool_], is_counted: NDArray[np.bool_]) -> Interval:
        """Return the 95 % interval of the share of right answers among the counted images."""
        counted = independent_share(self.folds) * effective_count(self.groups[is_counted])
        share = float(is_right[is_counted].mean()) if counted else 0.0
        return wilson_interval(share * counted, counted)


def wilson_interval(right: float, total: float) -> Interval:
    """Return the two-sided 95 % interval of a share, observed as ``right`` of ``total``.

    Unlike the normal approximation, Wilson's interval is valid for few observations and for shares
    near 0 and 1 (Wilson 1927). Numbers need not be whole. Return ``(0, 1)`` for none.
    """
    if not total:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = right / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = ((middle + each) / (1 + z * z / total) for each in (-spread, spread))
    return Interval(max(0.0, low), min(1.0, high))


def effective_count(groups: Groups) -> float:
    """Return how many images count (Kish 1965): one of each group, if those are equally large."""
    counts = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / np.square(counts).sum()) if len(counts) else 0.0


def independent_share(folds: int | None) -> float:
    """Return the share of the images that count as independent; 1 unless out of fold.

    The heads of the folds share training images, so their answers are not independent. The
    variance is corrected by 1 + K / (K - 1) for K folds (Nadeau and Bengio 2003).
    """
    return 1.0 if folds is None else 1 / (1 + folds / (folds - 1))


def effective_counts(groups: Groups) -> NDArray[np.float64]:
    """Return the ``effective_count`` of the groups up to each, (N,)."""
    total = np.arange(1, len(groups) + 1)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    earlier = np.empty(len(groups))  # images of the same group before each
    earlier[order] = total - 1 - np.repeat(starts, np.diff(starts, append=len(groups)))
    return np.asarray(total**2 / (2 * earlier + 1).cumsum())


def lower_bound(total: Losses, wrong: Losses) -> Losses:
    """Return the one-sided 95 % lower bound of the share right, with ``wrong`` of ``total``.

    The bound of Clopper and Pearson (1934), a quantile of a beta distribution, by the approximation
    of Paulson (1942); numbers need not be whole. Unlike Wilson's, it is no higher than 95 % permit
    where few are wrong.
    """
    z, right = NormalDist().inv_cdf(CONFIDENCE), np.maximum(total - wrong, 0.1)
    a, b = 1 / (9 * (wrong + 1)), 1 / (9 * right)  # variances of cube roots
    scale = (1 - b) ** 2 - z**2 * b
    spread = np.maximum(a * (1 - b) ** 2 + b * (1 - a) ** 2 - z**2 * a * b, 0)
    root = ((1 - a) * (1 - b) + z * np.sqrt(spread)) / np.where(scale > 0, scale, 1)
    return np.where(scale > 0, 1 / (1 + (wrong + 1) / right * root**3), 0.0)


def temperature_of(logits: Scores, targets: Targets, independent: float) -> float:
    """Return the temperature with the least cross-entropy (Guo et al. 2017, arXiv 1706.04599).

    An extra sample beside the ``independent`` samples, spread over all classes, keeps the
    temperature finite if every answer is right (Platt 1999).
    """
    rows = np.asarray(logits, np.float64)
    others = 1 / (independent + 1)
    wanted = (1 - others) * rows[np.arange(len(rows)), targets] + others * rows.mean(1)

    def slope(inverse: float) -> float:
        """Return the derivative of the cross-entropy, which is convex in 1 / temperature."""
        powers = np.exp(inverse * (rows - rows.max(1, keepdims=True)))
        return float(((powers * rows).sum(1) / powers.sum(1) - wanted).mean())

    low, high = np.log(1 / MAX_TEMPERATURE), np.log(1 / MIN_TEMPERATURE)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(np.exp(middle)) > 0 else (middle, high)
    return float(np.clip(np.exp(-low), MIN_TEMPERATURE, MAX_TEMPERATURE))


def proven_precisions(
    probabilities: Scores, targets: Targets, groups: Groups, independent: float = 1.0
) -> list[tuple[float, float]]:
    """Return thresholds of the probability, rising, with the precision that each proves.

    For each precision, thresholds are tested from the highest downwards until the ``lower_bound``
    of the share of right answers is below it. In such a fixed sequence (Angelopoulos et al. 2021,
    arXiv 2110.01052) at most 5 % of folders prove a precision that is not reached, although the
    threshold is chosen. The sequence must not depend on the answers: it starts where so many
    answers may be wrong as half of those that the probabilities predict down to its expected end.
    """
    confidence = probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    ends = np.flatnonzero(np.diff(sorted_confidence, append=-1))  # equals are answered together
    answered = np.unique(np.geomspace(1, len(order), num=STEPS).astype(np.int64))
    tested = ends[np.unique(np.searchsorted(ends, answered - 1))]
    total = (independent * effective_counts(groups[order]))[tested]
    is_wrong = (probabilities.argmax(1) != targets)[order]
    wrong, predicted = (
        total * (each.cumsum(dtype=np.float64)[tested] / (tested + 1))
        for each in (is_wrong, 1 - sorted_confidence)
    )
    precisions = np.arange(1, 1000)[:, None] / 1000
    is_expected = lower_bound(total, predicted) >= precisions
    last_expected = len(tested) - 1 - is_expected[:, ::-1].argmax(1, keepdims=True)
    allowed = np.where(is_expected.any(1, keepdims=True), predicted[last_expected] // 2, 0.0)
    is_tested = np.logical_or.accumulate(lower_bound(total, allowed) >= precisions, 1)
    is_below = is_tested & (lower_bound(total, wrong) < precisions)
    is_proven = is_tested & ~np.logical_or.accumulate(is_below, 1)
    found, last = dict[float, float](), len(tested) - 1
    for precision, row in zip(precisions[:, 0].tolist(), is_proven, strict=True):
        last = min([last, *row.nonzero()[0][-1:]])  # a higher precision has no lower threshold
        if not row[last]:
            break
        found[float(sorted_confidence[tested[last]])] = precision
    return sorted(found.items())


def cross_entropies(logits: Scores, targets: Targets) -> Losses:
    rows = logits.astype(np.float64)
    rows -= rows.max(1, keepdims=True)
    return np.asarray(np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), targets])


def calibrated_losses(logits: Scores, targets: Targets) -> Losses:
    """Return the cross-entropy of each row at the best temperature, to compare nets fairly."""
    temperature = temperature_of(logits, targets, len(targets))
    return cross_entropies(logits / np.float32(temperature), targets)


def mean_and_error(values: Losses, groups: Groups) -> tuple[float, float]:
    """Return mean and standard error of values alike within groups; infinite for one group."""
    mean, count = float(values.mean()), len(np.unique(groups))
    of_groups = np.bincount(np.unique(groups, return_inverse=True)[1], values - mean)
    if count < 2:
        return mean, float("inf")
    return mean, float(np.sqrt(np.square(of_groups).sum() * count / (count - 1)) / len(values))


def calibration_error(probabilities: Scores, targets: Targets) -> float:
    """Return the expected calibration error: the mean gap of confidence and accuracy in 15 bins."""
    confidence = probabilities.max(1).astype(np.float64)
    is_right = probabilities.argmax(1) == targets
    bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    gaps = np.bincount(bins, confidence - is_right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))
