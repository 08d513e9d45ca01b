"""The formats in which a model is exported, each by the ending of its files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from dist_net.errors import (
    ExportFormatError,
    ExportWriteError,
    MissingExtraError,
    NotExportableError,
)
from dist_net.export.graph import Graph, Port
from dist_net.export.network import add_network
from dist_net.export.preprocessing import add_preprocessing
from dist_net.export.translation import Tensor
from dist_net.files import replacing
from dist_net.models.sources import FoundModel
from dist_net.recipes.picture_recipe import PictureRecipe
from dist_net.release import release
from dist_net.spelling import suggestion
from dist_net.vector import Vector


@dataclass(frozen=True)
class ExportedModel:
    """A model with its weights, and the name that it was asked for by.

    With ``takes_pictures`` its inputs are pictures of any size, and fitting them is part of it.
    """

    name: str
    found: FoundModel
    weights: Vector
    takes_pictures: bool = False

    @property
    def fitting(self) -> str:
        """How pictures are fitted to the net; nothing if it takes none."""
        if not self.found.takes_pictures:
            return ""
        return "letterbox" if self.found.configuration else self.found.fitting

    @property
    def metadata(self) -> dict[str, str]:
        """What a program has to know to use the file; the labels are JSON."""
        found = self.found
        known = {
            "model": self.name,
            "recipe": self._recipe,
            "fitting": self.fitting,
            "labels": json.dumps(found.labels, ensure_ascii=False) if found.labels else "",
            "unknown_below": str(found.unknown_below or ""),
            "dist_net": release(),
        }
        return {name: value for name, value in known.items() if value}

    @property
    def _recipe(self) -> str:
        found = self.found
        if found.picture_recipe:
            return PictureRecipe.from_json(found.picture_recipe).name
        return found.recipe.name if found.recipe else ""

    @property
    def arrays(self) -> dict[str, Vector]:
        """Parameters and buffers by their names, as a run's checkpoint has them."""
        layout = self.found.model.layout
        return {
            name: np.ascontiguousarray(each) for name, each in layout.views(self.weights).items()
        }


def onnx_graph(exported: ExportedModel) -> Graph:
    """The model as a graph from ``input`` to ``logits``, ``probabilities`` or ``outputs``.

    Inputs are (N, *input_shape), and with ``takes_pictures`` they are ``pictures``, (N, H, W, 3)
    uint8 of any size, and the outputs of a classifier are probabilities. Raises NotExportableError.
    """
    found, takes_pictures = exported.found, exported.takes_pictures
    graph, model = Graph("input", "pictures", "logits", "probabilities", "outputs"), found.model
    if takes_pictures:
        if not found.takes_pictures:
            raise NotExportableError(
                f"{exported.name} has inputs of {model.input_dtype}{list(model.input_shape)}, "
                f"which are no pictures; expected a model of pictures for --preprocessing"
            )
        inputs = add_preprocessing(graph, model, exported.fitting)
    else:
        name = graph.input("input", model.input_dtype, ("N", *model.input_shape))
        inputs = Tensor(name, tuple(range(1 + len(model.input_shape))))
    outputs = add_network(graph, model, exported.weights, inputs)
    is_classifier, has_logits = bool(found.labels), found.has_logits
    if takes_pictures and is_classifier and has_logits:
        outputs, has_logits = graph.add("Softmax", outputs, axis=-1), False
    name = ("logits" if has_logits else "probabilities") if is_classifier else "outputs"
    graph.output(outputs, Port(name, np.dtype(np.float32), ("N", *model.output_shape)))
    graph.prune()
    return graph


def _onnx(exported: ExportedModel) -> bytes:
    from dist_net.export.onnx import model_bytes

    return model_bytes(onnx_graph(exported), release(), exported.metadata)


def _safetensors(exported: ExportedModel) -> bytes:
    return save(exported.arrays, exported.metadata)


def _npz(exported: ExportedModel) -> bytes:
    content = io.BytesIO()
    np.savez(content, **exported.arrays)  # type: ignore[arg-type]
    return content.getvalue()


FORMATS: dict[str, Callable[[ExportedModel], bytes]] = {
    "onnx": _onnx,
    "safetensors": _safetensors,
    "npz": _npz,
}
"""What makes the content of a file, by the ending of its name."""


def format_of(file: Path, given: str | None, takes_pictures: bool) -> str:
    """The format of a file: ``given``, or what its name ends in.

    Raises ExportFormatError for another ending or if the format cannot hold preprocessing, and
    MissingExtraError if what writes it is not installed.
    """
    chosen = given or file.suffix.removeprefix(".").lower()
    if chosen not in FORMATS:
        raise ExportFormatError(
            f"{file} ends in no format; {suggestion(chosen, FORMATS)}: say --format, or name the "
            f"file FILE.onnx, FILE.safetensors or FILE.npz"
        )
    if takes_pictures and chosen != "onnx":
        raise ExportFormatError(
            f"{chosen} holds arrays and no preprocessing; expected --preprocessing with onnx only"
        )
    if chosen == "onnx":
        try:
            import dist_net.export.onnx  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                f"the format onnx needs a package that cannot be imported ({error}); install it "
                f"with: pip install -e '.[onnx]'"
            ) from error
    return chosen


def write_exported(file: Path, format: str, exported: ExportedModel) -> int:
    """Writes the model, and returns how many bytes that are; the file appears whole or not at all.

    Raises NotExportableError, and ExportWriteError if it cannot be written.
    """
    content = FORMATS[format](exported)
    try:
        with replacing(file) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise ExportWriteError(
            f"{file} could not be written: {error.strerror}; expected a file in a directory that "
            f"is there and yours, on a disk with {len(content):,} bytes free"
        ) from error
    return len(content)
