"""Models of dist_net by ONNX Runtime: the same outputs, or an error."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dist_net.errors import EngineMismatchError, ExportError
from dist_net.export.exported_model import ExportedModel
from dist_net.export.formats import write_exported
from dist_net.export.onnxruntime_engine import NUMPY, ONNXRUNTIME, computed_by
from dist_net.nets.architecture import RecipeArchitecture
from dist_net.nets.onnx_gate import PixelOptions
from dist_net.nets.sources.found_model import FoundModel, OnnxFile, RunFiles
from dist_net.nn import (
    Concatenate,
    Dense,
    Field,
    Model,
    NamedOutputs,
    Sequential,
    mean_squared_error,
)
from dist_net.nn.inference import prepare
from dist_net.python.loaded_model import LoadedModel
from image_runs import write_run


def found_model(scale: float = 1) -> FoundModel:
    """A model with random weights; those to export are ``scale`` times as large."""
    model = Model(Sequential(Dense(4), Dense(3)), (5,), "mse", np.float32)
    weights = np.random.default_rng(0).normal(size=model.layout.size).astype(np.float32)
    architecture = RecipeArchitecture("digits", "digits", ())
    exported = (weights * scale).astype(np.float32)
    return FoundModel(model, architecture, (), prepare(model, weights), "key", lambda: exported)


def loaded(found: FoundModel) -> LoadedModel:
    return LoadedModel(SimpleNamespace(read=lambda: found), "m")  # type: ignore[arg-type]


def outputs_of(found: FoundModel, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    outputs: NDArray[np.float32] = loaded(found).predict(rows)
    return outputs


def test_onnx_runtime_computes_the_same() -> None:
    found = found_model()
    assert computed_by(found, NUMPY) is found
    other = computed_by(found, ONNXRUNTIME)
    rows = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    assert np.allclose(outputs_of(other, rows), outputs_of(found, rows), atol=1e-5)
    assert computed_by(other, ONNXRUNTIME) is other
    assert other.specs == found.specs
    with pytest.raises(ExportError):
        other.own_model  # noqa: B018


def test_fields_of_records_are_computed_by_name() -> None:
    heads = NamedOutputs({"sum": Dense(2), "part": Dense(3)})
    network = Sequential(Concatenate(Field("a"), Field("b")), heads)
    types = [("a", np.float32, (2,)), ("b", np.float32, (4,))]
    model = Model(network, (), lambda outputs, _: mean_squared_error(outputs["sum"], 0), types)
    weights = np.random.default_rng(0).normal(size=model.layout.size).astype(np.float32)
    found = replace(
        found_model(), model=model, prepared=prepare(model, weights), weights=lambda: weights
    )
    assert computed_by(found, ONNXRUNTIME).specs == found.specs


def test_another_result_is_refused() -> None:
    with pytest.raises(EngineMismatchError, match="--engine numpy"):
        computed_by(found_model(1.01), ONNXRUNTIME)


def test_the_key_changes_with_the_weights() -> None:
    found = found_model()
    other = replace(found, prepared=prepare(found.own_model, 2 * found.weights()))
    other = replace(other, weights=lambda: 2 * found.weights())
    keys = {computed_by(each, ONNXRUNTIME).key for each in (found, found, other)}
    assert len(keys) == 2


@pytest.mark.parametrize("fitting", ["pad", "crop", "stretch", "imagenet"])
def test_an_export_with_preprocessing_is_a_source(fitting: str, tmp_path: Path) -> None:
    run = RunFiles(write_run(tmp_path / "run"), None, lambda _: None).read()
    found = replace(run, fitting=fitting)
    exported = ExportedModel("run", found, found.weights(), takes_images=True)
    path = tmp_path / "run.onnx"
    write_exported(path, "onnx", exported)
    other = OnnxFile(path, None, PixelOptions()).read()
    assert other.takes_images
    image = tmp_path / "image.png"
    pixels = np.linspace((250, 20, 10), (10, 40, 240), 21 * 13).reshape(21, 13, 3)
    Image.fromarray(pixels.astype(np.uint8)).save(image)
    answers = []
    for each in (found, other):
        predictions = loaded(each).classify(image, top=3)
        answers.append({one.label: one.probability for one in predictions})
    assert answers[1] == pytest.approx(answers[0], abs=0.01)
