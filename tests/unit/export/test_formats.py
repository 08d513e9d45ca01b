"""What an exported file holds, and what is said where there can be none."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import dist_net
from dist_net import autodiff as ad
from dist_net import nn
from dist_net.cli.export import require_another_file
from dist_net.errors import (
    ExportError,
    FileWriteError,
    MissingExtraError,
)
from dist_net.export.exported_model import ExportedModel
from dist_net.export.formats import format_of, write_exported
from dist_net.images.fitting import FITTINGS
from dist_net.nets.architecture import RecipeArchitecture
from dist_net.nets.sources.found_model import FoundModel

pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")

from onnx import helper

from dist_net.export.onnx.onnx_model import GRAPH_FITTINGS, onnx_graph
from naming import naming

DIGITS = RecipeArchitecture("digits", "digits", ())


LABELS = "cat", "Löwe"


@pytest.fixture
def exported() -> ExportedModel:
    layers = nn.Flatten(), nn.Rescale(), nn.Dense(3, nn.relu), nn.BatchNorm(), nn.Dense(2)
    model = nn.Model(nn.Sequential(*layers), (4, 4))
    weights = model.layout.initial(np.random.default_rng(0))
    options = {"has_logits": True, "fitting": "crop", "unknown_below": 0.5}
    return ExportedModel(
        "pets", FoundModel(model, DIGITS, LABELS, {}, "", lambda: weights, **options), weights
    )


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_arrays_have_the_names_and_values_of_parameters_and_buffers(
    exported: ExportedModel, format: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    assert write_exported(file, format, exported) == file.stat().st_size
    read = load_file(file) if format == "safetensors" else np.load(file)
    assert set(read) == set(dict(exported.found.model.layout.shapes))
    for name, view in exported.found.model.layout.views(exported.weights).items():
        np.testing.assert_array_equal(read[name], view)
    assert {"dense/kernel", "batchnorm/mean"} <= set(read)


def test_labels_and_fitting_are_in_the_file(exported: ExportedModel, tmp_path: Path) -> None:
    write_exported(tmp_path / "m", "safetensors", exported)
    with safe_open(tmp_path / "m", framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["labels"]) == ["cat", "Löwe"]
    assert (metadata["model"], metadata["fitting"]) == ("pets", "crop")
    assert json.loads(metadata["unknown_below"]) == 0.5


def test_an_onnx_file_says_who_made_it_and_for_what(
    exported: ExportedModel, tmp_path: Path
) -> None:
    import onnx

    write_exported(tmp_path / "m.onnx", "onnx", exported)
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "dist_net"
    metadata = {each.key: each.value for each in model.metadata_props}
    assert json.loads(metadata["labels"]) == ["cat", "Löwe"]
    assert metadata["fitting"] == "crop"


def described(port: Any) -> tuple[str, Any, tuple[int | str, ...]]:
    """The name, dtype and shape of an input or output of a graph."""
    tensor = port.type.tensor_type
    shape = tuple(each.dim_param or each.dim_value for each in tensor.shape.dim)
    return port.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape


def test_inputs_and_outputs_are_named_after_what_they_are(exported: ExportedModel) -> None:
    graph = onnx_graph(exported)
    assert list(map(described, graph.inputs)) == [("input", np.uint8, ("N", 4, 4))]
    assert list(map(described, graph.outputs)) == [("logits", np.float32, ("N", 2))]
    whole = ExportedModel("pets", exported.found, exported.weights, takes_images=True)
    graph = onnx_graph(whole)
    assert list(map(described, graph.inputs)) == [("images", np.uint8, ("N", "H", "W", 3))]
    assert [port.name for port in graph.outputs] == ["probabilities"]


def test_every_fitting_can_be_part_of_a_graph() -> None:
    assert GRAPH_FITTINGS.keys() == FITTINGS.keys() | {"letterbox"}


def test_preprocessing_is_for_nets_that_take_images() -> None:
    model = nn.Model(nn.Sequential(nn.Flatten(), nn.Dense(2)), (4, 4), input_dtype=np.float32)
    weights = model.layout.initial(np.random.default_rng(0))
    found = FoundModel(model, DIGITS, (), {}, "", lambda: weights)
    with pytest.raises(ExportError, match=naming("m", "float32[4, 4]")):
        onnx_graph(ExportedModel("m", found, weights, takes_images=True))
    assert [port.name for port in onnx_graph(ExportedModel("m", found, weights)).outputs] == [
        "outputs"
    ]


MIXING: dict[str, Callable[[ad.Expression], ad.Expression]] = {
    "cumsum": lambda x: ad.cumsum(x, 0),
    "max": lambda x: x - ad.max(x, 0, keepdims=True),
    "first": lambda x: x + x[:1],
    "softmax": lambda x: x / ad.sum(ad.exp(x), 0, keepdims=True),
}


@pytest.mark.parametrize("mix", MIXING.values(), ids=MIXING)
def test_a_network_that_mixes_the_rows_of_a_batch_is_not_exported(
    mix: Callable[[ad.Expression], ad.Expression], tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Embedding(3, 4), nn.Lambda(mix), nn.Flatten(), nn.Dense(2))
    model = nn.Model(network, (5,))
    model.weights = model.layout.initial(np.random.default_rng(0))
    with pytest.raises(ExportError, match=naming("m", "others of its batch")):
        dist_net.export_model(model, tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())
    dist_net.export_model(model, tmp_path / "m.npz")


def test_the_format_is_what_a_file_ends_in_or_what_is_said() -> None:
    assert format_of(Path("a.NPZ"), None, False) == "npz"
    assert format_of(Path("a.bin"), "safetensors", False) == "safetensors"
    with pytest.raises(ExportError, match=naming("onnx")):
        format_of(Path("a.onxn"), None, False)
    with pytest.raises(ExportError, match=naming("onnx", "safetensors", "npz")):
        format_of(Path("weights"), None, False)
    with pytest.raises(ExportError, match=naming("onnx", "--preprocessing")):
        format_of(Path("a.npz"), None, True)


def test_the_extra_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dist_net.export.onnx.onnx_model", None)
    with pytest.raises(MissingExtraError, match=naming(".[onnx]")):
        format_of(Path("a.onnx"), None, False)


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(
    exported: ExportedModel, tmp_path: Path
) -> None:
    with pytest.raises(FileWriteError, match=naming("none/a.npz", "No such file")):
        write_exported(tmp_path / "none" / "a.npz", "npz", exported)
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileWriteError, match=naming("taken", "Is a directory")):
        write_exported(tmp_path / "taken", "npz", exported)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_model_is_not_overwritten_by_what_is_exported_of_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(b"a run")
    for model in (tmp_path, checkpoint):
        with pytest.raises(ExportError, match=naming("FILE")):
            require_another_file(str(model), None, checkpoint)
        require_another_file(str(model), None, tmp_path / "other.safetensors")
    with pytest.raises(ExportError, match=naming("FILE")):
        require_another_file("a.cfg", checkpoint, checkpoint)
    with pytest.raises(ExportError, match="directory of its run"):
        require_another_file("tcp://host:5555", None, tmp_path / "a.npz")


def test_errors_of_onnx_are_ours(tmp_path: Path) -> None:
    outputs = nn.NamedOutputs({"a\ud800": nn.Dense(2), "b": nn.Dense(2)})
    model = nn.Model(outputs, (3,), lambda y, _: y["b"], np.float32)
    model.weights = model.layout.initial(np.random.default_rng(0))
    with pytest.raises(ExportError, match="surrogates"):
        dist_net.export_model(model, tmp_path / "m.onnx")
    assert not any(tmp_path.iterdir())
