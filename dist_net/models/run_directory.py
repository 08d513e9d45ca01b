"""A run's directory: its files, the options that the run was started with, its trained model."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from dist_net.data import Dataset
from dist_net.data.samples import samples_of
from dist_net.errors import (
    CheckpointMissingError,
    DatasetError,
    RecipeChangedError,
    RecipeError,
    RunDirectoryError,
    SettingError,
)
from dist_net.files import replacing
from dist_net.models.calibration import Calibration
from dist_net.models.event_files import EventFiles
from dist_net.optim import AdamW, Optimizer, optimizer_named
from dist_net.parameter_server.checkpoint import Checkpoint, read_checkpoint
from dist_net.parameter_server.consistency import Consistency
from dist_net.parameter_server.journal import NEVER, sync_interval_s
from dist_net.parameter_server.settings import LEASE_MINIBATCHES, RunSettings
from dist_net.recipes.picture_data import load_pictures
from dist_net.recipes.picture_recipe import PICTURES, RECIPE_JSON, PictureRecipe
from dist_net.recipes.recipe import (
    LoadedRecipe,
    RecipeRecord,
    load_recipe,
    load_recipe_copy,
    recipe_names,
)
from dist_net.recipes.recipe_files import RECIPE_FILE, sha256
from dist_net.spelling import closest
from dist_net.vector import Vector

logger = logging.getLogger(__name__)

DEFAULT_PARENT = Path("runs")
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
POLL_S = 0.05
UNREADABLE = OSError, ValueError, TypeError, RecursionError
"""What reading JSON raises, and taking it for what it should be."""


class RunDirectory:
    """The files of one run.

    checkpoint.safetensors  the weights, the optimizer's state, and what is left to do
    journal                 what was applied, in order; see ``dist_net.parameter_server.journal``
    best.safetensors        the weights that did best on the test samples, if they are kept
    options.json            what the run was asked to be
    recipe.py               the recipe, if it is not built in, with the files that it imports
    recipe.json             the recipe of a folder of pictures, which is data
    initial.npy             the weights that training began with, if they were there before
    metrics.jsonl           a line for each twentieth of an epoch, and for each evaluation
    training.png            loss, accuracy and staleness over epochs
    confusion.png           the confusion matrix
    tensorboard/            the metrics as TensorBoard reads them, if that is asked for

    And of a run on a folder of pictures:

    folder.json             what the run was asked to be
    pictures.json           the pictures, and where they are prepared on this host
    skipped.csv             the files that are not used, and why
    head/                   the run that trained the head on the base's features
    calibration.json        see ``dist_net.models.calibration``
    held_out.npy, .json     pictures that were not trained on, by which it can be evaluated
    report.html, .png, .json

    And of every run:

    logs/                   the output of each process
    lock                    held by the processes that write here; says which one took it
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.safetensors"
        self.journal = path / "journal"
        self.best = path / "best.safetensors"
        self.options = path / "options.json"
        self.recipe = path / RECIPE_FILE
        self.picture_recipe = path / RECIPE_JSON
        self.initial = path / "initial.npy"
        self.metrics = path / "metrics.jsonl"
        self.folder = path / "folder.json"
        self.pictures = path / "pictures.json"
        self.skipped = path / "skipped.csv"
        self.head = path / "head"
        self.calibration = path / "calibration.json"
        self.held_out = path / "held_out.npy"
        self.report = path / "report.html"
        self.training_plot = path / "training.png"
        self.confusion_plot = path / "confusion.png"
        self.logs = path / "logs"
        self._event_files: EventFiles | None = None
        self._lock = path / "lock"
        self.lock_descriptors: tuple[int, ...] = ()

    @classmethod
    def create(cls, path: Path | None, recipe_name: str, now: datetime) -> RunDirectory:
        """A new directory: ``path``, or one under ``runs/`` named by recipe and time.

        Raises RunDirectoryError where there is a run already, or nothing can be written.
        """
        if path is None:
            path = DEFAULT_PARENT / f"{recipe_name}-{now:%Y%m%d-%H%M%S}"
            for number in range(2, 100):
                if not path.exists():
                    break
                path = path.with_name(f"{recipe_name}-{now:%Y%m%d-%H%M%S}-{number}")
        directory = cls(path)
        if any(file.exists() for file in (directory.trained, directory.metrics, directory.folder)):
            if directory._lock.exists():
                with directory.locked():  # raises if the run is going on
                    pass
            raise RunDirectoryError(
                f"{path} holds a run already; choose another --run-dir, or go on with it: --resume"
            )
        directory.make()
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The directory of a run that was started before; raises RunDirectoryError."""
        directory = cls(path)
        if not (directory.options.is_file() or directory.folder.is_file()):
            hint = run_meant(path) or "expected one that 'dist-net train' left"
            raise RunDirectoryError(f"{path} is no run directory: no options.json in it; {hint}")
        directory.make()
        return directory

    @classmethod
    def newest(cls, has_model: bool = True) -> RunDirectory:
        """The run under ``runs/`` that was written to last; raises RunDirectoryError.

        Without ``has_model`` it may be a run on a folder that has no model yet.
        """
        written_s: dict[float, RunDirectory] = {}
        for run in map(cls, DEFAULT_PARENT.glob("*")):
            for file in (run.trained,) if has_model else (run.trained, run.folder):
                if file.is_file():
                    written_s[file.stat().st_mtime] = run
        if not written_s:
            raise RunDirectoryError(
                f"no run with a checkpoint in {DEFAULT_PARENT}/; expected one that "
                f"'dist-net train' left there, or name its directory"
            )
        return written_s[max(written_s)]

    def make(self) -> None:
        """Makes the directory, unless it is there; raises RunDirectoryError."""
        with self._translated_errors():
            is_new = not self.path.exists()
            self.logs.mkdir(parents=True, exist_ok=True)
            if is_new:  # whatever the umask: code may be kept in it
                self.path.chmod(self.path.stat().st_mode & ~WRITABLE_BY_OTHERS)

    @property
    def head_run(self) -> RunDirectory:
        """The directory of the run that trains the head, under the lock of this one."""
        run = RunDirectory(self.head)
        run.lock_descriptors = self.lock_descriptors
        return run

    @property
    def trained(self) -> Path:
        """The file of the weights to use: the best, if they are kept, else the last."""
        return self.best if self.best.exists() else self.checkpoint

    @contextmanager
    def locked(self, patience_s: float = 0.0) -> Iterator[None]:
        """A context in which nobody else can start a run here.

        A child that inherits ``lock_descriptors`` holds the lock too, for as long as it runs.
        Raises RunDirectoryError, which names the holder, if the lock is not free within
        ``patience_s``.
        """
        with ExitStack() as stack:
            with self._translated_errors():
                file = stack.enter_context(self._lock.open("a+", encoding="utf-8"))
                self._take(file, time.monotonic() + patience_s)
            self.lock_descriptors = (file.fileno(),)
            yield

    def _take(self, file: IO[str], deadline_s: float) -> None:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    file.seek(0)
                    raise RunDirectoryError(
                        f"{self.path} is in use by {file.read().strip() or 'another process'}; "
                        f"wait until its run has ended, or choose another --run-dir"
                    ) from None
                time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()

    def begin(self, options: RunOptions, recipe_files: Mapping[str, bytes]) -> None:
        """Writes the options and the recipe's files, which are code that is run later.

        Event files for TensorBoard, if that is asked for, take the place of those from before.
        """
        self.write(self.options, options.to_json() + "\n")
        if options.tensorboard:
            with self._translated_errors():
                self._event_files = EventFiles(self.path / "tensorboard")
        for name, content in recipe_files.items():
            with self.replacing(self.path / name) as file:
                file.write_bytes(content)
                file.chmod(file.stat().st_mode & ~WRITABLE_BY_OTHERS)

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """A file to write, which takes the place of one of the run's when it is whole.

        Raises RunDirectoryError where it cannot be written.
        """
        with self._translated_errors(), replacing(path) as partial:
            yield partial

    def write(self, path: Path, text: str) -> None:
        """Writes one of the files as UTF-8; bytes of names that are no text stay legible.

        Raises RunDirectoryError.
        """
        with self.replacing(path) as file:
            file.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")

    def save(self, path: Path, array: NDArray[Any]) -> None:
        """Writes an array as one of the run's files; raises RunDirectoryError."""
        with self.replacing(path) as partial, partial.open("wb") as file:
            np.save(file, array)

    def append_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        with self._translated_errors(), self.metrics.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record) + "\n")
                if self._event_files is not None:
                    self._event_files.append(record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every record; none if there is no file.

        A last line that was cut short, because its writer was killed, is left out.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write the run directory {self.path}: {error.strerror}; expected a "
                f"directory that is yours, or that can be made, on a disk with room"
            ) from error


def _runs_in(parent: Path) -> list[RunDirectory]:
    """The runs in this directory that have a model by now."""
    runs = map(RunDirectory, parent.glob("*"))
    return [run for run in runs if run.trained.is_file()]


def run_meant(path: Path) -> str:
    """``did you mean DIR?``, a run beside this path or in the default place; nothing if none."""
    runs = [run.path for parent in {path.parent, DEFAULT_PARENT} for run in _runs_in(parent)]
    name = closest(path.name, [run.name for run in runs])
    return next((f"did you mean {run}?" for run in runs if run.name == name), "")


@dataclass(frozen=True)
class RunOptions:
    """The options of a run: its recipe, and what the command line changes of that.

    Options that are None are the recipe's own. ``keeps_best``: see ``BestWeights``, which the
    ``patience`` is for; ``consistency``: see ``Consistency``; ``sync``: see ``sync_interval_s``;
    ``tensorboard``: see ``EventFiles``. ``recipe_files`` are the digests of the recipe's files in
    the run directory; a built-in recipe has none there.
    """

    recipe: str
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    average_decay: float | None = None
    consistency: str = "async"
    lease_minibatches: int = LEASE_MINIBATCHES
    seed: int = 0
    checkpoint_every_s: float = 30.0
    sync: str = NEVER
    keeps_best: bool = False
    patience: int | None = None
    tensorboard: bool = False
    recipe_files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Consistency.of(self.consistency)
        for name in ("epochs", "batch_size"):
            if (whole := getattr(self, name)) is not None and not whole >= 1:
                raise SettingError(f"{name}={whole}: expected a whole number, at least 1")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise SettingError(
                f"learning_rate={self.learning_rate}: expected a finite number above 0"
            )
        if self.seed < 0:
            raise SettingError(f"seed={self.seed}: expected a whole number, 0 or above")
        if not self.checkpoint_every_s > 0:
            raise SettingError(
                f"checkpoint_every_s={self.checkpoint_every_s:g}: expected a number of seconds "
                f"above 0"
            )
        sync_interval_s(self.sync)
        if self.patience is not None and self.patience < 1:
            raise SettingError(
                f"patience={self.patience}: expected a number of evaluations above 0"
            )

    def settings(self, loaded: LoadedRecipe, dataset: Dataset) -> RunSettings:
        """The run's settings; raises SettingError or UnknownOptimizerError."""
        recipe, targets = loaded.recipe, samples_of(dataset.train_targets)
        given = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": self._optimizer(recipe.optimizer),
            "learning_rate": self.learning_rate,
            "clip_norm": self.clip_norm,
            "average_decay": self.average_decay,
        }
        chosen: dict[str, Any] = {
            name: getattr(recipe, name) if value is None else value for name, value in given.items()
        }
        return RunSettings(
            recipe=loaded.reference,
            recipe_digest=loaded.digest(dataset),
            recipe_record=RecipeRecord.of(loaded, dataset).to_json(),
            layout=recipe.model.layout.shapes,
            momenta=recipe.model.layout.momenta,
            samples=len(dataset.train_targets),
            has_classes=recipe.model.classifies(targets.shape, targets.dtype),
            lease_minibatches=self.lease_minibatches,
            seed=self.seed,
            schedule=recipe.schedule,
            consistency=Consistency.of(self.consistency),
            **chosen,
        )

    def _optimizer(self, of_recipe: Optimizer) -> Optimizer:
        chosen = of_recipe if self.optimizer is None else optimizer_named(self.optimizer)
        if self.weight_decay is None:
            return chosen
        if not isinstance(chosen, AdamW):
            raise SettingError(
                f"weight_decay={self.weight_decay:g} for {type(chosen).__name__}, which has none; "
                f"expected the optimizer adamw"
            )
        return replace(chosen, weight_decay=self.weight_decay)

    def replaced_by(self, **given: Any) -> Self:
        """These options with those of ``given`` that are not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What ``to_json`` wrote; raises RunDirectoryError if it is something else."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise RunDirectoryError(f"not a run's options: {text[:80]!r} ({error})") from error


def load_trained(path: Path, trust_recipe: bool = False) -> tuple[LoadedRecipe, Checkpoint]:
    """The recipe and the checkpoint of the run directory or checkpoint file at ``path``.

    A recipe is either built in, or Python code in the run directory. That is run only if it has
    the digests that the checkpoint names, and if only this user can have written it or it is
    trusted. No other code is run, whatever the checkpoint says.

    Raises what reading either raises, and CheckpointMismatchError where they do not fit together.
    """
    if not path.exists() and (hint := run_meant(path)):
        raise CheckpointMissingError(f"there is no run and no checkpoint {path}; {hint}")
    file = RunDirectory(path).trained if path.is_dir() else path
    checkpoint = read_checkpoint(file)
    record = RecipeRecord.from_json(checkpoint.recipe_record)
    loaded = _recipe(RunDirectory(file.parent), checkpoint.recipe, record.files, trust_recipe)
    if record.files and loaded.file_digests != record.files:
        logger.warning(
            "the recipe %s has changed in this release of dist_net since %s was trained",
            loaded.name,
            file,
        )
    checkpoint.require_layout(loaded.recipe.model.layout.shapes)
    return loaded, checkpoint


def calibration_of(path: Path) -> Calibration | None:
    """The calibration in the directory of a run, or of a checkpoint; None if there is none.

    Raises RunDirectoryError for a file that is something else.
    """
    file = RunDirectory(path if path.is_dir() else path.parent).calibration
    if not file.exists():
        return None
    try:
        return Calibration(**json.loads(file.read_text(encoding="utf-8")))
    except UNREADABLE as error:
        raise RunDirectoryError(
            f"{file}: {error}; expected what training wrote: temperature, threshold and precision"
        ) from error


def calibrated_weights(path: Path, loaded: LoadedRecipe, checkpoint: Checkpoint) -> Vector:
    """The weights to use of what ``load_trained`` read, with probabilities that are calibrated."""
    weights = checkpoint.evaluated_weights
    calibration = calibration_of(path)
    if loaded.reference != PICTURES or calibration is None:
        return weights
    return picture_recipe_of(loaded).tempered(weights, calibration.temperature)


def picture_recipe_of(loaded: LoadedRecipe) -> PictureRecipe:
    """The data that a recipe of pictures was built from."""
    return PictureRecipe.from_json(loaded.files[RECIPE_JSON])


def held_out_of(path: Path, loaded: LoadedRecipe) -> Dataset | None:
    """The pictures that a run on a folder keeps to be evaluated by; None if it keeps none.

    They are both parts of the dataset. Raises RunDirectoryError if they are damaged.
    """
    file = RunDirectory(path if path.is_dir() else path.parent).held_out
    if loaded.reference != PICTURES or not file.exists():
        return None
    try:
        pictures = np.lib.format.open_memmap(file, mode="r")  # unlike np.load, never of a zip file
        told = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        labels = np.array(told["labels"], np.int64)
        names = picture_recipe_of(loaded).class_names
        shape = loaded.recipe.input_shape
        if pictures.dtype != np.uint8 or pictures.shape[1:] != shape:
            raise ValueError(f"pictures of {pictures.dtype}{[*pictures.shape[1:]]}, not {[*shape]}")
        return Dataset(loaded.name, pictures, labels, pictures, labels, names)
    except (*UNREADABLE, KeyError, OverflowError, DatasetError) as error:
        raise RunDirectoryError(
            f"{file}: {error}; expected the pictures that training kept: copy the run again"
        ) from error


def recipe_of_run(directory: RunDirectory) -> LoadedRecipe:
    """The recipe of a run that was just started, for its own processes; raises RecipeError."""
    options = RunOptions.from_json(directory.options.read_text())
    return _recipe(directory, options.recipe, options.recipe_files, trust_recipe=True)


def _recipe(
    directory: RunDirectory, reference: str, digests: Mapping[str, str], trust_recipe: bool
) -> LoadedRecipe:
    if reference in recipe_names():
        return load_recipe(reference)
    if reference == PICTURES:
        return _picture_recipe(directory, digests)
    return load_recipe_copy(directory.recipe, reference, digests, trust_recipe)


def _picture_recipe(directory: RunDirectory, digests: Mapping[str, str]) -> LoadedRecipe:
    """A recipe that is data, with weights that were there before, if it begins with such."""
    path = directory.picture_recipe
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeChangedError(
            f"{path}: {error.strerror}; expected the recipe that was trained: copy the whole "
            f"directory of the run"
        ) from error
    if digests and digests.get(RECIPE_JSON) != sha256(content):
        raise RecipeChangedError(
            f"{path} has changed since it was trained; expected it as it was then"
        )
    recipe = PictureRecipe.from_json(content)
    initial = partial(_initial_weights, directory.initial) if directory.initial.exists() else None
    return recipe.loaded(load_pictures, initial)


def _initial_weights(path: Path) -> Vector:
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")  # as long as its file, whatever it says
        if mapped.ndim != 1 or mapped.dtype != np.float32:
            raise ValueError(f"{mapped.dtype}{[*mapped.shape]}")
    except (OSError, ValueError, OverflowError) as error:
        raise RecipeError(
            f"{path}: {error}; expected the float32 vector of weights that the run began with"
        ) from error
    return np.array(mapped)
