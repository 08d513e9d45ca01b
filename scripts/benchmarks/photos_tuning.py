"""``scripts/bench photos-tuning``: what tuning adds to heads, and whether its reports hold.

``dist-net train FOLDER`` trains on each folder, with ``--fine-tune auto`` and without, by one
worker, on images of 96 pixels. Both nets are judged on fresh images, in ``test/``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.drawn_images import ARROWS, draw_folder
from benchmarks.peers.peer_process import PeerProcess
from benchmarks.rounds import Say
from dist_net.data import dataset_named

SIDE = 96
STAMPS = Path("/usr/share/tuxpaint/stamps")  # of Debian's package tuxpaint-stamps-default
CLASSES_OF_STAMPS = "animals", "clothes", "food", "household", "vehicles"
DEADLINE_S = 3600.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of folder; ``draw`` writes a part of one: root, images of each class, seed, part."""

    name: str
    draw: Callable[[Path, int, int, str], object]
    fresh: int
    flip: bool = True


def draw_arrows(root: Path, count: int, seed: int, part: str) -> None:
    """Draws arrows."""
    draw_folder(root, count, seed, part, ARROWS)


def write_clothes(root: Path, count: int, seed: int, part: str) -> None:
    """Writes images of Fashion-MNIST; those of ``test`` are from its test set."""
    dataset = dataset_named("fashion-mnist")
    inputs, targets = (
        (dataset.test_inputs, dataset.test_targets)
        if part == "test"
        else (dataset.train_inputs, dataset.train_targets)
    )
    images, labels = np.asarray(inputs), np.asarray(targets)
    generator = np.random.default_rng(seed)
    for label, name in enumerate(dataset.class_names):
        folder = root / part / name.replace("/", " or ")
        folder.mkdir(parents=True)
        chosen = generator.choice(np.flatnonzero(labels == label), count, replace=False)
        for number, index in enumerate(chosen.tolist()):
            Image.fromarray(images[index].reshape(28, 28)).save(folder / f"{number:04}.png")


def write_stamps(root: Path, count: int, seed: int, part: str) -> None:
    """Writes photographs and drawings on white; the last of each class are those of ``test``."""
    for name in CLASSES_OF_STAMPS:
        folder = root / part / name
        folder.mkdir(parents=True)
        paths = sorted((STAMPS / name).rglob("*.png"))
        np.random.default_rng(seed).shuffle(paths)
        chosen = paths[-count:] if part == "test" else paths[:count]
        for number, path in enumerate(chosen):
            with Image.open(path) as image:
                shown = image.convert("RGBA")
            white = Image.new("RGB", shown.size, "white")
            white.paste(shown, mask=shown.getchannel("A"))
            white.save(folder / f"{number:04}.png")


KINDS = (
    Kind("polygons", draw_folder, 80),
    Kind("arrows", draw_arrows, 100, flip=False),
    Kind("Fashion-MNIST", write_clothes, 60),
)
CASES = [(kind, count, 3) for kind in KINDS for count in (20, 60, 200)]
"""The kind of folder, the images of each class, and the number of seeds."""
REPORTS = KINDS[0], 20, 20
"""The case on which reports are judged."""


def measure(_with_peers: bool, say: Say, scale: float = 1.0) -> dict[str, Any]:
    """Return ``results``: a row for each case."""
    cases = [*CASES, REPORTS]
    if STAMPS.is_dir():
        cases.append((Kind("stamps", write_stamps, 25), 20, 3))
    else:
        say("left out stamps: apt install tuxpaint-stamps-default")
    return {"results": [row(*case[:2], max(1, round(scale * case[2])), say) for case in cases]}


def row(kind: Kind, count: int, seeds: int, say: Say) -> Row:
    """Return the medians of a case over its seeds."""
    say(f"{kind.name}: {count} images of each class, {seeds} seeds")
    found = [judged(kind, count, seed) for seed in range(seeds)]
    return {"folder": kind.name, "images_per_class": count, "seeds": seeds} | summary(found)


def judged(kind: Kind, count: int, seed: int) -> Row:
    """Draw one folder and return the reports of its head and of its tuned net."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        for part, images in (("train", count), ("test", kind.fresh)):
            kind.draw(folder, images, seed, part)
        with PeerProcess("peers.image_run", folder, deadline_s=DEADLINE_S) as process:
            reports: Row = process.order("tuned", seed=seed, side=SIDE, flip=kind.flip)
            return reports


def summary(found: Sequence[Row]) -> Row:
    """Return what the reports of several runs state of fresh images, in shares of 1."""
    heads, tuned = ([each[name]["measured"][-1] for each in found] for name in ("head", "tuned"))
    intervals = [each["tuned"]["measured"][0]["accuracy_interval"] for each in found]
    fresh = [each["accuracy"] for each in tuned]
    gains = [each - head["accuracy"] for each, head in zip(fresh, heads, strict=True)]
    answered = sum(each["answered"] for each in tuned)
    right = sum(each["answered_right"] for each in tuned)
    held = [low <= each <= high for (low, high), each in zip(intervals, fresh, strict=True)]
    return {
        "head": round(median(each["accuracy"] for each in heads), 3),
        "tuned": round(median(fresh), 3),
        "least_gain": round(min(gains), 3),
        "in_interval": f"{sum(held)} of {len(held)}",
        "answered": round(answered / sum(each["images"] for each in tuned), 3),
        "right_of_answered": round(right / max(1, answered), 3),
        "seconds": round(median(each["tuned"]["seconds"] for each in found)),
    }
