"""Whether more images would help: the share of right answers by the number of images.

The heads of the folds train on nested parts of their images, with the penalty of all images. The
share of wrong answers is extrapolated by a power law of the images (Hestness et al. 2017, arXiv
1712.00409), a line in the logarithms of both. All classes have the exponent of all images: those
of single classes predict worse.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.photos.photo_statistics import Interval, JudgedImages, Scores, Targets

PARTS = 0.25, 0.5, 1.0
MIN_GROUPS_KEPT = 2  # of each class, in every part
MIN_RANGE = 2.0  # of the images of the largest part to the smallest, to show a trend
STEEPEST = 0.5  # exponent: steeper trends of few images are mostly chance
HARDLY = 0.01  # a class has enough images if twice as many add less to its share of right answers
MAX_NAMED = 3

Curve = Mapping[str, Any]
"""``points``, the last one extrapolated to twice as many images; the ``gain`` by a number of more
images; ``is_enough``: whether twice as many would hardly help."""


def learning_curve(
    names: Sequence[str],
    judged: JudgedImages,
    fold_of: Targets,
    logits_without: Callable[[NDArray[np.bool_]], Scores],
) -> dict[str, Any] | None:
    """Return the curves of all images and of each class, and advice; None for too few images.

    ``logits_without`` maps the images, (N, folds), that the heads do without to logits out of fold.
    """
    parts = nested_parts(judged, fold_of)
    logits = [*(logits_without(~part) for part in parts[:-1]), judged.logits]
    is_right = [each.argmax(1) == judged.targets for each in logits]
    count = len(fold_of)
    images = [part.sum() / part.shape[1] for part in parts]
    if images[-1] < MIN_RANGE * images[0]:
        return None
    wrong = [count - each.sum() + 0.5 for each in is_right]
    exponent = np.clip(-np.polyfit(np.log(images), np.log(wrong), 1)[0], 0, STEEPEST)
    more = int(float(f"{median(np.bincount(judged.targets).tolist()):.0e}"))  # of one digit

    def curve(of: NDArray[np.bool_]) -> Curve:
        points = [
            {
                "images": part[of].sum() / part.shape[1],
                "right": float(right[of].mean()),
                "interval": judged.interval(right, of),
            }
            for part, right in zip(parts, is_right, strict=True)
        ]
        return extrapolated(points, int(of.sum()), more, exponent)

    whole = curve(np.full(count, True))
    classes = [{"name": name, **curve(judged.targets == at)} for at, name in enumerate(names)]
    return {"whole": whole, "classes": classes, "advice": advice(whole, classes, more)}


def extrapolated(measured: Sequence[Curve], count: int, more: int, exponent: float) -> Curve:
    """Return the curve of ``measured`` points, of ``count`` images.

    The interval extends from no gain to that of the steepest law. Half an image is counted as wrong
    beside the others: if every answer is right, the next may be wrong.
    """
    *_, last = measured
    error = (count * (1 - last["right"]) + 0.5) / (count + 1)
    gain, twice = (
        float(error * (1 - (last["images"] / each) ** exponent))
        for each in (count + more, 2 * count)
    )
    low, high = last["interval"]
    high = float(1 - (1 - high) * (last["images"] / (2 * count)) ** STEEPEST)
    right = min(last["right"] + twice, high)
    points = [*measured, {"images": 2 * count, "right": right, "interval": Interval(low, high)}]
    return {"points": points, "gain": gain, "is_enough": twice < HARDLY}


def advice(whole: Curve, classes: Sequence[Curve], more: int) -> str:
    """Return in words which images would help."""
    *_, present, twice = whole["points"]
    low, high = twice["interval"]
    text = (
        f"with twice as many images like these, about {twice['right']:.0%} of the answers would "
        f"be right ({low:.0%} to {high:.0%}), instead of {present['right']:.0%}"
    )
    enough = [repr(each["name"]) for each in classes if each["is_enough"]]
    if len(enough) == len(classes):
        return f"No class needs more images: {text}"
    best = max(classes, key=lambda each: float(each["gain"]))
    enough[MAX_NAMED:] = [f"{len(enough) - MAX_NAMED} others"] * (len(enough) > MAX_NAMED)
    needless = f"; none are needed of {', '.join(enough)}" if enough else ""
    return f"{more:,} more images of {best['name']!r} would help most{needless}. In all, {text}"


def nested_parts(judged: JudgedImages, fold_of: Targets) -> list[NDArray[np.bool_]]:
    """Return for each of ``PARTS`` the images, (N, folds), of the folds' heads: whole groups.

    Each fold draws its own, so that the mean over the folds depends less on the draw.
    """
    parts = [np.zeros((len(fold_of), int(fold_of.max()) + 1), bool) for _ in PARTS]
    generator = np.random.default_rng(0)
    for fold in range(parts[0].shape[1]):
        labels, groups = (each[fold_of != fold] for each in (judged.targets, judged.groups))
        drawn = generator.permutation(groups.max() + 1)[groups]
        in_class = [np.unique(drawn[labels == label]) for label in np.unique(labels)]
        for share, part in zip(PARTS, parts, strict=True):
            is_kept = np.zeros(groups.max() + 1, bool)
            for each in in_class:
                is_kept[each[: max(MIN_GROUPS_KEPT, math.ceil(share * len(each)))]] = True
            part[fold_of != fold, fold] = is_kept[drawn]
    return parts
