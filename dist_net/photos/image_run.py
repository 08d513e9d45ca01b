"""A run on a folder of images, in the process of ``dist-net train``.

    folder ──decoded──▶ images ──base──▶ features ──this process──▶ head
                            └─────────cluster────────▶ whole net ◀───┘

The run directory finally holds the whole net, even if only the head was trained.
"""

import csv
import io
import json
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.data import default_cache_dir
from dist_net.data.image_folder import ImageFolder
from dist_net.data.image_split import MIN_GROUPS, TEST, TRAIN, VALIDATION
from dist_net.data.prepared_images import ImageCache, ImagePreprocessing, PreparedImages
from dist_net.data.samples import SampleIndices
from dist_net.errors import (
    BadInputError,
    DatasetError,
    DistNetError,
    InterruptedRunError,
    RunDirectoryError,
    SettingError,
)
from dist_net.ground.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from dist_net.ground.vector import Vector
from dist_net.images.labels import Calibration
from dist_net.nets.offered_recipe import ImageManifest
from dist_net.nets.recipes.image_recipe import IMAGES, ImageRecipe
from dist_net.nets.recipes.recipe import RecipeRecord
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.bases import (
    FeatureExtractor,
    FoundBase,
    Views,
    base_called,
    base_of_model,
    joined_weights,
)
from dist_net.photos.fine_tuning import (
    GAINS,
    UNDECIDED,
    TuningJudge,
    may_pay,
    seconds_per_image,
    set_distance,
    usual_epochs,
)
from dist_net.photos.head import require_wanted
from dist_net.photos.head_training import SIMILAR, HeadTraining, judged_by, short_digest
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_preparation import prepare_images
from dist_net.photos.photo_statistics import JudgedImages
from dist_net.photos.similar_images import (
    Thumbnails,
    groups_of,
    image_copies,
    mirrored_classes,
    scene_of_each,
    thumbnails_and_digests,
)
from dist_net.photos.unknown_images import DIRECTIONS
from dist_net.processes.equipment import available_cores
from dist_net.processes.terminal import CountProgress, FetchProgress
from dist_net.training.run.local_run import REPORTED, RunHost
from dist_net.training.run.periodic_evaluation import Judge
from dist_net.training.run.standby_run import run_on

FINE_TUNING_RATE = 0.001
FROM_SCRATCH_EPOCHS = 40
FROM_SCRATCH_RATE = 0.002
HELD_OUT_BYTES = 256 << 20


class TrainedImages(NamedTuple):
    """A finished run: its images, its recipe, and the weights to use.

    ``judged`` holds images with the logits of nets that were not trained on them: all images out
    of fold, or the validation split. ``groups`` has the group of every image in the folder's list.
    ``head`` is None for a whole net.
    """

    images: PreparedImages
    recipe: ImageRecipe
    weights: Vector
    judged: JudgedImages
    groups: SampleIndices
    head: HeadTraining | None
    report: dict[str, Any]
    tuning: str


class ComparedImages(NamedTuple):
    """The usable images of a cache entry: digests of their pixels, and the pairs of copies."""

    key: str
    thumbnails: Thumbnails
    digests: list[bytes]
    copies: list[tuple[int, int]]


@dataclass(eq=False)
class ImageRun:
    """The run in the host's directory, which is locked. A standby trains its own head.

    Of a run that ``is_taught`` only the head is trained, on the features of its model's base as
    they are, tuned or not; its figures are those of images that the base was not tuned on.

    To train again after labels have changed takes a fraction of the time.
    """

    host: RunHost
    options: ImageOptions
    is_taught: bool = False
    _compared: ComparedImages | None = None
    _found: FoundBase | None = None
    extractor: FeatureExtractor | None = None

    def __post_init__(self) -> None:
        self.directory, self.console = self.host.directory, self.host.display.console

    def train(self) -> TrainedImages:
        """Prepare the images and train; resume an earlier run of the directory.

        Raise every error of reading, preparing and training; invalid input leaves no new directory.
        """
        began_s = time.monotonic()
        try:
            found = self._found = self._found or self._find_base()
            cache, images, groups, digests = self._read(found)
        except DistNetError as error:
            if isinstance(error, BadInputError) or not self.directory.folder.exists():
                self.directory.discard()
            raise
        whole = self._whole(found, images.folder, len(images.rows(TRAIN)))
        if found.weights is None:
            report = self._train_whole(images, whole, None)
            weights = read_checkpoint(self.directory.checkpoint).evaluated_weights
            judged = judged_by(whole, weights, images, groups, VALIDATION)
            whole = replace(whole, tuned_on=self._names_of(images, TRAIN))
            return TrainedImages(images, whole, weights, judged, groups, None, report, "")
        views = Views(self.options.views, self.options.run.seed, self.options.augmentation)
        if self.extractor is None:
            cores, engine = available_cores(), self.options.engine
            self.extractor = FeatureExtractor(found, views, cores, cache, engine)
        with CountProgress(self.console, "computing features", "features computed") as shown:
            features = self.extractor.compute(images.samples(), digests, shown)
        require_wanted()
        seed = self.options.run.seed
        head = HeadTraining.from_images(images, features, digests, groups, seed, found.tuned_on)
        weights = joined_weights(whole, found, head.heads.final, head.distance)
        self.console.print(
            f"head: trained on {len(head.rows):,} images in {head.folds} folds, in "
            f"{head.heads.steps} steps; {head.accuracy:.0%} right out of fold (each image answered "
            f"by a head that was trained without it)"
        )
        if not self.is_taught and (as_random := head.as_random()) is not None:
            self.console.print(
                f"without the {SIMILAR} images most similar to each, {as_random:.0%} are right, as "
                f"with random labels: the figures are too good if images are copies or of few "
                f"scenes. Add other images, or name the scenes with --group-by",
                style="yellow",
            )
        report = _head_report(whole, self.directory, head, time.monotonic() - began_s)
        kept = TrainedImages(images, whole, weights, head.judged, groups, head, report, "")
        epochs = self._tuning_epochs(kept, head.accuracy)
        if not epochs:
            return kept
        return self._tune(kept._replace(recipe=replace(whole, epochs=epochs)), found)

    def _tuning_epochs(self, of_head: TrainedImages, accuracy: float) -> int:
        """Return for how many epochs to tune the whole net; print whether it is worth its time."""
        fine_tune, count = self.options.fine_tune, len(of_head.images.rows(TRAIN))
        if self.is_taught:
            return 0
        if isinstance(fine_tune, int) and fine_tune > 0:
            return fine_tune
        if self.host.follows is not None:  # the server's host has decided to tune
            return usual_epochs(count)
        if not may_pay(accuracy) or of_head.recipe.base.kind == "onnx":  # it has no gradients
            return 0
        epochs = usual_epochs(count)
        minutes = epochs * count * seconds_per_image(of_head.recipe, of_head.weights) / 60
        self.console.print(
            f"tuning the whole net takes about {minutes:.0f} minutes ({epochs} epochs), or "
            f"{UNDECIDED * minutes:.0f} if it does not pay; {GAINS}"
            + ("" if fine_tune else ": pass --fine-tune auto")
        )
        return epochs if fine_tune else 0

    def _tune(self, kept: TrainedImages, found: FoundBase) -> TrainedImages:
        """Train the whole net; return it if it is better than the head, else ``kept``.

        If the run is interrupted, the better one is the directory's model.
        """
        directory, head = self.directory, kept.head
        assert head is not None
        if not directory.checkpoint.exists():  # a model, if the first epoch is interrupted
            write_model(directory, self.options, kept)
        initial, logits = head.without(kept.images.rows(VALIDATION))
        weights = joined_weights(kept.recipe, found, initial)
        judge = TuningJudge(kept.recipe, logits, kept.images, kept.groups)
        try:
            report = self._train_whole(kept.images, kept.recipe, weights, judge)
        except InterruptedRunError:
            if directory.checkpoint.exists():
                write_model(directory, self.options, self._better(kept, judge, kept.report))
            raise
        return self._better(kept, judge, report)

    def _better(
        self, kept: TrainedImages, judge: TuningJudge, report: dict[str, Any]
    ) -> TrainedImages:
        """Return the tuned net if ``judge`` finds it better than the head, else ``kept``."""
        weights = read_checkpoint(self.directory.checkpoint).evaluated_weights
        found = judge.compare(weights)
        self.console.print(f"fine-tuning: {found}")
        kept = kept._replace(report=report, tuning=str(found))
        if not found.is_better:
            return kept._replace(recipe=replace(kept.recipe, epochs=1))
        set_distance(kept.recipe, weights, kept.images)
        judged = judged_by(kept.recipe, weights, kept.images, kept.groups, VALIDATION)
        recipe = replace(kept.recipe, tuned_on=self._names_of(kept.images, TRAIN))
        return kept._replace(recipe=recipe, weights=weights, judged=judged, head=None)

    def _names_of(self, images: PreparedImages, part: str) -> tuple[str, ...]:
        assert self._compared is not None
        is_of_part = np.isin(images.rows(), images.rows(part)).tolist()
        return tuple(map(short_digest, compress(self._compared.digests, is_of_part)))

    def _find_base(self) -> FoundBase:
        options = self.options
        if self.is_taught:
            return base_of_model(self.directory.path)
        with FetchProgress(self.console) as fetching:
            found = base_called(options.base, fetching)
        if found.base.kind == "onnx" and options.fine_tune:
            raise SettingError(
                f"fine_tune={options.fine_tune} with base {options.base}, an ONNX file without "
                f"gradients; expected 0, or a base of dist_net"
            )
        if options.fitting is None:
            return found
        return found._replace(base=replace(found.base, fitting=options.fitting))

    def _read(
        self, found: FoundBase
    ) -> tuple[ImageCache, PreparedImages, SampleIndices, list[bytes]]:
        """Read, prepare and group the folder's images, and write the run's list of them.

        Return the list, the images, the group of every image and the digests of usable images.
        """
        options, directory = self.options, self.directory
        folder = options.read_folder(directory)
        before = ImageCache.read(directory.images) if directory.images.exists() else None
        if before is None:
            # The base, folder and options are valid: from now on the run can be resumed.
            directory.write(directory.folder, options.to_json() + "\n")
        self.console.print(
            f"{folder.root}: {len(folder.images):,} images of {len(folder.class_names)} classes; "
            f"base {found.base.name}"
        )
        cache = ImageCache(
            default_cache_dir(),
            folder,
            ImagePreprocessing(found.base.input_shape, found.base.fitting),
            options.cache_bytes,
        )
        images = self._prepare(cache)
        require_wanted()
        groups, digests = self._group(cache, images)
        require_wanted()
        hexadecimal = tuple(each.hex() for each in digests)
        cache = replace(cache, folder=images.folder, digests=hexadecimal)
        if before is not None:
            require_same_images(before, cache)
            if directory.checkpoint.exists() and samples_of(before) != samples_of(cache):
                self.console.print(
                    f"the images or labels of {folder.root} have changed: training of the whole "
                    f"net starts again",
                    style="yellow",
                )
                directory.forget_training()
        directory.write(directory.folder, options.to_json() + "\n")
        self.directory.write(self.directory.images, cache.to_json())
        if self.host.local.listening.listen:
            if any(each.path.startswith("..") for each in cache.folder.images):
                raise DatasetError(
                    f"{directory.collection} has images that other hosts lack; expected all images "
                    f"in the folder to listen: write them with 'dist-net labels {directory.path} "
                    f"export FOLDER', and train on that"
                )
            manifest = ImageManifest.of(cache, options.to_json())
            self.directory.write(self.directory.manifest, manifest.to_json())
        return cache, images, groups, digests

    def _prepare(self, cache: ImageCache) -> PreparedImages:
        shown = CountProgress(self.console, "preparing images", "images prepared")
        with shown:
            images = prepare_images(
                cache,
                self.directory.logs,
                show=shown,
                waiting=lambda: self.console.print("another run prepares the same images"),
            )
        skipped = io.StringIO()
        csv.writer(skipped).writerows([("path", "reason"), *images.skipped])
        self.directory.write(self.directory.skipped, skipped.getvalue())
        if images.skipped:
            ((reason, most),) = Counter(each.reason for each in images.skipped).most_common(1)
            self.console.print(
                f"{len(images.skipped):,} files are left out, {most:,} of them: {reason}; see "
                f"{self.directory.skipped}",
                style="yellow",
            )
        if not len(images.rows(VALIDATION)):
            raise DatasetError(
                f"{cache.folder.root}: no image is left to validate on; expected a class with at "
                f"least two different images"
            )
        return images

    def _group(
        self, cache: ImageCache, images: PreparedImages
    ) -> tuple[SampleIndices, list[bytes]]:
        """Keep similar images on one side; return all groups, the digests of usable images."""
        folder, rows = cache.folder, images.rows()
        if self._compared is None or self._compared.key != cache.key:
            thumbnails, digests = thumbnails_and_digests(images.samples())
            pairs = [*image_copies(thumbnails)] if self.options.groups else []
            self._compared = ComparedImages(cache.key, thumbnails, digests, pairs)
        _, thumbnails, digests, pairs = self._compared
        labels = np.array(folder.labels, np.int64)
        paths = [folder.images[row].path for row in rows.tolist()]
        scenes = scene_of_each(paths, self.options.group_by)
        groups = np.arange(len(labels))
        groups[rows] = rows[groups_of(scenes, pairs)]
        images.folder = folder.regrouped(
            groups.tolist(), self.options.validation, self.options.run.seed
        )
        for name in images.folder.class_names:
            label = folder.class_names.index(name)
            of_class = groups[rows][labels[rows] == label]
            count = len(np.unique(of_class))
            if count < min(MIN_GROUPS, len(of_class)):
                self.console.print(
                    f"class {name!r}: its {len(of_class):,} images form {count} groups of similar "
                    f"images, which are divided to evaluate the net: its figures may be too good. "
                    f"Add other images, or pass --no-groups if these differ",
                    style="yellow",
                )
        for pair in mirrored_classes(thumbnails, labels[rows], groups[rows]):
            one, other = (folder.class_names[label] for label in pair)
            self.console.print(
                f"classes {one!r} and {other!r} are mirror images of each other; see --no-flip in "
                f"docs/photos.md",
                style="yellow",
            )
        return groups, digests

    def _whole(self, found: FoundBase, folder: ImageFolder, count: int) -> ImageRecipe:
        """Return the recipe of the whole net, for fine-tuning or for training from scratch."""
        options = self.options
        is_new = found.weights is None
        rate = FROM_SCRATCH_RATE if is_new else FINE_TUNING_RATE
        asked = options.run.epochs or FROM_SCRATCH_EPOCHS
        return ImageRecipe(
            folder.root.resolve().name,
            found.base,
            folder.class_names,
            directions=0 if is_new else DIRECTIONS,
            epochs=asked if is_new else 1,
            batch_size=min(ImageRecipe.batch_size, count),
            learning_rate=options.run.learning_rate or rate,
            augmentation=options.augmentation,
            data=str(self.directory.images.resolve()),
            tuned_on=found.tuned_on,
        )

    def _train_whole(
        self,
        images: PreparedImages,
        recipe: ImageRecipe,
        initial: Vector | None,
        judge: Judge | None = None,
    ) -> dict[str, Any]:
        """Train with a cluster or resume, to a checkpoint in the directory; return a report."""
        directory = self.directory
        if initial is not None:
            directory.save(directory.initial, initial)
        loaded = recipe.loaded(initial)
        dataset = loaded.recipe.load_dataset()
        # The recipe sets the epochs and the learning rate.
        run = replace(self.options.run, recipe=IMAGES, epochs=None, learning_rate=None)
        options = run.on(loaded, dataset)
        settings = options.settings(loaded)
        with self.host.display:
            self.console.print(
                f"whole net: {settings.parameter_count:,} parameters, {settings.samples:,} images "
                f"to train on, {settings.epochs} epochs"
            )
            return run_on(self.host, loaded, dataset, options, judge).run()


def _head_report(
    recipe: ImageRecipe, directory: RunDirectory, head: HeadTraining, seconds: float
) -> dict[str, Any]:
    """Return the JSON object of a run without a cluster; an epoch is a step over all images."""
    samples = head.heads.steps * len(head.rows)
    return {
        **{"recipe": recipe.name, "run_dir": str(directory.path), "warnings": []},
        **dict.fromkeys(REPORTED, 0),
        **{"epochs": head.heads.steps, "samples": samples, "seconds": seconds},
        "samples_per_s": samples / seconds,
    }


def require_same_images(before: ImageCache, cache: ImageCache) -> None:
    """Raise RunDirectoryError if a run to resume was trained on other images.

    Images are the same if their pixels are, whatever their names; half of them may change.
    """
    root, known = cache.folder.root, len(before.digests)
    common = (Counter(before.digests) & Counter(cache.digests)).total()
    if common < known / 2:
        raise RunDirectoryError(
            f"{root} holds {common:,} of the {known:,} images that the run to resume was trained "
            f"on (or another version of Pillow decodes them); expected the same folder: start a "
            f"new run with another --run-dir"
        )


def samples_of(cache: ImageCache) -> tuple[set[tuple[str, ...]], tuple[str, ...]]:
    """Return the paths, classes and pixels of a folder: equal samples continue a checkpoint."""
    return {each[:2] for each in cache.folder.images}, cache.digests


def write_model(directory: RunDirectory, options: ImageOptions, trained: TrainedImages) -> None:
    """Replace a run's model, and the images to try it on, once all files are complete.

    The model's weights, recipe and calibration are one file. The images are from test/, or from
    the validation split: evenly spread, at most ``HELD_OUT_BYTES``, and none without
    ``options.images``. A head is also trained on the validation split: without test/, its answers
    out of fold are written too.
    """
    calibration = trained.judged.calibrate(options.precision)
    images, about = _held_out(trained, calibration, HELD_OUT_BYTES * options.images)
    with ExitStack() as replaced:
        json_file = directory.replacing(directory.held_out.with_suffix(".json"))
        replaced.enter_context(json_file).write_text(json.dumps(about), encoding="utf-8")
        if options.images:
            images_file = replaced.enter_context(directory.replacing(directory.held_out))
            with images_file.open("wb") as opened:
                np.save(opened, images)
        write_weights(directory, options, trained)


def write_weights(directory: RunDirectory, options: ImageOptions, trained: TrainedImages) -> None:
    """Replace a run's model alone."""
    write_checkpoint(directory.best, _model(options, trained))


def holds_model(directory: RunDirectory, options: ImageOptions, trained: TrainedImages) -> bool:
    """Return whether the run's model is this one already. Raise CheckpointError."""
    kept, model = read_checkpoint(directory.best), _model(options, trained)
    is_same = kept.recipe_record == json.loads(json.dumps(model.recipe_record))
    return is_same and np.array_equal(kept.weights, model.weights)


def _model(options: ImageOptions, trained: TrainedImages) -> Checkpoint:
    calibration, recipe = trained.judged.calibrate(options.precision), trained.recipe
    of_model = recipe.class_names, recipe.base.fitting, recipe.to_json(), asdict(calibration)
    record = RecipeRecord({}, *of_model).to_json()
    shapes = recipe.model.layout.shapes
    return Checkpoint(IMAGES, "", shapes, 0, {}, {}, {}, trained.weights, {}, record)


def _held_out(
    trained: TrainedImages, calibration: Calibration, max_bytes: int
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return held-out images, and the JSON object with their names and labels."""
    images, judged = trained.images, trained.judged
    part = TEST if len(images.rows(TEST)) else VALIDATION
    samples, targets = images.samples(part), images.labels(part)
    most = max_bytes // int(np.prod(samples.shape))
    indices = np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(np.int64)
    kept = np.empty((len(indices), *samples.shape), np.uint8)
    samples.read(indices, kept)
    about: dict[str, Any] = {
        "part": part,
        "of": len(samples),
        "names": [images.folder.images[row].path for row in images.rows(part)[indices].tolist()],
        "labels": targets[indices].tolist(),
    }
    if trained.head is not None and part == VALIDATION:
        about["out_of_fold"] = {
            "labels": judged.targets.tolist(),
            "answers": judged.logits.argmax(1).tolist(),
            "loss": judged.loss(calibration),
        }
    return kept, about
