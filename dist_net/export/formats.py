"""The formats of exported models, by file extension."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from dist_net.errors import ExportError
from dist_net.export.exported_model import ExportedModel
from dist_net.ground.command_line import importing
from dist_net.ground.files import written
from dist_net.ground.spelling import suggestion
from dist_net.nets.foreign_onnx import translating


def _onnx(exported: ExportedModel) -> bytes:
    from dist_net.export.onnx.onnx_model import onnx_graph

    metadata = exported.metadata
    with translating(ExportError, f"{exported.name} cannot be exported"):
        graph = onnx_graph(exported)
        exported.require_rows_apart()
        return graph.model_bytes(metadata["dist_net"], metadata)


def _npz(exported: ExportedModel) -> bytes:
    content = io.BytesIO()
    np.savez(content, **exported.arrays)  # type: ignore[arg-type]
    return content.getvalue()


FORMATS: dict[str, Callable[[ExportedModel], bytes]] = {
    "onnx": _onnx,
    "safetensors": lambda exported: save(exported.arrays, exported.metadata),
    "npz": _npz,
}
"""The function that returns the content of a file, by extension."""


def format_of(file: Path, given: str | None, takes_images: bool) -> str:
    """Return the format ``given``, or the extension's. Raise ExportError, MissingExtraError."""
    chosen = given or file.suffix.removeprefix(".").lower()
    if chosen not in FORMATS:
        raise ExportError(
            f"{file} has the extension of no format; {suggestion(chosen, FORMATS)}. Add --format, "
            f"or name the file FILE.onnx, FILE.safetensors or FILE.npz"
        )
    if takes_images and chosen != "onnx":
        raise ExportError(f"{chosen} contains only arrays; expected onnx for --preprocessing")
    if chosen == "onnx":
        with importing("onnx", "the format onnx"):
            import dist_net.export.onnx.onnx_model  # noqa: F401
    return chosen


def write_exported(file: Path, format: str, exported: ExportedModel) -> int:
    """Write ``file`` atomically and return its size. Raise ExportError and FileWriteError."""
    content = FORMATS[format](exported)
    with written(file) as output:
        output.write(content)
    return len(content)
