"""ONNX files of others, and nets of ours by ONNX Runtime: served, predicted with, and a base."""

import json
from collections.abc import Callable
from pathlib import Path
from platform import machine
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image

import dist_net
from dist_net import Client
from dist_net.autodiff import Expression
from dist_net.data import records
from dist_net.errors import BadRequestError, ExportError, ShapeError
from dist_net.nets.sources.named_source import parse_named_source
from dist_net.nn import (
    Concatenate,
    Dense,
    Field,
    Model,
    NamedOutputs,
    Rescale,
    Sequential,
    mean_squared_error,
)
from foreign_files import (
    FLOAT,
    centred,
    classifier,
    graph,
    quotient,
    square_ones,
    sum_and_product,
    written,
)
from foreign_files import tensor as foreign_tensor
from image_runs import write_run
from process import test_serve

Start = Callable[..., Any]
serve = test_serve.serve

RGB = "red", "green", "blue"
NUMBERS = np.array([[1, 2, 3], [-4, -5, -6]], np.float32)


def tensor(name: str, datatype: str, array: Any) -> dict[str, Any]:
    array = np.asarray(array)
    return {
        "name": name,
        "datatype": datatype,
        "shape": array.shape,
        "data": array.ravel().tolist(),
    }


def inferred(pool: Any, model: str, *inputs: dict[str, Any], **others: Any) -> tuple[int, Any]:
    body = json.dumps({"inputs": inputs} | others).encode()
    return pool.post(f"/v2/models/{model}/infer", body)


@pytest.fixture
def colours(tmp_path: Path) -> str:
    """A classifier of images by their mean colour."""
    (tmp_path / "labels.txt").write_text("\n".join(RGB))
    path = written(classifier(["N", 3, "H", "W"]), tmp_path / "colours.onnx")
    return f"{path},labels={tmp_path / 'labels.txt'},scale=255,size=8x8"


def squared(outputs: Expression, _: Expression) -> Expression:
    return mean_squared_error(outputs["place"], outputs["place"])


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    Image.new("RGB", (20, 10), colour).save(path)
    return path


@pytest.mark.main_path
def test_files_of_others_are_served(serve: Start, colours: str, tmp_path: Path) -> None:
    several = written(sum_and_product(), tmp_path / "several.onnx")
    means, ones = (
        written(model, tmp_path / f"{name}.onnx")
        for name, model in (("means", centred()), ("ones", square_ones()))
    )
    pool = serve(str(several), str(means), str(ones), colours, "--workers", "1")
    metadata = pool.get("/v2/models/several")[1]
    assert [each["datatype"] for each in metadata["inputs"]] == ["FP32", "INT64"]
    both = tensor("count", "INT64", [[2], [3]]), tensor("numbers", "FP32", NUMBERS)
    _, answer = inferred(pool, "several", *both)
    assert [each["data"] for each in answer["outputs"]] == [
        [2, 4, 6, -12, -15, -18],
        [True, False],
    ]
    _, answer = inferred(pool, "several", *both, outputs=[{"name": "positive"}])
    assert [each["name"] for each in answer["outputs"]] == ["positive"]
    code, answer = inferred(pool, "several", both[0])
    assert (code, "numbers" in answer["error"]) == (400, True)

    code, answer = inferred(pool, "means", tensor("x", "FP32", [[0, 0], [2, 4]]))
    assert answer["outputs"][0]["data"] == [-1, -2, 1, 2]
    code, answer = inferred(pool, "ones", tensor("side", "INT64", [10**6]))
    assert (code, "memory" in answer["error"]) == (400, True)
    assert inferred(pool, "ones", tensor("side", "INT64", [10]))[1]["outputs"][0]["data"] == [100]

    (green,) = (picture(tmp_path / "green.png", (0, 255, 0)),)
    _, answer = pool.post("/v1/models/colours/classify", green.read_bytes())
    assert answer["predictions"][0]["label"] == "green"
    # A reload starts a process that imports ONNX Runtime: 10 s are too few on two busy cores.
    with Client(pool.address, timeout_s=60) as client:
        rows = np.tile(NUMBERS, (10, 1))
        outputs = client.predict("several", {"numbers": rows, "count": np.ones((20, 1), int)})
        assert np.array_equal(outputs["product"], rows)
        assert outputs["positive"].tolist() == [True, False] * 10
        assert client.predict("ones", np.array([3])) == 9
        with pytest.raises(ShapeError):
            client.infer("several", rows)
        with pytest.raises(BadRequestError):
            client.infer("ones", np.array([-1]))
        assert client.classify("colours", green)[0].label == "green"
        written(sum_and_product(opset=17), several)
        assert client.reload("several") == 2


@pytest.mark.skipif(machine() not in ("x86_64", "AMD64"), reason="other processors do not trap")
def test_a_request_that_ends_workers_is_quarantined(serve: Start, tmp_path: Path) -> None:
    path = written(quotient(), tmp_path / "quotient.onnx")
    pool = serve(str(path), "--workers", "3")
    pool.all_workers(3)

    def divided(dividend: int, divisor: int) -> tuple[int, Any]:
        inputs = {"dividend": dividend, "divisor": divisor}
        tensors = (tensor(name, "INT32", [value]) for name, value in inputs.items())
        return inferred(pool, "quotient", *tensors)

    assert divided(7, 0)[0] == 400
    for _ in range(2):
        code, answer = divided(-(2**31), -1)
        assert (code, "worker" in answer["error"]) == (500, True)
        code, answer = divided(-(2**31), 2)
        assert code == 200, answer
        assert answer["outputs"][0]["data"] == [-(2**30)]


def test_a_request_that_needs_too_much_memory_is_quarantined_and_others_are_answered(
    serve: Start, tmp_path: Path
) -> None:
    ones, several = (
        written(model, tmp_path / f"{name}.onnx")
        for name, model in (("ones", square_ones()), ("several", sum_and_product()))
    )
    pool = serve(str(ones), str(several), "--workers", "2")
    before = pool.all_workers(2)
    both = tensor("count", "INT64", [[2], [3]]), tensor("numbers", "FP32", NUMBERS)
    for _ in range(2):
        code, answer = inferred(pool, "ones", tensor("side", "INT64", [25_000]))  # 2.5 GB
        assert (code, "worker" in answer["error"]) == (500, True)
        assert inferred(pool, "several", *both)[0] == 200
        assert inferred(pool, "ones", tensor("side", "INT64", [10]))[1]["outputs"][0]["data"] == [
            100
        ]
    assert before.items().isdisjoint(pool.all_workers(2).items())
    assert "needed more memory" in pool.command.stderr


def test_a_saved_model_of_several_inputs_and_outputs_is_served(
    serve: Start, start: Start, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    colour = generator.integers(0, 256, (5, 3), np.uint8)
    rows = records(colour=colour, numbers=generator.normal(size=(5, 4)).astype(np.float32))
    together = Concatenate(Sequential(Field("colour"), Rescale()), Field("numbers"))
    heads = NamedOutputs({"place": Dense(2), "kind": Dense(3)})
    model = Model(Sequential(together, heads), (), squared, rows.dtype)
    model.weights = generator.normal(size=model.layout.size).astype(np.float32)
    model.save(tmp_path / "several")
    expected = model.predict(rows)
    pool = serve(f"m={tmp_path / 'several'}", "--workers", "1")
    metadata = pool.get("/v2/models/m")[1]
    assert [each["shape"] for each in metadata["inputs"]] == [[-1, 3], [-1, 4]]
    inputs = (
        tensor("numbers", "FP32", rows["numbers"]),
        tensor("colour", "UINT8", rows["colour"]),
    )
    code, answer = inferred(pool, "m", *inputs)
    assert code == 200, answer
    for output in answer["outputs"]:
        values = np.reshape(output["data"], output["shape"])
        assert np.allclose(values, expected[output["name"]], atol=1e-5)
    with Client(pool.address) as client:
        outputs = client.infer("m", {name: rows[name] for name in rows.dtype.names})
    assert np.allclose(outputs.tensors["place"], expected["place"], atol=1e-5)
    np.save(tmp_path / "rows.npy", rows["numbers"])
    refused = start("predict", str(tmp_path / "several"), str(tmp_path / "rows.npy"))
    assert (refused.ends(), "place, kind from colour, numbers" in refused.stderr) == (2, True)


def test_a_run_is_served_by_onnx_runtime(serve: Start, tmp_path: Path) -> None:
    run, blue = write_run(tmp_path / "run"), picture(tmp_path / "blue.png", (0, 0, 255))
    answers = []
    for engine in ("numpy", "onnxruntime"):
        pool = serve(f"run={run}", "--workers", "1", "--engine", engine)
        _, answer = pool.post("/v1/classify", blue.read_bytes())
        answers.append([each["probability"] for each in answer["predictions"]])
    assert answers[1] == pytest.approx(answers[0], abs=1e-4)


def test_a_file_is_predicted_with_and_loaded(start: Start, colours: str, tmp_path: Path) -> None:
    red = picture(tmp_path / "red.png", (255, 0, 0))
    command = start("predict", colours, str(red), "--json")
    assert command.ends() == 0
    assert json.loads(command.stdout)["predictions"][0]["label"] == "red"
    path = written(sum_and_product(), tmp_path / "several.onnx")
    outputs = dist_net.load(path).predict({"numbers": NUMBERS, "count": np.ones((2, 1), int)})
    assert outputs["positive"].tolist() == [True, False]
    with pytest.raises(ExportError):
        parse_named_source(colours).open(lambda _: None).read().own_model  # noqa: B018


def test_a_file_is_the_base_of_a_run(
    start: Start, serve: Start, colours: str, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    for place, name in enumerate(RGB):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, 60, (16, 16, 3), np.uint8)
            pixels[..., place] += 150
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    run = tmp_path / "run"
    base = colours.replace("labels.txt", "none")
    options = "--base", base, "--run-dir", str(run), "--json"
    report = start("train", str(tmp_path / "photos"), *options).result()
    assert report["test_accuracy"] == 1
    (tmp_path / "colours.onnx").unlink()  # the run contains it
    command = start("predict", str(run), str(tmp_path / "photos" / "green" / "0.png"), "--json")
    assert command.ends() == 0
    assert json.loads(command.stdout)["predictions"][0]["label"] == "green"
    pool = serve(f"run={run}", "--workers", "1")
    blue = tmp_path / "photos" / "blue" / "1.png"
    _, answer = pool.post("/v1/classify", blue.read_bytes())
    assert answer["predictions"][0]["label"] == "blue"
    refused = start("export", str(run), str(tmp_path / "run.onnx"))
    assert (refused.ends(), "OnnxOperation" in refused.stderr) == (2, True)


def test_no_tuning_is_proposed_for_a_base_without_gradients(
    start: Start, colours: str, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    for name in ("this", "that"):  # noise, in which a head finds nothing
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    base = colours.replace("labels.txt", "none")
    options = "--base", base, "--run-dir", str(tmp_path / "run"), "--json"
    command = start("train", str(tmp_path / "photos"), *options)
    assert command.result()["test_accuracy"] < 0.9
    assert "--fine-tune" not in command.stderr


def test_axes_of_length_0_are_accepted_where_the_metadata_says_any(
    serve: Start, tmp_path: Path
) -> None:
    rows = written(sum_and_product(), tmp_path / "rows.onnx")
    both = [foreign_tensor("x", ["A", "B"])], [foreign_tensor("y", ["A", "B"])]
    free = written(graph([helper.make_node("Sin", ["x"], ["y"])], *both), tmp_path / "free.onnx")
    pool = serve(str(rows), str(free), "--workers", "1")
    none = tensor("count", "INT64", np.empty((0, 1))), tensor("numbers", "FP32", np.empty((0, 3)))
    code, answer = inferred(pool, "rows", *none)
    assert code == 200, answer
    assert [(each["shape"], each["data"]) for each in answer["outputs"]] == [
        ([0, 3], []),
        ([0], []),
    ]
    for shape in ((0, 3), (2, 0), (0, 0)):
        code, answer = inferred(pool, "free", tensor("x", "FP32", np.empty(shape)))
        assert code == 200, answer
        assert (answer["outputs"][0]["shape"], answer["outputs"][0]["data"]) == ([*shape], [])
    with Client(pool.address) as client:
        outputs = client.infer("rows", {"numbers": NUMBERS[:0], "count": np.empty((0, 1), int)})
        assert outputs.tensors["product"].shape == (0, 3)
        assert client.predict("free", np.empty((2, 0), np.float32)).shape == (2, 0)
    code, answer = inferred(pool, "rows", *none[:1], tensor("numbers", "FP32", np.empty((0, 4))))
    assert (code, "shape" in answer["error"]) == (400, True)


def test_a_small_file_that_needs_much_memory_is_refused(start: Start, tmp_path: Path) -> None:
    ones = helper.make_tensor("one", FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=ones),
        helper.make_node("ReduceSum", ["ones"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]
    both = [foreign_tensor("x", ["N", 1])], [foreign_tensor("y", ["N", 1])]
    shape = np.array([1 << 27])  # half a GiB, more than once
    path = written(graph(nodes, *both, shape=shape), tmp_path / "m.onnx")
    command = start("serve", str(path), "--workers", "1")
    assert command.ends() == 2
    assert "m.onnx" in command.stderr
