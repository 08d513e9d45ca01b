"""The evaluations of a run in progress."""

import time
from collections.abc import Callable

from dist_net.data import Dataset
from dist_net.errors import FileWriteError
from dist_net.ground.checkpoint import Checkpoint
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import Recipe
from dist_net.training.run.evaluation import BestWeights, Evaluation, evaluate_recipe
from dist_net.training.run.metrics_files import MetricsFiles
from dist_net.training.run.training_progress import TrainingProgress
from dist_net.wire.messages import Snapshot

MAX_SHARE = 0.05  # of the time, for short evaluations; the workers need the cores
MAX_PAUSE_S = 1.0  # between long evaluations

Judge = Callable[[int, Vector], tuple[Evaluation | None, str]]
"""Evaluates the weights after some samples; training ends unless the reason returned is ""."""


class PeriodicEvaluation:
    """Evaluate a run's weights after an epoch, and keep those in ``best``.

    ``judge`` evaluates instead of the recipe. ``evaluation`` is of the best weights, or else of
    the last. Training should end once ``stop_reason`` is not "".
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        *,
        best: BestWeights | None,
        metrics: MetricsFiles,
        display: TrainingProgress,
        judge: Judge | None = None,
    ) -> None:
        self.evaluation: Evaluation | None = None
        self.stop_reason = ""
        evaluate = evaluate_recipe(recipe, dataset)
        self._judge = judge or (lambda _, weights: (evaluate(weights), ""))
        self._evaluate = None if judge else evaluate
        self._taken = self._version = -1  # versions: taken last; of ``evaluation``
        self._samples_per_epoch = len(dataset.train_targets)
        self._best = best
        self._metrics = metrics
        self._display = display
        self._epochs = 0
        self._next_s = 0.0

    def resume(self, samples: int) -> None:
        """Continue after ``samples``; their epochs are not evaluated again."""
        self._epochs = samples // self._samples_per_epoch
        self._taken = self._version = -1

    def take_if_due(self, samples: int, snapshot: Callable[[], Snapshot]) -> None:
        epochs, began_s = samples // self._samples_per_epoch, time.monotonic()
        if epochs > self._epochs and began_s >= self._next_s:
            self._epochs = epochs
            self.take(snapshot())
            ended_s = time.monotonic()
            self._next_s = ended_s + min(MAX_PAUSE_S, (ended_s - began_s) / MAX_SHARE)

    def of(self, model: Checkpoint) -> Evaluation | None:
        """Return the evaluation of a model that was written; it may have been taken before."""
        if self._evaluate and self._version != model.version:
            self.evaluation = self._evaluate(model.evaluated_weights)
        return self.evaluation

    def take(self, snapshot: Snapshot) -> None:
        """Evaluate and record these weights, if the recipe can, unless they were taken."""
        if snapshot.version == self._taken:
            return
        self._taken = snapshot.version
        evaluation, reason = self._judge(snapshot.samples, snapshot.weights)
        if evaluation is None:
            return
        record = {
            "kind": "test",
            "samples": snapshot.samples,
            "version": snapshot.version,
            "loss": evaluation.loss,
            "accuracy": evaluation.accuracy,
        }
        self._metrics.append([record])
        self._display.evaluated(snapshot.samples, evaluation)
        if self._best is None or self._is_best(self._best, snapshot, evaluation):
            self.evaluation, self._version = evaluation, snapshot.version
        if self._best is not None and self._best.is_out_of_patience:
            self.stop_reason = "no progress for as many evaluations as --patience allows"
        self.stop_reason = reason or self.stop_reason

    def _is_best(self, best: BestWeights, snapshot: Snapshot, evaluation: Evaluation) -> bool:
        score = evaluation.accuracy, evaluation.loss
        try:
            return best.take(*score, snapshot.version, snapshot.weights)
        except FileWriteError as error:
            self._display.warned(f"the best weights so far are not kept: {error}")
            return False
