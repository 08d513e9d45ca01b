"""What a run on a folder leaves besides its weights: calibration, held-out images, the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dist_net.data import Dataset
from dist_net.data.image_split import PARTS, TEST, TRAIN, VALIDATION
from dist_net.data.prepared_images import PreparedImages
from dist_net.data.samples import Samples
from dist_net.errors import MissingExtraError
from dist_net.nets.calibration import calibrate
from dist_net.nets.recipes.image_data import load_images
from dist_net.nets.recipes.image_recipe import ImageRecipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.nn import Model, Predictor
from dist_net.nn.inference import Inference, prepare, softmax
from dist_net.photos.image_run import ImageOptions, ImageRun, TrainedImages
from dist_net.photos.report_content import JudgedImages, LeftOutClass, report_content
from dist_net.photos.report_image import draw_report
from dist_net.photos.report_page import report_page
from dist_net.processes.cores import available_cores
from dist_net.training.run.local_run import LocalRunSettings, summarise
from dist_net.training.run.single_process import SingleProcess
from dist_net.training.run.training_progress import TrainingProgress
from dist_net.vector import Vector

HELD_OUT_BYTES = 256 << 20
THUMBNAIL_SIDE = 160
BATCH_SIZE = 8
FOLDS = 5
TRIAL_EPOCHS = 10
MAX_LEFT_OUT = 10


def finish(
    directory: RunDirectory, options: ImageOptions, trained: TrainedImages, console: Console
) -> dict[str, Any]:
    """Calibrates, and writes held-out images and the report; gives what the report says."""
    images, recipe = trained.images, trained.recipe
    outputs = ImageOutputs(trained)
    validated = outputs.of(VALIDATION)
    calibration = calibrate(validated.logits, validated.targets, options.precision)
    directory.write(directory.calibration, json.dumps(asdict(calibration)) + "\n")
    part = TEST if len(images.rows(TEST)) else VALIDATION
    judged = validated if part == VALIDATION else outputs.of(part)
    _keep_held_out(directory, images, part, judged)
    content = report_content(
        _about(options, trained, part),
        recipe.class_names,
        judged,
        calibration,
        _doubted(trained),
        _left_out(trained, options.precision),
        _curves(trained),
    )
    _write_report(directory, content, _thumbnails(images, content), console)
    return content


def train_and_report(
    directory: RunDirectory,
    options: ImageOptions,
    local: LocalRunSettings,
    console: Console,
    display: Callable[[int], TrainingProgress],
) -> dict[str, Any]:
    """Trains as ``ImageRun`` does, reports, and gives the JSON object of the run.

    The directory is locked by this process.
    """
    trained = ImageRun(directory, options, local, console, display).train()
    with trained.images:
        content = finish(directory, options, trained, console)
    summary = summarise(trained.recipe.name, directory, trained.outcome)
    return summary | {"test_accuracy": content["accuracy"], "test_loss": content["loss"]}


class ImageOutputs:
    """The logits of a trained net for the images of a folder."""

    def __init__(self, trained: TrainedImages) -> None:
        self._trained = trained

    def of(self, part: str) -> JudgedImages:
        """Those of a part."""
        images = self._trained.images
        rows = images.rows(part)
        names = [images.folder.images[row].path for row in rows]
        return JudgedImages(names, images.labels(part), self._logits(rows, part))

    def _logits(self, rows: NDArray[np.int64], part: str) -> NDArray[np.float32]:
        _, recipe, weights, features, *_ = self._trained
        if features is not None:
            return Predictor(recipe.model, weights)(features[0][rows])
        return _inferred(recipe.model, weights, self._trained.images.samples(part))


def _inferred(model: Model, weights: Vector, samples: Samples) -> NDArray[np.float32]:
    logits = np.empty((len(samples), model.classes), np.float32)
    batch = np.empty((BATCH_SIZE, *samples.shape), samples.dtype)
    prepared = prepare(model, weights)
    with closing(Inference(model, prepared, available_cores(), BATCH_SIZE)) as inference:
        for start in range(0, len(samples), BATCH_SIZE):
            indices = np.arange(start, min(start + BATCH_SIZE, len(samples)))
            samples.read(indices, batch[: len(indices)])
            logits[indices] = inference(batch[: len(indices)])
    return logits


def _about(options: ImageOptions, trained: TrainedImages, part: str) -> dict[str, Any]:
    images, recipe = trained.images, trained.recipe
    base = recipe.base.name
    if recipe.base.kind == "small":
        how = "a small net, trained from scratch"
    elif trained.features is None:
        how = f"{base}, tuned for {recipe.epochs} epochs"
    else:
        how = f"a head on the features of {base}"
    return {
        "name": recipe.name,
        "description": f"{len(recipe.class_names)} classes, recognised by {how}.",
        "base": base,
        "fine_tuned": options.fine_tune,
        "images": {each: len(images.rows(each)) for each in PARTS},
        "judged_on": part,
        "skipped": len(images.skipped),
    }


def _keep_held_out(
    directory: RunDirectory, images: PreparedImages, part: str, judged: JudgedImages
) -> None:
    """Keeps the judged images, or as many as there is room for, evenly spread."""
    samples = images.samples(part)
    most = max(1, HELD_OUT_BYTES // int(np.prod(samples.shape)))
    indices = np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(np.int64)
    kept = np.empty((len(indices), *samples.shape), np.uint8)
    samples.read(indices, kept)
    directory.save(directory.held_out, kept)
    told = {
        "part": part,
        "of": len(samples),
        "names": [judged.names[index] for index in indices],
        "labels": judged.targets[indices].tolist(),
    }
    directory.write(directory.held_out.with_suffix(".json"), json.dumps(told))


def _curves(trained: TrainedImages) -> list[dict[str, Any]]:
    views = 1 if trained.features is None else len(trained.features)
    samples = views * len(trained.images.rows(TRAIN))
    return [
        {**record, "epoch": record["samples"] / samples}
        for record in trained.directory.read_metrics()
    ]


def _doubted(trained: TrainedImages) -> JudgedImages | None:
    """All images but those to test on, by heads that were trained without each of them."""
    if trained.features is None:
        return None
    images, features = trained.images, trained.features[0]
    rows = np.concatenate([images.rows(TRAIN), images.rows(VALIDATION)])
    targets = np.concatenate([images.labels(TRAIN), images.labels(VALIDATION)])
    logits = np.empty((len(rows), len(trained.recipe.class_names)), np.float32)
    fold_of = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    for fold in range(FOLDS):
        is_out = fold_of == fold
        logits[is_out] = _trial(
            trained.recipe, features[rows[~is_out]], targets[~is_out], features[rows[is_out]]
        )
    names = [images.folder.images[row].path for row in rows]
    return JudgedImages(names, targets, logits)


def _left_out(trained: TrainedImages, precision: float) -> list[LeftOutClass]:
    """What becomes of each class when a head is trained without it; of the first few classes."""
    names = trained.recipe.class_names
    if trained.features is None or len(names) < 3:
        return []
    return [_without(trained, label, precision) for label in range(min(len(names), MAX_LEFT_OUT))]


def _without(trained: TrainedImages, label: int, precision: float) -> LeftOutClass:
    images, features = trained.images, trained.features
    assert features is not None
    names = trained.recipe.class_names
    without = replace(trained.recipe, class_names=(*names[:label], *names[label + 1 :]))
    rows, targets = images.rows(TRAIN), images.labels(TRAIN)
    held_rows, held_targets = images.rows(VALIDATION), images.labels(VALIDATION)
    is_known, is_held = targets != label, held_targets != label
    logits = _trial(
        without,
        features[0][rows[is_known]],
        _closed_up(targets[is_known], label),
        features[0][held_rows],
    )
    known = _closed_up(held_targets[is_held], label)
    found = calibrate(logits[is_held], known, precision)
    confidence = softmax(logits / np.float32(found.temperature)).max(1)
    is_unknown = confidence < found.threshold
    return LeftOutClass(names[label], _share(is_unknown[~is_held]), _share(is_unknown[is_held]))


def _closed_up(targets: NDArray[np.int64], label: int) -> NDArray[np.int64]:
    """Class indices when one class is no more."""
    return targets - (targets > label)


def _share(is_so: NDArray[np.bool_]) -> float:
    return float(is_so.mean()) if len(is_so) else 0.0


def _trial(
    head: ImageRecipe,
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    others: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The logits for ``others`` of a head that is trained on these features, in this process."""
    head = replace(head, epochs=TRIAL_EPOCHS)
    recipe = head.loaded(load_images, lambda: head.standardized(features)).recipe
    dataset = Dataset("trial", features, targets, features, targets, head.class_names)
    training = SingleProcess(recipe, dataset)
    for _ in training.epochs():
        pass
    return Predictor(recipe.model, training.weights)(others)


def _thumbnails(images: PreparedImages, content: dict[str, Any]) -> dict[str, bytes]:
    """PNG files of the images that a report shows, by their names."""
    shown = {each["image"] for each in (*content["mistakes"], *content["doubtful"])}
    samples = images.usable_samples()
    pixels = np.empty((1, *samples.shape), np.uint8)
    thumbnails = {}
    for index, row in enumerate(images.usable_rows().tolist()):
        name = images.folder.images[row].path
        if name in shown:
            samples.read(np.array([index]), pixels)
            thumbnails[name] = _png(pixels[0])
    return thumbnails


def _png(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels.squeeze())
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write_report(
    directory: RunDirectory,
    content: dict[str, Any],
    thumbnails: dict[str, bytes],
    console: Console,
) -> None:
    report = directory.report
    directory.write(report.with_suffix(".json"), json.dumps(content, indent=1))
    directory.write(report, report_page(content, thumbnails))
    try:
        with directory.replacing(report.with_suffix(".png")) as file:
            draw_report(content, thumbnails, file)
    except MissingExtraError as error:
        console.print(str(error))
