"""Plots of runs and confusion matrices; need the extra ``plots``."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dist_net.ground.command_line import importing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 300  # of a curve; more than that is only noise
MAX_CLASSES_NAMED = 60  # beyond that names and counts could not be read
TITLES = {"loss": "loss", "accuracy": "accuracy", "samples_per_s": "samples per second"}
AS_IT_IS: dict[str, Any] = {"parse_math": False}  # a name may hold dollar signs


def plot_training(
    records: Sequence[Mapping[str, Any]], samples_per_epoch: int, recipe: str, path: Path
) -> None:
    """Draw loss, accuracy and speed of ``records`` into a PNG. Raise MissingExtraError, OSError."""
    figure = new_figure(15, 4.2)
    figure.suptitle(_title(records, samples_per_epoch, recipe), **AS_IT_IS)
    of_epochs = [{**each, "epoch": each["samples"] / samples_per_epoch} for each in records]
    for axes, quantity in zip(figure.subplots(1, 3), TITLES, strict=True):
        draw_curve(axes, of_epochs, quantity)
    figure.savefig(path, dpi=120, format="png")


def plot_history(epochs: Sequence[int], figures: Mapping[str, Sequence[float]]) -> "Figure":
    """Return a figure of the metrics of epochs; ``val_`` begins those of validation."""
    names = [name for name in figures if not name.startswith("val_")]
    figure = new_figure(5 * max(1, len(names)), 4.2)
    for place, name in enumerate(names, 1):
        records = [
            {"kind": kind, "epoch": epoch, name: value}
            for kind, key in (("train", name), ("validation", f"val_{name}"))
            for epoch, value in zip(epochs, figures.get(key, ()), strict=False)
        ]
        draw_curve(figure.add_subplot(1, len(names), place), records, name)
    return figure


def draw_curve(axes: "Axes", records: Sequence[Mapping[str, Any]], quantity: str) -> None:
    """Draw a quantity over epochs, in training and on test samples."""
    axes.set_title(TITLES.get(quantity, quantity), **AS_IT_IS)
    for kind, style in (("train", "-"), ("test", "o-"), ("validation", "o-")):
        chosen = [
            each for each in records if each["kind"] == kind and each.get(quantity) is not None
        ]
        if chosen:
            points = np.array([(each["epoch"], each[quantity]) for each in chosen], float)
            epochs, values = _curve(points).T
            axes.plot(epochs, values, style, label=kind, markersize=3, linewidth=1.2)
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter("{x:.0%}")
    elif quantity == "samples_per_s":
        axes.set_ylim(bottom=0)


def _title(records: Sequence[Mapping[str, Any]], samples_per_epoch: int, recipe: str) -> str:
    epochs = max(each["samples"] for each in records) / samples_per_epoch
    last = next((each for each in reversed(records) if each["kind"] == "test"), None)
    if last is None:
        result = ""
    elif last["accuracy"] is None:
        result = f", test loss {last['loss']:#.4g}"
    else:
        result = f", test accuracy {last['accuracy']:.2%}"
    return f"{recipe}: {epochs:.1f} epochs{result}"


def _curve(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at most MAX_POINTS points, sorted by x, each the mean of neighbours; ``(N, 2)``."""
    ordered = points[np.argsort(points[:, 0], kind="stable")]
    parts = np.array_split(ordered, min(MAX_POINTS, len(ordered)))
    return np.array([part.mean(0) for part in parts])


def plot_confusion(
    confusion: NDArray[np.int64], class_names: Sequence[str], recipe: str, path: Path
) -> None:
    """Draw counts (C, C) of (true, predicted) class into a PNG. Raise as ``plot_training``."""
    side = 0.6 * min(len(class_names), MAX_CLASSES_NAMED)
    figure = new_figure(2 + side, 1.8 + side)
    axes = figure.subplots()
    draw_confusion(axes, confusion, class_names)
    axes.set_title(f"{recipe}: test images", **AS_IT_IS)
    figure.savefig(path, dpi=100, format="png")


def draw_confusion(axes: "Axes", confusion: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Draw counts of (true class, predicted class), shaded by their share of the true class."""
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(class_names) <= MAX_CLASSES_NAMED:
        places = range(len(class_names))
        axes.set_xticks(places, class_names, rotation=45, ha="right", **AS_IT_IS)
        axes.set_yticks(places, class_names, **AS_IT_IS)
        for row, column in np.argwhere(confusion > 0):
            color, count = "white" if shares[row, column] > 0.5 else "black", confusion[row, column]
            axes.text(column, row, str(count), ha="center", va="center", color=color)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, in inches; raise MissingExtraError without matplotlib."""
    with importing("plots", "a plot"):
        from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that a notebook shows as the result of a cell."""

        def _repr_png_(self) -> bytes:
            content = BytesIO()
            self.savefig(content, format="png")
            return content.getvalue()

    return ShownFigure(figsize=(width, height), layout="constrained")
