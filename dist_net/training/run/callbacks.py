"""The results of epochs, and callbacks: functions that training calls with each result."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from dist_net.errors import SettingError
from dist_net.ground.vector import Vector
from dist_net.nn import Model
from dist_net.training.run.evaluation import Evaluation
from dist_net.training.run.plots import plot_history
from dist_net.training.run.run_picture import picture_of_epochs
from dist_net.training.worker.local_steps import LocalSteps

RISING = "accuracy", "auc", "f1", "precision", "recall"


@dataclass(frozen=True)
class EpochResult:
    """The result of an epoch: means over its samples, each before its update.

    ``epoch`` counts from 1. ``accuracy`` is None if the targets are no classes. ``validation``: the
    evaluation of the last weights on the validation samples. ``model`` has these weights; None if
    other processes train it, as are its ``steps``, of this epoch and those that follow.
    ``measured`` has the metrics of the last weights, by the names of ``metrics``. ``seconds``: from
    the first step of ``fit`` to the end of the epoch; 0 if other processes train it.
    """

    epoch: int
    loss: float
    accuracy: float | None
    validation: Evaluation | None = None
    _: KW_ONLY
    model: Model | None = field(default=None, repr=False)
    steps: LocalSteps | None = field(default=None, repr=False)
    measured: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """The figures by Keras's names; the names of validation figures begin with ``val_``."""
        figures = {"loss": self.loss, "accuracy": self.accuracy}
        if self.validation is not None:
            figures |= {"val_loss": self.validation.loss, "val_accuracy": self.validation.accuracy}
        figures |= self.measured
        return {name: value for name, value in figures.items() if value is not None}

    def improves(self, best: Self | None, monitor: str, min_delta: float = 0.0) -> bool:
        """Return whether a metric is better than in ``best``, or this is the first epoch.

        Higher is better if the name ends in one of RISING. Raise SettingError for another metric.
        """
        if monitor not in self.metrics:
            known = ", ".join(self.metrics)
            raise SettingError(f"monitor={monitor!r}: expected one of {known}, or validation=")
        if best is None or self.epoch == 1:
            return True
        gain = self.metrics[monitor] - best.metrics[monitor]
        return (gain if monitor.endswith(RISING) else -gain) > abs(min_delta)

    @property
    def trained(self) -> Model:
        """The model; raise SettingError if other processes train it."""
        if self.model is None:
            raise SettingError("dist_net.train saves no Model; use dist_net.fit or keeps_best=True")
        return self.model

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:#.4g}" for name, value in self.metrics.items())


class History(list[EpochResult]):
    """The results of a training's epochs, in order; as in Keras, ``history`` has their metrics."""

    def __repr__(self) -> str:
        return f"History({len(self)} epochs{f': {self[-1]}' if self else ''})"

    @property
    def history(self) -> dict[str, list[float]]:
        """The metrics of each epoch by name; nan where an epoch has none."""
        names = dict.fromkeys(name for result in self for name in result.metrics)
        return {name: [each.metrics.get(name, math.nan) for each in self] for name in names}

    def _repr_html_(self) -> str:
        figures = [{"seconds": each.seconds, **each.metrics} for each in self]
        return picture_of_epochs(figures)._repr_html_()

    def plot(self) -> Any:
        """Return matplotlib's ``Figure`` of the metrics over epochs; raise MissingExtraError."""
        return plot_history([each.epoch for each in self], self.history)


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


@dataclass
class ReduceLROnPlateau:
    """Multiplies the rates of ``fit`` by ``factor`` after ``patience`` epochs without improvement.

    As in Keras, they do not fall below ``min_lr``, and a gain exceeds ``min_delta``.
    """

    monitor: str = "val_loss"
    factor: float = 0.1
    patience: int = 10
    _: KW_ONLY
    min_delta: float = 1e-4
    min_lr: float = 0.0
    best: EpochResult | None = field(default=None, init=False)
    _waited: int = field(default=0, init=False, repr=False)

    def __call__(self, result: EpochResult) -> None:
        if result.steps is None:
            raise SettingError("ReduceLROnPlateau in train; expected dist_net.fit, or a schedule")
        self._waited += 1
        if result.improves(self.best, self.monitor, self.min_delta):
            self.best, self._waited = result, 0
        if self._waited >= max(self.patience, 1) and result.steps.learning_rate > self.min_lr:
            least = self.min_lr / result.steps.learning_rate
            result.steps.rate_factor *= max(self.factor, least)
            self._waited = 0


def require_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise SettingError unless ``callbacks`` is a sequence of functions."""
    is_list = isinstance(callbacks, Sequence) and all(map(callable, callbacks))
    if not is_list or any(isinstance(each, type) for each in callbacks):
        raise SettingError(
            f"callbacks={callbacks!r:.80}: expected a list of functions or objects, such as "
            f"[EarlyStopping()]"
        )


def require_monitors(
    callbacks: Sequence[Callback],
    names: Sequence[str] = ("loss", "accuracy"),
    has_validation: bool = True,
) -> None:
    """Raise SettingError, before training, for a callback with a metric that no epoch has."""
    known = [*names, *(f"val_{name}" for name in names if has_validation)]
    for each in callbacks:
        monitor = getattr(each, "monitor", known[0])
        if monitor not in known and getattr(each, "save_best_only", True):
            without = "" if has_validation else "; others need validation=(inputs, targets)"
            raise SettingError(f"monitor={monitor!r}: expected one of {', '.join(known)}{without}")


def is_ended_by(callbacks: Sequence[Callback], result: EpochResult) -> bool:
    """Call each callback; return whether any returned True. 1.0 is not True: it may be a result."""
    returned = [callback(result) for callback in callbacks]
    return any(isinstance(each, bool | np.bool_) and each for each in returned)
