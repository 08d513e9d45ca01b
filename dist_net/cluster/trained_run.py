"""Training by a cluster of processes on this host, from Python: ``train``, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dist_net.cluster.local_run import LocalRun, LocalRunSettings, summarise
from dist_net.cluster.picture_report import train_and_report
from dist_net.cluster.picture_run import PictureOptions, new_run
from dist_net.cluster.terminal import FetchProgress, TrainingProgress, plain_console
from dist_net.errors import UnknownRecipeError
from dist_net.models.bases import default_base
from dist_net.models.best_weights import BestWeights
from dist_net.models.run_directory import RunDirectory
from dist_net.models.run_options import RunOptions
from dist_net.models.trained_model import load_trained
from dist_net.nn import Model
from dist_net.nn.model import Batch
from dist_net.parameter_server.consistency import Consistency
from dist_net.recipes.picture_recipe import PICTURES
from dist_net.recipes.recipe import load_recipe, recipe_names
from dist_net.training.evaluation import Evaluation
from dist_net.training.single_process import Callback, EpochResult


class Run:
    """A run that has ended: ``path`` is its directory, which the commands of ``dist-net`` take too.

    ``report`` has the keys of ``dist-net train --json``. ``history`` has a result for each
    evaluation, which short epochs share: its loss and accuracy are means of the training since the
    one before, its ``validation`` is on the test samples.
    """

    def __init__(self, path: Path, report: dict[str, Any], history: Sequence[EpochResult]) -> None:
        self.path = path
        self.report = report
        self.history = list(history)

    @cached_property
    def model(self) -> Model:
        """The trained model, with the weights that the run is evaluated by."""
        loaded, checkpoint = load_trained(self.path)
        model = loaded.recipe.model
        model.weights = checkpoint.evaluated_weights
        return model

    def predict(self, inputs: Batch) -> NDArray[np.float32]:
        """The outputs, (N, *output_shape), of ``inputs``, (N, *input_shape); see ``Model``."""
        return self.model.predict(inputs)


class WatchedTraining(TrainingProgress):
    """Shows a run, makes its history, and calls the callbacks, which may end it."""

    def __init__(
        self, console: Console, samples_per_epoch: int, callbacks: Sequence[Callback]
    ) -> None:
        super().__init__(console, samples_per_epoch, joining=None)
        self._callbacks = callbacks
        self._records: list[dict[str, Any]] = []
        self.history: list[EpochResult] = []

    def progressed(self, report: dict[str, Any]) -> None:
        """Moves the live line, and keeps what the next evaluation is put beside."""
        super().progressed(report)
        self._records += report["records"]

    def evaluated(self, samples: int, evaluation: Evaluation) -> None:
        """Says how the weights do on the test samples, and calls the callbacks."""
        super().evaluated(samples, evaluation)
        records, self._records = self._records, []
        losses = [each["loss"] for each in records] or [float("nan")]
        accuracies = [each["accuracy"] for each in records if each["accuracy"] is not None]
        result = EpochResult(
            samples // self._samples_per_epoch,
            float(np.mean(losses)),
            float(np.mean(accuracies)) if accuracies else None,
            evaluation,
        )
        self.history.append(result)
        wishes = [callback(result) for callback in self._callbacks]
        self.wants_end = self.wants_end or True in wishes


def train(
    recipe: str | Path,
    *,
    workers: int = 2,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Trains a recipe by a cluster of processes on this host, as ``dist-net train`` does.

    ``recipe`` is the name of a built-in one, the path of a Python file, or a folder of pictures.
    ``options`` are those of ``RunOptions``, such as ``epochs``, ``batch_size``, ``optimizer``,
    ``learning_rate`` and ``seed``, and for a folder those of ``PictureOptions`` too.
    ``callbacks`` are called after each evaluation; the run ends where one returns True.
    Progress is shown on stderr, unless ``quiet``.

    Raises BadInputError for what cannot be used, InterruptedRunError on Ctrl+C, which leaves a
    checkpoint, and ProcessFailedError when the server or every worker has failed.
    """
    if not isinstance(recipe, str | Path):
        raise UnknownRecipeError(
            f"a {type(recipe).__name__} cannot be sent to other processes; expected the name of a "
            f"recipe, or the path of its file: LocalCluster trains a Recipe in threads"
        )
    console = plain_console(quiet=quiet)
    directory = None if run_dir is None else Path(run_dir)
    local = LocalRunSettings(workers)
    if "consistency" in options:  # bsp alone is a minibatch for each worker
        options["consistency"] = str(Consistency.of(options["consistency"], workers))
    if str(recipe) not in recipe_names() and Path(recipe).is_dir():
        return _train_pictures(Path(recipe), directory, local, callbacks, console, options)
    loaded = load_recipe(str(recipe))
    with FetchProgress(console) as fetching:
        dataset = loaded.recipe.load_dataset(fetching)
    chosen = RunOptions(loaded.reference, recipe_files=loaded.file_digests, **options)
    settings = chosen.settings(loaded, dataset)
    run = RunDirectory.create(directory, loaded.name, datetime.now())
    display = WatchedTraining(console, settings.samples, callbacks)
    with run.locked(), display:
        run.begin(chosen, {} if loaded.is_built_in else loaded.files)
        best = None
        if chosen.keeps_best or chosen.patience is not None:
            best = BestWeights(run.best, settings, chosen.patience)
        outcome = LocalRun(run, loaded.recipe, dataset, local, display, best).run()
    return Run(run.path, summarise(loaded.name, run, outcome), display.history)


def _train_pictures(
    folder: Path,
    directory: Path | None,
    local: LocalRunSettings,
    callbacks: Sequence[Callback],
    console: Console,
    given: dict[str, Any],
) -> Run:
    of_pictures = {each.name for each in fields(PictureOptions)}
    of_run = {name: given[name] for name in given.keys() - of_pictures}
    own = {name: given[name] for name in given.keys() & of_pictures}
    options = PictureOptions(
        **{"base": default_base(), "folder": str(folder.resolve())} | own,
        run=RunOptions(PICTURES, **of_run),
    )
    run = new_run(directory, options)
    displays: list[WatchedTraining] = []

    def display(samples: int) -> WatchedTraining:
        displays.append(WatchedTraining(console, samples, callbacks))
        return displays[-1]

    with run.locked():
        report = train_and_report(run, options, local, console, display)
    return Run(run.path, report, [result for each in displays for result in each.history])
