"""Training by a cluster of processes on this host, from Python: ``train``, and what it returns."""

from collections.abc import Sequence
from datetime import datetime
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from rich.console import Console

from dist_net.errors import RecipeError
from dist_net.ground.spelling import explained, refuse_options
from dist_net.nets.recipe_origins import is_image_folder
from dist_net.nets.recipes.image_recipe import IMAGES
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources.found_model import RunFiles
from dist_net.optim import Optimizer, optimizer_named
from dist_net.optim.ranges import whole
from dist_net.photos.image_options import ImageOptions, new_run
from dist_net.photos.image_report import train_and_report
from dist_net.processes.terminal import plain_console
from dist_net.python.loaded_model import Run
from dist_net.training.run.callbacks import (
    Callback,
    EpochResult,
    History,
    is_ended_by,
    require_callbacks,
    require_monitors,
)
from dist_net.training.run.evaluation import Evaluation
from dist_net.training.run.local_run import START_TIMEOUT_S, LocalRunSettings, RunHost
from dist_net.training.run.prepared_run import PreparedRun
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.training_progress import TrainingProgress

HERE = "A Model is trained on arrays by dist_net.fit(model, inputs, targets)"


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
        epoch = int(samples // self._samples_per_epoch)
        accuracy = float(np.mean(accuracies)) if accuracies else None
        result = EpochResult(epoch, float(np.mean(losses)), accuracy, evaluation)
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
    takeover_after_s: float
    minority: str
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
    images: bool
    fitting: str | None
    engine: str


@explained(f"train(recipe), with options by name. {HERE}")
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
            f"recipe or the path of its file. LocalCluster trains a Recipe in threads. {HERE}"
        )
    console = plain_console(quiet=quiet)
    is_folder = is_image_folder(recipe)
    of_recipe = RecipeKeywords.__annotations__.keys()
    known = TrainKeywords.__annotations__ if is_folder else of_recipe
    refuse_options("train", options.keys() - known, [*signature(train).parameters, *known])
    of_run: dict[str, Any] = {name: options.get(name) for name in options.keys() & of_recipe}
    if (optimizer := of_run.get("optimizer")) is not None:
        of_run["optimizer"] = str(optimizer_named(optimizer))  # for other processes
    directory = None if run_dir is None else Path(run_dir)
    workers = whole("workers", workers)
    require_callbacks(callbacks)
    require_monitors(callbacks)
    local = LocalRunSettings(workers, start_timeout_s=start_timeout_s)
    display = WatchedTraining(console, callbacks)
    if is_folder:
        own: dict[str, Any] = {name: options.get(name) for name in options.keys() - of_recipe}
        of_images = ImageOptions(str(Path(recipe).resolve()), RunOptions(IMAGES, **of_run), **own)
        run = new_run(directory, of_images)
        report = train_and_report(of_images, RunHost(run, local, display))
    else:
        loaded = load_recipe(str(recipe))
        prepared = PreparedRun.read(loaded, RunOptions(loaded.reference, **of_run), console)
        run = RunDirectory.create(directory, loaded.name, datetime.now())
        report = prepared.train(RunHost(run, local, display))
    return Run(RunFiles(run.path), report=report, history=display.history)
