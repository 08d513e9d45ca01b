"""Train the head of a folder's classifier, and compute its logits out of fold."""

from collections.abc import Collection, Sequence
from contextlib import closing
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dist_net.data.image_split import MIN_GROUPS, TRAIN, VALIDATION, divided_groups
from dist_net.data.prepared_images import PreparedImages
from dist_net.data.samples import SampleIndices, Samples
from dist_net.errors import DatasetError
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.image_recipe import ImageRecipe
from dist_net.nn import Model
from dist_net.nn.inference import Inference, prepare
from dist_net.photos.head import (
    FOLDS,
    PENALTIES,
    ClassIndices,
    FeatureRows,
    HeadWeights,
    TrainedHeads,
    fold_of_each,
    train_heads,
)
from dist_net.photos.photo_statistics import JudgedImages
from dist_net.photos.unknown_images import distances_out_of_fold, tempered_by
from dist_net.processes.equipment import available_cores

BATCH_SIZE = 8
SIMILAR, MIN_IMAGES = 4, 10
"""The images to leave out as similar to each, if every class has ``MIN_IMAGES``."""


class HeadTraining:
    """The head of all images except test/, and its logits out of fold.

    ``features`` is (views, N, F): the head trains on every view and is judged on the first view.
    ``labels`` and ``groups`` are (N,); a group shares a fold, unless it leaves a class too few
    folds. There are at most as many folds as the smallest class has groups, so that each head
    trains on about the same share of every class. ``rows`` are the indices of the images in the
    folder's list. ``is_judged``, (N,), marks the images that the base was not trained on, by
    default all: penalty, calibration and figures are those of the marked images.
    """

    def __init__(
        self,
        features: FeatureRows,
        labels: ClassIndices,
        groups: SampleIndices,
        names: Sequence[str],
        seed: int,
        rows: SampleIndices,
        is_judged: NDArray[np.bool_] | None = None,
    ) -> None:
        self._views = features.reshape(-1, features.shape[2], copy=False)
        self._count = len(features)
        self._names = names
        self._classes = int(labels.max()) + 1
        self.features, self.labels, self.rows = features[0], labels, rows
        self._groups = groups
        self._judged = np.flatnonzero(np.full(len(rows), True) if is_judged is None else is_judged)
        # Numbered by their first images, which no name of a file changes.
        _, first, group_of = np.unique(
            divided_groups(groups, labels), return_index=True, return_inverse=True
        )
        divided = first[group_of]
        smallest = min(len(np.unique(divided[labels == label])) for label in np.unique(labels))
        self.folds = min(FOLDS, max(MIN_GROUPS, smallest), len(np.unique(divided)))
        self.fold_of = fold_of_each(labels, divided, self.folds, seed)
        self.heads = self._train(self.fold_of, PENALTIES)
        distances, self.distance = distances_out_of_fold(
            self.features, labels, self._classes, self.fold_of, self._judged
        )
        self._out_of_fold = tempered_by(distances, self.heads.logits[: len(labels)])

    @classmethod
    def from_images(
        cls,
        images: PreparedImages,
        features: FeatureRows,
        digests: Sequence[bytes],
        groups: SampleIndices,
        seed: int,
        tuned_on: Collection[str] = (),
    ) -> Self:
        """Train on the usable images' ``features``, (N, views, F), and ``digests`` of pixels.

        ``groups`` has all images'. The images are in the order of their digests, so that the head
        is a function of images and labels, whatever the files' names. ``tuned_on`` are the
        ``short_digest`` of the images that the base was trained on. Raise DatasetError if these are
        all images.
        """
        rows = np.sort(np.concatenate([images.rows(part) for part in (TRAIN, VALIDATION)]))
        usable = np.flatnonzero(np.isin(images.rows(), rows))
        labels = np.array(images.folder.labels, np.int64)[rows]
        divided = divided_groups(groups[rows], labels)
        order = np.array(
            sorted(range(len(rows)), key=lambda at: (digests[int(usable[at])], labels[at]))
        )
        rows, labels, divided = rows[order], labels[order], divided[order]
        names = [images.folder.images[row].path for row in rows.tolist()]
        views = np.ascontiguousarray(features[usable[order]].swapaxes(0, 1))
        seen = frozenset(tuned_on)  # of thousands
        is_judged = [short_digest(digests[at]) not in seen for at in usable[order].tolist()]
        if not any(is_judged):
            raise DatasetError(
                f"the base was tuned on all {len(rows):,} images; expected others to judge the "
                f"head on: label new images, or tune anew with 'dist-net train --resume'"
            )
        head = cls(views, labels, divided, names, seed, rows, np.array(is_judged))
        head._groups = groups[rows]
        return head

    def _train(self, folds: ClassIndices, penalties: tuple[float, ...]) -> TrainedHeads:
        labels, folds = (np.tile(each, self._count) for each in (self.labels, folds))
        return train_heads(self._views, labels, self._classes, folds, penalties, self._judged)

    def __call__(self, features: FeatureRows) -> FeatureRows:
        """Return the logits of new images, computed as the trained net computes them."""
        return tempered_by(self.distance(features), self.heads.final(features))

    @property
    def every(self) -> JudgedImages:
        return JudgedImages(self._names, self.labels, self._out_of_fold, self._groups, self.folds)

    @property
    def judged(self) -> JudgedImages:
        return self.every.of(self._judged)

    @property
    def accuracy(self) -> float:
        return float((self._out_of_fold.argmax(1) == self.labels)[self._judged].mean())

    def as_random(self) -> float | None:
        """Return the accuracy without similar images, if random labels reach it but not the head's.

        The heads of the folds train without the images most similar to their judged images.
        Classes are recognised nevertheless, but random labels only by other images of a scene.
        """
        shares = np.bincount(self.labels) / len(self.labels)
        chance = shares.max() + 2 * np.sqrt(shares.max() * (1 - shares.max()) / len(self.labels))
        if shares.min() * len(self.labels) < MIN_IMAGES or self.accuracy <= chance:
            return None
        directions = self.features - self.features.mean(0)
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
        is_left_out = np.zeros((len(self.labels), self.folds), bool)
        for fold in range(self.folds):
            is_out = self.fold_of == fold
            alike = directions[is_out] @ directions[~is_out].T
            similar = np.argpartition(-alike, SIMILAR - 1, 1)[:, :SIMILAR]
            is_left_out[np.flatnonzero(~is_out)[similar], fold] = True
        accuracy = float((self.logits_without(is_left_out).argmax(1) == self.labels).mean())
        return accuracy if accuracy <= chance else None

    def logits_without(self, is_left_out: NDArray[np.bool_]) -> FeatureRows:
        """Return the logits out of fold if the folds' heads train without images, (N, folds)."""
        logits = self.heads.without_rows(np.tile(is_left_out, (self._count, 1)))
        return logits[: len(self.labels)]

    def without(self, rows: SampleIndices) -> tuple[HeadWeights, FeatureRows]:
        """Train a head without these rows; return it and its logits of the rows, ascending."""
        is_out = np.isin(self.rows, rows)
        heads = self._train(np.where(is_out, 0, 1), (self.heads.penalty,))
        ascending = np.argsort(np.where(is_out, self.rows, -1))[-is_out.sum() :]
        return heads.of_folds[0], heads.of_folds[0](self.features[ascending])


def short_digest(digest: bytes) -> str:
    """Return a name of an image by the digest of its pixels, to be kept with a model."""
    return digest[:8].hex()


def judged_by(
    recipe: ImageRecipe, weights: Vector, images: PreparedImages, groups: SampleIndices, part: str
) -> JudgedImages:
    """Compute a whole net's logits of the images of a part; ``groups`` as in ``from_images``."""
    logits = outputs_of(recipe.model, weights, images.samples(part))
    rows = images.rows(part)
    names = [images.folder.images[row].path for row in rows]
    return JudgedImages(names, images.labels(part), logits, groups[rows], None)


def outputs_of(model: Model, weights: Vector, samples: Samples) -> FeatureRows:
    """Compute a model's outputs of N samples, (N, outputs), on all cores."""
    outputs = np.empty((len(samples), model.classes), np.float32)
    batch = np.empty((BATCH_SIZE, *samples.shape), samples.dtype)
    session = Inference(model, prepare(model, weights), available_cores(), BATCH_SIZE)
    with closing(session) as inference:
        for start in range(0, len(samples), BATCH_SIZE):
            indices = np.arange(start, min(start + BATCH_SIZE, len(samples)))
            samples.read(indices, batch[: len(indices)])
            outputs[indices] = inference(batch[: len(indices)])
    return outputs
