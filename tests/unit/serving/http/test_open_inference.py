"""The Open Inference Protocol: what a body means, and what an answer is."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from described import described, with_input
from dist_net.errors import (
    BadInputError,
    BadRequestError,
    RequestTooLargeError,
)
from dist_net.nets.tensor_specs import TensorSpec, from_bytes, to_bytes
from dist_net.serving.http.model_endpoints import model_metadata
from dist_net.serving.http.open_inference import (
    MAX_JSON_BYTES,
    OutputForm,
    ResponseForm,
    bytes_of_elements,
    elements_of_bytes,
    encode_response,
    read_request,
)
from dist_net.serving.pool.requests import InferenceRequest, Result, Status
from fake_service import ANIMALS, DIGITS
from naming import naming
from slices import finished

ROW = [0.5, -1.25, 3.0, 1e-3]
RAW_ROW = np.array(ROW, "<f4").tobytes()


def an_input(**changes: Any) -> dict[str, Any]:
    return {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": ROW} | changes


def a_raw_input(size: Any, **changes: Any) -> dict[str, Any]:
    return an_input(data=None, parameters={"binary_data_size": size}) | changes


def a_body(raw: bytes = b"", inputs: Any = None, **fields: Any) -> tuple[bytes, int]:
    """A body with raw tensors, and how much of it is JSON."""
    text = json.dumps({"inputs": [an_input()] if inputs is None else inputs} | fields).encode()
    return text + raw, len(text)


def asked(
    body: bytes, json_bytes: int | None = None, model: Any = DIGITS
) -> list[InferenceRequest]:
    requests, _ = finished(read_request(body, json_bytes, model, None))
    return requests


def wanted(**fields: Any) -> ResponseForm:
    return finished(read_request(a_body(**fields)[0], None, DIGITS, None))[1]


@pytest.mark.parametrize(
    ("data", "shape"),
    [(ROW, [1, 4]), ([ROW], [1, 4]), (ROW + ROW, [2, 4]), ([ROW, ROW], [2, 4])],
)
def test_numbers_come_flat_or_nested(data: Any, shape: list[int]) -> None:
    (request,) = asked(a_body(inputs=[an_input(data=data, shape=shape)])[0])
    assert request == InferenceRequest("digits", RAW_ROW * shape[0], shape[0])


def test_numbers_come_as_raw_bytes_behind_the_json() -> None:
    tensor = a_raw_input(16)
    del tensor["data"]
    (request,) = asked(*a_body(RAW_ROW, inputs=[tensor]))
    assert request == InferenceRequest("digits", RAW_ROW, 1)


def test_a_body_without_json_is_the_input() -> None:
    assert asked(RAW_ROW * 3, 0) == [InferenceRequest("digits", RAW_ROW * 3, 3)]


@pytest.mark.parametrize("image", [b"\xff\xd8\xff" + b"x" * 9, b"no multiple of a row"])
def test_a_body_without_json_is_a_image_if_it_can_be_no_tensor(image: bytes) -> None:
    assert asked(image, 0, ANIMALS) == [InferenceRequest("animals", image, is_image=True)]


def test_a_body_without_json_is_a_tensor_where_its_size_fits() -> None:
    assert asked(bytes(24), 0, ANIMALS) == [InferenceRequest("animals", bytes(24), 2)]


def test_each_image_is_a_question_and_all_are_of_one_version() -> None:
    raw = bytes_of_elements([b"one", b"", b"three"])
    tensor = {"name": "input", "shape": [3, 1], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    requests = asked(*a_body(raw, inputs=[tensor]), ANIMALS)
    assert [bytes(each.payload) for each in requests] == [b"one", b"", b"three"]
    assert {(each.is_image, each.rows, each.version) for each in requests} == {(True, 1, 7)}


def test_a_shape_without_elements_has_a_possible_size() -> None:
    model = with_input(DIGITS, shape=(-1,))
    for shape in ([0, 2**62], [2**62, 0]):
        with pytest.raises(BadRequestError, match="shape"):
            asked(a_body(inputs=[an_input(shape=shape, data=[])])[0], model=model)


def test_parameters_say_when_and_how_the_answer_is_wanted() -> None:
    body, _ = a_body(
        id="7",
        parameters={"timeout": 250_000, "priority": 0},
        outputs=[
            {"name": "probabilities", "parameters": {"binary_data": True, "classification": 2}}
        ],
    )
    (request,), about = finished(read_request(body, None, DIGITS, 2))
    assert request.timeout_s == 0.25
    assert request.version == 2
    assert about == ResponseForm((OutputForm("probabilities", True, 2),), "7")


@pytest.mark.parametrize(
    "parameters",
    [{"priority": 1}, {"sequence_id": 7}, {"sequence_id": "a"}, {"sequence_end": True}],
)
def test_what_is_not_offered_is_not_passed_over(parameters: dict[str, Any]) -> None:
    body, _ = a_body(parameters=parameters)
    with pytest.raises(BadRequestError, match=next(iter(parameters))) as raised:
        finished(read_request(body, None, DIGITS, None))
    assert raised.value.http_code == 501


def test_no_priority_and_no_sequence_may_be_said() -> None:
    none = {"priority": 0, "sequence_id": 0, "sequence_start": False, "sequence_end": False}
    assert len(asked(a_body(parameters=none)[0])) == 1


def test_no_timeout_is_what_the_pool_allows() -> None:
    assert asked(a_body(parameters={"timeout": 0})[0])[0].timeout_s is None


def test_outputs_are_json_unless_wanted_otherwise() -> None:
    assert not wanted().outputs[0].is_binary
    assert wanted(parameters={"binary_data_output": True}).outputs[0].is_binary
    named = {"name": "probabilities", "parameters": {"binary_data": False}}
    assert not wanted(parameters={"binary_data_output": True}, outputs=[named]).outputs[0].is_binary


BYTES_INPUT = {"name": "input", "datatype": "BYTES", "shape": [2]}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", BadRequestError),
        (b"{", BadRequestError),
        (b"[]", BadRequestError),
        (b"null", BadRequestError),
        (b"[" * 2000, BadRequestError),
        (b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}", BadRequestError),
        (b"\xff", BadRequestError),
        (b" " * (MAX_JSON_BYTES + 1), RequestTooLargeError),
        (a_body(inputs={})[0], BadRequestError),
        (a_body(inputs=[])[0], BadRequestError),
        (a_body(inputs=[1])[0], BadRequestError),
        (a_body(inputs=[an_input(), an_input()])[0], BadRequestError),
        (a_body(inputs=[an_input(name="x")])[0], BadRequestError),
        (a_body(inputs=[an_input(datatype="FP64")])[0], BadRequestError),
        (a_body(inputs=[an_input(datatype="BYTES")])[0], BadRequestError),
        (a_body(inputs=[an_input(datatype=[])])[0], BadRequestError),
        (a_body(inputs=[an_input(shape=[4])])[0], BadRequestError),
        (a_body(inputs=[an_input(shape=[0, 4])])[0], BadRequestError),
        (a_body(inputs=[an_input(shape=[-1, 4])])[0], BadRequestError),
        (a_body(inputs=[an_input(shape=[True, 4])])[0], BadRequestError),
        (a_body(inputs=[an_input(shape=[2**62, 4])])[0], BadRequestError),
        (a_body(inputs=[an_input(shape=None)])[0], BadRequestError),
        (a_body(inputs=[an_input(shape="14")])[0], BadRequestError),
        (a_body(inputs=[an_input(data=ROW[:3])])[0], BadRequestError),
        (a_body(inputs=[an_input(data=None)])[0], BadRequestError),
        (a_body(inputs=[an_input(data={})])[0], BadRequestError),
        (a_body(inputs=[an_input(data=["1", "2", "3", "4"])])[0], BadRequestError),
        (a_body(inputs=[an_input(data=[1, 2, 3, None])])[0], BadRequestError),
        (a_body(inputs=[an_input(data=[1, 2, 3, True])])[0], BadRequestError),
        (a_body(inputs=[an_input(data=[[1, 2, 3, False]])])[0], BadRequestError),
        (a_body(inputs=[an_input(data=[1, 2, 3, 1e39])])[0], BadRequestError),
        (a_body(inputs=[an_input(data=[[1, 2], [3, 4]])])[0], BadRequestError),
        (a_body(inputs=[an_input(data=[ROW, 1])])[0], BadRequestError),
        (a_body(inputs=[an_input(data=[[[1], 2, 3, 4]])])[0], BadRequestError),
        (a_body(inputs=[an_input(parameters=[])])[0], BadRequestError),
        (a_body(inputs=[an_input(parameters={"binary_data_size": 16})])[0], BadRequestError),
        (
            a_body(inputs=[an_input(parameters={"shared_memory_region": "r"})])[0],
            BadRequestError,
        ),
        (a_body(id=7)[0], BadRequestError),
        (a_body(parameters=[])[0], BadRequestError),
        (a_body(parameters={"timeout": -1})[0], BadRequestError),
        (a_body(parameters={"timeout": "1"})[0], BadRequestError),
        (a_body(parameters={"binary_data_output": 1})[0], BadRequestError),
        (a_body(outputs={})[0], BadRequestError),
        (a_body(outputs=[{"name": "x"}])[0], BadRequestError),
        (
            a_body(outputs=[{"name": "probabilities", "parameters": {"classification": -1}}])[0],
            BadRequestError,
        ),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, error: type[BadInputError]) -> None:
    with pytest.raises(error) as raised:
        asked(body)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("raw", "size"),
    [(RAW_ROW, 15), (RAW_ROW, 17), (RAW_ROW, -1), (RAW_ROW, True), (RAW_ROW, None), (b"", 16)],
)
def test_raw_bytes_are_as_many_as_said(raw: bytes, size: Any) -> None:
    body, json_bytes = a_body(raw, [a_raw_input(size)])
    with pytest.raises(BadRequestError):
        asked(body, json_bytes)


def test_raw_numbers_must_fit_the_shape_and_be_finite() -> None:
    for raw in (RAW_ROW[:12], RAW_ROW + b"1"):
        body, json_bytes = a_body(raw, [a_raw_input(len(raw))])
        with pytest.raises(BadRequestError):
            asked(body, json_bytes)


@pytest.mark.parametrize(
    "tensor",
    [
        a_raw_input(16, data=ROW),
        a_raw_input(16, data=[]),
        a_raw_input(16, datatype="BYTES", data=[1]),
    ],
)
def test_an_input_is_in_the_json_or_behind_it_not_both(tensor: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match=naming("data", "binary_data_size")):
        asked(*a_body(RAW_ROW, [tensor]), model=replace(DIGITS, takes_images=True))


@pytest.mark.parametrize("body", [b"[[1,2]]", b"[1", b'{"inputs":[[1,2]]}', b"{}"])
def test_the_error_shows_a_request_to_copy(body: bytes) -> None:
    with pytest.raises(BadRequestError) as raised:
        asked(body)
    example = re.search(r"such as (\{.*\})", str(raised.value))
    assert example
    row = ", ".join(map(str, ROW))
    (request,) = asked(example[1].replace("4 numbers", row).encode())
    assert bytes(request.payload) == RAW_ROW


def test_a_header_must_not_reach_beyond_the_body() -> None:
    body, json_bytes = a_body()
    with pytest.raises(BadRequestError):
        asked(body, json_bytes + 1)


def test_a_raw_body_must_be_whole_rows() -> None:
    for body in (b"", RAW_ROW[:-1]):
        with pytest.raises(BadRequestError):
            asked(body, 0)


@pytest.mark.parametrize("raw", [b"", b"\1", b"\5\0\0\0four", b"\xff\xff\xff\xff", bytes(8)])
def test_elements_must_end_where_the_tensor_does(raw: bytes) -> None:
    with pytest.raises(BadRequestError):
        elements_of_bytes(raw, 1)


def test_too_many_images_are_refused() -> None:
    raw = bytes(4 * 65)
    tensor = {**BYTES_INPUT, "shape": [65], "parameters": {"binary_data_size": len(raw)}}
    with pytest.raises(RequestTooLargeError):
        asked(*a_body(raw, [tensor]), ANIMALS)


def test_images_cannot_be_in_the_json() -> None:
    with pytest.raises(BadRequestError, match="binary_data_size"):
        asked(a_body(inputs=[BYTES_INPUT | {"data": ["a", "b"]}])[0], None, ANIMALS)


def form(request_id: str | None = None, **options: Any) -> ResponseForm:
    return ResponseForm((OutputForm("probabilities", **options),), request_id)


ROWS = np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], "<f4")
OUTCOME = Result(Status.OK, 6, ROWS.tobytes())


def test_an_answer_is_numbers_in_json() -> None:
    body, json_bytes = finished(encode_response(DIGITS, 2, [OUTCOME], form(request_id="x")))
    assert json_bytes is None
    answer = json.loads(body)
    data = answer["outputs"][0].pop("data")
    assert np.array_equal(np.array(data, "f4").reshape(2, 3), ROWS)
    assert answer == {
        "model_name": "digits",
        "model_version": "6",
        "id": "x",
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [2, 3]}],
    }


def test_an_answer_is_raw_bytes_behind_json() -> None:
    halves = [replace(OUTCOME, payload=row.tobytes()) for row in ROWS]
    body, json_bytes = finished(encode_response(DIGITS, 2, halves, form(is_binary=True)))
    (output,) = json.loads(body[:json_bytes])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24}
    assert output["shape"] == [2, 3]
    assert body[json_bytes:] == ROWS.tobytes()


def test_an_answer_is_the_likeliest_classes() -> None:
    body, _ = finished(
        encode_response(ANIMALS, 2, [replace(OUTCOME, labels=ANIMALS.labels)], form(top=2))
    )
    (output,) = json.loads(body)["outputs"]
    assert output == {
        "name": "probabilities",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["0.500000:1:dog", "0.250000:0:cat", "0.700000:2:hen", "0.200000:1:dog"],
    }
    body, json_bytes = finished(encode_response(DIGITS, 2, [OUTCOME], form(is_binary=True, top=9)))
    elements = elements_of_bytes(body[json_bytes:], 6)
    assert bytes(elements[0]) == b"0.500000:1"


def test_metadata_leaves_the_number_of_rows_open() -> None:
    described = model_metadata(ANIMALS, (6, 7))
    assert described["versions"] == ["6", "7"]
    assert described["inputs"][0]["shape"] == [-1, 2, 2, 3]
    assert described["outputs"][0]["shape"] == [-1, 3]


def test_numbers_that_a_model_predicts_are_called_output_and_have_no_classes() -> None:
    model = described("digits", 3, has_classes=False)
    body, json_bytes = a_body()
    _, wanted = finished(read_request(body, json_bytes, model, None))
    answer, _ = finished(encode_response(model, 2, [OUTCOME], wanted))
    assert json.loads(answer)["outputs"][0]["name"] == "values"
    body, json_bytes = a_body(outputs=[{"name": "values", "parameters": {"classification": 1}}])
    with pytest.raises(BadRequestError, match=naming("digits")):
        finished(read_request(body, json_bytes, model, None))


SPECS = TensorSpec("a", "FP32", (2,)), TensorSpec("b", "BOOL", ())
SEVERAL = described("several", inputs=SPECS, outputs=SPECS[::-1], has_classes=False)
FREE = replace(SEVERAL, inputs=(TensorSpec("a", "FP32", (-1, 2)), SPECS[1]), is_batched=False)
A = {"name": "a", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
B = {"name": "b", "datatype": "BOOL", "shape": [2], "data": [True, False]}


def test_several_inputs_are_records_in_any_order() -> None:
    expected = {"a": np.array([[1, 2], [3, 4]], "f4"), "b": np.array([True, False])}
    raw_a = {**A, "data": None, "parameters": {"binary_data_size": 16}}
    raw_b = {**B, "data": None, "parameters": {"binary_data_size": 2}}
    raws = expected["b"].tobytes() + expected["a"].tobytes()
    for inputs, raw in (([A, B], b""), ([B, raw_a], raws[2:]), ([raw_b, raw_a], raws)):
        (request,) = asked(*a_body(raw, inputs), SEVERAL)
        assert request.rows == 2
        found = from_bytes(request.payload, SPECS, is_batched=True)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "inputs",
    [
        [A],
        [A, A],
        [A, B, B],
        [A, B | {"shape": [1], "data": [True]}],
        [A, B | {"data": [1, 0]}],
        [A, B | {"data": [True, None]}],
        [A | {"parameters": {"binary_data_size": 2**70}}, B],
        [A | {"parameters": {"binary_data_size": -1}}, B],
    ],
)
def test_several_inputs_must_fit_each_other(inputs: list[dict[str, Any]]) -> None:
    with pytest.raises(BadRequestError):
        asked(a_body(inputs=inputs)[0], model=SEVERAL)
    with pytest.raises(BadRequestError):
        asked(bytes(18), 0, SEVERAL)


def test_a_model_without_rows_gets_the_tensors_of_a_request() -> None:
    scalar = B | {"shape": [], "data": [True]}
    (request,) = asked(a_body(inputs=[A, scalar])[0], model=FREE)
    found = from_bytes(request.payload, FREE.inputs, is_batched=False)
    assert (found["a"].shape, found["b"].shape, bool(found["b"])) == ((2, 2), (), True)
    for inputs in ([A, B], [A | {"shape": [4]}, scalar], [A | {"shape": [4, 1]}, scalar]):
        with pytest.raises(BadRequestError, match="shape"):
            asked(a_body(inputs=inputs)[0], model=FREE)


def test_several_outputs_are_answered_as_they_are_wanted() -> None:
    tensors = {"b": np.array([True, False]), "a": np.array([[1, 2], [3, 4]], "f4")}
    outcome = Result(Status.OK, 3, to_bytes(tensors, SEVERAL.outputs, is_batched=True))
    wanted = ResponseForm((OutputForm("a", is_binary=True), OutputForm("b")))
    body, json_bytes = finished(encode_response(SEVERAL, 2, [outcome], wanted))
    a, b = json.loads(body[:json_bytes])["outputs"]
    assert (a["shape"], a["parameters"], body[json_bytes:]) == (
        [2, 2],
        {"binary_data_size": 16},
        tensors["a"].tobytes(),
    )
    assert (b["datatype"], b["data"]) == ("BOOL", [True, False])


def test_a_long_answer_is_refused_as_json_and_sent_as_bytes() -> None:
    rows = 100_000
    model = described("digits", 3)
    results = [Result(Status.OK, 3, np.zeros((rows, 3), "<f4").tobytes())]
    for form in (OutputForm("probabilities"), OutputForm("probabilities", top=3)):
        with pytest.raises(BadRequestError, match="request binary outputs"):
            finished(encode_response(model, rows, results, ResponseForm((form,))))
    form = OutputForm("probabilities", is_binary=True)
    body, json_bytes = finished(encode_response(model, rows, results, ResponseForm((form,))))
    assert body[json_bytes:] == results[0].payload
