"""Draw the report as a PNG image. Requires the extra ``plots``."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dist_net.training.run.plots import AS_IT_IS, draw_confusion, draw_curve, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SHOWN = 6
MAX_BARS = 40


def draw_report(content: Mapping[str, Any], thumbnails: Mapping[str, bytes], path: Path) -> None:
    """Draw a report's ``content`` as a PNG: curves, matrix, classes, the worst mistakes.

    ``thumbnails`` maps image names to PNG files. Raise MissingExtraError without the extra, and
    OSError if ``path`` cannot be written.
    """
    names = [each["name"] for each in content["classes"]]
    figure = new_figure(14, 13)
    figure.suptitle(f"{content['name']}: {content['description']}", **AS_IT_IS)
    rows = (3, 6, 3) if content["curves"] else (6, 3)
    *curves, tables, images = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=rows)[
        :, 0
    ]
    for part in curves:
        for axes, quantity in zip(part.subplots(1, 2), ("loss", "accuracy"), strict=True):
            draw_curve(axes, content["curves"], quantity)
    matrix, bars = tables.subplots(1, 2)
    draw_confusion(matrix, np.array(content["confusion"]), names)
    matrix.set_title(_measured(content["measured"][-1]))
    draw_classes(bars, content)
    images.suptitle("the most confident mistakes")
    shown = images.subplots(1, MAX_SHOWN)
    for axes in shown:
        axes.axis("off")
    for axes, mistake in zip(shown, content["mistakes"], strict=False):
        _draw_image(axes, mistake, thumbnails)
    figure.savefig(path, dpi=90, format="png")


def _measured(figures: Mapping[str, Any]) -> str:
    low, high = figures["accuracy_interval"]
    right = f"{figures['right']:,} of {figures['images']:,} right ({low:.0%} to {high:.0%})"
    return f"{figures['data']}\n{right}"


def draw_classes(axes: Axes, content: Mapping[str, Any]) -> None:
    """Draw the precision and recall of each class as bars."""
    classes = content["classes"][:MAX_BARS]
    places = np.arange(len(classes))
    for offset, quantity in ((-0.2, "precision"), (0.2, "recall")):
        shares = [each[quantity] or 0 for each in classes]
        axes.barh(places + offset, shares, 0.38, label=quantity)
    axes.set_yticks(places, [each["name"] for each in classes], **AS_IT_IS)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_title("by class")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)


def _draw_image(axes: Axes, mistake: Mapping[str, Any], thumbnails: Mapping[str, bytes]) -> None:
    if mistake["image"] in thumbnails:
        axes.imshow(np.asarray(Image.open(BytesIO(thumbnails[mistake["image"]]))))
    title = f"{mistake['answer']} {mistake['probability']:.0%}\n(labelled {mistake['label']})"
    axes.set_title(title, fontsize="small", **AS_IT_IS)
