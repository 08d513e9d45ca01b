"""Training in one process: the same step and the same update rules, without a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Never

import numpy as np

from dist_net.autodiff.arrays import integer
from dist_net.checkpoint import evaluated_weights
from dist_net.data import Dataset
from dist_net.data.samples import Values, samples_of
from dist_net.errors import NotFiniteError, SettingError
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Model
from dist_net.optim import Adam, ConstantRate, Optimizer, Schedule
from dist_net.spelling import refuse_options
from dist_net.training.run.callbacks import Callback, EpochResult, require_callbacks
from dist_net.training.run.evaluation import Evaluator
from dist_net.training.run.fit_report import FitReport
from dist_net.training.worker.step import local_steps
from dist_net.vector import Vector
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings

REPORTS_PER_EPOCH = 50


class SingleProcess:
    """A recipe's training from its first weights, minibatch by minibatch, in this process.

    ``threads`` is how many share the work of a step; see ``TrainingStep``. Epoch e has the order of
    the samples, and the random numbers of layers, of epoch ``first_order`` + e.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        seed: int = 0,
        threads: int = 1,
        first_order: int = 0,
    ) -> None:
        self._recipe = recipe
        self._first_order = first_order
        self._samples = len(dataset.train_targets)
        recipe.require_batch_size(min(recipe.batch_size, self._samples))
        settings = StepSettings.of(recipe, seed=seed, optimizer=str(recipe.optimizer))
        self._local = local_steps(recipe, dataset, settings, threads)
        self._state = self._local.rule.initial(recipe.initial_weights(seed))
        self._has_accuracy = recipe.targets(dataset).classes > 0

    @property
    def weights(self) -> Vector:
        """The model's vector, borrowed until the next step."""
        return self._state[: self._local.rule.size]

    @property
    def evaluated_weights(self) -> Vector:
        """A copy of the weights to evaluate and to use: their average, if the recipe keeps one."""
        return evaluated_weights(self.weights, self._local.rule.parts(self._state)).copy()

    @property
    def rate_factor(self) -> float:
        """The factor of the schedule's learning rates from the next step on."""
        return self._local.rate_factor

    @rate_factor.setter
    def rate_factor(self, factor: float) -> None:
        self._local.rate_factor = factor

    def train(
        self, epoch: int, start: int, stop: int, progressed: Callable[[int], object] | None = None
    ) -> tuple[float, int]:
        """Train from the ``start`` of a minibatch; return the summed loss and the right answers."""
        progress = epoch * self._samples + start
        size = self._recipe.batch_size
        order = self._first_order + epoch
        lease = LeaseSteps(order, start, stop, progress, pace=size, batch_size=size)
        steps = math.ceil((stop - start) / size)
        for number, _ in enumerate(self._local.take(self._state, lease)):
            if progressed is not None and number % max(1, steps // REPORTS_PER_EPOCH) == 0:
                progressed(progress + number * size)
        self._state = self._local.state
        return self._local.loss_sum, self._local.correct

    def epochs(
        self, initial_epoch: int = 0, progressed: Callable[[int], object] | None = None
    ) -> Iterator[EpochResult]:
        """Train an epoch per step of the iteration; raise NotFiniteError for such a loss.

        ``progressed`` is called with the samples so far, about ``REPORTS_PER_EPOCH`` times each.
        """
        for epoch in range(initial_epoch, self._recipe.epochs):
            loss, right = self.train(epoch, 0, self._samples, progressed)
            if not math.isfinite(loss):
                raise NotFiniteError(
                    f"the loss is {loss} in epoch {epoch + 1}; expected a finite number: train "
                    f"with a smaller learning_rate than {self._recipe.learning_rate:g}, or with a "
                    f"clip_norm"
                )
            accuracy = right / self._samples if self._has_accuracy else None
            rate = self._local.learning_rate
            yield EpochResult(epoch + 1, loss / self._samples, accuracy, learning_rate=rate)


def dataset_of(
    model: Model, inputs: Values, targets: Values, tests: tuple[Values, Values] | None = None
) -> Dataset:
    """Return these samples as a dataset for ``model``, with others to test on if given.

    Integers that are no class indices become float32. Raise DatasetError for values other than
    arrays, and for lengths that differ, and DTypeError for targets that are no numbers.
    """
    if not isinstance(model, Model):
        shape, dtype = samples_of(inputs, "inputs").shape, inputs.dtype
        raise SettingError(
            f"model of type {type(model).__name__}; expected a Model, such as "
            f"Model(network, {shape}, input_dtype=np.{dtype})"
        )
    test_inputs, test_targets = tests or (inputs, targets)
    targets, test_targets = (
        model.targets_of(each) if isinstance(each, np.ndarray) else each
        for each in (targets, test_targets)
    )
    has_classes = samples_of(targets, "targets").dtype.kind in "iu"
    count = model.output_shape[-1] if model.output_shape else 1
    names = model.class_names or tuple(map(str, range(count))) if has_classes else ()
    return Dataset("given", inputs, targets, test_inputs, test_targets, names)


def fit(
    model: Model,
    inputs: Values,
    targets: Values,
    *,
    validation: tuple[Values, Values] | None = None,
    epochs: int = 10,
    initial_epoch: int | None = None,
    batch_size: int = 32,
    optimizer: Optimizer | str = Adam(),  # noqa: B008 - immutable
    learning_rate: float = 0.001,
    schedule: Schedule = ConstantRate(),  # noqa: B008 - immutable
    clip_norm: float = 0.0,
    average_decay: float = 0.0,
    seed: int = 0,
    threads: int = 1,
    callbacks: Sequence[Callback] = (),
    **unknown: Never,
) -> list[EpochResult]:
    """Train a model in this process, from its own weights if it has any; return its history.

    ``inputs`` and ``targets`` are as in a ``Dataset``, for classes the integers from 0 up to the
    number of outputs. ``validation`` has such inputs and targets too, to be evaluated at the end of
    each epoch. For the other settings see ``Recipe``; ``threads`` share the work of a step.

    After each epoch, and when training is interrupted, ``model.weights`` are the newest; another
    call begins with a fresh optimizer, and with other orders of the samples and random numbers of
    layers than the epochs before. With ``initial_epoch``, as in Keras, the epochs from that one up
    to ``epochs`` are trained, with the orders and learning rates that they have in a single call.

    Raise DatasetError and RecipeError if data and model do not fit each other, and NotFiniteError
    when the loss is no longer a finite number.
    """
    refuse_options("fit", unknown, fit.__kwdefaults__ or ())
    integer("fit: seed", seed, 0)
    integer("fit: threads", threads, 1)
    first = integer("fit: initial_epoch", initial_epoch or 0, 0)
    require_callbacks(callbacks)
    if validation is not None and not (isinstance(validation, tuple) and len(validation) == 2):
        raise SettingError(
            f"validation={validation!r:.40}: expected arrays, (inputs, targets). To keep the last "
            f"tenth: n = len(inputs) * 9 // 10; fit(model, inputs[:n], targets[:n], "
            f"validation=(inputs[n:], targets[n:]))"
        )
    dataset = dataset_of(model, inputs, targets, validation)
    recipe = Recipe(
        model.network,
        lambda: dataset,
        model.input_shape,
        model.loss,
        optimizer,
        learning_rate,
        schedule,
        batch_size,
        epochs,
        input_dtype=model.input_dtype,
        weights=model.weights,
        clip_norm=clip_norm,
        average_decay=average_decay,
    )
    done = model.trained_epochs if initial_epoch is None else 0
    training = SingleProcess(recipe, recipe.load_dataset(), seed, threads, done)
    evaluate = Evaluator(model, dataset) if validation else None
    return FitReport(model, evaluate, callbacks).follow(training, first, done)
