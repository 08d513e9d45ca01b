"""``scripts/bench photos-honesty``: whether the reports on small folders hold on fresh images.

Polygons are drawn once and their features computed once. Each seed draws the images of a folder
from them, trains a head as ``dist-net train FOLDER`` does, and judges it on as many others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.drawn_images import draw_folder
from benchmarks.peers.image_features import load
from benchmarks.rounds import Say
from dist_net.nn.inference import softmax
from dist_net.photos.head_training import HeadTraining
from dist_net.photos.photo_statistics import calibrate, out_of_fold_interval

COUNTS = 20, 40, 80
SEEDS = 20
POOL, FRESH = 500, 80
"""Images of each class: drawn, and fresh ones for each seed."""
PRECISION = 0.95

Row = dict[str, Any]


def measure(_with_peers: bool, say: Say, scale: float = 1.0) -> dict[str, Any]:
    """Return ``results``: a row for each number of images of a class."""
    pool = max(COUNTS[-1] + FRESH, round(scale * POOL))
    with tempfile.TemporaryDirectory() as temporary:
        say(f"drawing {pool} images of each class, and computing their features")
        folder = draw_folder(Path(temporary) / "polygons", pool, seed=7)
        features = load(folder, 8, 2)()
    labels = np.repeat(np.arange(len(features) // pool), pool)
    seeds = range(max(2, round(scale * SEEDS)))
    return {"results": list(rows(features, labels, seeds, say))}


def rows(
    features: NDArray[np.float32], labels: NDArray[np.int64], seeds: Sequence[int], say: Say
) -> Iterator[Row]:
    """Yield the means over the seeds, for each number of images of a class."""
    for count in COUNTS:
        say(f"{len(seeds)} folders of {count} images of each class")
        found = [judge(features, labels, count, seed) for seed in seeds]
        answered = [each for each in found if each["answered"]]
        precisions = [each["right"] / each["answered"] for each in answered]
        yield {
            "images_per_class": count,
            "fresh_images": found[0]["fresh"],
            "reported_accuracy": mean(each["reported"] for each in found),
            "fresh_accuracy": mean(each["accuracy"] for each in found),
            "in_interval": f"{sum(each['in_interval'] for each in found)} of {len(found)}",
            "precision": mean(precisions),
            "worst_precision": round(min(precisions, default=float("nan")), 3),
            "answered": mean(each["answered"] / each["fresh"] for each in found),
            "answering_nothing": len(found) - len(answered),
        }


def mean(values: Any) -> float:
    """The mean, in thousandths."""
    return round(float(np.mean([*values])), 3)


def judge(features: NDArray[np.float32], labels: NDArray[np.int64], count: int, seed: int) -> Row:
    """Train on ``count`` images of each class; compare the report with fresh images."""
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(np.flatnonzero(labels == each)) for each in set(labels)]
    trained = np.concatenate([of_class[:count] for of_class in shuffled])
    fresh = np.concatenate([of_class[count : count + FRESH] for of_class in shuffled])
    groups = np.arange(len(trained))
    head = HeadTraining(features[None, trained], labels[trained], groups, (), seed, trained)
    judged = head.judged
    calibration = calibrate(judged.logits, judged.targets, PRECISION)
    right = int((judged.logits.argmax(1) == judged.targets).sum())
    interval = out_of_fold_interval(right, len(trained), head.folds)
    probabilities = softmax(head(features[fresh]) / np.float32(calibration.temperature))
    is_right = probabilities.argmax(1) == labels[fresh]
    is_answered = probabilities.max(1) >= calibration.threshold
    return {
        "fresh": len(fresh),
        "reported": right / len(trained),
        "accuracy": float(is_right.mean()),
        "in_interval": bool(interval.low <= is_right.mean() <= interval.high),
        "answered": int(is_answered.sum()),
        "right": int((is_right & is_answered).sum()),
    }
