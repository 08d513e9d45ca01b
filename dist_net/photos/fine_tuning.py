"""Tuning of a whole net after its head: how long, its end, and the distance of the features."""

from __future__ import annotations

import time

import numpy as np

from dist_net.data.image_split import TRAIN, VALIDATION
from dist_net.data.prepared_images import PreparedImages
from dist_net.nets.recipes.image_recipe import RISING_SHARE, ImageRecipe
from dist_net.photos.head_training import outputs_of
from dist_net.photos.photo_statistics import Groups, Losses, mean_and_error
from dist_net.photos.unknown_images import USUAL_SHARE, distance_of
from dist_net.processes.cores import available_cores
from dist_net.training.worker.local_steps import Minibatch
from dist_net.training.worker.step import TrainingStep
from dist_net.vector import Vector

WORTH_BELOW = 0.9
"""The share of right answers of a head from which on tuning rarely adds any."""
USUAL_SAMPLES, FEWEST_EPOCHS, MOST_EPOCHS = 4500, 8, 60
TIMED = 8
ERRORS_ABOVE, STOPS_AFTER = 2, 0.25
"""See ``HopelessTuning``."""


def usual_epochs(images: int) -> int:
    """Return the number of epochs to tune on this number of images: more for fewer."""
    return min(max(round(USUAL_SAMPLES / images), FEWEST_EPOCHS), MOST_EPOCHS)


class HopelessTuning:
    """Detect from evaluations on the validation split that a tuning does not pay.

    Call it with the samples so far and the loss. It returns the reason to stop once the loss has
    stayed above the head's by ``ERRORS_ABOVE`` standard errors for ``STOPS_AFTER`` of the run,
    not counting its first quarter, in which the learning rate rises.
    """

    def __init__(self, head: Losses, groups: Groups, samples: int) -> None:
        mean, error = mean_and_error(head, groups)
        self._limit = mean + ERRORS_ABOVE * error
        self._samples = samples
        self._below_until = round(RISING_SHARE * samples)

    def __call__(self, samples: int, loss: float) -> str:
        if loss <= self._limit:
            self._below_until = max(samples, self._below_until)
        if samples - self._below_until < STOPS_AFTER * self._samples:
            return ""
        return f"the loss has stayed above {self._limit:.4f}, certainly worse than the head"


def seconds_per_image(recipe: ImageRecipe, weights: Vector) -> float:
    """Measure a training step on all cores, after a step that compiles the plan."""
    dataset = recipe.load_images()
    step = TrainingStep(recipe.model, dataset, 0, available_cores())
    size = min(TIMED, len(dataset.train_targets))
    for _ in range(2):
        began_s = time.monotonic()
        step(weights, Minibatch(0, 0, size))
    return (time.monotonic() - began_s) / size


def set_distance(recipe: ImageRecipe, weights: Vector, images: PreparedImages) -> None:
    """Write the distance of a whole net's features to its ``weights``.

    The distance is fitted to the training images; its unit is usual for the validation split, on
    which the net was not trained.
    """
    features = recipe.base.features
    views = recipe.model.layout.views(weights)
    of_base = np.concatenate([views[f"base/{name}"].ravel() for name, _ in features.layout.shapes])
    trained, others = (
        outputs_of(features, of_base, images.samples(part)) for part in (TRAIN, VALIDATION)
    )
    distance = distance_of(trained, images.labels(TRAIN), len(recipe.class_names))
    usual = max(float(np.quantile(distance(others), USUAL_SHARE)), 1e-9)
    for name, value in distance.over(usual)._asdict().items():
        views[f"head/distance/{name}"][...] = value
