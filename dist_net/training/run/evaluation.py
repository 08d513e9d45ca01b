"""Evaluate a model on samples that it was not trained on, and keep the best weights of a run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff import BoundPlan
from dist_net.data import Dataset
from dist_net.data.samples import samples_of
from dist_net.errors import CheckpointError, SettingError
from dist_net.ground.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Model
from dist_net.nn.losses import TargetMeaning
from dist_net.training.server.metrics import loss_change
from dist_net.training.server.settings import RunSettings

MAX_BATCH_SIZE, MAX_BATCH_BYTES = 256, 4 << 20  # a net's maps take a hundred times its input
PROGRESS = 0.01


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The mean loss over ``samples``, and the prediction for each.

    ``labels``: the classes of samples, without ignored labels; ``answers``: the predictions; intp.
    Both are empty unless a sample has one class: then ``measured_accuracy`` is the share of labels
    that are right, None for numbers. If a recipe's own function evaluates, ``samples`` is 0.
    """

    loss: float
    samples: int
    classes: int
    labels: NDArray[np.intp] = field(repr=False)
    answers: NDArray[np.intp] = field(repr=False)
    measured_accuracy: float | None = None

    @property
    def accuracy(self) -> float | None:
        """The share of labels that are right; None without labels."""
        if not self.labels.size:
            return self.measured_accuracy
        return float(np.mean(self.labels == self.answers))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """The number of samples of class i predicted as class j, ``(classes, classes)``."""
        return confusion_of(self.labels, self.answers, self.classes)

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"test accuracy {self.accuracy:.2%}, "
        return f"{accuracy}test loss {self.loss:#.4g}"


def confusion_of(
    targets: NDArray[np.integer], answers: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """Return the number of answers by true class (row) and answer: (classes, classes)."""
    pairs = targets.astype(np.intp) * classes + answers
    counts = np.bincount(pairs, minlength=classes * classes)
    return counts.reshape(classes, classes, copy=False)


def most_confident_mistakes(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer]
) -> NDArray[np.intp]:
    """Return the rows of wrong answers, the most confident first; probabilities: (N, classes)."""
    wrong = np.flatnonzero(probabilities.argmax(1) != targets)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]


Metric = Callable[[NDArray[Any], NDArray[Any]], float]
"""A function of the outputs and the targets of all samples, each (N, ...)."""


def _top_accuracy(count: int, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    scores = np.take_along_axis(outputs, labels[:, None].astype(np.intp), 1)
    return float(np.mean((outputs > scores).sum(1) < count))


NUMBER_METRICS: dict[str, Metric] = {
    "mae": lambda outputs, targets: float(np.mean(abs(outputs - targets))),
    "mse": lambda outputs, targets: float(np.mean((outputs - targets) ** 2)),
}
CLASS_METRICS: dict[str, Metric] = {
    f"top_{count}_accuracy": partial(_top_accuracy, count) for count in (2, 3, 5, 10)
}


def metrics_named(metrics: Sequence[str | Metric], meaning: TargetMeaning) -> dict[str, Metric]:
    """Return metrics by name, without "accuracy", which is measured anyway. Raise SettingError."""
    of_classes = {
        n: each for n, each in CLASS_METRICS.items() if int(n.split("_")[1]) < meaning.classes
    }
    named = of_classes if meaning.is_of_sample else {} if meaning.classes else NUMBER_METRICS
    known = {*named, "accuracy"} if meaning.classes else {*named}
    for metric in metrics:
        if not callable(metric) and metric not in known:
            names = ", ".join(sorted(known))
            raise SettingError(f"metrics: {metric!r:.80}: expected a function, or of {names}")
    own = {getattr(each, "__name__", repr(each)): each for each in metrics if callable(each)}
    return own | {name: metric for name, metric in named.items() if name in metrics}


EvaluationBatch = tuple[NDArray[Any], NDArray[Any], BoundPlan]
"""The inputs and targets of minibatches of one size, and the plan that reads these arrays."""


class Evaluator:
    """Evaluate a model repeatedly on the test samples of a dataset."""

    def __init__(self, model: Model, dataset: Dataset) -> None:
        self._model, self._turn = model, dataset.turn
        self._inputs = samples_of(dataset.test_inputs)
        self._targets = samples_of(dataset.test_targets)
        self._meaning = model.targets(self._targets.shape, self._targets.dtype)
        input_bytes = math.prod(self._inputs.shape) * self._inputs.dtype.itemsize
        self._batch_size = max(1, min(MAX_BATCH_SIZE, MAX_BATCH_BYTES // max(1, input_bytes)))
        self._weights = np.empty(model.layout.size, np.float32)
        self._batches: dict[int, EvaluationBatch] = {}

    def __call__(self, weights: Vector) -> Evaluation:
        self._weights[...] = weights
        samples, meaning = len(self._targets), self._meaning
        labels, answers = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
        loss_sum, right, counted = 0.0, 0, 0
        for start in range(0, samples, self._batch_size):
            indices = np.arange(start, min(start + self._batch_size, samples))
            inputs, targets, bound = self._batch(len(indices))
            with self._turn:
                self._inputs.read(indices, inputs)
                self._targets.read(indices, targets)
            loss, *judged = bound.run()
            loss_sum += float(loss) * len(indices)
            if judged:
                answered, known = (each[judged[2]] for each in judged[:2])
                right, counted = right + int((answered == known).sum()), counted + len(known)
            if meaning.is_of_sample:
                labels.append(known)
                answers.append(answered)
        return Evaluation(
            loss_sum / samples,
            samples,
            self._model.classes,
            np.concatenate(labels),
            np.concatenate(answers),
            right / counted if counted else None,
        )

    def _batch(self, size: int) -> EvaluationBatch:
        if size not in self._batches:
            inputs = np.empty((size, *self._inputs.shape), self._inputs.dtype)
            targets = np.empty((size, *self._targets.shape), self._targets.dtype)
            bound = self._model.bind_evaluation(inputs, targets, self._weights)
            self._batches[size] = inputs, targets, bound
        return self._batches[size]


def evaluate_recipe(recipe: Recipe, dataset: Dataset) -> Callable[[Vector], Evaluation | None]:
    """Return a function that evaluates weights; it returns None if the recipe has none."""
    trained = recipe.trained
    if isinstance(trained, Model):
        return Evaluator(trained, dataset)
    none = np.empty(0, np.intp)

    def evaluate(weights: Vector) -> Evaluation | None:
        loss, accuracy = trained.evaluation_at(weights)
        return None if loss is None else Evaluation(loss, 0, 0, none, none, accuracy)

    return evaluate


class BestWeights:
    """Keep the best weights in a checkpoint at ``path``, without the state of the run.

    The best weights have the highest accuracy and, if that is equal or None, the lowest loss. Only
    weights better than those already stored replace them. ``patience``: the number of evaluations
    in a row without progress, which is a higher accuracy or a loss that is 1 % lower (see
    ``loss_change``); None or 0: any. Raise the errors of ``read_checkpoint``.
    """

    def __init__(self, path: Path, settings: RunSettings, patience: int | None = None) -> None:
        self._path = path
        self._settings = settings
        self._patience = patience
        self._without_progress = 0
        self._accuracy, self._loss = -math.inf, math.inf
        self._first_loss: float | None = None
        if path.exists():
            found = read_checkpoint(path)
            found.require_layout(settings.layout)
            accuracy, loss = (found.counters.get(name) for name in ("accuracy", "loss"))
            if type(loss) is not float or type(accuracy) not in (float, type(None)):
                raise CheckpointError(
                    f"{path} lacks the accuracy or loss of its weights; expected a checkpoint "
                    f"written by training. Delete it: the next evaluation writes a new one"
                )
            self._accuracy, self._loss = accuracy or 0.0, loss
            if found.recipe_record != settings.recipe_record:
                # The run is resumed with other options: the checkpoint must name the new recipe.
                self._write(accuracy, loss, found.version, found.weights)

    @property
    def is_out_of_patience(self) -> bool:
        return 0 < (self._patience or 0) <= self._without_progress

    def take(self, accuracy: float | None, loss: float, version: int, weights: Vector) -> bool:
        """Write the weights if they are the best so far, and return True; raise FileWriteError."""
        known = 0.0 if accuracy is None else accuracy
        first = self._first_loss = loss if self._first_loss is None else self._first_loss
        fall = -loss_change(self._loss, loss, first)
        is_progress = known > self._accuracy or fall > PROGRESS
        self._without_progress = 0 if is_progress else self._without_progress + 1
        if not (known, -loss) > (self._accuracy, -self._loss):
            return False
        self._write(accuracy, loss, version, weights)
        self._accuracy, self._loss = known, loss
        return True

    def _write(self, accuracy: float | None, loss: float, version: int, weights: Vector) -> None:
        """Write a checkpoint of the weights, without the state from which a run resumes."""
        settings, counters = self._settings, {"accuracy": accuracy, "loss": loss}
        which = settings.recipe, settings.recipe_digest, settings.layout, version
        found = Checkpoint(*which, settings.to_json(), {}, counters, weights, {})
        write_checkpoint(self._path, replace(found, recipe_record=settings.recipe_record))
