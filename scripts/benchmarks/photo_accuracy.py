"""How often heads are right on images that they were not trained on.

The yardstick is scikit-learn's logistic regression, on the same features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.drawn_images import draw_folder
from benchmarks.peers.peer_process import PeerProcess, missing_packages
from benchmarks.rounds import Say
from dist_net.data import dataset_named

MODULE = "peers.image_run"
DEADLINE_S = 1800.0
TEST_SHARE = 5  # one in so many images of Fashion-MNIST is tested on

Row = dict[str, Any]


@dataclass(frozen=True)
class AccuracyPlan:
    """How many images of a class each folder has."""

    drawn_count: int = 200
    clothes_count: int = 600

    def scaled(self, scale: float) -> AccuracyPlan:
        """So many times this one, with a few images at least."""
        return replace(
            self,
            drawn_count=max(8, round(scale * self.drawn_count)),
            clothes_count=max(20, round(scale * self.clothes_count)),
        )


def measure(plan: AccuracyPlan, place: Path, say: Say) -> list[Row]:
    """Rows ``folder images head scikit_learn``: shares of 1."""
    folders = {
        "drawn, seed 1": lambda root: draw_parts(root, plan.drawn_count, 1),
        "drawn, seed 2": lambda root: draw_parts(root, plan.drawn_count, 2),
        "Fashion-MNIST": lambda root: write_clothes(root, plan.clothes_count),
    }
    if reason := missing_packages(("sklearn",)):
        say(f"left out the accuracy of heads: {reason}; pip install -e '.[peers]'")
        folders = {}
    return [head_row(name, draw, place / name, say) for name, draw in folders.items()]


def head_row(name: str, draw: Callable[[Path], Path], folder: Path, say: Say) -> Row:
    """How a head does on the images of a folder, beside logistic regression."""
    say(f"training a head on {name}")
    draw(folder)
    with PeerProcess(MODULE, folder, deadline_s=DEADLINE_S) as process:
        head, theirs = process.order("head", seed=0), process.order("logistic_regression")
    count = sum(each.is_file() for each in folder.rglob("*"))
    return {"folder": name, "images": count, "head": head, "scikit_learn": theirs}


def draw_parts(root: Path, count: int, seed: int) -> Path:
    """A drawn folder with ``count`` images of a class, and as many again to test on."""
    for part in ("train", "test"):
        draw_folder(root, count, seed, part)
    return root


def write_clothes(root: Path, count: int) -> Path:
    """The first ``count`` images of each class of Fashion-MNIST as PNG files, a share to test."""
    dataset = dataset_named("fashion-mnist")
    images, targets = np.asarray(dataset.train_inputs), np.asarray(dataset.train_targets)
    for label, name in enumerate(dataset.class_names):
        for number, index in enumerate(np.flatnonzero(targets == label)[:count].tolist()):
            part = "train" if number % TEST_SHARE else "test"
            folder = root / part / name.replace("/", " or ")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).save(folder / f"{number:04}.png")
    return root


def ratios(heads: Sequence[Row]) -> dict[str, float]:
    """The head's lowest lead on logistic regression, in points."""
    leads = [row["head"] - row["scikit_learn"] for row in heads]
    return {"head_points_above_scikit_learn": round(100 * min(leads), 2)} if leads else {}
