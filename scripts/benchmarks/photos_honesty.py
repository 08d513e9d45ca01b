"""``scripts/bench photos-honesty``: whether the reports on small folders hold on fresh images.

Polygons are drawn once and their features computed once. Each seed draws the images of a folder
from them, trains a head as ``dist-net train FOLDER`` does, and judges it on as many others. In the
last case a folder has scenes of frames, whose features are those of a drawn image and some noise.
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

CASES = (20, 1), (40, 1), (80, 1), (6, 20)
"""Scenes of each class, and frames of each scene."""
NOISE = 0.3
"""The deviation of frames from their scene, as a share of that of the features."""
SEEDS = 20
POOL, FRESH = 500, 80
"""Images of each class: drawn, and fresh ones for each seed."""
PRECISION = 0.95

Row = dict[str, Any]


def measure(_with_peers: bool, say: Say, scale: float = 1.0) -> dict[str, Any]:
    """Return ``results``: a row for each case."""
    pool = max(max(CASES)[0] + FRESH, round(scale * POOL))
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
    """Yield the means over the seeds, for each case."""
    for count, frames in CASES:
        say(f"{len(seeds)} folders of {count} scenes of each class, of {frames} frames each")
        found = [judge(features, labels, count, frames, seed) for seed in seeds]
        answered = [each for each in found if each["answered"]]
        precisions = [each["right"] / each["answered"] for each in answered]
        yield {
            "scenes_per_class": count,
            "frames": frames,
            "fresh_images": found[0]["fresh"],
            "reported_accuracy": mean(each["reported"] for each in found),
            "fresh_accuracy": mean(each["accuracy"] for each in found),
            "in_interval": f"{sum(each['in_interval'] for each in found)} of {len(found)}",
            "precision": mean(precisions),
            "worst_precision": round(min(precisions, default=float("nan")), 3),
            "below_precision": sum(each < PRECISION for each in precisions),
            "answered": mean(each["answered"] / each["fresh"] for each in found),
            "answering_nothing": len(found) - len(answered),
        }


def mean(values: Any) -> float:
    """The mean, in thousandths."""
    return round(float(np.mean([*values])), 3)


def judge(
    features: NDArray[np.float32], labels: NDArray[np.int64], count: int, frames: int, seed: int
) -> Row:
    """Train on ``count`` scenes of each class; compare the report with fresh images."""
    generator = np.random.default_rng(seed)
    shuffled = [generator.permutation(np.flatnonzero(labels == each)) for each in set(labels)]
    scenes = np.concatenate([of_class[:count] for of_class in shuffled])
    fresh = np.concatenate([of_class[count : count + FRESH] for of_class in shuffled])
    trained = np.repeat(scenes, frames)
    noise = (
        (frames > 1)
        * NOISE
        * features.std(0)
        * generator.normal(size=(len(trained), features.shape[1]))
    )
    shown = (features[trained] + noise).astype(np.float32)
    groups = np.arange(len(trained)) // frames
    head = HeadTraining(shown[None], labels[trained], groups, (), seed, trained)
    judged = head.judged
    calibration = judged.calibrate(PRECISION)
    was_right = judged.logits.argmax(1) == judged.targets
    interval = judged.interval(was_right, np.full(len(trained), True))
    probabilities = softmax(head(features[fresh]) / np.float32(calibration.temperature))
    is_right = probabilities.argmax(1) == labels[fresh]
    is_answered = probabilities.max(1) >= calibration.threshold
    return {
        "fresh": len(fresh),
        "reported": float(was_right.mean()),
        "accuracy": float(is_right.mean()),
        "in_interval": bool(interval.low <= is_right.mean() <= interval.high),
        "answered": int(is_answered.sum()),
        "right": int((is_right & is_answered).sum()),
    }
