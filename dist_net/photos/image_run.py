"""A run on a folder of images, in the process of ``dist-net train``.

    folder ──decoded──▶ images ──base──▶ features ──trained──▶ head
                            └───────trained─────▶ whole net ◀─────┘

The run directory ends with the whole net, whatever was trained of it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dist_net.data import default_cache_dir
from dist_net.data.image_folder import VALIDATION_SHARE, ImageFolder, require_apart
from dist_net.data.image_samples import ImagePreprocessing
from dist_net.data.image_split import TRAIN, VALIDATION
from dist_net.data.prepared_images import CACHE_BYTES, PreparedImages
from dist_net.errors import (
    BadInputError,
    DistNetError,
    ImageFolderError,
    RunDirectoryError,
    SettingError,
)
from dist_net.images.augmentation import Augmentation
from dist_net.nets.checkpoint import Checkpoint, read_checkpoint
from dist_net.nets.image_manifest import ImageManifest
from dist_net.nets.recipes.image_data import ImageData, load_images
from dist_net.nets.recipes.image_recipe import IMAGES, ImageRecipe
from dist_net.nets.run_directory import DEFAULT_PARENT, UNREADABLE, RunDirectory
from dist_net.photos.base_features import FeatureExtractor, Views
from dist_net.photos.bases import NONE, FoundBase, base_called, joined_weights
from dist_net.photos.image_preparation import prepare_images
from dist_net.processes.cores import available_cores
from dist_net.processes.listen_options import ListenOptions
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
class ImageOptions:
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
        """How training varies the images."""
        return COLOUR if self.colour else Augmentation()

    def of_stage(self) -> RunOptions:
        """Return the options of a stage, whose recipe has its epochs and rate."""
        return replace(
            self.run,
            recipe=IMAGES,
            epochs=None,
            learning_rate=None,
            keeps_best=True,
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


def new_run(path: Path | None, options: ImageOptions) -> RunDirectory:
    """A new directory for a run on a folder; ``path`` as in ``RunDirectory.create``.

    Raises ImageFolderError, and makes nothing, if it would lie among the images.
    """
    folder = Path(options.folder)
    require_apart(folder, path or DEFAULT_PARENT / folder.name)
    return RunDirectory.create(path, folder.name, datetime.now())


class TrainedImages(NamedTuple):
    """A run that is done: what was trained last, on which images, to which weights.

    ``features`` are the base's, if the head alone was trained.
    """

    images: PreparedImages
    recipe: ImageRecipe
    weights: Vector
    features: NDArray[np.float32] | None
    outcome: RunOutcome
    directory: RunDirectory


class ImageRun:
    """The run in ``directory``, which this process has locked.

    ``display`` gives what shows the training of a stage, for its number of samples.
    """

    def __init__(
        self,
        directory: RunDirectory,
        options: ImageOptions,
        local: LocalRunSettings,
        console: Console,
        display: Callable[[int], TrainingProgress],
    ) -> None:
        self._directory = directory
        self._options = options
        self._local = local
        self._console = console
        self._display = display

    def train(self) -> TrainedImages:
        """Prepares the images and trains; goes on where an earlier run of the directory ended.

        Raises what reading the folder and the base, preparing, and ``LocalRun.run`` raise; a new
        directory is removed again if the folder or the base is refused.
        """
        try:
            found, data, images = self._read()
        except DistNetError as error:
            if isinstance(error, BadInputError) or not self._directory.folder.exists():
                self._directory.discard()
            raise
        whole = self._whole(found, data, len(images.rows(TRAIN)))
        if found.weights is None:
            return self._train_whole(images, whole, None)
        features, head_data = self._features(found, data, images)
        head = self._head(whole, head_data)
        trained = self._train_head(images, features, head, found, whole)
        return self._train_whole(images, whole, trained) if self._options.fine_tune else trained

    def _read(self) -> tuple[FoundBase, ImageData, PreparedImages]:
        options, directory = self._options, self._directory
        with FetchProgress(self._console) as fetching:
            found = base_called(options.base, fetching)
        folder = ImageFolder.read(
            *(options.folder, options.labels_csv, options.validation, options.run.seed),
            run_directory=directory.path,
        )
        # What can be known to be wrong is known by now: from here on there is a run to go on with.
        directory.write(directory.folder, options.to_json() + "\n")
        self._console.print(
            f"{folder.root}: {len(folder.images):,} images of {len(folder.class_names)} "
            f"classes; base {found.base.name}"
        )
        data = ImageData(
            folder,
            ImagePreprocessing(found.base.input_shape, found.base.fitting),
            str(default_cache_dir()),
            options.cache_bytes,
            VALIDATION,
        )
        images = self._prepare(data)
        if self._local.listening.listen:
            self._directory.write(self._directory.manifest, ImageManifest.of(data).to_json())
        return found, data, images

    def _prepare(self, data: ImageData) -> PreparedImages:
        shown = CountProgress(self._console, "preparing images", "images prepared")
        with shown:
            images = prepare_images(
                data.folder,
                data.preprocessing,
                self._directory.logs,
                cache_dir=Path(data.cache_dir),
                cache_bytes=data.cache_bytes,
                show=shown,
                waiting=lambda: self._console.print("another run prepares the same images"),
            )
        skipped = io.StringIO()
        csv.writer(skipped).writerows([("path", "reason"), *images.skipped])
        self._directory.write(self._directory.skipped, skipped.getvalue())
        if images.skipped:
            self._console.print(
                f"{len(images.skipped):,} files are left out; see {self._directory.skipped}",
                style="yellow",
            )
        if not len(images.rows(VALIDATION)):
            raise ImageFolderError(
                f"{data.folder.root}: no image is left to validate on; expected a class with at "
                f"least two different images"
            )
        self._directory.write(self._directory.images, data.to_json())
        return images

    def _whole(self, found: FoundBase, data: ImageData, count: int) -> ImageRecipe:
        """The recipe of the whole net, as it is trained after its head, or from the beginning."""
        options = self._options
        is_new = found.weights is None
        rate = FROM_SCRATCH_RATE if is_new else FINE_TUNING_RATE
        asked = options.run.epochs or FROM_SCRATCH_EPOCHS
        return ImageRecipe(
            data.folder.root.resolve().name,
            found.base,
            data.folder.class_names,
            "whole",
            epochs=asked if is_new else max(1, options.fine_tune),
            batch_size=min(ImageRecipe.batch_size, count),
            learning_rate=(options.run.learning_rate or rate) if is_new else rate,
            augmentation=options.augmentation,
            data=str(self._directory.images.resolve()),
        )

    def _head(self, whole: ImageRecipe, data: Path) -> ImageRecipe:
        return replace(
            whole,
            stage="head",
            epochs=self._options.run.epochs or HEAD_EPOCHS,
            learning_rate=self._options.run.learning_rate or HEAD_RATE,
            augmentation=None,
            data=str(data.resolve()),
        )

    def _features(
        self, found: FoundBase, data: ImageData, images: PreparedImages
    ) -> tuple[NDArray[np.float32], Path]:
        """The base's features, and the file that tells the head's processes of them."""
        extractor = FeatureExtractor(found, available_cores())
        views = Views(self._options.views, self._options.run.seed, self._options.augmentation)
        path = extractor.file(data.cache, views)
        shown = CountProgress(self._console, "computing features", "features computed")
        with shown:
            features = extractor.compute(images, views, path, shown)
        head = self._directory.head_run
        head.make()
        head.write(head.images, replace(data, features=str(path.absolute())).to_json())
        return features, head.images

    def _train_head(
        self,
        images: PreparedImages,
        features: NDArray[np.float32],
        head: ImageRecipe,
        found: FoundBase,
        whole: ImageRecipe,
    ) -> TrainedImages:
        directory = self._directory.head_run
        outcome = self._train(directory, head, head.standardized(features[0][images.rows(TRAIN)]))
        best = read_checkpoint(directory.best)
        self._keep_whole(found, whole, head, best)
        return TrainedImages(images, head, best.weights, features, outcome, directory)

    def _keep_whole(
        self, found: FoundBase, whole: ImageRecipe, head: ImageRecipe, best: Checkpoint
    ) -> None:
        """Writes base and head as one net, unless it is there and was tuned since."""
        weights = joined_weights(whole, found, head.model.layout.views(best.weights))
        loaded = whole.loaded(load_images)
        options = self._options.of_stage().on(loaded, loaded.recipe.load_dataset())
        settings = options.settings(loaded)
        self._directory.begin(options.to_json(), loaded.files, options.tensorboard)
        self._directory.save(self._directory.initial, weights)
        score = best.counters["accuracy"], best.counters["loss"]
        BestWeights(self._directory.best, settings).take(*score, best.version, weights)

    def _train_whole(
        self, images: PreparedImages, recipe: ImageRecipe, head: TrainedImages | None
    ) -> TrainedImages:
        initial = None if head is None else np.load(self._directory.initial)
        outcome = self._train(self._directory, recipe, initial)
        best = read_checkpoint(self._directory.best)
        return TrainedImages(images, recipe, best.weights, None, outcome, self._directory)

    def _train(
        self, directory: RunDirectory, recipe: ImageRecipe, initial: Vector | None
    ) -> RunOutcome:
        """Trains a stage; goes on where it ended if it was begun before."""
        if initial is not None:
            directory.save(directory.initial, initial)
        loaded = recipe.loaded(load_images, None if initial is None else lambda: initial)
        dataset = loaded.recipe.load_dataset()
        options = self._options.of_stage().on(loaded, dataset)
        settings = options.settings(loaded)
        listening = self._local.listening if recipe.stage == "whole" else ListenOptions()
        local = replace(self._local, listening=listening, resume=directory.checkpoint.exists())
        with self._display(settings.samples) as display:
            self._console.print(
                f"{'head' if recipe.stage == 'head' else 'whole net'}: "
                f"{settings.parameter_count:,} parameters, {settings.samples:,} images to train "
                f"on, {settings.epochs} epochs"
            )
            return LocalRun(directory, loaded, dataset, options, local, display).run()
