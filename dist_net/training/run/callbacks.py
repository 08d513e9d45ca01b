"""Callbacks: functions that training calls at the end of each epoch, and two by Keras's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dist_net.errors import SettingError
from dist_net.nn import Model
from dist_net.training.run.evaluation import Evaluation
from dist_net.vector import Vector


@dataclass(frozen=True)
class EpochResult:
    """The result of an epoch: means over its samples, each before its update.

    ``epoch`` counts from 1. ``accuracy`` is None if the targets are no classes. ``validation``: the
    evaluation of the last weights on the validation samples. ``model`` has these weights; None if
    other processes train it. ``learning_rate`` is that of the last step, None if unknown.
    """

    epoch: int
    loss: float
    accuracy: float | None
    validation: Evaluation | None = None
    model: Model | None = field(default=None, repr=False)
    learning_rate: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The figures by Keras's names; those of validation begin with ``val_``."""
        figures = {"loss": self.loss, "accuracy": self.accuracy}
        if self.validation is not None:
            figures |= {"val_loss": self.validation.loss, "val_accuracy": self.validation.accuracy}
        return {name: value for name, value in figures.items() if value is not None}

    def improves(self, best: EpochResult | None, monitor: str, min_delta: float = 0.0) -> bool:
        """Return whether a metric is better than in ``best``, or this is the first epoch.

        A better accuracy is higher, a better loss lower. Raise SettingError without such a metric.
        """
        if monitor not in self.metrics:
            known = ", ".join(self.metrics)
            raise SettingError(f"monitor={monitor!r}: expected one of {known}, or validation=")
        if best is None or self.epoch == 1:
            return True
        gain = self.metrics[monitor] - best.metrics[monitor]
        return (gain if monitor.endswith("accuracy") else -gain) > abs(min_delta)

    @property
    def trained(self) -> Model:
        """The model; raise SettingError if other processes train it."""
        if self.model is None:
            raise SettingError("dist_net.train saves no Model; use dist_net.fit or keeps_best=True")
        return self.model


Callback = Callable[[EpochResult], object]
"""A function called at the end of each epoch; if it returns True, training ends."""


@dataclass
class EarlyStopping:
    """Ends training after ``patience`` epochs in a row without improvement of ``monitor``.

    With ``restore_best_weights``, the model has the weights of the best epoch when training has
    ended, unless an exception ended it.
    """

    monitor: str = "val_loss"
    min_delta: float = 0.0
    patience: int = 0
    restore_best_weights: bool = False
    best: EpochResult | None = field(default=None, init=False)
    best_weights: Vector | None = field(default=None, init=False, repr=False)

    def __call__(self, result: EpochResult) -> bool:
        if result.improves(self.best, self.monitor, self.min_delta) or self.best is None:
            self.best = result
            self.best_weights = result.trained.weights if self.restore_best_weights else None
        return result.epoch - self.best.epoch >= max(self.patience, 1)

    def at_end(self, model: Model) -> None:
        """Restore the best weights."""
        if self.best_weights is not None:
            model.weights = self.best_weights


@dataclass
class ModelCheckpoint:
    """Saves the model after each epoch, or if ``save_best_only`` when ``monitor`` has improved.

    ``filepath`` may contain ``{epoch}`` and metrics, such as ``{val_loss:.2f}``.
    """

    filepath: str | Path
    monitor: str = "val_loss"
    save_best_only: bool = False
    best: EpochResult | None = field(default=None, init=False)

    def __call__(self, result: EpochResult) -> None:
        if not self.save_best_only or result.improves(self.best, self.monitor):
            self.best = result
            path = str(self.filepath).format(epoch=result.epoch, **result.metrics)
            result.trained.save(path)


def require_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise SettingError unless ``callbacks`` is a sequence of functions."""
    if not (isinstance(callbacks, Sequence) and all(map(callable, callbacks))):
        raise SettingError(f"callbacks={callbacks!r:.80}: expected a list of functions")


def is_ended_by(callbacks: Sequence[Callback], result: EpochResult) -> bool:
    """Call each callback; return whether any returned True. 1.0 is not True: it may be a result."""
    returned = [callback(result) for callback in callbacks]
    return any(isinstance(each, bool | np.bool_) and each for each in returned)
