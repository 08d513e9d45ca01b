"""The model to export, apart from the formats, which need more packages."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from dist_net.nets.architecture import DarknetArchitecture
from dist_net.nets.sources import FoundModel
from dist_net.release import release
from dist_net.vector import Vector


@dataclass(frozen=True)
class ExportedModel:
    """A model with its weights, and the name that the user gave.

    With ``takes_images``, its inputs are images of any size, and resizing is part of the file.
    """

    name: str
    found: FoundModel
    weights: Vector
    takes_images: bool = False

    @property
    def fitting(self) -> str:
        """The way images are resized to the net's input; "" if it takes no images."""
        if not self.found.takes_images:
            return ""
        is_darknet = isinstance(self.found.architecture, DarknetArchitecture)
        return "letterbox" if is_darknet else self.found.fitting

    @property
    def metadata(self) -> dict[str, str]:
        """Properties for programs that use the file; the labels are JSON."""
        found, fitting, size = self.found, self.fitting, ""
        if self.takes_images:
            sides = found.model.input_shape[:2]
            if fitting == "imagenet":  # of which the graph takes the middle seven eighths
                fitting, sides = "crop", tuple(8 * side // 7 for side in sides)
            size = "x".join(map(str, sides))
        known = {
            "model": self.name,
            "recipe": found.recipe,
            "fitting": fitting,
            "size": size,
            "labels": json.dumps(found.labels, ensure_ascii=False) if found.labels else "",
            "unknown_below": str(found.unknown_below or ""),
            "dist_net": release(),
        }
        return {name: value for name, value in known.items() if value}

    @property
    def arrays(self) -> dict[str, Vector]:
        """Parameters and buffers by name, as in a run's checkpoint."""
        layout = self.found.own_model.layout
        return {
            name: np.ascontiguousarray(each) for name, each in layout.views(self.weights).items()
        }
