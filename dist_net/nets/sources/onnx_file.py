"""The source of a model that another program exported as an ONNX file."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from dist_net.nets.architecture import OnnxArchitecture
from dist_net.nets.foreign_onnx import ONNX
from dist_net.nets.onnx_gate import PixelOptions, accept
from dist_net.nets.sources.found_model import FoundModel


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file; ``labels`` and ``pixels`` replace its metadata."""

    path: Path
    labels: Path | None
    pixels: PixelOptions

    def read(self) -> FoundModel:
        """Return the model; see ``accept``."""
        model, prepared, names, fitting, unknown_below = accept(self.path, self.labels, self.pixels)
        return FoundModel(
            model,
            OnnxArchitecture(model.rows_alone),
            names,
            prepared,
            sha256(prepared[ONNX].data).hexdigest(),
            lambda: np.empty(0, np.float32),
            fitting=fitting,
            unknown_below=unknown_below,
        )
