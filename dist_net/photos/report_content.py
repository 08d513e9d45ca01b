"""What the report of a run says, as one JSON object: numbers only, no drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.nets.calibration import Calibration, calibration_error
from dist_net.nn.inference import softmax

TINY = np.finfo(np.float32).tiny
MAX_MISTAKES = 24
MAX_DOUBTFUL = 24
DOUBTFUL_ABOVE = 0.5
"""A label is doubted when nets that never saw the image give another class more than this."""


class JudgedImages(NamedTuple):
    """Images that a net was not trained on, and its outputs for them.

    ``logits`` is (N, classes) float32, before calibration; ``targets`` (N,) class indices.
    """

    names: Sequence[str]
    targets: NDArray[np.integer]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class LeftOutClass:
    """What becomes of a class that a net was not trained on.

    ``unknown`` is the share of its images that are called unknown, ``known_lost`` that of the
    other classes' images.
    """

    name: str
    unknown: float
    known_lost: float


def report_content(
    run: Mapping[str, Any],
    class_names: Sequence[str],
    judged: JudgedImages,
    calibration: Calibration,
    doubted: JudgedImages | None,
    left_out: Sequence[LeftOutClass],
    curves: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The report of a run, which ``run`` names and describes, as a JSON object.

    ``doubted`` are images with the outputs of nets that were trained without them.
    """
    probabilities = softmax(judged.logits / np.float32(calibration.temperature))
    confusion = confusion_of(judged.targets, probabilities.argmax(1), len(class_names))
    is_right = probabilities.argmax(1) == judged.targets
    own = probabilities[np.arange(len(is_right)), judged.targets]
    is_answered = probabilities.max(1) >= calibration.threshold
    return {
        **run,
        "accuracy": float(is_right.mean()),
        "loss": float(-np.log(np.maximum(own, TINY)).mean()),
        "classes": class_table(confusion, class_names),
        "confusion": confusion.tolist(),
        "calibration": {
            **asdict(calibration),
            "error_before": calibration_error(softmax(judged.logits), judged.targets),
            "error_after": calibration_error(probabilities, judged.targets),
            "answered": float(is_answered.mean()),
            "right_of_answered": float(is_right[is_answered].mean()) if is_answered.any() else None,
        },
        "left_out": [asdict(each) for each in left_out],
        "mistakes": mistakes(judged, probabilities, class_names),
        "doubtful": [] if doubted is None else doubtful(doubted, class_names),
        "curves": [*curves],
    }


def confusion_of(
    targets: NDArray[np.integer], answers: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """How often each class, the row, was taken for each, the column: (classes, classes)."""
    pairs = targets.astype(np.intp) * classes + answers
    counts = np.bincount(pairs, minlength=classes * classes)
    return counts.reshape(classes, classes, copy=False)


def class_table(confusion: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision and recall of each class; None where no image decides it."""
    right, answered, there = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
    return [
        {
            "name": name,
            "images": int(there[index]),
            "precision": float(right[index] / answered[index]) if answered[index] else None,
            "recall": float(right[index] / there[index]) if there[index] else None,
        }
        for index, name in enumerate(names)
    ]


def mistakes(
    judged: JudgedImages, probabilities: NDArray[np.float32], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """The wrong answers, the most confident first."""
    answers = probabilities.argmax(1)
    wrong = np.flatnonzero(answers != judged.targets)
    order = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:MAX_MISTAKES]
    return [
        _entry(judged, index, class_names, answers[index], probabilities[index].max())
        for index in order.tolist()
    ]


def doubtful(judged: JudgedImages, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Images whose label may be wrong, the most doubtful first.

    Those are the ones for which another class is likely, and the label's is not (after Northcutt
    et al. 2021, arXiv 1911.00068).
    """
    probabilities = softmax(judged.logits)
    rows = np.arange(len(probabilities))
    answers = probabilities.argmax(1)
    own = probabilities[rows, judged.targets]
    doubt = probabilities[rows, answers] - own
    is_doubtful = (answers != judged.targets) & (doubt > DOUBTFUL_ABOVE)
    order = np.argsort(-doubt, kind="stable")
    chosen = [index for index in order.tolist() if is_doubtful[index]][:MAX_DOUBTFUL]
    return [
        _entry(judged, index, class_names, answers[index], probabilities[index].max())
        for index in chosen
    ]


def _entry(
    judged: JudgedImages, index: int, class_names: Sequence[str], answer: int, probability: float
) -> dict[str, Any]:
    return {
        "image": judged.names[index],
        "label": class_names[int(judged.targets[index])],
        "answer": class_names[int(answer)],
        "probability": float(probability),
    }
