"""Pictures of a run: its curves, and which class was taken for which. Needs the extra ``plots``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_training(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws loss and accuracy over samples, in training and on the test images, into a PNG."""
    figure = _figure(10, 4)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for kind, style in (("train", "-"), ("test", "o-")):
            chosen = sorted(
                (each["samples"], each[quantity]) for each in records if each["kind"] == kind
            )
            if chosen:
                axes.plot(*zip(*chosen, strict=True), style, label=kind, markersize=3)
        axes.set_xlabel("samples")
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def plot_confusion(confusion: NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Draws counts of (true class, predicted class) into a PNG; ``confusion`` is (C, C)."""
    classes = len(class_names)
    figure = _figure(2 + 0.6 * classes, 1.5 + 0.6 * classes)
    axes = figure.subplots()
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(classes), class_names, rotation=45, ha="right")
    axes.set_yticks(range(classes), class_names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in np.argwhere(confusion > 0):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color)
    figure.savefig(path, dpi=100)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "pictures of a run need matplotlib; install it with: pip install 'dist-net[plots]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")
