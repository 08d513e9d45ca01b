"""Measure how heads answer images of an unknown class, by leaving out each class in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.nn.inference import softmax
from dist_net.photos.distance import tempered_by
from dist_net.photos.head import train_heads
from dist_net.photos.head_training import HeadTraining, distances_out_of_fold
from dist_net.photos.photo_statistics import calibrate

MAX_LEFT_OUT = 10
MAX_ROWS = 500
"""The maximum number of images, evenly spread, from which the shares are measured."""
KNOWN_LOST = 0.05


@dataclass(frozen=True)
class LeftOutClass:
    """The answers of a head to a class on which it was not trained.

    ``images`` counts the images of the class, ``others`` the images of the other classes.
    ``unknown`` is the share of the class that is classified as unknown; ``known_lost`` is the same
    share of the other classes, out of fold. ``by_confidence`` and ``by_distance`` are the shares
    of the class recognised as unknown when 5 % of the other images are lost: by the probability
    alone, and by the probability lowered by the distance, as in the model.
    """

    name: str
    images: int
    others: int
    unknown: float
    known_lost: float
    by_confidence: float
    by_distance: float


def left_out_classes(
    head: HeadTraining | None, names: Sequence[str], precision: float
) -> list[LeftOutClass]:
    """Leave out each of the first ten classes; return [] without a head or for two classes."""
    if head is None or len(names) < 3:
        return []
    step = -(-len(head.rows) // MAX_ROWS)
    features, labels = head.features[::step], head.labels[::step]
    folds = head.fold_of[::step] % 5
    found = []
    for label, name in enumerate(names[:MAX_LEFT_OUT]):
        is_known = labels != label
        known = labels[is_known] - (labels[is_known] > label)
        others, shown = features[is_known], features[~is_known]
        is_whole = np.unique(known).size == len(names) - 1
        if not is_whole or not len(shown) or np.unique(folds[is_known]).size < 2:
            continue
        fold_of = np.unique(folds[is_known], return_inverse=True)[1]
        heads = train_heads(others, known, len(names) - 1, fold_of, (head.heads.penalty,))
        distances, distance = distances_out_of_fold(others, known, len(names) - 1, fold_of)
        plain = heads.logits, heads.final(shown)
        tempered = (
            tempered_by(distances, heads.logits),
            tempered_by(distance(shown), plain[1]),
        )
        found.append(_judged(name, known, plain, tempered, precision))
    return found


def _judged(
    name: str,
    known: NDArray[np.int64],
    plain: tuple[NDArray[np.float32], NDArray[np.float32]],
    tempered: tuple[NDArray[np.float32], NDArray[np.float32]],
    precision: float,
) -> LeftOutClass:
    shares = []
    for of_known, of_shown in (plain, tempered):
        calibration = calibrate(of_known, known, precision)
        certain, shown = (
            softmax(each / np.float32(calibration.temperature)).max(1)
            for each in (of_known, of_shown)
        )
        shares.append(float((shown < np.quantile(certain, KNOWN_LOST)).mean()))
    unknown = float((shown < calibration.threshold).mean())
    lost = float((certain < calibration.threshold).mean())
    return LeftOutClass(name, len(shown), len(known), unknown, lost, *shares)
