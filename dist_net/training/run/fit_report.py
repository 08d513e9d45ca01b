"""What ``fit`` does after each epoch, wherever its steps are taken: evaluate, report, call back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dist_net.nn import Model
from dist_net.training.run.callbacks import Callback, EarlyStopping, EpochResult, is_ended_by
from dist_net.training.run.evaluation import Evaluator
from dist_net.vector import Vector


class EpochTraining(Protocol):
    """Training by epochs; ``FitReport`` knows nothing else of how steps are taken.

    ``rate_factor``, 1.0 at first, scales the learning rates of the steps from the next epoch on.
    """

    rate_factor: float

    @property
    def evaluated_weights(self) -> Vector:
        """A copy of the weights to evaluate and to use."""

    def epochs(
        self, initial_epoch: int = 0, progressed: Callable[[int], object] | None = None
    ) -> Iterator[EpochResult]:
        """Train an epoch per step of the iteration; raise NotFiniteError for such a loss.

        ``progressed`` is called now and then with the samples so far, counted over all epochs.
        """


@dataclass
class FitReport:
    """Gives the model the newest weights, evaluates them and calls the callbacks."""

    model: Model
    evaluate: Evaluator | None
    callbacks: Sequence[Callback]

    def follow(self, training: EpochTraining, first: int, done: int) -> list[EpochResult]:
        """Train from epoch ``first`` on, ``done`` epochs after those of earlier calls.

        Return the history. An exception also leaves the model with the newest weights.
        """
        history = []
        try:
            for result in training.epochs(first):
                weights = self._keep_weights(training)
                self.model.trained_epochs = done + result.epoch
                evaluation = self.evaluate(weights) if self.evaluate else None
                result = replace(result, validation=evaluation, model=self.model)
                history.append(result)
                if is_ended_by(self.callbacks, result):
                    break
        except BaseException:
            self._keep_weights(training)
            raise
        for callback in self.callbacks:
            if isinstance(callback, EarlyStopping):
                callback.at_end(self.model)
        return history

    def _keep_weights(self, training: EpochTraining) -> Vector:
        weights = training.evaluated_weights
        if np.isfinite(weights).all():
            self.model.weights = weights
        return weights
