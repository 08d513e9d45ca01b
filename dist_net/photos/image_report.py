"""Train on a folder of images; write the model and the report, as HTML and JSON."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from dist_net.data.image_split import PARTS, TEST, TRAIN
from dist_net.data.prepared_images import AugmentedImages, PreparedImages
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.head_training import judged_by
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_run import ImageRun, TrainedImages, write_model
from dist_net.photos.report_content import report_content
from dist_net.photos.report_page import VARIANT, report_page
from dist_net.photos.unknown_images import left_out_classes
from dist_net.training.run.local_run import LocalRunSettings
from dist_net.training.run.training_progress import TrainingProgress

THUMBNAIL_SIDE = 160
VARIANTS = 12


def train_and_report(
    directory: RunDirectory,
    options: ImageOptions,
    local: LocalRunSettings,
    console: Console,
    display: TrainingProgress,
) -> dict[str, Any]:
    """Train with ``ImageRun``, and write the model and the report.

    Return the JSON object of the run. This process must hold the lock of the directory.
    """
    trained = ImageRun(directory, options, local, console, display).train()
    with trained.images as images:
        recipe, judged, head = trained.recipe, trained.judged, trained.head
        calibration = judged.calibrate(options.precision)
        tested = None
        if len(images.rows(TEST)):
            tested = judged_by(recipe, trained.weights, images, trained.groups, TEST)
        left_out = []
        if head is not None:
            left_out = left_out_classes(
                head.features,
                head.heads,
                judged,
                folds=head.fold_of,
                names=recipe.class_names,
                precision=options.precision,
            )
        samples = len(images.rows(TRAIN))
        content = report_content(
            _about(options, trained),
            recipe.class_names,
            judged,
            tested,
            calibration,
            left_out,
            [{**each, "epoch": each["samples"] / samples} for each in directory.read_metrics()],
        )
        write_model(directory, options, trained)
        thumbnails = _thumbnails(images, content)
        if recipe.base.kind == "small" or trained.tuning:
            thumbnails |= _variants(images, options)
        directory.write(directory.report.with_suffix(".json"), json.dumps(content, indent=1))
        directory.write(directory.report, report_page(content, thumbnails))
    measured = {"test_accuracy": content["accuracy"], "test_loss": content["loss"]}
    return trained.report | {"checkpoint": str(directory.trained)} | measured


def _about(options: ImageOptions, trained: TrainedImages) -> dict[str, Any]:
    images, recipe = trained.images, trained.recipe
    base = recipe.base.name
    if recipe.base.kind == "small":
        how = "a small net, trained from scratch"
    elif trained.head is None:
        how = f"{base}, tuned for {recipe.epochs} epochs"
    else:
        how = f"a head on the features of {base}"
    return {
        "name": recipe.name,
        "description": f"{len(recipe.class_names)} classes, recognised by {how}.",
        "base": base,
        "fine_tuned": options.fine_tune,
        "fine_tuning": trained.tuning,
        "images": {each: len(images.rows(each)) for each in PARTS},
        "skipped": len(images.skipped),
    }


def _thumbnails(images: PreparedImages, content: dict[str, Any]) -> dict[str, bytes]:
    """Return the PNG files of the images that a report shows, by image name."""
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


def _variants(images: PreparedImages, options: ImageOptions) -> dict[str, bytes]:
    """Return the PNG files of random variants of training images, by ``VARIANT`` and number."""
    samples = images.samples(TRAIN)
    indices = np.linspace(0, len(samples) - 1, VARIANTS).astype(np.int64)
    pixels = np.empty((VARIANTS, *samples.shape), np.uint8)
    seed = options.run.seed
    AugmentedImages(samples, options.augmentation).read_augmented(indices, pixels, seed, epoch=0)
    return {f"{VARIANT}{number}": _png(each) for number, each in enumerate(pixels)}


def _png(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels.squeeze())
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
