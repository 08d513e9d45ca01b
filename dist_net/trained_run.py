"""Training by a cluster of processes on this host, from Python: ``train``, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dist_net.checkpoint import Checkpoint
from dist_net.data import Progress
from dist_net.data.samples import Values
from dist_net.errors import ModelSourceError, RecipeError, UntrustedRecipeError
from dist_net.nets.foreign_onnx import ForeignModel, OnnxSession
from dist_net.nets.recipes.image_recipe import IMAGES
from dist_net.nets.recipes.recipe import LoadedRecipe, RecipeRecord, load_recipe, recipe_names
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources import OnnxFile, parse_named_source
from dist_net.nets.trained_model import (
    calibrated_weights,
    load_trained,
    read_held_out,
    read_out_of_fold,
)
from dist_net.nn import Model
from dist_net.nn.model import Batch
from dist_net.optim import Optimizer, optimizer_named
from dist_net.optim.ranges import whole
from dist_net.photos.image_options import ImageOptions, new_run
from dist_net.photos.image_report import train_and_report
from dist_net.processes.cores import available_cores
from dist_net.processes.terminal import plain_console
from dist_net.spelling import refuse_options
from dist_net.training.run.callbacks import (
    Callback,
    EpochResult,
    History,
    is_ended_by,
    require_callbacks,
)
from dist_net.training.run.evaluation import Evaluation, evaluate_recipe
from dist_net.training.run.fit import dataset_of
from dist_net.training.run.local_run import START_TIMEOUT_S, LocalRunSettings
from dist_net.training.run.prepared_run import PreparedRun
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.training_progress import TrainingProgress
from dist_net.vector import Vector


class Run:
    """A trained model. ``path`` is its run directory, which the commands of ``dist-net`` accept.

    ``report`` has the keys of ``dist-net train --json``. ``history`` has a result per evaluation,
    which several short epochs share: its loss and accuracy are means of the training since the
    previous evaluation, its ``validation`` is on the test samples. A loaded run has neither.
    """

    def __init__(
        self,
        path: str | Path,
        report: Mapping[str, Any] | None = None,
        history: Sequence[EpochResult] = (),
        *,
        trust_recipe: bool = False,
    ) -> None:
        self.path = Path(path)
        self.report = dict(report or {})
        self.history = History(history)
        self._trust_recipe = trust_recipe

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def trained(self) -> tuple[LoadedRecipe, Checkpoint]:
        """Return the recipe and the checkpoint, read once; raise the errors of ``load``."""
        return load_trained(self.path, self._trust_recipe)

    @cached_property
    def model(self) -> Model:
        """Return the trained model with its evaluated weights, calibrated if the run is."""
        loaded, _ = self.trained
        model = loaded.recipe.model
        model.weights = self.weights
        return model

    @property
    def weights(self) -> Vector:
        """Return the evaluated weights, a flat vector; see ``Layout``."""
        return calibrated_weights(*self.trained)

    def state_dict(self) -> Any:
        """Return the trained arrays by name, or what the recipe's ``state_dict`` makes of them.

        With ``dist_net.adapters`` they are the module's state dict, or the tree of parameters.
        """
        recipe = self.trained[0].recipe
        own = recipe.state_dict or recipe.layout.views
        return own(self.weights)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the name of each class; empty for a model that predicts numbers."""
        return RecipeRecord.from_json(self.trained[1].recipe_record).class_names

    def predict(self, inputs: Batch) -> NDArray[np.float32]:
        """Return the outputs, (N, *output_shape), of inputs, (N, *input_shape); see ``Model``."""
        return self.model.predict(inputs)

    def evaluate(
        self, samples: tuple[Values, Values] | None = None, progress: Progress | None = None
    ) -> Evaluation:
        """Return the model's loss and accuracy on ``samples``, a pair of inputs and targets.

        The default is the run's own test samples, downloaded if necessary and reported to
        ``progress``. A run on a folder without test/ returns its figures out of fold.
        """
        loaded, _ = self.trained
        if samples is None and (judged := read_out_of_fold(self.path)) is not None:
            labels, answers, loss = judged
            return Evaluation(loss, len(labels), self.model.classes, labels, answers)
        if samples is None:
            dataset = read_held_out(self.path, loaded) or loaded.recipe.load_dataset(progress)
        else:
            dataset = dataset_of(self.model, *samples)
            loaded.recipe.require_dataset(dataset)
        evaluation = evaluate_recipe(loaded.recipe, dataset)(self.weights)
        if evaluation is None:
            raise ModelSourceError(
                f"the recipe of {self.path} has no evaluate function and no network; expected one"
            )
        return evaluation


def load(path: str | Path, *, trust_recipe: bool = False) -> Run | OnnxSession:
    """Return the trained model in a run directory, in a checkpoint file, or in an ONNX file.

    A run's own ``recipe.py`` is Python code, which runs only if the user trusts it, for example by
    ``trust_recipe``, the ``--trust-recipe`` of the commands. Raise BadInputError if the run does
    not exist, is damaged, or its recipe is not trusted.
    """
    named = parse_named_source(str(path))
    if Path(named.source).suffix == ".onnx":
        found = OnnxFile(Path(named.source), None, named.pixels).read()
        assert isinstance(found.model, ForeignModel)
        return OnnxSession(found.model, found.prepared, available_cores())
    return load_run(path, trust_recipe=trust_recipe)


def load_run(path: str | Path, *, trust_recipe: bool = False) -> Run:
    """Return the run in a directory or checkpoint file; see ``load``."""
    run = Run(path, trust_recipe=trust_recipe)
    try:
        run.trained  # noqa: B018 - raises the errors of reading
    except UntrustedRecipeError as error:
        error.add_note(f"in Python: dist_net.load({str(path)!r}, trust_recipe=True)")
        raise
    return run


class WatchedTraining(TrainingProgress):
    """Shows a run, records its history, and calls the callbacks, which may end the run."""

    def __init__(self, console: Console, callbacks: Sequence[Callback]) -> None:
        super().__init__(console)
        self._callbacks = callbacks
        self._records: list[dict[str, Any]] = []
        self.history = History()

    def progressed(self, report: dict[str, Any]) -> None:
        super().progressed(report)
        self._records += report["records"]

    def evaluated(self, samples: int, evaluation: Evaluation) -> None:
        super().evaluated(samples, evaluation)
        records, self._records = self._records, []
        losses = [each["loss"] for each in records] or [float("nan")]
        accuracies = [each["accuracy"] for each in records if each["accuracy"] is not None]
        result = EpochResult(
            int(samples // self._samples_per_epoch),
            float(np.mean(losses)),
            float(np.mean(accuracies)) if accuracies else None,
            evaluation,
        )
        self.history.append(result)
        if is_ended_by(self._callbacks, result):
            self.wants_end = True


class RecipeKeywords(TypedDict, total=False):
    """The options of ``train``: the fields of ``RunOptions``."""

    epochs: int | None
    batch_size: int | None
    optimizer: Optimizer | str | None
    learning_rate: float | None
    weight_decay: float | None
    clip_norm: float | None
    average_decay: float | None
    consistency: str
    local_steps: int | Literal["auto"] | None
    seed: int
    checkpoint_every_s: float
    keep_checkpoints: int
    sync: str
    bits: str
    keeps_best: bool | None
    patience: int | None
    tensorboard: bool


class TrainKeywords(RecipeKeywords, total=False):
    """The options of ``train``, with those for a folder of images: see ``ImageOptions``."""

    base: str
    labels_csv: str | None
    validation: float
    fine_tune: int | Literal["auto"]
    views: int
    precision: float
    cache_bytes: int
    group_by: str | None
    groups: bool
    flip: bool
    rotate: float
    zoom: float
    colour_changes: bool
    fitting: str | None
    engine: str


def train(
    recipe: str | Path,
    *,
    workers: int = 2,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    start_timeout_s: float = START_TIMEOUT_S,
    **options: Unpack[TrainKeywords],
) -> Run:
    """Train a recipe in a cluster of processes on this host, as ``dist-net train`` does.

    ``recipe`` is the name of a built-in recipe, the path of a Python file, or a folder of images.
    ``options`` are the fields of ``RunOptions``, such as ``epochs``, ``batch_size``, ``optimizer``,
    ``learning_rate`` and ``seed``, and for a folder also of ``ImageOptions``.
    ``callbacks`` are called after each evaluation; the run ends when one returns True.
    Progress is shown on stderr, unless ``quiet``. The server may load for any time while it reports
    progress; ``start_timeout_s`` limits its silence.

    Raise BadInputError for unusable input, InterruptedRunError on Ctrl+C, which leaves a
    checkpoint, and ProcessFailedError if the server or every worker has failed.
    """
    if not isinstance(recipe, str | Path):
        raise RecipeError(
            f"a {type(recipe).__name__} cannot be sent to other processes; expected the name of a "
            f"recipe or the path of its file. LocalCluster trains a Recipe in threads"
        )
    console = plain_console(quiet=quiet)
    is_folder = str(recipe) not in recipe_names() and Path(recipe).is_dir()
    of_recipe = RecipeKeywords.__annotations__.keys()
    known = TrainKeywords.__annotations__ if is_folder else of_recipe
    refuse_options("train", options.keys() - known, [*(train.__kwdefaults__ or ()), *known])
    of_run: dict[str, Any] = {name: options.get(name) for name in options.keys() & of_recipe}
    if (optimizer := of_run.get("optimizer")) is not None:
        of_run["optimizer"] = str(optimizer_named(optimizer))  # for other processes
    directory = None if run_dir is None else Path(run_dir)
    workers = whole("workers", workers)
    require_callbacks(callbacks)
    local = LocalRunSettings(workers, start_timeout_s=start_timeout_s)
    display = WatchedTraining(console, callbacks)
    if is_folder:
        own: dict[str, Any] = {name: options.get(name) for name in options.keys() - of_recipe}
        of_images = ImageOptions(str(Path(recipe).resolve()), RunOptions(IMAGES, **of_run), **own)
        run = new_run(directory, of_images)
        with run.locked():
            report = train_and_report(run, of_images, local, console, display)
    else:
        loaded = load_recipe(str(recipe))
        prepared = PreparedRun.read(loaded, RunOptions(loaded.reference, **of_run), console)
        run = RunDirectory.create(directory, loaded.name, datetime.now())
        report = prepared.train(run, local, console, display)
    return Run(run.path, report, display.history)
