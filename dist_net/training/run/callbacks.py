"""Callbacks: functions that training calls at the end of each epoch, and two by Keras's names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dist_net.errors import SettingError
from dist_net.nn import Model
from dist_net.training.run.evaluation import Evaluation
from dist_net.vector import Vector


class EpochResult(NamedTuple):
    """The result of an epoch: means over its samples, each before its update.

    ``epoch`` counts from 1. ``accuracy`` is None if the targets are no classes. ``validation``: the
    evaluation of the last weights on the validation samples.
    """

    epoch: int
    loss: float
    accuracy: float | None
    validation: Evaluation | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that there are, by Keras's names; ``val_`` precedes those of validation."""
        figures = {"loss": self.loss, "accuracy": self.accuracy}
        if self.validation is not None:
            figures |= {"val_loss": self.validation.loss, "val_accuracy": self.validation.accuracy}
        return {name: value for name, value in figures.items() if value is not None}


Callback = Callable[[EpochResult], object]
"""A function called at the end of each epoch; if it returns True, training ends."""


class MonitoringCallback:
    """A callback that compares the metric ``monitor`` of each epoch with the best so far.

    An accuracy improves when it rises by more than ``min_delta``, a loss when it falls.
    """

    def __init__(self, monitor: str, min_delta: float = 0.0) -> None:
        self._monitor = monitor
        self._min_delta = abs(min_delta)
        self._best = -math.inf
        self._model: Model | None = None

    def begin(self, model: Model) -> None:
        """Forget earlier epochs; ``fit`` keeps the weights of the last epoch in ``model``."""
        self._best, self._model = -math.inf, model

    @property
    def model(self) -> Model:
        """The model in training; raise SettingError if other processes train it."""
        if self._model is None:
            raise SettingError(
                f"{type(self).__name__} needs a model in this process, as in dist_net.fit; a run "
                f"of dist_net.train keeps its best weights with keeps_best=True"
            )
        return self._model

    def improves(self, result: EpochResult) -> bool:
        """Return whether this epoch is the best; raise SettingError if it lacks the metric."""
        metrics = result.metrics
        if self._monitor not in metrics:
            raise SettingError(
                f"monitor={self._monitor!r}: expected one of {', '.join(metrics)}; with "
                f"validation=(inputs, targets) also val_loss"
            )
        value = metrics[self._monitor] * (1 if self._monitor.endswith("accuracy") else -1)
        if value - self._min_delta <= self._best:
            return False
        self._best = value
        return True


class EarlyStopping(MonitoringCallback):
    """Ends training after ``patience`` epochs in a row without improvement.

    With ``restore_best_weights``, the model has the weights of the best epoch afterwards.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        restore_best_weights: bool = False,
    ) -> None:
        super().__init__(monitor, min_delta)
        self._patience = patience
        self._restores = restore_best_weights
        self._best_epoch = 0
        self._best_weights: Vector | None = None

    def __call__(self, result: EpochResult) -> bool:
        if self.improves(result):
            self._best_epoch = result.epoch
            self._best_weights = self.model.weights if self._restores else None
        elif self._best_weights is not None:
            self.model.weights = self._best_weights
        return result.epoch - self._best_epoch >= max(self._patience, 1)


class ModelCheckpoint(MonitoringCallback):
    """Saves the model after each epoch, or with ``save_best_only`` when it has improved.

    ``filepath`` may contain ``{epoch}`` and metrics, such as ``{val_loss:.2f}``.
    """

    def __init__(
        self, filepath: str | Path, monitor: str = "val_loss", save_best_only: bool = False
    ) -> None:
        super().__init__(monitor)
        self._filepath = str(filepath)
        self._is_selective = save_best_only

    def __call__(self, result: EpochResult) -> None:
        if not self._is_selective or self.improves(result):
            self.model.save(self._filepath.format(epoch=result.epoch, **result.metrics))


def require_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise SettingError unless ``callbacks`` is a sequence of functions."""
    if not (isinstance(callbacks, Sequence) and all(map(callable, callbacks))):
        raise SettingError(f"callbacks={callbacks!r:.80}: expected a list of functions")


def is_ended_by(callbacks: Sequence[Callback], result: EpochResult) -> bool:
    """Call each callback; return whether any returned True. 1.0 is not True: it may be a result."""
    returned = [callback(result) for callback in callbacks]
    return any(isinstance(each, bool | np.bool_) and each for each in returned)
