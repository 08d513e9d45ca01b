"""Models of dist_net that ONNX Runtime computes: exported in memory, and compared when loaded."""

from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from dist_net.errors import EngineMismatchError, SettingError
from dist_net.export.exported_model import ExportedModel
from dist_net.export.formats import FORMATS, format_of
from dist_net.nets import foreign_onnx
from dist_net.nets.architecture import OnnxArchitecture
from dist_net.nets.foreign_onnx import ONNX, ForeignModel
from dist_net.nets.onnx_gate import ABSOLUTE_TOLERANCE, accepted_graph, random_rows
from dist_net.nets.sources.found_model import FoundModel

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
    if engine not in ENGINES:
        raise SettingError(f"engine={engine!r}: expected one of {', '.join(ENGINES)}")
    if engine == NUMPY or isinstance(found.model, ForeignModel):
        return found
    exported = ExportedModel(found.recipe, found, found.weights())
    path = Path("model.onnx")
    content = FORMATS[format_of(path, None, takes_images=False)](exported)
    model, prepared = accepted_graph(foreign_onnx.package("onnx").load_from_string(content))
    inputs, names = found.specs
    rows = random_rows(inputs)
    outputs = foreign_onnx.OnnxSession(model, prepared).predict(rows)
    with closing(foreign_onnx.open_session(found.model, found.prepared)) as session:
        expected = foreign_onnx.outputs_by_name(found.model, session, rows, names)
    pairs = zip(outputs.values(), expected.values(), strict=False)
    is_equal = all(np.allclose(*pair, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE) for pair in pairs)
    if not model.is_batched or len(outputs) < len(expected) or not is_equal:
        raise EngineMismatchError(
            f"the outputs of ONNX Runtime, {[*outputs]}, differ from {[*expected]}; expected at "
            f"most {ABSOLUTE_TOLERANCE:g} plus {RELATIVE_TOLERANCE:g} of a number: use --engine "
            f"{NUMPY}"
        )
    return replace(
        found,
        model=ForeignModel(inputs, names, is_batched=True),
        architecture=OnnxArchitecture(),
        prepared=prepared,
        key=sha256(prepared[ONNX].data).hexdigest(),
        file=None,
        fitting=exported.fitting or found.fitting,
    )
