"""The head of a classifier: multinomial logistic regression on the features of a frozen network.

The loss is convex and minimized in this process until its gradient vanishes, in float32: equal
features produce bitwise equal heads. The head of all images and, for each fold, the head that is
judged on the images of that fold are trained together, by products of matrices. Threads share a
product by blocks of its columns, which are the same on any number of cores.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dist_net.data.samples import SampleIndices
from dist_net.photos.photo_statistics import calibrated_losses, mean_and_error
from dist_net.processes.equipment import available_cores

FeatureRows = NDArray[np.float32]
Matrix = NDArray[Any]
Product = Callable[[Matrix, Matrix], Matrix]
ClassIndices = NDArray[np.integer]
HeadValues = NDArray[np.float32]
"""A number for each of M heads, (M,)."""

FOLDS = 10
PENALTIES = tuple(float(each) for each in 10.0 ** np.arange(3, -1.6, -0.5))
"""L2 penalties of the summed loss, 1 / C in scikit-learn."""
INTERRUPTION: ContextVar[Callable[[], None]] = ContextVar("interruption", default=lambda: None)
"""Called between the steps of a training; it raises an exception if none is wanted any more."""
MAX_STEPS = 1000
CONVERGED = 0.02
"""The largest norm of a head's gradient, as a share of the norm of its penalty's gradient."""
COLUMNS_AT_ONCE = 512  # of a product, by one thread
MAX_TRIALS = 12
SMALLEST_CURVATURE = 1e-3
FLAT = 0.2
"""The largest derivative at the end of a step, as a share of that at its beginning."""


def require_wanted() -> None:
    INTERRUPTION.get()()


class HeadWeights(NamedTuple):
    """Logits are ``features @ kernel + bias``: (F, classes) and (classes,) float32."""

    kernel: FeatureRows
    bias: NDArray[np.float32]

    def __call__(self, features: FeatureRows) -> FeatureRows:
        return features @ self.kernel + self.bias


class Components(NamedTuple):
    """``rows``, (N, components + 1), of features as orthogonal components; the last one is 1.

    The components are the ``basis``, (F, components), of the centred features over ``scale``.
    """

    rows: FeatureRows
    mean: NDArray[np.float64]
    scale: float
    basis: NDArray[np.float64]

    @classmethod
    def principal(cls, features: FeatureRows) -> Self:
        mean = features.mean(0, dtype=np.float64)
        centred = features - mean
        scale = max(float(np.sqrt((centred * centred).mean())), 1e-9)
        centred /= scale
        is_wide = len(features) <= features.shape[1]
        with _products() as product:
            gram = product(centred, centred.T) if is_wide else product(centred.T, centred)
            variances, basis = np.linalg.eigh(gram)
            is_kept = variances > 1e-9 * max(variances[-1], 1e-9)
            variances, basis = variances[is_kept], basis[:, is_kept]
            if is_wide:
                basis = product(centred.T, basis) / np.sqrt(variances)
            rows = np.column_stack([product(centred, basis), np.ones(len(features))])
        return cls(rows.astype(np.float32), mean, scale, basis)

    def with_features(self, features: FeatureRows) -> Self:
        """Append rows of few features; what they have beyond the basis are components, too."""
        centred = (features - self.mean) / self.scale
        known = centred @ self.basis
        beyond, coordinates = np.linalg.qr((centred - known @ self.basis.T).T)
        before = np.insert(self.rows, [-1] * beyond.shape[1], 0, 1)
        rows = np.column_stack([known, coordinates.T, np.ones(len(features))])
        rows = np.concatenate([before, rows.astype(np.float32)])
        return self._replace(rows=rows, basis=np.column_stack([self.basis, beyond]))

    def head(self, weights: FeatureRows) -> HeadWeights:
        """Return the head of ``weights``, (classes, components + 1), for features as they are."""
        kernel = self.basis @ weights[:, :-1].T / self.scale
        bias = weights[:, -1] - self.mean @ kernel
        return HeadWeights(kernel.astype(np.float32), bias.astype(np.float32))


class HeadProblem:
    """M heads at once, on the rows of ``components``.

    Weights are (classes, M, components + 1), logits and errors (classes, M, N): a head for each
    fold and, last, the head of all rows. The constant's weights are the biases, without a penalty.
    On principal components the Hessian is almost diagonal, and its diagonal preconditions the
    steps.
    """

    def __init__(
        self,
        components: Components,
        labels: ClassIndices,
        classes: int,
        folds: ClassIndices | None = None,
    ) -> None:
        self.components, self._rows = components, components.rows
        self._is_penalized = np.append(np.ones(self._rows.shape[1] - 1), 0)
        self._folds = np.full(len(labels), -1) if folds is None else folds
        self._count = int(self._folds.max()) + 1
        is_out = self._folds == np.arange(self._count + 1)[:, None]
        self._is_trained = (~is_out).astype(np.float32)
        self._wanted = np.eye(classes, dtype=np.float32)[:, labels][:, None]

    def of_rows(self, rows: SampleIndices) -> Self:
        other = copy(self)
        other._rows, other._folds = self._rows[rows], self._folds[rows]
        other._is_trained, other._wanted = self._is_trained[:, rows], self._wanted[..., rows]
        return other

    def without_class(self, label: int) -> Self:
        """Return the problem of the other classes; out of fold, the class has the last head."""
        other = copy(self)
        is_out = self._wanted[label, 0] > 0
        other._folds = np.where(is_out, self._count, self._folds)
        other._is_trained = self._is_trained * ~is_out
        other._wanted = np.delete(self._wanted, label, 0)
        return other

    def without_rows(self, is_left_out: NDArray[np.bool_]) -> Self:
        """Return the problem in which the heads of the folds train without rows, (N, folds)."""
        other = copy(self)
        other._is_trained = self._is_trained.copy()
        other._is_trained[:-1][is_left_out.T] = 0
        return other

    def zeros(self) -> FeatureRows:
        return np.zeros((len(self._wanted), self._count + 1, self._rows.shape[1]), np.float32)

    def solve(self, penalty: float, weights: FeatureRows) -> tuple[FeatureRows, int]:
        """Minimize by conjugate gradients (Polak and Ribière 1969); return weights and steps taken.

        Each head moves until its gradient is at most ``CONVERGED`` of its penalty's: its objective
        is then within a share of ``CONVERGED``² of the minimum. Each takes at least one step: the
        solution for the labels before one changed may already be within that bound.
        """
        with _products() as product:
            return self._descend(penalty, weights, product)

    def _descend(
        self, penalty: float, weights: FeatureRows, product: Product
    ) -> tuple[FeatureRows, int]:
        penalties = (penalty * self._is_penalized).astype(np.float32)
        logits = product(weights, self._rows.T)
        errors = self._errors(logits)
        gradient = product(errors, self._rows) + penalties * weights
        # The diagonal of the Hessian, p (1 - p) x²: |errors| is p, or 1 - p for the true class.
        of_losses = product(np.abs(errors) - np.square(errors), np.square(self._rows))
        inverse = 1 / np.maximum(of_losses + penalties, SMALLEST_CURVATURE)
        descent = direction = -inverse * gradient
        step = np.ones(weights.shape[1], np.float32)
        taken = 0
        while taken < MAX_STEPS:
            require_wanted()
            largest = CONVERGED**2 * _dot(penalties * weights, penalties * weights)
            is_open = _dot(gradient, gradient) > (taken > 0) * largest + 1e-9 * len(self._rows)
            if not is_open.any():
                break
            direction = direction * is_open[:, None]
            change = product(direction, self._rows.T)
            slopes = _dot(gradient, direction), _dot(penalties * weights, direction)
            bend = _dot(penalties * direction, direction)
            step, errors = self._line_search(step, logits, change, slopes, bend)
            weights, logits = weights + step[:, None] * direction, logits + step[:, None] * change
            before, gradient = gradient, product(errors, self._rows) + penalties * weights
            length = np.minimum(_dot(before, descent), -np.finfo(np.float32).tiny)
            descent = -inverse * gradient
            kept = np.maximum(_dot(gradient - before, descent) / length, 0)
            direction = descent + kept[:, None] * direction
            taken += 1
        return weights, taken

    def _line_search(
        self,
        step: HeadValues,
        logits: FeatureRows,
        change: FeatureRows,
        slopes: tuple[HeadValues, HeadValues],
        bend: HeadValues,
    ) -> tuple[HeadValues, FeatureRows]:
        """Return each head's step to where the objective is flat, and the errors after it.

        ``step`` is tried first. ``slopes`` are the derivatives at 0 of the objective and of its
        penalty, ``bend`` the second derivative of the penalty. Bisection finds the flat place.
        """
        low, high = np.zeros_like(bend), np.full_like(bend, np.inf)
        for _ in range(MAX_TRIALS):
            errors = self._errors(logits + step[:, None] * change)
            slope = _dot(errors, change) + slopes[1] + step * bend
            is_flat = np.abs(slope) <= FLAT * np.abs(slopes[0])
            if is_flat.all():
                break
            low, high = np.where(slope < 0, step, low), np.where(slope < 0, high, step)
            between = np.where(np.isinf(high), 2 * step, (low + high) / 2)
            step = np.where(is_flat, step, between)
        return step, errors

    def _errors(self, logits: FeatureRows) -> FeatureRows:
        """Return the derivatives of the losses by the logits; 0 for rows that are out of fold."""
        errors: FeatureRows = logits - logits.max(0)
        np.exp(errors, out=errors)
        errors /= errors.sum(0)
        errors -= self._wanted
        errors *= self._is_trained
        return errors

    def out_of_fold(self, weights: FeatureRows) -> FeatureRows:
        """Return the logits, (N, classes), of each row by the head of its fold."""
        logits = np.empty((len(self._rows), len(self._wanted)), np.float32)
        for fold in range(self._count + 1):
            is_out = self._folds == fold
            logits[is_out] = self._rows[is_out] @ weights[:, fold].T
        return logits


class TrainedHeads(NamedTuple):
    """The head of all rows, and the heads of the folds with their logits out of fold.

    ``logits`` is (N, classes): the head trained without a row's fold computes that row.
    ``weights`` has the weights of all heads, the solution of ``problem``.
    """

    final: HeadWeights
    of_folds: tuple[HeadWeights, ...]
    logits: FeatureRows
    penalty: float
    steps: int
    problem: HeadProblem
    weights: FeatureRows

    def without_class(self, label: int, rows: SampleIndices) -> FeatureRows:
        """Return logits of ``rows``, (rows, classes - 1), of such heads of them without a class.

        The head of all other rows computes the class's logits; the other rows are out of fold.
        """
        with threadpool_limits(1, "blas"):
            problem = self.problem.of_rows(rows).without_class(label)
            weights, _ = problem.solve(self.penalty, np.delete(self.weights, label, 0))
            return problem.out_of_fold(weights)

    def without_rows(self, is_left_out: NDArray[np.bool_]) -> FeatureRows:
        """Return the logits out of fold if the folds' heads train without rows, (N, folds)."""
        with threadpool_limits(1, "blas"):
            problem = self.problem.without_rows(is_left_out)
            weights, _ = problem.solve(self.penalty, self.weights)
            return problem.out_of_fold(weights)


def fold_of_each(labels: ClassIndices, groups: ClassIndices, folds: int, seed: int) -> ClassIndices:
    """Return the fold of each image, (N,): classes are spread evenly, a group shares one fold.

    ``groups`` is the group of each image, (N,); group numbers need not be consecutive.
    """
    generator = np.random.default_rng(seed)
    names, group_of = np.unique(groups, return_inverse=True)
    # The images of each class, in each group and in each fold.
    counts = np.zeros((len(names), labels.max() + 1), np.int64)
    np.add.at(counts, (group_of, labels), 1)
    fold_of_group = np.zeros(len(names), np.int64)
    filled = np.zeros((labels.max() + 1, folds))
    order = generator.permutation(len(names))
    for group in order[np.argsort(-counts.sum(1)[order], kind="stable")]:
        load = counts[group] @ filled + filled.sum(0) / (1 + filled.sum())
        fold_of_group[group] = load.argmin()
        filled[:, load.argmin()] += counts[group]
    return fold_of_group[group_of]


def train_heads(
    features: FeatureRows,
    labels: ClassIndices,
    classes: int,
    folds: ClassIndices,
    penalties: tuple[float, ...] = PENALTIES,
    judged: ClassIndices | None = None,
) -> TrainedHeads:
    """Train a head on (N, F) features, and for each fold a head without the rows of the fold.

    Use the weakest penalty with a calibrated loss out of fold within a standard error of the least.
    The loss punishes confident mistakes most: the penalty with the least loss is often too strong
    for the most right answers. The loss is measured on the rows ``judged``, by default on all.
    """
    with threadpool_limits(1, "blas"):
        problem = HeadProblem(Components.principal(features), labels, classes, folds)
        judged = np.arange(len(labels)) if judged is None else judged
        least = chosen = None
        weights = problem.zeros()
        steps = 0
        for penalty in penalties:
            weights, taken = problem.solve(penalty, weights)
            steps += taken
            logits = problem.out_of_fold(weights)
            losses = calibrated_losses(logits[judged], labels[judged])
            if least is None:
                least = losses
            excess, error = mean_and_error(losses - least, np.arange(len(judged)))
            if excess > error:
                break
            chosen = penalty, weights, logits
            if excess < 0:
                least = losses
        assert chosen is not None
        penalty, weights, logits = chosen
        *of_folds, final = map(problem.components.head, weights.swapaxes(0, 1))
        return TrainedHeads(final, tuple(of_folds), logits, penalty, steps, problem, weights)


def _dot(one: FeatureRows, other: FeatureRows) -> HeadValues:
    products: HeadValues = np.einsum("cmk,cmk->m", one, other)
    return products


@contextmanager
def _products() -> Iterator[Product]:
    """Yield the product of (..., K) and a matrix (K, N) of the same dtype, by all cores."""

    def product(rows: Matrix, matrix: Matrix) -> Matrix:
        flat = rows.reshape(-1, len(matrix), copy=False)
        result = np.empty((len(flat), matrix.shape[1]), rows.dtype)

        def compute(start: int) -> None:
            few = slice(start, start + COLUMNS_AT_ONCE)
            np.matmul(flat, matrix[:, few], out=result[:, few])

        deque(threads.map(compute, range(0, matrix.shape[1], COLUMNS_AT_ONCE)), 0)
        return result.reshape(*rows.shape[:-1], -1, copy=False)

    with ThreadPoolExecutor(available_cores()) as threads:
        yield product
