"""The model to export, apart from the formats, which need more packages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_net.autodiff import Array
from dist_net.autodiff.expression import topological_order
from dist_net.autodiff.operations.indexing import CheckedIndices
from dist_net.errors import ExportError
from dist_net.ground.release import release
from dist_net.ground.vector import Vector
from dist_net.nets.architecture import DarknetArchitecture
from dist_net.nets.sources.found_model import FoundModel
from dist_net.nn import Predictor, Scope

TOLERANCE = 1e-3
"""The relative difference of the outputs of rows together and alone that rounding may cause."""


@dataclass(frozen=True)
class ExportedModel:
    """A named model with weights; with ``takes_images``, the file resizes images of any size."""

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
        views = self.found.own_model.layout.views(self.weights)
        return {name: np.ascontiguousarray(each) for name, each in views.items()}

    def require_rows_apart(self) -> None:
        """Raise ``ExportError`` if three rows together have other outputs than each row alone."""
        model, random = self.found.own_model, np.random.default_rng(0)
        nodes = topological_order([model.network(model.input(1), Scope())])
        indices = [each.operation for each in nodes if isinstance(each.operation, CheckedIndices)]
        below = min([128, *(each.length for each in indices)])
        rows = np.empty((3, *model.input_shape), model.input_dtype)
        for name in _fields(rows):
            is_any_number = rows[name].dtype.kind == "f" and not indices  # a column may be an index
            shape = rows[name].shape
            rows[name] = (
                random.normal(size=shape) if is_any_number else random.integers(below, size=shape)
            )
        predict = Predictor(model, self.weights)
        together, alone = predict(rows), np.concatenate([predict(row[None]) for row in rows])
        for name in _fields(alone):
            expected = alone[name]
            rounding = TOLERANCE * np.abs(expected).max(initial=0, where=np.isfinite(expected))
            if not np.allclose(together[name], expected, TOLERANCE, rounding, equal_nan=True):
                raise ExportError(
                    f"{self.name}: the outputs of an input depend on the others of its batch, as "
                    f"with a mean over axis 0; expected outputs that depend on one input each"
                )


def _fields(rows: Array) -> Sequence[Any]:
    """Return the names of the fields of records, or the index of the whole array."""
    return rows.dtype.names or (...,)
