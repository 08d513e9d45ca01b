"""A run's directory: its files, each written whole or not at all, and its lock."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import RunDirectoryError
from dist_net.files import replacing
from dist_net.nets.event_files import EventFiles
from dist_net.nets.late_files import LateFiles
from dist_net.nets.recipes.image_recipe import RECIPE_JSON
from dist_net.nets.recipes.recipe_files import RECIPE_FILE
from dist_net.spelling import closest

DEFAULT_PARENT = Path("runs")
POLL_S = 0.05
RUNS_NAMED = 5
KEYS = "keys"
UNREADABLE = OSError, ValueError, TypeError, RecursionError
"""What reading JSON raises, and taking it for what it should be."""


class RunDirectory:
    """The files of one run.

    checkpoint.safetensors  the weights, the optimizer's state, and what is left to do
    checkpoint-version-N.safetensors    those before it, by version
    journal                 what was applied, in order; see ``dist_net.training.server.journal``
    best.safetensors        the weights that did best on the test samples, if they are kept
    options.json            what the run was asked to be
    recipe.py               the recipe, if it is not built in, with the files that it imports
    recipe.json             the recipe of a folder of images, which is data
    initial.npy             the weights that training began with, if they were there before
    metrics.jsonl           a line for each twentieth of an epoch and each evaluation; if epochs are
                            short, for each 1000th of the run's time at the most
    training.png            loss, accuracy and staleness over epochs
    confusion.png           the confusion matrix
    tensorboard/            the metrics as TensorBoard reads them, if that is asked for

    And of a run on a folder of images:

    folder.json             what the run was asked to be
    pictures.json           the images, and where they are prepared on this host
    manifest.json           the images for other hosts, if they may join: see ImageManifest
    skipped.csv             the files that are not used, and why
    head/                   the run that trained the head on the base's features
    calibration.json        see ``dist_net.nets.calibration``
    held_out.npy, .json     images that were not trained on, by which it can be evaluated
    report.html, .png, .json

    And of every run:

    keys/                   the keys of a server that listens beyond this host
    logs/                   the output of each process
    owner                   the parameter server that was started last; see ``RunOwnership``
    lock                    held by the processes that write here; says which one took it
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.safetensors"
        self.journal = path / "journal"
        self.best = path / "best.safetensors"
        self.options = path / "options.json"
        self.recipe = path / RECIPE_FILE
        self.image_recipe = path / RECIPE_JSON
        self.initial = path / "initial.npy"
        self.metrics = path / "metrics.jsonl"
        self.folder = path / "folder.json"
        self.images = path / "pictures.json"
        self.manifest = path / "manifest.json"
        self.skipped = path / "skipped.csv"
        self.head = path / "head"
        self.calibration = path / "calibration.json"
        self.held_out = path / "held_out.npy"
        self.report = path / "report.html"
        self.training_plot = path / "training.png"
        self.confusion_plot = path / "confusion.png"
        self.keys = path / KEYS
        self.logs = path / "logs"
        self.owner = path / "owner"
        self._event_files: EventFiles | None = None
        self._late_files = LateFiles()
        self._lock = path / "lock"
        self._is_made = False
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
            hint = suggest_runs(path) or "expected one that 'dist-net train' left"
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
            self._is_made |= not self.path.exists()
            self.logs.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Remove a run that was refused before it began, unless the directory was there before."""
        if self._is_made:
            shutil.rmtree(self.path, ignore_errors=True)

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
                # Without a buffer, which would be written again, and fail again, at the end.
                file = stack.enter_context(self._lock.open("a+b", buffering=0))
                self._take(file, time.monotonic() + patience_s)
            self.lock_descriptors = (file.fileno(),)
            yield

    def _take(self, file: IO[bytes], deadline_s: float) -> None:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    file.seek(0)
                    holder = file.read().decode(errors="replace").strip()
                    raise RunDirectoryError(
                        f"{self.path} is in use by {holder or 'another process'}; "
                        f"wait until its run has ended, or choose another --run-dir"
                    ) from None
                time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def begin(
        self, options: str, recipe_files: Mapping[str, bytes], tensorboard: bool = False
    ) -> None:
        """Write the options, a JSON object, and the recipe's files.

        With ``tensorboard``, replace the event files for TensorBoard.
        """
        self.write(self.options, options + "\n")
        if tensorboard:
            with self._translated_errors():
                self._event_files = EventFiles(self.path / "tensorboard")
        for name, content in recipe_files.items():
            with self.replacing(self.path / name) as file:
                file.write_bytes(content)

    def recipe_of_options(self) -> tuple[str, dict[str, str]]:
        """Return the recipe's reference, and the digests of its files, as the options state them.

        Raises RunDirectoryError.
        """
        text = self.options.read_text()
        try:
            options = json.loads(text)
            return str(options["recipe"]), dict(options.get("recipe_files", {}))
        except (*UNREADABLE, KeyError, AttributeError) as error:
            raise RunDirectoryError(f"not a run's options: {text[:80]!r} ({error})") from error

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
        """Adds records, and those that could not be written before; see ``metrics_error``.

        Raises RunDirectoryError when there are too many of these.
        """
        for record in records:
            self._late_files.append(self.metrics, _line(record))
            if self._event_files is not None:
                self._late_files.append(*self._event_files.appended(record))
        self._late_files.write()
        if self._late_files.is_given_up:
            raise RunDirectoryError(f"too much has to be kept in memory: {self.metrics_error}")

    @property
    def metrics_error(self) -> str | None:
        """Why metrics wait in memory to be written; None: none do."""
        error = self._late_files.error
        if error is None:
            return None
        return (
            f"{self.metrics} cannot be written: {error.strerror}; expected a directory that is "
            f"writable, on a disk with room"
        )

    def replace_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes these in the place of all; raises RunDirectoryError, and leaves the old ones."""
        records = list(records)
        with self.replacing(self.metrics) as file:
            file.write_bytes(b"".join(map(_line, records)))
        if self._event_files is not None:
            for record in records:
                self._late_files.append(*self._event_files.appended(record))
            self._late_files.write()

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


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def suggest_runs(path: Path) -> str:
    """Return a hint at the runs in or beside this path or in the default place, or "".

    ``did you mean DIR?``, or else the newest runs with a model.
    """
    nearby = {path, path.parent, DEFAULT_PARENT}
    runs = [RunDirectory(each) for parent in nearby for each in parent.glob("*")]
    written_s = {run.path: run.trained.stat().st_mtime for run in runs if run.trained.is_file()}
    name = closest(path.name, [run.name for run in written_s])
    for run in written_s:
        if run.name == name:
            return f"did you mean {run}?"
    newest = sorted(written_s, key=written_s.__getitem__, reverse=True)[:RUNS_NAMED]
    return f"runs nearby, newest first: {', '.join(map(str, newest))}" if newest else ""
