"""Tuning of a whole net after its head: how long, its end, and the distance of the features."""

import time
from typing import NamedTuple

import numpy as np

from dist_net.data.image_split import TRAIN, VALIDATION
from dist_net.data.prepared_images import PreparedImages
from dist_net.data.samples import SampleIndices
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.image_recipe import ImageRecipe
from dist_net.photos.head_training import judged_by, outputs_of
from dist_net.photos.photo_statistics import (
    JudgedImages,
    Scores,
    calibrated_losses,
    cross_entropies,
    mean_and_error,
)
from dist_net.photos.unknown_images import USUAL_SHARE, distance_of
from dist_net.processes.equipment import available_cores
from dist_net.training.run.evaluation import Evaluation
from dist_net.training.worker.local_steps import Minibatch, TrainingStep

WORTH_BELOW = 0.9
GAINS = (
    "it had more right answers in 18 of 22 runs on drawings and grey images, and in none of 6 on "
    "photographs of objects"
)
"""The gains of tuning, measured by ``scripts/bench photos-tuning``: see docs/photos.md."""
USUAL_SAMPLES, FEWEST_EPOCHS, MOST_EPOCHS = 4500, 8, 60
TIMED = 8
UNDECIDED, STOPS_AFTER, FEWEST_EVALUATIONS = 0.8, 0.25, 4
"""See ``TuningJudge``."""


def may_pay(accuracy: float) -> bool:
    """Return whether tuning may add right answers, by the head's accuracy out of fold.

    No gain was measured for a head from ``WORTH_BELOW`` on. Below it the kind of images decides
    (``GAINS``), which neither the head's figures nor the base's own answers reveal: a run that does
    not pay ends early instead (``TuningJudge``).
    """
    return accuracy < WORTH_BELOW


def usual_epochs(images: int) -> int:
    """Return the number of epochs to tune on this number of images: more for fewer."""
    return min(max(round(USUAL_SAMPLES / images), FEWEST_EPOCHS), MOST_EPOCHS)


class HeadComparison(NamedTuple):
    """A tuned net and the head on the same images, on which neither was trained.

    ``lead`` is how much lower the net's calibrated loss is, ``error`` its standard error.
    """

    tuned: JudgedImages
    head: Scores
    lead: float
    error: float

    @property
    def is_better(self) -> bool:
        return self.lead > self.error

    def __str__(self) -> str:
        targets = self.tuned.targets
        (head, of_head), (net, of_net) = (
            (int((each.argmax(1) == targets).sum()), calibrated_losses(each, targets).mean())
            for each in (self.head, self.tuned.logits)
        )
        used = "the tuned net is used" if self.is_better else "the head is kept"
        return (
            f"on the same {len(targets):,} images, on which neither was trained, the head has "
            f"{head:,} right and a loss of {of_head:.4f}, the tuned net {net:,} and {of_net:.4f}, "
            f"{'lower' if self.lead > 0 else 'higher'} by {abs(self.lead):.4f} (standard error "
            f"{self.error:.4f}): {used}"
        )


class TuningJudge:
    """Evaluate a net in tuning against the head with the logits ``head`` of the validation split.

    ``groups`` has the group of every image in the folder's list. A call returns the evaluation
    after some samples of the run, and the reason to stop: "" unless ``UNDECIDED`` of the run is
    over, and no net was better than the head in the last ``STOPS_AFTER`` of it.
    """

    def __init__(
        self, recipe: ImageRecipe, head: Scores, images: PreparedImages, groups: SampleIndices
    ) -> None:
        self._recipe, self._head, self._images, self._groups = recipe, head, images, groups
        samples = recipe.epochs * len(images.rows(TRAIN))
        self._patience = STOPS_AFTER * samples
        self._led_at = UNDECIDED * samples - self._patience
        self._evaluations = 0

    def compare(self, weights: Vector) -> HeadComparison:
        tuned = judged_by(self._recipe, weights, self._images, self._groups, VALIDATION)
        of_head, of_net = (
            calibrated_losses(each, tuned.targets) for each in (self._head, tuned.logits)
        )
        return HeadComparison(tuned, self._head, *mean_and_error(of_head - of_net, tuned.groups))

    def __call__(self, samples: int, weights: Vector) -> tuple[Evaluation, str]:
        found = self.compare(weights)
        logits, targets = found.tuned.logits, found.tuned.targets
        if found.is_better or not self._evaluations:  # a resumed run may have led before
            self._led_at = max(self._led_at, samples)
        self._evaluations += 1
        reason = ""
        if self._evaluations >= FEWEST_EVALUATIONS and samples - self._led_at >= self._patience:
            reason = f"no net of the last {STOPS_AFTER:.0%} of the run was better than the head"
        loss = float(cross_entropies(logits, targets).mean())
        answers = targets.astype(np.intp), logits.argmax(1)
        return Evaluation(loss, len(targets), logits.shape[1], *answers), reason


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

    The distance is fitted to the training images; its unit is usual for the validation split.
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
