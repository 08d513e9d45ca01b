"""A run on a folder of pictures, in the process of ``dist-net train``.

    folder ──decoded──▶ pictures ──base──▶ features ──trained──▶ head
                            └───────trained─────▶ whole net ◀─────┘

The run directory ends with the whole net, whatever was trained of it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dist_net.data import default_cache_dir
from dist_net.data.picture_folder import VALIDATION_SHARE, PictureFolder, require_apart
from dist_net.data.picture_samples import PicturePreprocessing
from dist_net.data.picture_split import TRAIN, VALIDATION
from dist_net.data.prepared_pictures import CACHE_BYTES, PreparedPictures
from dist_net.errors import (
    BadInputError,
    DistNetError,
    PictureFolderError,
    RunDirectoryError,
    SettingError,
)
from dist_net.images.augmentation import Augmentation
from dist_net.nets.checkpoint import Checkpoint, read_checkpoint
from dist_net.nets.picture_manifest import PictureManifest
from dist_net.nets.recipes.picture_data import PictureData, load_pictures
from dist_net.nets.recipes.picture_recipe import PICTURES, PictureRecipe
from dist_net.nets.run_directory import DEFAULT_PARENT, UNREADABLE, RunDirectory
from dist_net.photos.base_features import FeatureExtractor, Views
from dist_net.photos.bases import NONE, FoundBase, base_called, joined_weights
from dist_net.photos.picture_preparation import prepare_pictures
from dist_net.processes.cores import available_cores
from dist_net.processes.listen_options import Opening
from dist_net.processes.terminal import CountProgress, FetchProgress
from dist_net.training.run.best_weights import BestWeights
from dist_net.training.run.local_run import LocalRun, LocalRunSettings, RunOutcome
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.training_progress import TrainingProgress
from dist_net.vector import Vector

COLOUR = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2)
HEAD_EPOCHS = 30
HEAD_RATE = 0.001
FINE_TUNING_RATE = 0.0001
FROM_SCRATCH_EPOCHS = 40
FROM_SCRATCH_RATE = 0.002


@dataclass(frozen=True)
class PictureOptions:
    """What a run on a folder was asked to be.

    ``fine_tune``: for how many epochs the whole net is trained after its head. ``run``: of each
    stage; its epochs and learning rate are the head's, or those of a net without a base. Raises
    SettingError for values out of range.
    """

    folder: str
    base: str
    run: RunOptions
    labels_csv: str | None = None
    validation: float = VALIDATION_SHARE
    fine_tune: int = 0
    views: int = 1
    colour: bool = False
    precision: float = 0.95
    cache_bytes: int = CACHE_BYTES

    def __post_init__(self) -> None:
        for name, least in (("fine_tune", 0), ("views", 1), ("cache_bytes", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"{name}={getattr(self, name)}: expected at least {least}")
        if not 0 < self.precision <= 1:
            raise SettingError(f"precision={self.precision:g}: expected above 0, at most 1")
        if self.base == NONE and (self.views, self.fine_tune) != (1, 0):
            raise SettingError(
                f"views={self.views}, fine_tune={self.fine_tune} with base {NONE}, a net that is "
                f"trained from the beginning; expected 1 and 0, or a base that is trained already"
            )

    @property
    def augmentation(self) -> Augmentation:
        """How training varies the pictures."""
        return COLOUR if self.colour else Augmentation()

    def of_stage(self, files: Mapping[str, str]) -> RunOptions:
        """The options of a stage, whose recipe has these files, and its epochs and rate."""
        return replace(
            self.run,
            recipe=PICTURES,
            epochs=None,
            learning_rate=None,
            keeps_best=True,
            recipe_files=files,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """What ``to_json`` gave, from a file; raises RunDirectoryError for anything else."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return cls(run=RunOptions(**told.pop("run")), **told)
        except (*UNREADABLE, KeyError) as error:
            raise RunDirectoryError(
                f"{path}: {error}; expected what 'dist-net train FOLDER' was asked"
            ) from error


def new_run(path: Path | None, options: PictureOptions) -> RunDirectory:
    """A new directory for a run on a folder; ``path`` as in ``RunDirectory.create``.

    Raises PictureFolderError, and makes nothing, if it would lie among the pictures.
    """
    folder = Path(options.folder)
    require_apart(folder, path or DEFAULT_PARENT / folder.name)
    return RunDirectory.create(path, folder.name, datetime.now())


class TrainedPictures(NamedTuple):
    """A run that is done: what was trained last, on which pictures, to which weights.

    ``features`` are the base's, if the head alone was trained.
    """

    pictures: PreparedPictures
    recipe: PictureRecipe
    weights: Vector
    features: NDArray[np.float32] | None
    outcome: RunOutcome
    directory: RunDirectory


class PictureRun:
    """The run in ``directory``, which this process has locked.

    ``display`` gives what shows the training of a stage, for its number of samples.
    """

    def __init__(
        self,
        directory: RunDirectory,
        options: PictureOptions,
        local: LocalRunSettings,
        console: Console,
        display: Callable[[int], TrainingProgress],
    ) -> None:
        self._directory = directory
        self._options = options
        self._local = local
        self._console = console
        self._display = display

    def train(self) -> TrainedPictures:
        """Prepares the pictures and trains; goes on where an earlier run of the directory ended.

        Raises what reading the folder and the base, preparing, and ``LocalRun.run`` raise; a new
        directory is removed again if the folder or the base is refused.
        """
        try:
            found, data, pictures = self._read()
        except DistNetError as error:
            if isinstance(error, BadInputError) or not self._directory.folder.exists():
                self._directory.discard()
            raise
        whole = self._whole(found, data, len(pictures.rows(TRAIN)))
        if found.weights is None:
            return self._train_whole(pictures, whole, None)
        features, head_data = self._features(found, data, pictures)
        head = self._head(whole, head_data)
        trained = self._train_head(pictures, features, head, found, whole)
        return self._train_whole(pictures, whole, trained) if self._options.fine_tune else trained

    def _read(self) -> tuple[FoundBase, PictureData, PreparedPictures]:
        options, directory = self._options, self._directory
        with FetchProgress(self._console) as fetching:
            found = base_called(options.base, fetching)
        folder = PictureFolder.read(
            *(options.folder, options.labels_csv, options.validation, options.run.seed),
            run_directory=directory.path,
        )
        # What can be known to be wrong is known by now: from here on there is a run to go on with.
        directory.write(directory.folder, options.to_json() + "\n")
        self._console.print(
            f"{folder.root}: {len(folder.pictures):,} pictures of {len(folder.class_names)} "
            f"classes; base {found.base.name}"
        )
        data = PictureData(
            folder,
            PicturePreprocessing(found.base.input_shape, found.base.fitting),
            str(default_cache_dir()),
            options.cache_bytes,
            VALIDATION,
        )
        pictures = self._prepare(data)
        if self._local.opening.listen:
            self._directory.write(self._directory.manifest, PictureManifest.of(data).to_json())
        return found, data, pictures

    def _prepare(self, data: PictureData) -> PreparedPictures:
        shown = CountProgress(self._console, "preparing pictures", "pictures prepared")
        with shown:
            pictures = prepare_pictures(
                data.folder,
                data.preprocessing,
                self._directory.logs,
                cache_dir=Path(data.cache_dir),
                cache_bytes=data.cache_bytes,
                show=shown,
                waiting=lambda: self._console.print("another run prepares the same pictures"),
            )
        skipped = io.StringIO()
        csv.writer(skipped).writerows([("path", "reason"), *pictures.skipped])
        self._directory.write(self._directory.skipped, skipped.getvalue())
        if pictures.skipped:
            self._console.print(
                f"{len(pictures.skipped):,} files are left out; see {self._directory.skipped}",
                style="yellow",
            )
        if not len(pictures.rows(VALIDATION)):
            raise PictureFolderError(
                f"{data.folder.root}: no picture is left to validate on; expected a class with at "
                f"least two different pictures"
            )
        self._directory.write(self._directory.pictures, data.to_json())
        return pictures

    def _whole(self, found: FoundBase, data: PictureData, count: int) -> PictureRecipe:
        """The recipe of the whole net, as it is trained after its head, or from the beginning."""
        options = self._options
        is_new = found.weights is None
        rate = FROM_SCRATCH_RATE if is_new else FINE_TUNING_RATE
        asked = options.run.epochs or FROM_SCRATCH_EPOCHS
        return PictureRecipe(
            data.folder.root.resolve().name,
            found.base,
            data.folder.class_names,
            "whole",
            epochs=asked if is_new else max(1, options.fine_tune),
            batch_size=min(PictureRecipe.batch_size, count),
            learning_rate=(options.run.learning_rate or rate) if is_new else rate,
            augmentation=options.augmentation,
            data=str(self._directory.pictures.resolve()),
        )

    def _head(self, whole: PictureRecipe, data: Path) -> PictureRecipe:
        return replace(
            whole,
            stage="head",
            epochs=self._options.run.epochs or HEAD_EPOCHS,
            learning_rate=self._options.run.learning_rate or HEAD_RATE,
            augmentation=None,
            data=str(data.resolve()),
        )

    def _features(
        self, found: FoundBase, data: PictureData, pictures: PreparedPictures
    ) -> tuple[NDArray[np.float32], Path]:
        """The base's features, and the file that tells the head's processes of them."""
        extractor = FeatureExtractor(found, available_cores())
        views = Views(self._options.views, self._options.run.seed, self._options.augmentation)
        path = extractor.file(data.cache, views)
        shown = CountProgress(self._console, "computing features", "features computed")
        with shown:
            features = extractor.compute(pictures, views, path, shown)
        head = self._directory.head_run
        head.make()
        head.write(head.pictures, replace(data, features=str(path.absolute())).to_json())
        return features, head.pictures

    def _train_head(
        self,
        pictures: PreparedPictures,
        features: NDArray[np.float32],
        head: PictureRecipe,
        found: FoundBase,
        whole: PictureRecipe,
    ) -> TrainedPictures:
        directory = self._directory.head_run
        outcome = self._train(directory, head, head.standardized(features[0][pictures.rows(TRAIN)]))
        best = read_checkpoint(directory.best)
        self._keep_whole(found, whole, head, best)
        return TrainedPictures(pictures, head, best.weights, features, outcome, directory)

    def _keep_whole(
        self, found: FoundBase, whole: PictureRecipe, head: PictureRecipe, best: Checkpoint
    ) -> None:
        """Writes base and head as one net, unless it is there and was tuned since."""
        weights = joined_weights(whole, found, head.model.layout.views(best.weights))
        loaded = whole.loaded(load_pictures)
        options = self._options.of_stage(loaded.file_digests)
        settings = options.settings(loaded, loaded.recipe.load_dataset())
        self._directory.begin(options.to_json(), loaded.files, options.tensorboard)
        self._directory.save(self._directory.initial, weights)
        score = best.counters["accuracy"], best.counters["loss"]
        BestWeights(self._directory.best, settings).take(*score, best.version, weights)

    def _train_whole(
        self, pictures: PreparedPictures, recipe: PictureRecipe, head: TrainedPictures | None
    ) -> TrainedPictures:
        initial = None if head is None else np.load(self._directory.initial)
        outcome = self._train(self._directory, recipe, initial)
        best = read_checkpoint(self._directory.best)
        return TrainedPictures(pictures, recipe, best.weights, None, outcome, self._directory)

    def _train(
        self, directory: RunDirectory, recipe: PictureRecipe, initial: Vector | None
    ) -> RunOutcome:
        """Trains a stage; goes on where it ended if it was begun before."""
        if initial is not None:
            directory.save(directory.initial, initial)
        loaded = recipe.loaded(load_pictures, None if initial is None else lambda: initial)
        dataset = loaded.recipe.load_dataset()
        options = self._options.of_stage(loaded.file_digests)
        settings = options.settings(loaded, dataset)
        opening = self._local.opening if recipe.stage == "whole" else Opening()
        local = replace(self._local, opening=opening, resume=directory.checkpoint.exists())
        with self._display(settings.samples) as display:
            directory.begin(options.to_json(), loaded.files, options.tensorboard)
            self._console.print(
                f"{'head' if recipe.stage == 'head' else 'whole net'}: "
                f"{settings.parameter_count:,} parameters, {settings.samples:,} pictures to train "
                f"on, {settings.epochs} epochs"
            )
            best = BestWeights(directory.best, settings, options.patience)
            return LocalRun(directory, loaded.recipe, dataset, local, display, best).run()
