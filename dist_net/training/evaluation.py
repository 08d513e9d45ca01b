"""How well a model does on images that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff import compile, mean, variable
from dist_net.data import Dataset
from dist_net.nn import Model, Predictor
from dist_net.vector import Vector


@dataclass(frozen=True)
class Evaluation:
    """``confusion[i, j]`` counts the images of class i that were taken for class j."""

    loss: float
    confusion: NDArray[np.int64]

    @property
    def samples(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of images that were recognised."""
        return float(self.confusion.trace() / self.samples)


class Evaluator:
    """Evaluates a model, as often as wanted, on the test part of a dataset."""

    def __init__(self, model: Model, dataset: Dataset) -> None:
        self._images = np.asarray(dataset.test_images)
        self._labels = np.asarray(dataset.test_labels)
        self._weights = np.empty(model.layout.size, np.float32)
        self._predict = Predictor(model, self._weights)
        outputs = variable("outputs", (len(self._labels), model.classes))
        labels = variable("labels", self._labels.shape, np.uint8)
        self._loss = compile([mean(model.loss(outputs, labels))])

    def __call__(self, weights: Vector) -> Evaluation:
        """The loss and the confusion of these weights, which are copied."""
        self._weights[...] = weights
        outputs = self._predict(self._images)
        (loss,) = self._loss.bind({"outputs": outputs, "labels": self._labels}).run()
        classes = outputs.shape[1]
        pairs = self._labels.astype(np.intp) * classes + outputs.argmax(1)
        counts = np.bincount(pairs, minlength=classes * classes)
        return Evaluation(float(loss), counts.reshape(classes, classes, copy=False))
