"""Compute the content of a run's report as a JSON object, without drawing."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.images.labels import Calibration, lowest_threshold
from dist_net.nn.inference import softmax
from dist_net.photos.photo_statistics import (
    JudgedImages,
    calibration_error,
    effective_count,
    independent_share,
    wilson_interval,
)
from dist_net.photos.unknown_images import LeftOutClass
from dist_net.training.run.evaluation import confusion_of, most_confident_mistakes

MAX_MISTAKES = 24
PROMISE_ERRORS = 3.0
MAX_DOUBTFUL = 24
DOUBTFUL_ABOVE = 0.5
"""A label is doubtful if out of fold another class leads it by more than this probability."""
FEW_IMAGES = 20
"""A class has few images below this number and half of the median class's."""
TERMS = {
    "head": "the last layer of the net, which turns an image's features into an answer",
    "out of fold": "answered by a head that was trained without the image and its group",
    "group": "copies of one photo, or images of one scene; it counts as one image",
}
CURVE_POINTS = 100
PRECISIONS = 0.5, 0.7, 0.8, 0.9, 0.95, 0.99
MIN_CALIBRATION_IMAGES = 300
"""With fewer images the measured calibration error would be mostly chance."""


def report_content(
    class_names: Sequence[str],
    judged: JudgedImages,
    tested: JudgedImages | None,
    calibration: Calibration,
    left_out: Sequence[LeftOutClass],
) -> dict[str, Any]:
    """Return what was measured of a run as a JSON object.

    ``judged``: images to calibrate on. ``tested``, of test/, replaces them for accuracy and tables.
    """
    main = judged if tested is None else tested
    probabilities = main.probabilities(calibration)
    confusion = confusion_of(main.targets, probabilities.argmax(1), len(class_names))
    folds = judged.folds
    kind = "split off" if folds is None else f"out of fold, by {folds} heads"
    measured = [_figures(judged, calibration, f"not trained on, {kind}")]
    before, after = (
        calibration_error(each, judged.targets)
        if len(judged.targets) >= MIN_CALIBRATION_IMAGES
        else None
        for each in (softmax(judged.logits), judged.probabilities(calibration))
    )
    if tested is not None:
        measured.append(_figures(tested, calibration, "in test/"))
    return {
        "judged_on": measured[-1]["data"],
        "accuracy": measured[-1]["accuracy"],
        "loss": measured[-1]["loss"],
        "measured": measured,
        "terms": TERMS if folds is not None else {"group": TERMS["group"]},
        "classes": class_table(confusion, class_names),
        "confusion": confusion.tolist(),
        "calibration": {
            **asdict(calibration),
            "error_before": before,
            "error_after": after,
            "is_proven": calibration.is_proven,
            "choices": proven_choices(calibration, probabilities),
            "measured_on": measured[0]["data"],
            "answered": measured[-1]["answered_share"],
            "right_of_answered": measured[-1]["right_of_answered"],
            "curve": answered_curve(main, probabilities),
        },
        "promise": promise(judged, calibration),
        "left_out": [asdict(each) for each in left_out],
        "mistakes": mistakes(main, probabilities, class_names),
        "doubtful": [] if folds is None else doubtful(judged, calibration, class_names),
    }


def promise(judged: JudgedImages, calibration: Calibration) -> dict[str, float]:
    """Return upper bounds of the means of new images: the share of unknown ones, and the doubt.

    They are ``PROMISE_ERRORS`` standard errors above the means of the judged images.
    """
    best = judged.probabilities(calibration).max(1).astype(np.float64)
    count = independent_share(judged.folds) * effective_count(judged.groups)
    unknown, doubt = (
        min(1.0, float(each.mean() + PROMISE_ERRORS * each.std() / np.sqrt(count)) + 1 / count)
        for each in (best < calibration.threshold, 1 - best)
    )
    return {
        "unknown_at_most": unknown,
        "doubt_at_most": doubt,
        "threshold": calibration.threshold,
    }


def _figures(judged: JudgedImages, calibration: Calibration, data: str) -> dict[str, Any]:
    """Return the shares measured on these images, with numerators and 95 % intervals."""
    probabilities = judged.probabilities(calibration)
    is_right = probabilities.argmax(1) == judged.targets
    is_answered = probabilities.max(1) >= calibration.threshold
    total, right, answered = len(is_right), int(is_right.sum()), int(is_answered.sum())
    answered_right = int((is_right & is_answered).sum())
    groups = len(np.unique(judged.groups))
    return {
        "data": f"{total:,} images in {groups:,} groups {data}",
        "images": total,
        "groups": groups,
        "right": right,
        "accuracy": right / total,
        "accuracy_interval": judged.interval(is_right, np.full(total, True)),
        "loss": judged.loss(calibration),
        "answered": answered,
        "answered_share": answered / total,
        "answered_right": answered_right,
        "right_of_answered": answered_right / answered if answered else None,
        "right_of_answered_interval": judged.interval(is_right, is_answered) if answered else None,
    }


def proven_choices(
    calibration: Calibration, probabilities: NDArray[np.float32]
) -> list[dict[str, float]]:
    """Return thresholds, the most of ``PRECISIONS`` that each proves, and the share answered."""
    precision_of = {lowest_threshold(calibration.proven, each): each for each in PRECISIONS}
    return [
        {"precision": each, "threshold": least, "answered": (probabilities.max(1) >= least).mean()}
        for least, each in precision_of.items()
        if least is not None
    ]


def answered_curve(
    judged: JudgedImages, probabilities: NDArray[np.float32]
) -> list[dict[str, float]]:
    """Return shares answered, and right of those, at ``CURVE_POINTS`` falling thresholds."""
    confidence = probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    right = (probabilities.argmax(1) == judged.targets)[order].cumsum()
    total = len(order)
    chosen = np.unique(np.linspace(0, total - 1, min(CURVE_POINTS, total)).astype(np.int64))
    return [
        {
            "threshold": float(confidence[order[row]]),
            "answered": (row + 1) / total,
            "right": float(right[row] / (row + 1)),
        }
        for row in chosen.tolist()
    ]


def class_table(confusion: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the precision and recall of each class; None for a share without images.

    ``warning`` names the cause if the figures of all images hide a bad class, else it is "".
    """
    right, answered, there = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    accuracy, few = right.sum() / there.sum(), min(FEW_IMAGES, np.median(there) / 2)
    return [
        {
            "name": name,
            "images": int(there[index]),
            "precision": float(right[index] / answered[index]) if answered[index] else None,
            "recall": float(right[index] / there[index]) if there[index] else None,
            "warning": "few images"
            if there[index] < few
            else "often wrong"
            if wilson_interval(right[index], there[index]).high < accuracy
            else "",
        }
        for index, name in enumerate(names)
    ]


def mistakes(
    judged: JudgedImages, probabilities: NDArray[np.float32], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the wrong answers, the most confident first; at most ``MAX_MISTAKES``."""
    rows = most_confident_mistakes(probabilities, judged.targets)[:MAX_MISTAKES]
    return _entries(judged, probabilities, class_names, rows)


def doubtful(
    judged: JudgedImages, calibration: Calibration, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the images with doubtful labels, the most doubtful first.

    A label is doubtful if another class is likely and the labelled class is not (after Northcutt
    et al. 2021, arXiv 1911.00068). Return at most ``MAX_DOUBTFUL`` images.
    """
    probabilities = judged.probabilities(calibration)
    rows = np.arange(len(probabilities))
    answers = probabilities.argmax(1)
    own = probabilities[rows, judged.targets]
    doubt = probabilities[rows, answers] - own
    is_doubtful = (answers != judged.targets) & (doubt > DOUBTFUL_ABOVE)
    order = np.argsort(-doubt, kind="stable")
    chosen = order[is_doubtful[order]][:MAX_DOUBTFUL]
    return _entries(judged, probabilities, class_names, chosen)


def _entries(
    judged: JudgedImages,
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    rows: NDArray[np.intp],
) -> list[dict[str, Any]]:
    return [
        {
            "image": judged.names[row],
            "label": class_names[judged.targets[row]],
            "answer": class_names[probabilities[row].argmax()],
            "probability": float(probabilities[row].max()),
        }
        for row in rows.tolist()
    ]
