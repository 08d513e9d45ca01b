"""Models of dist_net by ONNX Runtime: the same outputs, or an error."""

from dataclasses import replace

import numpy as np
import pytest

from dist_net.errors import EngineMismatchError, ExportError
from dist_net.export.onnxruntime_engine import NUMPY, ONNXRUNTIME, computed_by
from dist_net.nets.architecture import RecipeArchitecture
from dist_net.nets.classifier import outputs_for
from dist_net.nets.sources import FoundModel
from dist_net.nn import Dense, Model, Sequential
from dist_net.nn.inference import prepare


def found_model(scale: float = 1) -> FoundModel:
    """A model with random weights; those to export are ``scale`` times as large."""
    model = Model(Sequential(Dense(4), Dense(3)), (5,), "mse", np.float32)
    weights = np.random.default_rng(0).normal(size=model.layout.size).astype(np.float32)
    architecture = RecipeArchitecture("digits", "digits", ())
    exported = (weights * scale).astype(np.float32)
    return FoundModel(model, architecture, (), prepare(model, weights), "key", lambda: exported)


def test_onnx_runtime_computes_the_same() -> None:
    found = found_model()
    assert computed_by(found, NUMPY) is found
    other = computed_by(found, ONNXRUNTIME)
    rows = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    assert np.allclose(outputs_for(other, rows), outputs_for(found, rows), atol=1e-5)
    assert computed_by(other, ONNXRUNTIME) is other
    assert other.specs == found.specs
    with pytest.raises(ExportError):
        other.own_model  # noqa: B018


def test_another_result_is_refused() -> None:
    with pytest.raises(EngineMismatchError, match="--engine numpy"):
        computed_by(found_model(1.01), ONNXRUNTIME)


def test_the_key_changes_with_the_weights() -> None:
    found = found_model()
    other = replace(found, prepared=prepare(found.own_model, 2 * found.weights()))
    other = replace(other, weights=lambda: 2 * found.weights())
    keys = {computed_by(each, ONNXRUNTIME).key for each in (found, found, other)}
    assert len(keys) == 2
