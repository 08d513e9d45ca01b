"""Training in one process: the same step and the same update rules, without a cluster."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from dist_net.autodiff.arrays import integer
from dist_net.data import Dataset, records
from dist_net.data.samples import Values, samples_of
from dist_net.errors import DatasetError, NotFiniteError, SettingError
from dist_net.ground.checkpoint import evaluated_weights
from dist_net.ground.spelling import explained
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Model, Predictor, Weighted
from dist_net.optim import Adam, ConstantRate, Optimizer, Schedule
from dist_net.optim.ranges import fraction
from dist_net.processes.terminal import bar_on, plain_console
from dist_net.training.run.callbacks import (
    Callback,
    EarlyStopping,
    EpochResult,
    History,
    is_ended_by,
    require_callbacks,
    require_monitors,
)
from dist_net.training.run.evaluation import Evaluator, Metric, metrics_named
from dist_net.training.run.fit_workers import Workers, divided_steps
from dist_net.training.worker.local_steps import (
    Minibatch,
    MinibatchGradient,
    TrainingStep,
    local_steps,
)
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings

Pair = tuple[NDArray[Any], NDArray[Any]]
"""The inputs and the targets of a batch."""

Iteration = Iterable[Any] | Callable[[], Iterable[Any]]


def pairs(model: Model, batches: Iteration) -> Iterator[Pair]:
    """Yield batches as arrays; raise SettingError for no batches, DatasetError for unsuitable."""
    source = batches() if callable(batches) else batches
    if hasattr(source, "__array__") or not hasattr(source, "__iter__"):
        raise SettingError(
            f"no targets for inputs of type {type(batches).__name__}; expected fit(model, inputs, "
            f"targets), or an iterable of batches (inputs, targets), such as a DataLoader"
        )
    for batch in source:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DatasetError(f"a batch is {batch!r:.80}; expected a tuple (inputs, targets)")
        inputs, targets = model.inputs_of(batch[0]), model.targets_of(batch[1])
        model.require_inputs(inputs)
        if not 0 < len(inputs) == len(targets):
            found = f"{len(targets)} targets for {len(inputs)} inputs"
            raise DatasetError(f"a batch has {found}; expected one per input, and at least one")
        yield inputs, targets


class Batches:
    """The batches of an iterable, or of a function that returns one, in their order.

    An epoch has ``steps`` of them; None: the length of the iterable. Where an iteration ends,
    another begins. ``samples`` counts the samples taken. Raise the errors of ``pairs``.
    """

    def __init__(self, model: Model, batches: Iteration, steps: int | None) -> None:
        self._pairs, self.samples = self._endless(model, batches), 0
        self.first = next(self._pairs)
        self._next: Pair | None = self.first
        try:
            self.steps = integer("fit: steps", len(batches) if steps is None else steps, 1)  # type: ignore[arg-type]
        except TypeError:
            raise SettingError("an unknown number of batches; expected steps=N") from None

    def take(self) -> Pair:
        """Return the next batch; raise DatasetError if its targets are not like the first."""
        inputs, targets = self._next or next(self._pairs)
        self._next = None
        given, first = ((each.shape[1:], each.dtype.kind) for each in (targets, self.first[1]))
        if given != first:
            raise DatasetError(f"the targets of a batch are {given}; expected {first}, as before")
        self.samples += len(targets)
        return inputs, targets

    def _endless(self, model: Model, batches: Iteration) -> Iterator[Pair]:
        while True:
            is_empty = True
            for pair in pairs(model, batches):
                is_empty = False
                yield pair
            if is_empty:
                raise DatasetError(
                    "the batches are exhausted; expected a function that returns new ones for each "
                    "epoch, or fewer steps and epochs"
                )


class BatchStep(TrainingStep):
    """The gradient function of the next of ``batches``, which has its own number of samples."""

    def __init__(
        self, batches: Batches, model: Model, dataset: Dataset, seed: int, threads: int
    ) -> None:
        super().__init__(model, dataset, seed, threads)
        self._batches = batches

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        self._batch = self._batches.take()
        stop = minibatch.start + len(self._batch[0])
        return super().__call__(weights, minibatch._replace(stop=stop))

    def _read(self, minibatch: Minibatch, inputs: NDArray[Any], targets: NDArray[Any]) -> None:
        np.copyto(inputs, self._batch[0])
        np.copyto(targets, self._batch[1])


Progressed = Callable[[float], object]
REPORTS_PER_EPOCH = 50  # calls of ``progressed`` with the epochs so far, such as 2.5


class SingleProcess:
    """A recipe's training from its first weights, minibatch by minibatch, in this process.

    ``threads`` share a step: see ``TrainingStep``; for ``workers`` see ``divided_steps``. Epoch e
    has the order of the samples, and the random numbers of layers, of epoch ``first_order`` + e.
    ``batches`` are trained on, in one process, instead of the dataset, which is their first.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        *,
        seed: int = 0,
        threads: int = 1,
        first_order: int = 0,
        workers: Workers = 1,
        batches: Batches | None = None,
        notify: Callable[[str], object] = str,
    ) -> None:
        self._recipe, self._batches = recipe, batches
        self._first_order = first_order
        self._samples = (batches.steps if batches else 1) * len(dataset.train_targets)
        recipe.trained.require_batch_size(min(recipe.batch_size, self._samples))
        settings = StepSettings.of(recipe, seed=seed, optimizer=str(recipe.optimizer))
        step = BatchStep(batches, recipe.model, dataset, seed, threads) if batches else None
        local = local_steps(recipe, dataset, settings, threads, step, self._samples)
        self._state = local.rule.initial(recipe.initial_weights(seed))
        epoch = LeaseSteps(first_order, 0, self._samples, 0, recipe.batch_size, recipe.batch_size)
        is_array = isinstance(dataset.train_inputs, np.ndarray) and not batches
        facts = workers, threads, is_array, notify
        self._local = divided_steps(local, self._state, settings, epoch, *facts)
        self._has_accuracy = recipe.targets(dataset).classes > 0

    def close(self) -> None:
        self._local.close()

    @property
    def weights(self) -> Vector:
        """The model's vector, borrowed until the next step."""
        return self._state[: self._local.rule.size]

    @property
    def evaluated_weights(self) -> Vector:
        """A copy of the weights to evaluate and to use: their average, if the recipe keeps one."""
        return evaluated_weights(self.weights, self._local.rule.parts(self._state)).copy()

    def train(
        self, epoch: int, start: int, stop: int, progressed: Progressed | None = None
    ) -> tuple[float, int]:
        """Train from the ``start`` of a minibatch; return the summed loss and the right answers."""
        progress = epoch * self._samples + start
        size = self._recipe.batch_size
        order = self._first_order + epoch
        lease = LeaseSteps(order, start, stop, progress, pace=size, batch_size=size)
        steps = math.ceil((stop - start) / size)
        try:
            for number, _ in enumerate(self._local.take(self._state, lease)):
                if progressed is not None and number % max(1, steps // REPORTS_PER_EPOCH) == 0:
                    progressed((progress + number * size) / self._samples)
        finally:
            self._state = self._local.state
        return self._local.loss_sum, self._local.correct

    def epochs(
        self, initial_epoch: int = 0, progressed: Progressed | None = None
    ) -> Iterator[EpochResult]:
        """Train an epoch per step of the iteration; raise NotFiniteError for such a loss."""
        for epoch in range(initial_epoch, self._recipe.epochs):
            before = self._batches.samples if self._batches else 0
            loss, right = self.train(epoch, 0, self._samples, progressed)
            samples = self._batches.samples - before if self._batches else self._samples
            if not math.isfinite(loss):
                raise NotFiniteError(
                    f"the loss is {loss} in epoch {epoch + 1}; expected a finite number: train "
                    f"with a smaller learning_rate than {self._recipe.learning_rate:g}, or with a "
                    f"clip_norm"
                )
            accuracy = right / samples if self._has_accuracy else None
            yield EpochResult(epoch + 1, loss / samples, accuracy, steps=self._local)


@dataclass
class FitReport:
    """Keeps the newest weights in the model, evaluates and shows them, and calls the callbacks.

    ``metrics`` are measured ``on`` inputs and targets, by the prefix of their names.
    """

    model: Model
    evaluate: Evaluator | None
    metrics: Mapping[str, Metric]
    on: Mapping[str, tuple[Any, Any]]
    callbacks: Sequence[Callback]
    console: Console

    def follow(self, training: SingleProcess, first: int, last: int, earlier: int) -> History:
        """Train the epochs from ``first`` up to ``last``; earlier calls had ``earlier``.

        Return the history. An exception also leaves the model with the newest weights.
        """
        history, began_s = History(), time.monotonic()
        bar = bar_on(self.console, TextColumn("training"), BarColumn(), TimeRemainingColumn())
        task = bar.add_task("", total=last)
        try:
            with bar:
                for result in training.epochs(first, lambda done: bar.update(task, completed=done)):
                    weights = self._keep_weights(training)
                    self.model.trained_epochs = earlier + result.epoch
                    validation = self.evaluate(weights) if self.evaluate else None
                    result = replace(result, validation=validation, model=self.model)
                    result = replace(result, measured=self._measured(weights))
                    result = replace(result, seconds=time.monotonic() - began_s)
                    history.append(result)
                    self.console.print(f"epoch {result.epoch}/{last}: {result}")
                    if is_ended_by(self.callbacks, result):
                        break
        except BaseException:
            self._keep_weights(training)
            raise
        for callback in self.callbacks:
            if isinstance(callback, EarlyStopping) and callback.best_weights is not None:
                self.model.weights = callback.best_weights
        return history

    def _measured(self, weights: Vector) -> dict[str, float]:
        measured, predict = {}, Predictor(self.model, weights)
        for prefix, (inputs, targets) in self.on.items():
            outputs = predict(inputs)
            for name, metric in self.metrics.items():
                measured[prefix + name] = float(metric(outputs, targets))
        return measured

    def _keep_weights(self, training: SingleProcess) -> Vector:
        weights = training.evaluated_weights
        if np.isfinite(weights).all():
            self.model.weights = weights
        return weights


def dataset_of(
    model: Model, inputs: Values, targets: Values, tests: tuple[Values, Values] | None = None
) -> Dataset:
    """Return these samples as a dataset for ``model``, with others to test on if given.

    See ``Model.inputs_of`` and ``Model.targets_of``. Raise DatasetError for lengths that differ and
    other types, DTypeError if targets are no numbers.
    """
    test_inputs, test_targets = tests or (inputs, targets)
    inputs, test_inputs = map(model.inputs_of, (inputs, test_inputs))
    targets, test_targets = map(model.targets_of, (targets, test_targets))
    has_classes = samples_of(targets, "targets").dtype.kind in "iu"
    count = model.output_shape[-1] if model.output_shape else 1
    names = model.class_names or tuple(map(str, range(count))) if has_classes else ()
    return Dataset("given", inputs, targets, test_inputs, test_targets, names)


def split_off(share: float, *arrays: Any) -> list[list[Any]]:
    """Return the first and the last samples of arrays, as in Keras; this share of them are last."""
    lengths = {np.shape(each)[:1] for each in arrays if isinstance(each, np.ndarray)}
    if not all(isinstance(each, np.ndarray | None) for each in arrays) or len(lengths) > 1:
        raise SettingError(f"validation_split={share!r}: expected arrays of the same length")
    kept = math.floor(len(arrays[0]) * (1 - fraction("validation_split", share)))
    parts = slice(kept), slice(kept, None)
    return [[each if each is None else each[part] for each in arrays] for part in parts]


def weighted(
    model: Model, data: Dataset, class_weight: Mapping[int, float], weights: NDArray[Any] | None
) -> tuple[Weighted, Dataset]:
    """Return the loss with weights of classes, 1 if missing, and the data with those of samples."""
    targets, tests = np.asarray(data.train_targets), np.asarray(data.test_targets)
    classes = model.targets(targets.shape[1:], targets.dtype).classes
    if not class_weight.keys() <= {*range(classes)}:
        raise SettingError(f"class_weight={class_weight!r:.80}: expected classes below {classes}")
    loss = model.loss if isinstance(model.loss, Weighted) else Weighted(model.loss, ignored=None)
    by_class = [class_weight.get(label, 1.0) for label in range(classes)] if class_weight else None
    loss = replace(loss, class_weights=by_class or loss.class_weights)
    if weights is None:
        return loss, data
    if weights.shape != (len(targets),) or not (weights >= 0).all():
        raise SettingError(f"sample_weight: expected {len(targets)} numbers, 0 or above")
    trained = records(target=targets, weight=weights.astype(np.float32))
    tested = records(target=tests, weight=np.ones(len(tests), np.float32))
    return loss, replace(data, train_targets=trained, test_targets=tested, class_names=())


@explained("fit(model, inputs, targets), or fit(model, batches, steps=N); the rest by name")
def fit(
    model: Model,
    inputs: Any,
    targets: Any = None,
    *,
    steps: int | None = None,
    validation: tuple[Any, Any] | Iteration | None = None,
    validation_split: float = 0.0,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: NDArray[Any] | None = None,
    metrics: Sequence[str | Metric] = (),
    epochs: int = 10,
    initial_epoch: int | None = None,
    batch_size: int | None = None,
    optimizer: Optimizer | str = Adam(),  # noqa: B008 - immutable
    learning_rate: float = 0.001,
    schedule: Schedule | str = ConstantRate(),  # noqa: B008 - immutable
    clip_norm: float = 0.0,
    average_decay: float = 0.0,
    seed: int = 0,
    threads: int = 1,
    workers: Workers = "auto",
    callbacks: Sequence[Callback] = (),
    verbose: int | str = "auto",
) -> History:
    """Train a model on this host, from its own weights if it has any; return its history.

    ``inputs`` and ``targets`` are as in a ``Dataset``, for classes the integers from 0 up to the
    number of outputs, in minibatches of ``batch_size``, by default 32. Without targets, ``inputs``
    are ``Batches``, of which an epoch has ``steps``. ``validation`` has inputs and targets, or
    batches, too, to be evaluated at the end of each epoch; ``validation_split`` takes this share
    from the end of the arrays. The loss of a
    sample is multiplied by its ``sample_weight``, (N,), and by the ``class_weight`` of its class.
    ``metrics`` are functions of all outputs and targets, or names such as "mae" and
    "top_5_accuracy". For the other settings see ``Recipe``; ``threads`` share the work of a step,
    and ``workers``, forked processes of one thread, the steps: see docs/python.md. Each epoch has a
    line on stderr, a terminal also a bar; ``verbose=0``: none.

    After each epoch, and when training is interrupted, ``model.weights`` are the newest; another
    call begins with a fresh optimizer, and with other orders of the samples and random numbers of
    layers than the epochs before. With ``initial_epoch``, as in Keras, the epochs from that one up
    to ``epochs`` are trained, with the orders and learning rates that they have in a single call.

    Raise DatasetError and RecipeError if data and model do not fit each other, NotFiniteError when
    the loss is no longer a finite number, and SettingError if no process can be forked safely.
    """
    integer("fit: seed", seed, 0)
    integer("fit: threads", threads, 1)
    first = integer("fit: initial_epoch", initial_epoch or 0, 0)
    require_callbacks(callbacks)
    if verbose not in (0, 1, 2, "auto"):
        raise SettingError(f"verbose={verbose!r:.40}: expected 0, 1, 2 or 'auto'")
    if not isinstance(model, Model):
        given = np.asarray(next((x for x in (model, inputs) if hasattr(x, "__array__")), [[0.0]]))
        raise SettingError(
            f"model of type {type(model).__name__}; expected a Model, such as "
            f"Model(network, {given.shape[1:]}, input_dtype=np.{given.dtype})"
        )
    if model.misuse:
        warnings.warn(model.misuse, stacklevel=3)
    batches = None
    if targets is None:
        of_arrays = batch_size or class_weight or validation_split or sample_weight is not None
        if of_arrays or workers not in (1, "auto"):
            raise SettingError(
                "batch_size, class_weight, sample_weight, validation_split and workers are for "
                "arrays; expected batches without them, or fit(model, inputs, targets)"
            )
        batches = Batches(model, inputs, steps)
        inputs, targets = batches.first
        batch_size = len(targets)
    elif steps is not None:
        raise SettingError(f"steps={steps!r:.40}: expected it for batches, without targets")
    if isinstance(validation, float):
        raise SettingError(f"validation={validation}: expected validation_split={validation}")
    if validation is not None and not (isinstance(validation, tuple) and len(validation) == 2):
        inputs_of_all, targets_of_all = zip(*pairs(model, validation), strict=True)
        validation = np.concatenate(inputs_of_all), np.concatenate(targets_of_all)
    inputs, targets = model.inputs_of(inputs), model.targets_of(targets)
    weights = None if sample_weight is None else np.asarray(sample_weight)
    if validation_split and validation is None:
        (inputs, targets, weights), last = split_off(validation_split, inputs, targets, weights)
        validation = last[0], last[1]
    dataset = dataset_of(model, inputs, targets, validation)
    loss, to_train = model.loss, dataset
    if class_weight or weights is not None:
        loss, to_train = weighted(model, dataset, class_weight or {}, weights)
    recipe = Recipe(
        model.network,
        lambda: to_train,
        model.input_shape,
        loss,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        batch_size=batch_size or 32,
        epochs=epochs,
        input_dtype=model.input_dtype,
        weights=model.weights,
        clip_norm=clip_norm,
        average_decay=average_decay,
    )
    evaluate = Evaluator(model, dataset) if validation else None
    given = samples_of(dataset.train_targets)
    meaning = model.targets(given.shape, given.dtype)
    measured = metrics_named(metrics, meaning)
    on = {"": (dataset.train_inputs, dataset.train_targets)} if measured and not batches else {}
    if measured and validation:
        on["val_"] = dataset.test_inputs, dataset.test_targets
    console = plain_console(quiet=not verbose)
    report = FitReport(model, evaluate, measured, on, callbacks, console)
    done = model.trained_epochs if initial_epoch is None else 0
    to_train = recipe.load_dataset()  # checks it
    names = ["loss", *["accuracy"] * (meaning.classes > 0), *measured]
    require_monitors(callbacks, names, has_validation=validation is not None)
    options: Any = {"seed": seed, "threads": threads, "first_order": done}
    options |= {"workers": workers, "batches": batches, "notify": report.console.print}
    with closing(SingleProcess(recipe, to_train, **options)) as training:
        return report.follow(training, first, epochs, done)
