"""The options of a run on a folder of images, and its new directory."""

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from os.path import relpath
from pathlib import Path
from typing import Literal, Self

from dist_net.data.collection import Collection
from dist_net.data.image_folder import VALIDATION_SHARE, ImageFolder, require_apart
from dist_net.data.prepared_images import CACHE_BYTES
from dist_net.errors import RunDirectoryError, SettingError
from dist_net.export.onnxruntime_engine import ENGINES, NUMPY
from dist_net.images.augmentation import Augmentation
from dist_net.images.fitting import fitting_named
from dist_net.nets.run_directory import DEFAULT_PARENT, UNREADABLE, RunDirectory
from dist_net.optim.ranges import use_plain_numbers
from dist_net.photos.bases import DEFAULT_BASE, NONE
from dist_net.photos.similar_images import scene_of_each
from dist_net.processes.cluster_options import AUTO
from dist_net.training.run.run_options import RunOptions

COLOUR_CHANGES = dict.fromkeys(("brightness", "contrast", "saturation"), 0.2)


@dataclass(frozen=True)
class ImageOptions:
    """The options of a run on a folder.

    ``fine_tune``: the number of epochs to train the whole net after its head; "auto" chooses it,
    and 0 for heads with few mistakes. ``run``: the options of training a whole net; its epochs are
    for a net without a base.
    ``group_by``: a regular expression; images with equal matches in their paths are never split.
    ``groups``: whether copies of a photo are never split.
    ``images``: whether the run keeps images: those held out, and small ones in its report.
    ``rotate`` (degrees), ``zoom`` (percent of each side): the largest changes to training images.
    ``fitting``: replaces the base's fitting; ``engine`` computes its features. Raise SettingError.
    """

    folder: str
    run: RunOptions
    base: str = DEFAULT_BASE
    labels_csv: str | None = None
    validation: float = VALIDATION_SHARE
    fine_tune: int | Literal["auto"] = 0
    views: int = 1
    precision: float = 0.95
    cache_bytes: int = CACHE_BYTES
    group_by: str | None = None
    groups: bool = True
    flip: bool = True
    rotate: float = 5.0
    zoom: float = 20.0
    colour_changes: bool = True
    images: bool = True
    fitting: str | None = None
    engine: str = NUMPY

    def __post_init__(self) -> None:
        use_plain_numbers(self)
        for name, least in (("fine_tune", 0), ("views", 1), ("cache_bytes", 0)):
            if (value := getattr(self, name)) != AUTO and value < least:
                raise SettingError(f"{name}={value}: expected at least {least}")
        for name, most in (("rotate", 180), ("zoom", 90)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise SettingError(f"{name}={value:g}: expected from 0 to {most}")
        if not 0 < self.precision <= 1:
            raise SettingError(f"precision={self.precision:g}: expected above 0, at most 1")
        if self.run.keeps_best:
            raise SettingError(
                f"keeps_best={self.run.keeps_best}, patience={self.run.patience}: a folder's "
                f"validation images measure its run and choose no weights; expected neither"
            )
        scene_of_each([], self.group_by)
        if self.fitting is not None:
            fitting_named(self.fitting)
        if self.engine not in ENGINES:
            raise SettingError(f"engine={self.engine!r}: expected {' or '.join(ENGINES)}")
        if self.base == NONE and (self.views, self.fine_tune) != (1, 0):
            raise SettingError(
                f"views={self.views}, fine_tune={self.fine_tune} with base {NONE}, a net that is "
                f"trained from the beginning; expected 1 and 0, or a base that is trained already"
            )
        if self.base != NONE:
            self._require_effect()

    def _require_effect(self) -> None:
        """Raise SettingError for an option of training that a run with a base does not obey."""
        run, tuning = self.run, f"--fine-tune EPOCHS (or {AUTO})"
        if run.epochs is not None:
            raise SettingError(
                f"epochs={run.epochs} with base {self.base}, whose head is trained until it "
                f"converges; pass {tuning} to train the whole net, or --base {NONE}"
            )
        if run.learning_rate is not None and not self.fine_tune:
            raise SettingError(
                f"learning_rate={run.learning_rate:g} with base {self.base}, whose head needs "
                f"none; pass {tuning} to train the whole net at this rate, or --base {NONE}"
            )

    @property
    def augmentation(self) -> Augmentation:
        changes = COLOUR_CHANGES if self.colour_changes else {}
        return Augmentation(1 - self.zoom / 100, self.flip, self.rotate, **changes)

    def read_folder(self, directory: RunDirectory) -> ImageFolder:
        """List the images with the labels of the run's collection; raise DatasetError."""
        with ExitStack() as opened:
            collection = None
            if directory.collection.exists():
                collection = opened.enter_context(Collection(directory.collection))
            return ImageFolder.read(
                self.folder,
                self.labels_csv,
                validation=self.validation,
                seed=self.run.seed,
                run_directory=directory.path,
                collection=collection,
            )

    def for_copy(self, folder: Path) -> Self:
        """Return the options for a copy of the folder, and of the labels at their place from it."""
        labels = self.labels_csv and str(folder / relpath(self.labels_csv, self.folder))
        return replace(self, folder=str(folder), labels_csv=labels)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the output of ``to_json`` from a file; raise RunDirectoryError if it is invalid."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            told.pop("colour", None)  # an option until 0.1.0; colours now vary unless turned off
            run = told.pop("run")
            if told["base"] != NONE:  # until 0.2.0 runs kept these, and ignored them
                run |= {"epochs": None} | ({} if told["fine_tune"] else {"learning_rate": None})
            return cls(run=RunOptions(**run), **told)
        except (*UNREADABLE, KeyError) as error:
            raise RunDirectoryError(
                f"{path}: {error}; expected the options of 'dist-net train FOLDER'"
            ) from error


def new_run(path: Path | None, options: ImageOptions) -> RunDirectory:
    """Create a run's directory; raise DatasetError for a path inside the image folder."""
    folder = Path(options.folder)
    require_apart(folder, path or DEFAULT_PARENT / folder.name)
    return RunDirectory.create(path, folder.name, datetime.now())
