"""What users of Keras, PyTorch and scikit-learn try first is answered with the way of dist_net."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dist_net
from dist_net import nn
from dist_net.cli import main
from dist_net.errors import (
    BadInputError,
    DatasetError,
    ForeignModelError,
    ImageError,
    ModelSourceError,
    ParameterError,
    SettingError,
    ShapeError,
    UnknownAttributeError,
    UnknownOptionError,
)
from dist_net.images import load_image
from dist_net.nn import Dense, Model
from dist_net.optim import Adam
from naming import naming

ANY: Any = nn
NET: Any = Model(Dense(2), (3,), input_dtype=np.float32)


@pytest.mark.parametrize(
    ("attempt", "error", "words"),
    [
        (lambda: NET.fit(), UnknownAttributeError, ["fit", "dist_net.fit(model, inputs, targets"]),
        (lambda: NET.compile("adam"), UnknownAttributeError, ["compile", "loss=", "optimizer="]),
        (lambda: NET.parameters(), UnknownAttributeError, ["parameters", "model.weights"]),
        (lambda: NET.predict_proba(), AttributeError, ["predict_proba", "softmax"]),
        (lambda: NET.sumary(), UnknownAttributeError, ["sumary", "did you mean summary?"]),
        (lambda: setattr(NET, "weights", [1.0, 2.0]), ShapeError, ["list[2]", "float32[8]"]),
        (lambda: getattr(dist_net, "Model"), AttributeError, ["dist_net.nn.Model"]),  # noqa: B009
        (lambda: ANY.Linear(3, 2), AttributeError, ["Linear", "Dense"]),
        (lambda: ANY.ReLU(), AttributeError, ["ReLU", "did you mean relu?"]),
        (lambda: ANY.CrossEntropyLoss(), AttributeError, ["cross_entropy_of_logits"]),
        (lambda: ANY.MaxPool2d(2), AttributeError, ["MaxPool?"]),
        (lambda: Model(1, (3,)), ParameterError, ["network=1", "Dense(10)"]),  # type: ignore[arg-type]
        (lambda: dist_net.Recipe(1, "digits", (8, 8)), BadInputError, ["network=1", "Dense(10)"]),  # type: ignore[arg-type]
        (lambda: Adam(learning_rate=0.1), UnknownOptionError, ["learning_rate", "fit"]),  # type: ignore[call-arg]
        (lambda: ANY.Dense(3, input_shape=(784,)), UnknownOptionError, ["input_shape", "Model"]),
        (lambda: ANY.Conv2D(8, kernel_size=3), UnknownOptionError, ["did you mean size?"]),
        (lambda: Adam(beta_1=0.1), UnknownOptionError, ["beta_1", "beta1"]),  # type: ignore[call-arg]
        (lambda: dist_net.load(NET), SettingError, ["Model", "path"]),
        (lambda: dist_net.load("n.onnx,label=names"), ModelSourceError, ["label", "labels"]),
        (lambda: load_image([b""]), ImageError, ["list", "np.asarray(image)"]),  # type: ignore[arg-type]
    ],
)
def test_a_habit_of_another_library_is_answered_with_ours(
    attempt: Callable[[], object], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error, match=naming(*words)):
        attempt()


def test_a_model_with_a_name_of_its_own_is_copied_and_asked_for_attributes() -> None:
    assert not hasattr(NET, "fit")
    assert not hasattr(nn, "Linear")


@pytest.mark.parametrize("call", ["targets", "engine", "labels"])
def test_what_is_missing_or_unknown_for_a_loaded_model_is_named(call: str, tmp_path: Path) -> None:
    model = Model(Dense(2), (3,), input_dtype=np.float32)
    model.weights = np.zeros(8, np.float32)
    model.save(path := tmp_path / "m.safetensors")
    if call == "targets":
        with pytest.raises(DatasetError, match=naming("evaluate(inputs, targets)")):
            dist_net.load(path).evaluate((np.zeros((1, 3)), np.zeros(1)))  # type: ignore[arg-type]
    elif call == "engine":
        with pytest.raises(SettingError, match=naming("'onnx'", "onnxruntime")):
            dist_net.load(path, engine="onnx")
    else:
        with pytest.raises(SettingError, match=naming("labels", "list", "path")):
            dist_net.load(path, labels=["a", "b"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "digits", "--lr", "0.1"], "--learning-rate"),
        (["serve", "m", "--port", "8000"], "--http"),
        (["train", "digits", "--gpu"], None),
    ],
)
def test_the_command_line_suggests_an_option_only_if_one_is_near(
    words: list[str], hint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert ("did you mean" in error) == (hint is not None)
    assert hint is None or f"did you mean {hint}?" in error


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (dist_net.EarlyStopping("val_acc"), ["val_acc", "accuracy", "validation=(inputs"]),
        (dist_net.EarlyStopping("val_loss"), ["val_loss", "validation=(inputs, targets)"]),
        (dist_net.ModelCheckpoint("m", "f1", save_best_only=True), ["f1", "loss, accuracy"]),
        (dist_net.EarlyStopping, ["EarlyStopping()"]),
    ],
)
def test_a_callback_that_could_never_act_is_refused_before_training(
    callback: Any, words: list[str]
) -> None:
    model = Model(Dense(2), (3,), input_dtype=np.float32)
    with pytest.raises(SettingError, match=naming(*words)):
        dist_net.fit(model, np.zeros((4, 3), np.float32), np.zeros(4, int), callbacks=[callback])
    assert model.weights is None


def written(path: Path, opset: int = 18, ir: int = 8) -> Path:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make = onnx.helper
    ends = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=ir)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("newer", [{"opset": 999}, {"ir": 999}])
def test_a_file_newer_than_onnx_runtime_is_refused_with_a_remedy_and_without_its_source(
    newer: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(ForeignModelError, match=naming("999", "opset_version", "upgrade")) as error:
        dist_net.load(written(tmp_path / "new.onnx", **newer))
    assert not {"onnxruntime_src", "std::", "ONNXRuntimeError"} & {*str(error.value).split()}
    assert str(error.value).count("999") == 1
    assert "\n" not in str(error.value)
    assert ".cc:" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no protobuf" * 9])
def test_a_file_that_is_no_onnx_or_cut_short_is_named_as_such(
    content: bytes, tmp_path: Path
) -> None:
    written(tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ForeignModelError, match=naming("no ONNX file", "copy")):
        dist_net.load(tmp_path / "m.onnx")
