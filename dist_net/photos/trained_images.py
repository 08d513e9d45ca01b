"""A trained folder run, and how its model is written, with images to try it on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.checkpoint import write_checkpoint
from dist_net.data.image_split import TEST, VALIDATION
from dist_net.data.prepared_images import PreparedImages
from dist_net.data.samples import SampleIndices
from dist_net.nets.recipes.image_recipe import ImageRecipe
from dist_net.nets.run_directory import Calibration, RunDirectory
from dist_net.photos.head_training import HeadTraining
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.photo_statistics import JudgedImages
from dist_net.training.run.evaluation import model_only
from dist_net.vector import Vector

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


def write_model(directory: RunDirectory, options: ImageOptions, trained: TrainedImages) -> None:
    """Replace a run's model, and the images to try it on, once all files are complete.

    The model's weights, recipe and calibration are one file. The images are those of test/, or of
    the validation split: evenly spread, at most ``HELD_OUT_BYTES``. A head is also trained on the
    validation split: without test/, its answers out of fold are written too.
    """
    calibration = trained.judged.calibrate(options.precision)
    loaded = trained.recipe.loaded()
    training = options.of_training().on(loaded, loaded.recipe.load_dataset())
    settings = training.settings(loaded)
    of_model = {"image_recipe": trained.recipe.to_json(), "calibration": asdict(calibration)}
    settings = replace(settings, recipe_record=settings.recipe_record | of_model)
    model = model_only(settings, trained.weights)
    images, about = _held_out(trained, calibration)
    with (
        directory.replacing(directory.held_out.with_suffix(".json")) as json_file,
        directory.replacing(directory.held_out) as images_file,
    ):
        json_file.write_text(json.dumps(about), encoding="utf-8")
        with images_file.open("wb") as opened:
            np.save(opened, images)
        directory.begin(training.to_json(), loaded.files)
        write_checkpoint(directory.best, model)


def _held_out(
    trained: TrainedImages, calibration: Calibration
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return held-out images, and the JSON object with their names and labels."""
    images, judged = trained.images, trained.judged
    part = TEST if len(images.rows(TEST)) else VALIDATION
    samples, targets = images.samples(part), images.labels(part)
    most = max(1, HELD_OUT_BYTES // int(np.prod(samples.shape)))
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
