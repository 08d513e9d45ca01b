"""The head of a classifier: multinomial logistic regression on the features of a frozen network.

The loss is convex and minimized to convergence in this process, in float32 on one thread: equal
features produce bitwise equal heads. One pass over the features trains the head on all images
and, for each fold, the head that is judged on the images of that fold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dist_net.photos.photo_statistics import temperature_of

FeatureRows = NDArray[np.float32]
ClassIndices = NDArray[np.integer]
Losses = NDArray[np.float64]

FOLDS = 10
PENALTIES = tuple(float(each) for each in 10.0 ** np.arange(3, -1.6, -0.5))
"""L2 penalties of the summed loss, 1 / C in scikit-learn."""
MAX_STEPS = 300
CONVERGED = 0.05
"""The largest change of a logit in one step."""
CHECK_EVERY = 5


class HeadWeights(NamedTuple):
    """Logits are ``features @ kernel + bias``: (F, classes) and (classes,) float32."""

    kernel: FeatureRows
    bias: NDArray[np.float32]

    def __call__(self, features: FeatureRows) -> FeatureRows:
        return features @ self.kernel + self.bias


class TrainedHeads(NamedTuple):
    """The head of all rows, and the heads of the folds with their logits out of fold.

    ``logits`` is (N, classes): the head trained without a row's fold computes that row.
    """

    final: HeadWeights
    of_folds: tuple[HeadWeights, ...]
    logits: FeatureRows
    penalty: float
    steps: int


def fold_of_each(labels: ClassIndices, groups: ClassIndices, folds: int, seed: int) -> ClassIndices:
    """Return the fold of each image, (N,): classes are spread evenly, a group shares one fold.

    ``groups`` is the group of each image, (N,); group numbers need not be consecutive.
    """
    generator = np.random.default_rng(seed)
    names, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)
    fold_of_group = np.zeros(len(names), np.int64)
    filled = np.zeros((labels.max() + 1, folds))  # images of each class in each fold
    order = generator.permutation(len(names))
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        counts = np.bincount(labels[group_of == group], minlength=len(filled))
        load = counts @ filled + filled.sum(0) / (1 + filled.sum())
        fold_of_group[group] = load.argmin()
        filled[:, load.argmin()] += counts
    return fold_of_group[group_of]


def train_heads(
    features: FeatureRows,
    labels: ClassIndices,
    classes: int,
    folds: ClassIndices,
    penalties: tuple[float, ...] = PENALTIES,
    judged: int | None = None,
) -> TrainedHeads:
    """Train a head on (N, F) features, and for each fold a head without the rows of the fold.

    Use the weakest penalty with a calibrated loss out of fold within a standard error of the least.
    The loss punishes confident mistakes most: the penalty with the least loss is often too strong
    for the most right answers.
    The loss is measured on the first ``judged`` rows; the other rows are variants of the same
    images.
    """
    with threadpool_limits(1, "blas"):
        problem = _Problem(features, labels, classes, folds)
        count = judged or len(labels)
        least = chosen = None
        weights, bias = problem.zeros()
        steps = 0
        for penalty in penalties:
            weights, bias, taken = problem.solve(penalty, weights, bias)
            steps += taken
            logits = problem.out_of_fold(weights, bias)[:count]
            losses = calibrated_losses(logits, labels[:count])
            if least is None:
                least = losses
            excess, error = mean_and_error(losses - least)
            if excess > error:
                break
            chosen = penalty, weights, bias, logits
            if excess < 0:
                least = losses
        assert chosen is not None
        penalty, weights, bias, logits = chosen
        *of_folds, final = problem.heads(weights, bias)
        return TrainedHeads(final, tuple(of_folds), logits, penalty, steps)


def mean_and_error(values: Losses) -> tuple[float, float]:
    """Return the mean and its standard error, which is infinite for a single value."""
    count = len(values)
    error = float(values.std(ddof=1)) / count**0.5 if count > 1 else float("inf")
    return float(values.mean()), error


def cross_entropies(logits: FeatureRows, labels: ClassIndices) -> Losses:
    """Return the cross-entropy of each row, (N,)."""
    rows = logits.astype(np.float64)
    rows -= rows.max(1, keepdims=True)
    losses: Losses = np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), labels]
    return losses


def calibrated_losses(logits: FeatureRows, labels: ClassIndices) -> Losses:
    """Return the cross-entropy of each row at the best temperature, to compare nets fairly."""
    return cross_entropies(logits / np.float32(temperature_of(logits, labels)), labels)


class _Problem:
    """M heads at once, on principal components of centred and scaled features.

    Weights are (components, M, classes): a head for each fold and, last, the head of all rows.
    In these coordinates the bound of the Hessian by Böhning (1992), half the covariance plus the
    penalty, is diagonal and holds for every subset of the rows: it sizes the steps.
    """

    def __init__(
        self, features: FeatureRows, labels: ClassIndices, classes: int, folds: ClassIndices
    ) -> None:
        self._mean = features.mean(0, dtype=np.float64)
        centred = features - self._mean
        self._scale = max(float(np.sqrt((centred * centred).mean())), 1e-9)
        centred /= self._scale
        is_wide = len(features) <= features.shape[1]
        gram = centred @ centred.T if is_wide else centred.T @ centred
        variances, vectors = np.linalg.eigh(gram)
        is_kept = variances > 1e-9 * max(variances[-1], 1e-9)
        self._variances, vectors = variances[is_kept], vectors[:, is_kept]
        if is_wide:
            vectors = centred.T @ vectors / np.sqrt(self._variances)
        self._basis = vectors
        self._rows = (centred @ vectors).astype(np.float32)
        self._folds = folds
        self._count = int(folds.max()) + 1
        self._is_trained = np.ones((len(features), self._count + 1, 1), np.float32)
        self._is_trained[np.arange(len(features)), folds] = 0
        self._wanted = np.eye(classes, dtype=np.float32)[labels][:, None]

    def zeros(self) -> tuple[FeatureRows, FeatureRows]:
        models, classes = self._count + 1, self._wanted.shape[2]
        shape = self._rows.shape[1], models, classes
        return np.zeros(shape, np.float32), np.zeros((models, classes), np.float32)

    def solve(
        self, penalty: float, weights: FeatureRows, bias: FeatureRows
    ) -> tuple[FeatureRows, FeatureRows, int]:
        """Minimize by Nesterov's method, restarted after an overshoot (arXiv 1204.3982)."""
        rows, shape = self._rows, weights.shape
        step = (1 / (0.5 * self._variances + penalty)).astype(np.float32)[:, None, None]
        bias_step = 2 / self._is_trained.sum(0)
        ahead, bias_ahead = weights, bias
        age = np.ones(shape[1])
        for taken in range(1, MAX_STEPS + 1):
            errors = (rows @ ahead.reshape(shape[0], -1, copy=False)).reshape(
                -1, *shape[1:], copy=False
            ) + bias_ahead
            errors -= errors.max(2, keepdims=True)
            np.exp(errors, out=errors)
            errors /= errors.sum(2, keepdims=True)
            errors -= self._wanted
            errors *= self._is_trained
            gradient = (rows.T @ errors.reshape(len(rows), -1, copy=False)).reshape(
                shape, copy=False
            ) + penalty * ahead
            bias_gradient = errors.sum(0)
            new, new_bias = ahead - step * gradient, bias_ahead - bias_step * bias_gradient
            moved, bias_moved = new - weights, new_bias - bias
            uphill = (gradient * moved).sum((0, 2)) + (bias_gradient * bias_moved).sum(1)
            age = np.where(uphill > 0, 1.0, age)
            older = (1 + np.sqrt(1 + 4 * age * age)) / 2
            momentum = ((age - 1) / older).astype(np.float32)[:, None]
            ahead, bias_ahead = new + momentum * moved, new_bias + momentum * bias_moved
            weights, bias, age = new, new_bias, older
            if taken % CHECK_EVERY == 0:
                change = rows @ moved.reshape(shape[0], -1, copy=False)
                if np.abs(change).max() + np.abs(bias_moved).max() < CONVERGED:
                    break
        return weights, bias, taken

    def out_of_fold(self, weights: FeatureRows, bias: FeatureRows) -> FeatureRows:
        logits = np.empty((len(self._rows), self._wanted.shape[2]), np.float32)
        for fold in range(self._count):
            is_out = self._folds == fold
            logits[is_out] = self._rows[is_out] @ weights[:, fold] + bias[fold]
        return logits

    def heads(self, weights: FeatureRows, bias: FeatureRows) -> list[HeadWeights]:
        """Return the heads for the original, unscaled features; the head of all rows is last."""
        found = []
        for model in range(self._count + 1):
            kernel = self._basis @ weights[:, model] / self._scale
            shift = bias[model] - self._mean @ kernel
            found.append(HeadWeights(kernel.astype(np.float32), shift.astype(np.float32)))
        return found
