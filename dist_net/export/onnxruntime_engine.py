"""Models of dist_net that ONNX Runtime computes: exported in memory, and compared when loaded."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from dist_net.errors import EngineMismatchError
from dist_net.export.exported_model import ExportedModel
from dist_net.export.formats import FORMATS, format_of
from dist_net.nets.architecture import OnnxArchitecture
from dist_net.nets.foreign_onnx import (
    ABSOLUTE_TOLERANCE,
    ONNX,
    ForeignModel,
    open_session,
    outputs_by_name,
    prepared_bytes,
    random_rows,
)
from dist_net.nets.sources import FoundModel

NUMPY = "numpy"
ONNXRUNTIME = "onnxruntime"
ENGINES = NUMPY, ONNXRUNTIME

RELATIVE_TOLERANCE = 1e-3


def computed_by(found: FoundModel, engine: str) -> FoundModel:
    """Return the model as ``engine`` computes it; an ONNX file is returned as it is.

    Raise ExportError if ONNX cannot express the model, EngineMismatchError if the outputs for a few
    inputs differ by more than ``ABSOLUTE_TOLERANCE`` and ``RELATIVE_TOLERANCE``, and
    MissingExtraError without the extra.
    """
    if engine == NUMPY or isinstance(found.model, ForeignModel):
        return found
    exported = ExportedModel(found.recipe, found, found.weights())
    format = format_of(Path("model.onnx"), None, takes_images=False)
    prepared = prepared_bytes(FORMATS[format](exported))
    model = ForeignModel(*found.specs, is_batched=True)
    (_, specs), inputs, computed = found.specs, random_rows(model.inputs), []
    for each, arrays in (found.model, found.prepared), (model, prepared):
        with closing(open_session(each, arrays)) as session:
            computed.append(outputs_by_name(each, session, inputs, specs))
    own, other = computed
    for name, expected in own.items():
        outputs = other[name].reshape(expected.shape, copy=False)
        if not np.allclose(outputs, expected, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE):
            raise EngineMismatchError(
                f"{name} of ONNX Runtime differs by {np.abs(outputs - expected).max():.3g}; "
                f"expected at most {ABSOLUTE_TOLERANCE:g}, and {RELATIVE_TOLERANCE:g} of a number: "
                f"use --engine {NUMPY}"
            )
    return replace(
        found,
        model=model,
        architecture=OnnxArchitecture(),
        prepared=prepared,
        key=sha256(prepared[ONNX].data).hexdigest(),
        file=None,
        fitting=exported.fitting or found.fitting,
    )
