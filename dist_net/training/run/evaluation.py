"""Evaluation of a model on samples that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff import BoundPlan
from dist_net.data import Dataset
from dist_net.data.samples import PrefetchedSamples, samples_of
from dist_net.nn import Model
from dist_net.vector import Vector

BATCH_SIZE = 256


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The mean loss over ``samples``, and the prediction for each.

    ``labels``: the class of each sample; ``answers``: its predicted class; ``(samples,)`` intp.
    Both are empty if the targets are no classes.
    """

    loss: float
    samples: int
    classes: int
    labels: NDArray[np.intp]
    answers: NDArray[np.intp]

    @property
    def accuracy(self) -> float | None:
        """The share of samples with the right class; None without classes."""
        return float(np.mean(self.labels == self.answers)) if self.labels.size else None

    @property
    def confusion(self) -> NDArray[np.int64]:
        """The number of samples of class i predicted as class j, ``(classes, classes)``."""
        pairs = self.labels * self.classes + self.answers
        counts = np.bincount(pairs, minlength=self.classes**2)
        return counts.reshape(self.classes, self.classes, copy=False)

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"test accuracy {self.accuracy:.2%}, "
        return f"{accuracy}test loss {self.loss:.4f}"


class EvaluationBatch(NamedTuple):
    """A plan for minibatches of one size, and the arrays that it reads."""

    inputs: NDArray[Any]
    targets: NDArray[Any]
    bound: BoundPlan


class Evaluator:
    """Evaluate a model repeatedly on the test part of a dataset."""

    def __init__(self, model: Model, dataset: Dataset) -> None:
        self._model = model
        self._inputs = samples_of(dataset.test_inputs)
        self._targets = samples_of(dataset.test_targets)
        self._weights = np.empty(model.layout.size, np.float32)
        self._batches: dict[int, EvaluationBatch] = {}

    def __call__(self, weights: Vector) -> Evaluation:
        """Evaluate a copy of these weights."""
        self._weights[...] = weights
        samples = len(self._targets)
        classifies = self._model.classifies(self._targets.shape, self._targets.dtype)
        labels, answers = (np.empty(samples if classifies else 0, np.intp) for _ in range(2))
        loss_sum = 0.0
        for start in range(0, samples, BATCH_SIZE):
            indices = np.arange(start, min(start + BATCH_SIZE, samples))
            inputs, targets, bound = self._batch(len(indices))
            self._inputs.read(indices, inputs)
            self._targets.read(indices, targets)
            if isinstance(self._inputs, PrefetchedSamples):
                following = indices + BATCH_SIZE
                self._inputs.prefetch(following[following < samples])
            loss, outputs = bound.run()
            loss_sum += float(loss) * len(indices)
            if classifies:
                labels[indices], answers[indices] = targets, outputs.argmax(1)
        return Evaluation(loss_sum / samples, samples, self._model.classes, labels, answers)

    def _batch(self, size: int) -> EvaluationBatch:
        if size not in self._batches:
            inputs = np.empty((size, *self._inputs.shape), self._inputs.dtype)
            targets = np.empty((size, *self._targets.shape), self._targets.dtype)
            bound = self._model.bind_evaluation(inputs, targets, self._weights)
            self._batches[size] = EvaluationBatch(inputs, targets, bound)
        return self._batches[size]
