"""Foreign models: the ONNX files that run, and their outputs."""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    external_data_helper,
    helper,
)

from dist_net.errors import ForeignModelError, ModelFileError, RecipeError, TensorInputError
from dist_net.nets.foreign_onnx import MAX_TENSOR_BYTES, OnnxSession
from dist_net.nets.onnx_base import read_backbone
from dist_net.nets.onnx_gate import PixelOptions, session_of
from dist_net.nets.recipes.image_recipe import Base, ImageRecipe
from dist_net.nets.sources.found_model import FoundModel, OnnxFile
from dist_net.nn import Model
from dist_net.nn.inference import Inference, prepare, softmax
from foreign_files import (
    centred,
    classifier,
    graph,
    square_ones,
    sum_and_product,
    tensor,
    written,
)
from naming import naming

NUMBERS = np.array([[1, 2, 3], [-4, -5, -6]], np.float32)


def read(
    model: ModelProto, tmp_path: Path, labels: tuple[str, ...] = (), **pixels: str
) -> FoundModel:
    path, names = written(model, tmp_path / "m.onnx"), None
    if labels:
        names = tmp_path / "labels"
        names.write_text("\n".join(labels))
    return OnnxFile(path, names, PixelOptions(**pixels)).read()


def session(found: FoundModel) -> OnnxSession:
    return OnnxSession(found.model, found.prepared)


def test_several_inputs_and_outputs_have_names_and_types(tmp_path: Path) -> None:
    found = read(sum_and_product(), tmp_path)
    assert found.model.is_batched
    assert [each.datatype for each in found.model.inputs] == ["FP32", "INT64"]
    outputs = session(found).predict({"numbers": NUMBERS, "count": [[2], [3]]})
    assert np.array_equal(outputs["product"], [[2, 4, 6], [-12, -15, -18]])
    assert outputs["positive"].tolist() == [True, False]


def test_rows_that_depend_on_each_other_are_no_batch(tmp_path: Path) -> None:
    found = read(centred(), tmp_path)
    assert not found.model.is_batched
    outputs = session(found).predict(np.array([[0, 0], [2, 4]], np.float32))
    assert np.array_equal(outputs["y"], [[-1, -2], [1, 2]])


def test_inputs_must_fit(tmp_path: Path) -> None:
    opened = session(read(sum_and_product(), tmp_path))
    for inputs in (NUMBERS, {"numbers": NUMBERS}, {"numbers": NUMBERS, "count": [1, 2]}):
        with pytest.raises(TensorInputError, match="count"):
            opened.predict(inputs)
    with pytest.raises(TensorInputError):
        opened.predict({"numbers": NUMBERS, "count": [[1]] * 5})


def test_memory_for_tensors_is_bounded(tmp_path: Path) -> None:
    opened = session(read(square_ones(), tmp_path))
    assert opened.predict(np.array([100]))["y"] == 10_000
    with pytest.raises(TensorInputError, match="memory"):
        opened.predict(np.array([int((MAX_TENSOR_BYTES / 4) ** 0.5) + 1]))


def with_external(model: ModelProto, **entries: str) -> ModelProto:
    """The model; its first initializer is in another file."""
    first = model.graph.initializer[0]
    external_data_helper.set_external_data(first, entries.pop("location"))
    for name, value in entries.items():
        first.external_data.add(key=name, value=value)
    return model


def test_external_data_beside_the_file_becomes_a_part_of_it(tmp_path: Path) -> None:
    model = classifier(["N", 3, 4, 4])
    data = model.graph.initializer[0].raw_data
    (tmp_path / "data.bin").write_bytes(bytes(8) + data)
    found = read(
        with_external(model, location="data.bin", offset="8", length=str(len(data))), tmp_path
    )
    (tmp_path / "data.bin").unlink()
    assert np.allclose(session(found)(np.ones((1, 3, 4, 4), np.float32)), 4)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../data.bin"},
        {"location": "/etc/hostname"},
        {"location": "."},
        {"location": "none.bin"},
        {"location": "data.bin", "length": "9999"},
        {"location": "data.bin", "offset": "-1"},
        {"location": "data.bin", "offset": "x"},
    ],
)
def test_external_data_is_read_from_nowhere_else(entries: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for each in (tmp_path, tmp_path / "inner"):
        (each / "data.bin").write_bytes(bytes(64))
    model = with_external(classifier(["N", 3, 4, 4]), **entries)
    with pytest.raises(ForeignModelError, match=naming("m.onnx")):
        read(model, tmp_path / "inner")


def test_a_huge_file_of_external_data_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(1 << 40)  # it is sparse
    model = with_external(classifier(["N", 3, 4, 4]), location="data.bin")
    with pytest.raises(ForeignModelError, match=naming("m.onnx", "external data")):
        read(model, tmp_path)


def test_a_file_of_huge_rows_is_refused_before_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(ForeignModelError, match=naming("m.onnx", "rows of")):
        read(classifier(["N", 3, 100_000, 100_000]), tmp_path)


@pytest.mark.parametrize("kind", ["symbolic link", "pipe", "directory"])
def test_external_data_is_read_from_files_alone(kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(36))
    directory = tmp_path / "models"
    directory.mkdir()
    match kind:
        case "symbolic link":
            (directory / "data.bin").symlink_to(tmp_path / "secret")
        case "pipe":
            os.mkfifo(directory / "data.bin")
        case "directory":
            (directory / "data.bin").mkdir()
    with pytest.raises(ForeignModelError, match=naming("m.onnx", "external data")):
        read(with_external(classifier(["N", 3, 4, 4]), location="data.bin"), directory)


def external_value() -> TensorProto:
    """A tensor of the secret in the working directory, which is beside the file as well."""
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], bytes(4), raw=True)
    external_data_helper.set_external_data(value, "secret")
    return value


def in_constant(value: TensorProto) -> ModelProto:
    nodes = [helper.make_node("Constant", [], ["v"], value=value)]
    nodes.append(helper.make_node("Add", ["x", "v"], ["y"]))
    return graph(nodes, [tensor("x", ["N", 1])], [tensor("y", ["N", 1])])


def in_branch(value: TensorProto) -> ModelProto:
    node = helper.make_node("Constant", [], ["b"], value=value)
    inner = helper.make_graph([node], "inner", [], [tensor("b", [1])])
    outer = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    return graph([outer], [tensor("x", [1], TensorProto.BOOL)], [tensor("y", [1])])


def in_initializer_of_branch(value: TensorProto) -> ModelProto:
    value.name = "b"
    node = helper.make_node("Identity", ["b"], ["c"])
    inner = helper.make_graph([node], "inner", [], [tensor("c", [1])], [value])
    outer = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    return graph([outer], [tensor("x", [1], TensorProto.BOOL)], [tensor("y", [1])])


def in_function(value: TensorProto) -> ModelProto:
    nodes = [helper.make_node("Constant", [], ["v"], value=value)]
    nodes.append(helper.make_node("Add", ["a", "v"], ["b"]))
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function("mine", "F", ["a"], ["b"], nodes, opsets)
    outer = helper.make_node("F", ["x"], ["y"], domain="mine")
    model = graph([outer], [tensor("x", ["N", 1])], [tensor("y", ["N", 1])])
    model.functions.append(function)
    return model


def in_sparse_initializer(value: TensorProto) -> ModelProto:
    value.name = "v"
    model = graph(
        [helper.make_node("Add", ["x", "v"], ["y"])],
        [tensor("x", ["N", 1])],
        [tensor("y", ["N", 1])],
    )
    place = helper.make_tensor("v_places", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(value, place, [1]))
    return model


def in_training_info(value: TensorProto) -> ModelProto:
    model = centred()
    model.training_info.add().algorithm.initializer.append(value)
    return model


@pytest.mark.parametrize(
    "hidden",
    [
        in_constant,
        in_branch,
        in_initializer_of_branch,
        in_function,
        in_sparse_initializer,
        in_training_info,
    ],
)
def test_no_tensor_but_a_weight_is_read_from_another_file(
    hidden: Callable[[TensorProto], ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"1234")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ForeignModelError, match=naming("stored externally")):
        read(hidden(external_value()), tmp_path)


def test_a_base_in_a_run_refers_to_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"1234")
    monkeypatch.chdir(tmp_path)
    content = in_constant(external_value()).SerializeToString()
    with pytest.raises(ForeignModelError, match=naming("stored externally")):
        session_of(content, 1)


def with_text_in_functions(by_default: bool) -> ModelProto:
    """Functions that cast to the type in their callers' attribute, or in its default value."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]

    def function(name: str, inner: NodeProto, own: str, referring: str) -> FunctionProto:
        inner.attribute.add(name=own, type=AttributeProto.INT, ref_attr_name=referring)
        names, defaults = [referring], []
        if by_default:
            names, defaults = [], [helper.make_attribute(referring, TensorProto.STRING)]
        nodes = [inner, helper.make_node("Cast", ["t"], ["b"], to=TensorProto.FLOAT)]
        return helper.make_function("mine", name, ["a"], ["b"], nodes, opsets, names, defaults)

    cast = function("Inner", helper.make_node("Cast", ["a"], ["t"]), "to", "kind")
    call = function("Outer", helper.make_node("Inner", ["a"], ["t"], domain="mine"), "kind", "type")
    given = {} if by_default else {"type": TensorProto.STRING}
    node = helper.make_node("Outer", ["x"], ["y"], domain="mine", **given)
    model = graph([node], [tensor("x", ["N", 1])], [tensor("y", ["N", 1])])
    model.functions.extend([cast, call])
    return model


@pytest.mark.parametrize("text", ["initializer", "cast", "attribute", "reference", "default"])
def test_text_is_refused_inside_too(text: str, tmp_path: Path) -> None:
    """It may grow beyond the limit for tensors, which counts none of its characters."""
    both = [tensor("x", ["N", 1])], [tensor("y", ["N", 1])]
    model = graph([helper.make_node("Sin", ["x"], ["y"])], *both)
    match text:
        case "initializer":
            model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"a"]))
        case "cast":
            nodes = [helper.make_node("Cast", ["x"], ["s"], to=TensorProto.STRING)]
            nodes.append(helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT))
            model = graph(nodes, *both)
        case "attribute":
            model.graph.node[0].attribute.append(helper.make_attribute("values_strings", ["a"]))
        case "reference" | "default":
            model = with_text_in_functions(text == "default")
    with pytest.raises(ForeignModelError, match=naming("m.onnx", "text")):
        read(model, tmp_path)


@pytest.mark.parametrize(
    ("node", "opset", "named"),
    [
        (helper.make_node("Evil", ["x"], ["y"], domain="mine"), 18, "Evil"),
        (helper.make_node("Sinus", ["x"], ["y"]), 18, "Sinus"),
        (helper.make_node("Sin", ["x"], ["y"]), 999, "999"),
        (helper.make_node("Sin", ["x", "x"], ["y"]), 18, "Sin"),
    ],
)
def test_unknown_operators_and_versions_are_refused(
    node: object, opset: int, named: str, tmp_path: Path
) -> None:
    model = graph([node], [tensor("x", ["N", 1])], [tensor("y", ["N", 1])], opset)
    with pytest.raises(ForeignModelError, match=named):
        read(model, tmp_path)


def test_what_is_no_model_of_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for content in (b"", b"none", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ForeignModelError, match=naming("m.onnx")):
            OnnxFile(path, None, PixelOptions()).read()
    both = [tensor("x", ["N"], TensorProto.STRING)], [tensor("y", ["N"], TensorProto.STRING)]
    with pytest.raises(ForeignModelError, match=naming("x")):
        read(graph([helper.make_node("Identity", ["x"], ["y"])], *both), tmp_path)


RGB = ("red", "green", "blue")


@pytest.mark.parametrize("shape", [["N", 3, 4, 5], ["N", 3, "H", "W"]])
def test_images_become_pixels_of_a_classifier(shape: list[int | str], tmp_path: Path) -> None:
    options = {"mean": "10/20/30", "scale": "2", "size": "4x5"}
    found = read(classifier(shape), tmp_path, RGB, **options)
    (spec,) = found.model.inputs
    assert (spec.datatype, spec.shape) == ("UINT8", (4, 5, 3))
    pixels = np.full((1, 4, 5, 3), [12, 22, 34], np.uint8)
    assert np.allclose(session(found)(pixels), softmax(np.array([[4, 4, 8]], np.float32)))


def test_labels_and_fitting_are_read_from_metadata(tmp_path: Path) -> None:
    model = classifier(["N", 3, 4, 4])
    known = {"labels": json.dumps(RGB), "fitting": "pad", "unknown_below": "0.5"}
    helper.set_model_props(model, known)
    found = read(model, tmp_path)
    assert (found.labels, found.fitting, found.unknown_below) == (RGB, "pad", 0.5)
    helper.set_model_props(model, {"labels": "["})
    with pytest.raises(ForeignModelError, match="labels"):
        read(model, tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        '["a", "b", "\\ud800"]',
        '["a", "b", ["c"]]',
        '["a", "b", 3]',
        '{"a": 1, "b": 2, "c": 3}',
        '"abc"',
        "7",
        "[" * 100_000,
    ],
)
def test_labels_are_texts(labels: str, tmp_path: Path) -> None:
    model = classifier(["N", 3, 4, 4])
    helper.set_model_props(model, {"labels": labels})
    with pytest.raises((ForeignModelError, ModelFileError), match=r"label|recursion"):
        read(model, tmp_path)


@pytest.mark.parametrize("threshold", ["nan", "inf", "-1", "2", "x"])
def test_a_threshold_is_a_probability(threshold: str, tmp_path: Path) -> None:
    model = classifier(["N", 3, 4, 4])
    helper.set_model_props(model, {"labels": json.dumps(RGB), "unknown_below": threshold})
    with pytest.raises(ForeignModelError, match=naming("m.onnx")):
        read(model, tmp_path)


def test_names_of_tensors_are_unique_and_bounded(tmp_path: Path) -> None:
    both = [tensor("x", ["N", 1])], [tensor("y", ["N", 1])]
    twice = graph([helper.make_node("Sin", ["x"], ["y"])], both[0], 2 * both[1])
    long = graph(
        [helper.make_node("Sin", ["x"], ["y" * 2000])], both[0], [tensor("y" * 2000, ["N", 1])]
    )
    for model, reason in ((twice, "unique names"), (long, "yyy")):
        with pytest.raises(ForeignModelError, match=reason):
            read(model, tmp_path)


def test_tensors_of_many_axes_are_refused(tmp_path: Path) -> None:
    shape = ["N", *[1] * 69]
    model = graph(
        [helper.make_node("Sin", ["x"], ["y"])], [tensor("x", shape)], [tensor("y", shape)]
    )
    with pytest.raises(ForeignModelError, match=naming("m.onnx", "shape")):
        read(model, tmp_path)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32, np.uint8])
@pytest.mark.parametrize("has_probabilities", [False, True])
def test_a_classifier_gives_fp32_probabilities_whatever_it_computes(
    kind: type, has_probabilities: bool, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    ]
    if has_probabilities and np.issubdtype(kind, np.floating):
        nodes = [helper.make_node("Softmax", ["x"], ["p"], axis=1), nodes[0]]
        nodes[1].input[0] = "p"
    output = tensor("y", ["N", 3], helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    found = read(graph(nodes, [tensor("x", ["N", 3])], [output]), tmp_path, RGB)
    (spec,) = found.model.outputs
    assert (spec.datatype, found.has_logits) == ("FP32", False)
    logits = np.array([[0, 1, 3], [2, 0, 0]], np.float32)
    assert np.allclose(session(found)(logits), softmax(logits), atol=1e-3)


def quantised(classes: int = 3) -> ModelProto:
    """A matrix product of numbers that are quantised with one scale for a whole batch."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rounded"]),
        helper.make_node("MatMul", ["rounded", "kernel"], ["y"]),
    ]
    kernel = np.random.default_rng(0).normal(size=(8, classes)).astype(np.float32)
    both = [tensor("x", ["N", 8])], [tensor("y", ["N", classes])]
    return graph(nodes, *both, kernel=kernel)


def test_hostile_neighbours_change_no_row(tmp_path: Path) -> None:
    assert not read(quantised(), tmp_path).is_batched
    found = read(quantised(), tmp_path, RGB)
    assert found.is_batched
    rows = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    expected = session(found)(rows)
    for number in (1e6, -1e6, 0, np.nan, np.inf):
        beside = np.insert(rows, [1, 4], np.full((2, 8), number), axis=0).astype(np.float32)
        assert np.array_equal(np.delete(session(found)(beside), [1, 5], axis=0), expected)
    assert session(found)(rows[:0]).shape == (0, 3)


def sentences(is_quantised: bool, vocabulary: int, kind: int) -> ModelProto:
    """The sum of the embeddings of six ids, as far as a mask and a length in a row select them."""
    make = helper.make_node
    nodes = [
        make("Cast", ["ids"], ["indices"], to=TensorProto.INT64),
        make("Gather", ["embeddings", "indices"], ["embedded"]),
        make("Gather", ["steps", "length"], ["within"]),
        make("Cast", ["mask"], ["visible"], to=TensorProto.FLOAT),
        make("Mul", ["within", "visible"], ["weights"]),
        make("Unsqueeze", ["weights", "last"], ["weight"]),
        make("Mul", ["embedded", "weight"], ["x" if is_quantised else "rounded"]),
        *quantised().graph.node[: 2 * is_quantised],
        make("ReduceSum", ["rounded", "axis"], ["y"], keepdims=0),
    ]
    embeddings = np.random.default_rng(0).normal(size=(vocabulary, 3)).astype(np.float32)
    mask = tensor("mask", ["N", 6], TensorProto.INT64)
    length = tensor("length", ["N"], TensorProto.INT32)
    return graph(
        nodes,
        [tensor("ids", ["N", 6], kind), mask, length],
        [tensor("y", ["N", 3])],
        embeddings=embeddings,
        steps=np.tri(7, 6, -1, dtype=np.float32),
        last=np.array([-1]),
        axis=np.array([1]),
    )


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT])
@pytest.mark.parametrize("vocabulary", [2, 50, 30_522])
def test_rows_of_ids_are_tried_within_their_range(
    vocabulary: int, kind: int, tmp_path: Path
) -> None:
    assert read(sentences(False, vocabulary, kind), tmp_path).model.is_batched
    assert not read(sentences(True, vocabulary, kind), tmp_path).model.is_batched


def test_rows_that_cannot_be_tried_are_no_batch(tmp_path: Path) -> None:
    """Of six ids at least one must be 40 or more, so that ids of zeros and ones are refused."""
    nodes = [
        helper.make_node("ReduceMax", ["ids", "axes"], ["most"], keepdims=0),
        helper.make_node("Sub", ["most", "least"], ["index"]),
    ]
    both = [tensor("ids", ["N", 6], TensorProto.INT64)], [tensor("y", ["N"])]
    nodes.append(helper.make_node("Gather", ["table", "index"], ["y"]))
    table = np.arange(10, dtype=np.float32)
    model = graph(nodes, *both, axes=np.array([1]), least=np.int64(40), table=table)
    assert not read(model, tmp_path).model.is_batched


@pytest.mark.parametrize("reverse", [0, 1])
def test_rows_that_depend_on_those_on_one_side_are_no_batch(reverse: int, tmp_path: Path) -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], reverse=reverse, exclusive=1)
    both = [tensor("x", ["N", 2])], [tensor("y", ["N", 2])]
    assert not read(graph([node], *both, axis=np.int64(0)), tmp_path).is_batched


def test_a_quantised_file_is_no_base(tmp_path: Path) -> None:
    nodes = [helper.make_node("Flatten", ["images"], ["x"]), *quantised().graph.node]
    kernel = np.eye(48, 3, dtype=np.float32)
    both = [tensor("images", ["N", 3, 4, 4])], [tensor("y", ["N", 3])]
    with pytest.raises(ForeignModelError, match=naming("m.onnx", "rows are independent")):
        read_backbone(
            written(graph(nodes, *both, kernel=kernel), tmp_path / "m.onnx"), PixelOptions()
        )


@pytest.mark.parametrize(
    "options", [{"mean": "1/2"}, {"mean": "x"}, {"scale": "0"}, {"size": "4"}, {"size": "0x4"}]
)
def test_options_of_pixels_must_fit(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ForeignModelError, match=next(iter(options))):
        read(classifier(["N", 3, "H", "W"]), tmp_path, RGB, **{"size": "4x4"} | options)


def test_labels_need_an_output_of_as_many_numbers(tmp_path: Path) -> None:
    with pytest.raises(ForeignModelError, match="2"):
        read(classifier(["N", 3, 4, 4]), tmp_path, ("a", "b"))


def published(package: str, file: str) -> FoundModel:
    """The model in a file that others have published in a package, which is not imported."""
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"needs the package {package}")
    (path,) = Path(found.origin).parent.glob(file)
    return OnnxFile(path, None, PixelOptions()).read()


def test_a_published_classifier_computes_rows_whatever_their_batch() -> None:
    found = published("magika", "models/*/model.onnx")
    assert found.is_batched
    text = b"def main():\n    return 1\n" * 40
    row = np.frombuffer(text.ljust(2048), np.uint8)[:2048].astype(np.int32)
    outputs = session(found)(np.stack([row] * 3))
    assert outputs.shape == (3, found.model.classes)
    assert outputs.sum(1) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("file", "shape"),
    [("*_det_*", (2, 1, 64, 96)), ("*_rec_*", (2, 12, 6625)), ("*_cls_*", (2, 2))],
)
def test_published_models_of_images_have_any_size(file: str, shape: tuple[int, ...]) -> None:
    found = published("rapidocr_onnxruntime", f"models/{file}.onnx")
    assert not found.is_batched
    height = 64 if file == "*_det_*" else 48
    outputs = session(found)(np.zeros((2, 3, height, 96), np.float32))
    assert outputs.shape == shape


def test_a_published_model_keeps_its_state_outside() -> None:
    opened = session(published("silero_vad", "data/silero_vad_16k_op15.onnx"))
    state = np.zeros((2, 1, 128), np.float32)
    for _ in range(2):
        inputs = {"input": np.zeros((1, 576), np.float32), "state": state, "sr": np.array(16_000)}
        outputs = opened.predict(inputs)
        assert 0 <= outputs["output"].item() < 0.5  # of silence
        assert not np.array_equal(outputs["stateN"], state)
        state = outputs["stateN"]


def test_a_base_is_layers_of_any_batch_size(tmp_path: Path) -> None:
    path = written(classifier(["N", 3, 4, 4]), tmp_path / "m.onnx")
    layers, shape, _, weights = read_backbone(path, PixelOptions(scale="2"))
    model = Model(layers, shape)
    assert np.isfinite(weights).all()
    assert len(weights) == model.layout.size
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    outputs = Inference(model, prepare(model, weights), batch_size=2)(images)
    assert np.allclose(outputs, 4 * images.mean((1, 2)) / 2, rtol=1e-5)


def test_only_files_from_images_to_rows_are_bases(tmp_path: Path) -> None:
    for model in (centred(), sum_and_product(), classifier([1, 3, 4, 4])):
        with pytest.raises(ForeignModelError, match=naming("m.onnx")):
            read_backbone(written(model, tmp_path / "m.onnx"), PixelOptions())


@pytest.mark.parametrize("text", ["", "1", "0 5", "-1 5", "1e9 5", "99999999999 5"])
def test_a_recipe_with_a_damaged_base_is_refused(text: str) -> None:
    base = Base("onnx", "b", (4, 4, 3), "crop", text)
    with pytest.raises(RecipeError, match="ONNX"):
        ImageRecipe.from_json(ImageRecipe("r", base, ("a", "b")).to_json())
