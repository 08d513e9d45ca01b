"""A run's directory: its files, each written whole or not at all, and its lock."""

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import RunDirectoryError
from dist_net.ground.files import replacing
from dist_net.ground.spelling import closest
from dist_net.nets.recipes.image_recipe import RECIPE_JSON
from dist_net.nets.recipes.recipe_files import RECIPE_FILE

DEFAULT_PARENT = Path("runs")
POLL_S = 0.05
RUNS_NAMED = 5
KEYS = "keys"
REPORT = "report.html"
UNREADABLE = OSError, ValueError, TypeError, RecursionError
"""The errors of reading JSON and converting its values."""


class RunDirectory:
    """The files of one run. Those of the run's processes also include ``logs/`` and ``lock``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint.safetensors"
        """Weights, optimizer's state and samples left; earlier ones are -version-N.safetensors."""
        self.best = path / "best.safetensors"
        """The weights with the best evaluation, if they are kept; the model of a folder of images,
        with its recipe and its ``Calibration``."""
        self.journal = path / "journal"  # see ``dist_net.training.server.journal_records``
        self.options = path / "options.json"
        self.recipe = path / RECIPE_FILE  # a copy, unless built in, beside files that it imports
        self.image_recipe = path / RECIPE_JSON  # of a folder of images, which is data
        self.initial = path / "initial.npy"  # the initial weights, unless the layers draw them
        self.metrics = path / "metrics.jsonl"
        """A line for each twentieth of an epoch and each evaluation; with short epochs, for each
        1000th of the run's time at most. ``tensorboard/`` has the same, with --tensorboard."""
        self.timeline = path / "timeline.jsonl"  # events, for the page: see ``RunTimeline``
        self.outcome = path / "outcome.jsonl"  # a classifier's, for the page: ``write_outcome``
        self.training_plot = path / "training.png"
        self.confusion_plot = path / "confusion.png"
        self.folder = path / "folder.json"  # the options of a run on a folder of images
        self.images = path / "pictures.json"  # the images, and where they are prepared on this host
        self.collection = path / "collection"  # the labels that people set: see ``Collection``
        self.manifest = path / "manifest.json"  # for other hosts: see ``ImageManifest``
        self.skipped = path / "skipped.csv"  # the files that are not used, with reasons
        self.held_out = path / "held_out.npy"  # images to evaluate on; .json has their labels
        self.report = path / REPORT
        self.keys = path / KEYS  # of a server that listens beyond this host
        self.cluster = path / "cluster.json"  # workers and addresses, which ``--resume`` restores
        self.logs = path / "logs"
        self.owner = path / "owner"  # the server that started last; see ``RunOwnership``
        self.standbys = path / "standbys.json"  # hosts that may continue it; see ``Remembered``
        self._lock = path / "lock"  # held by the processes that write here; names the holder
        self._is_made = False
        self.lock_descriptors: tuple[int, ...] = ()

    @classmethod
    def create(cls, path: Path | None, recipe_name: str, now: datetime) -> Self:
        """Return a new directory: ``path``, or one under ``runs/``. Raise RunDirectoryError."""
        if path is None:
            path = DEFAULT_PARENT / f"{recipe_name}-{now:%Y%m%d-%H%M%S}"
            for number in range(2, 100):
                if not path.exists():
                    break
                path = path.with_name(f"{recipe_name}-{now:%Y%m%d-%H%M%S}-{number}")
        directory = cls(path)
        if directory.has_begun or directory.folder.exists():
            if directory._lock.exists():
                with directory.locked():  # raises if the run is still active
                    pass
            raise RunDirectoryError(
                f"{path} already holds a run; choose another --run-dir, or pass --resume"
            )
        directory.make()
        return directory

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the directory of an earlier run; raise RunDirectoryError if it holds none."""
        directory = cls(path)
        if not directory.holds_run:
            hint = suggest_runs(path) or "expected a directory written by 'dist-net train'"
            raise RunDirectoryError(
                f"{path} is not a run directory: it has no options.json; {hint}"
            )
        directory.make()
        return directory

    @classmethod
    def newest(cls, has_model: bool = True) -> "RunDirectory":
        """Return the last run under ``runs/``, by default with a model. Raise RunDirectoryError."""
        if runs := newest_first({DEFAULT_PARENT}, has_model):
            return runs[0]
        raise RunDirectoryError(
            f"no run with a checkpoint in {DEFAULT_PARENT}/; expected a run of 'dist-net train', "
            f"or pass its directory"
        )

    def copy_of_term(self, term: int) -> Self:
        """Return a directory beside this one for a copy of its run; raise RunDirectoryError."""
        copy = type(self)(self.path.with_name(f"{self._name_of_run}-term-{term}"))
        if copy.checkpoint.exists():
            raise RunDirectoryError(f"{copy.path} already holds a run; move it elsewhere")
        copy.make()
        return copy

    @property
    def latest_copy(self) -> "RunDirectory":
        """The directory of the run that was written last: this one, or a copy beside it."""
        for run in newest_first({self.path.parent}, has_model=False):
            if run._name_of_run == self._name_of_run and run.standbys.exists():
                return run
        return self

    @property
    def _name_of_run(self) -> str:
        return re.sub(r"-term-\d+$", "", self.path.name)

    def forget_training(self) -> None:
        """Remove all that a parameter server wrote; the model of a folder of images remains."""
        with self.translated_errors():
            # The checkpoint last: as long as it exists, this can be repeated.
            for pattern in (
                "journal*",
                "metrics.jsonl",
                "timeline.jsonl",
                "outcome.jsonl",
                "initial.npy",
                "checkpoint*",
            ):
                for file in self.path.glob(pattern):
                    file.unlink()

    def make(self) -> None:
        """Create the directory unless it exists; raise RunDirectoryError."""
        with self.translated_errors():
            self._is_made |= not self.path.exists()
            self.logs.mkdir(parents=True, exist_ok=True)

    def discard(self) -> None:
        """Remove the directory of a run that never began, unless it existed before."""
        if self._is_made:
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def holds_run(self) -> bool:
        return self.options.is_file() or self.folder.is_file()

    @property
    def has_begun(self) -> bool:
        """Return whether a parameter server has written a checkpoint, even if it is lost."""
        return self.checkpoint.exists() or self.metrics.exists()

    @property
    def model_file(self) -> Path:
        """Return the checkpoint to use: the best, if the run keeps it by its options, or the last.

        The last checkpoint of a run on a folder is a net that is not calibrated or not chosen.
        Raise RunDirectoryError for damaged options.
        """
        if self.folder.exists():
            return self.best
        # Without its folder.json, a run on a folder is still known by its recipe.
        is_best = self.image_recipe.exists() or not self.options.exists()
        keeps_best = is_best or self._read_options()[2]
        return self.best if keeps_best and self.best.exists() else self.checkpoint

    @contextmanager
    def locked(self, patience_s: float = 0.0) -> Iterator[None]:
        """Hold the directory's lock, so that no other process can start a run in it.

        A child process that inherits ``lock_descriptors`` holds the lock until it exits. Raise
        RunDirectoryError, which names the holder, if the lock is not free within ``patience_s``.
        """
        with ExitStack() as stack:
            with self.translated_errors():
                # Unbuffered: a buffer would be written again, and fail again, on close.
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

    def begin(self, options: str, recipe_files: Mapping[str, bytes]) -> None:
        """Write the recipe's files and the options, a JSON object, with which a run can resume."""
        for name, content in recipe_files.items():
            with self.replacing(self.path / name) as file:
                file.write_bytes(content)
        self.write(self.options, options + "\n")

    def recipe_of_options(self) -> tuple[str, dict[str, str]]:
        """Return the recipe and its files' digests from the options. Raise RunDirectoryError."""
        return self._read_options()[:2]

    def _read_options(self) -> tuple[str, dict[str, str], bool]:
        """Return the recipe, its files' digests, and whether the best weights are kept."""
        try:
            options = json.loads(self.options.read_bytes())
            files = dict(options.get("recipe_files", {}))
            keeps_best = options.get("keeps_best", True) or options.get("patience")
            return str(options["recipe"]), files, bool(keeps_best)
        except (*UNREADABLE, KeyError, AttributeError) as error:
            raise RunDirectoryError(
                f"{self.options}: {error!r:.80}; expected a run's options, as training wrote them"
            ) from error

    @contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Yield a file that replaces ``path`` when it is complete; raise RunDirectoryError."""
        with self.translated_errors(), replacing(path) as partial:
            yield partial

    def write(self, path: Path, text: str) -> None:
        """Write a file as UTF-8, undecodable names escaped. Raise RunDirectoryError."""
        with self.replacing(path) as file:
            file.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")

    def save(self, path: Path, array: NDArray[Any]) -> None:
        """Write an array as one of the run's files; raise RunDirectoryError."""
        with self.replacing(path) as partial, partial.open("wb") as file:
            np.save(file, array)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the distinct records by samples, without those that were not written whole."""
        found: dict[tuple[int, str], dict[str, Any]] = {}
        for line in self.metrics.read_bytes().splitlines() if self.metrics.exists() else ():
            with suppress(ValueError):  # a process was killed; others may have gone on in its line
                record = json.loads(line[line.rfind(b'{"kind"') :])
                found[record["samples"], record["kind"]] = record
        return [found[each] for each in sorted(found)]

    def read_report(self) -> dict[str, Any]:
        """Return the content of a folder's report; {} if there is none, or it is unreadable."""
        with suppress(*UNREADABLE):
            return dict(json.loads(self.report.with_suffix(".json").read_text(encoding="utf-8")))
        return {}

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Raise RunDirectoryError for any OSError of the body."""
        try:
            yield
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write the run directory {self.path}: {error.strerror}; expected a "
                f"writable directory with free space"
            ) from error


def newest_first(parents: Iterable[Path], has_model: bool = True) -> list[RunDirectory]:
    """Return the runs in these directories, by default those with a model."""
    written: list[tuple[float, RunDirectory]] = []
    for run in (RunDirectory(path) for parent in parents for path in parent.glob("*")):
        with suppress(RunDirectoryError):
            files = [run.model_file] if has_model else [run.model_file, run.folder]
            if times := [file.stat().st_mtime for file in files if file.is_file()]:
                written.append((max(times), run))
    return [run for _, run in sorted(written, key=itemgetter(0), reverse=True)]


def suggest_runs(path: Path) -> str:
    """Return ``did you mean DIR?``, or else name the newest runs with a model, or return "".

    Considers runs in ``path``, beside it and in the default parent.
    """
    runs = [run.path for run in newest_first({path, path.parent, DEFAULT_PARENT})]
    name = closest(path.name, [run.name for run in runs])
    for run in runs:
        if run.name == name:
            return f"did you mean {run}?"
    newest = ", ".join(map(str, runs[:RUNS_NAMED]))
    return f"runs nearby, newest first: {newest}" if newest else ""
