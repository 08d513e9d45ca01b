"""Requests over gRPC have the meaning that HTTP's binary extension gives them, errors included."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("grpc", reason="grpcio is not installed (the extra `grpc`)")

from described import described
from dist_net.errors import BadRequestError
from dist_net.nets.tensor_specs import TensorSpec
from dist_net.serving.grpc.grpc_messages import CONTENTS, MESSAGES
from dist_net.serving.grpc.grpc_translation import parsed, read_message, write_message
from dist_net.serving.http.open_inference import InferenceOutcome, read_request, response_of
from dist_net.serving.pool.requests import Result, Status
from fake_service import ANIMALS, DIGITS
from naming import naming
from slices import finished

SPECS = TensorSpec("a", "FP32", (2,)), TensorSpec("b", "INT16", ())
SEVERAL = described("several", inputs=SPECS, outputs=SPECS[::-1], has_classes=False)
NUMERIC = sorted(set(CONTENTS) - {"BYTES"})

tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "a", "b", "b", "c"]),
        "datatype": st.sampled_from(["FP32", "FP32", "INT16", "INT16", "BYTES"]),
        "shape": st.sampled_from([[1, 2], [1, 2], [1], [1], [2, 2], [], [-1, 2], [2**40, 2**40]]),
    }
)
raws = st.sampled_from([bytes(2), bytes(8), bytes(8), b"", bytes(16)])
parameters = st.dictionaries(
    st.sampled_from(["timeout", "priority", "classification", "binary_data_size", "other"]),
    st.one_of(st.booleans(), st.integers(-1, 2**62), st.text(max_size=3)),
    max_size=2,
)
outputs = st.lists(st.tuples(st.sampled_from(["a", "b", "b", "c"]), parameters), max_size=2)


def add_parameters(owner: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        kinds = {bool: "bool_param", int: "int64_param", str: "string_param"}
        entry = owner.parameters.add(key=key)
        setattr(entry.value, kinds[type(value)], value)


def meaning(read: Any) -> Any:
    """What a request means, or the class, code and text of its error."""
    try:
        requests, form = finished(read)
    except BadRequestError as error:
        return type(error), error.http_code, str(error)
    return [(bytes(o.payload), o.rows, o.is_image, o.version, o.timeout_s) for o in requests], form


@given(
    st.lists(st.tuples(tensors, parameters, raws), max_size=3),
    outputs,
    parameters,
    st.text(max_size=4),
)
def test_a_request_means_the_same_through_both_doors(
    inputs: list[Any], wanted: list[Any], of_request: dict[str, Any], name: str
) -> None:
    message = MESSAGES["ModelInferRequest"](id=name)
    add_parameters(message, of_request)
    listed = []
    for tensor, values, raw in inputs:
        added = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"])
        added.shape.extend(tensor["shape"])
        add_parameters(added, values)
        message.raw_input_contents.append(raw)
        listed.append(tensor | {"parameters": values | {"binary_data_size": len(raw)}})
    for output, values in wanted:
        add_parameters(message.outputs.add(name=output), values)
    request = {
        "inputs": listed,
        "outputs": [{"name": o, "parameters": v | {"binary_data": True}} for o, v in wanted],
        "parameters": of_request | {"binary_data_output": True},
    }
    request |= {"id": name} if name else {}
    text = json.dumps(request).encode()
    body = text + b"".join(raw for _, _, raw in inputs)
    by_http = meaning(read_request(body, len(text), SEVERAL, 1))
    sent = parsed("ModelInferRequest", message.SerializeToString())
    assert meaning(read_message(sent, SEVERAL, 1)) == by_http


@pytest.mark.parametrize("datatype", NUMERIC)
def test_typed_contents_are_read_as_raw_ones(datatype: str) -> None:
    spec = TensorSpec("x", datatype, (2,))
    model = described("typed", inputs=(spec,), outputs=(spec,), has_classes=False)
    info = None if datatype.startswith(("B", "F")) else np.iinfo(datatype.lower())
    values = [False, True] if datatype == "BOOL" else [0.5, -3.0]
    values = [int(info.min), int(info.max)] if info else values
    message = MESSAGES["ModelInferRequest"]()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, CONTENTS[datatype]).extend(values)
    (request,), _ = finished(read_message(message, model, None))
    assert np.frombuffer(request.payload, spec.dtype).tolist() == values
    getattr(tensor.contents, CONTENTS[datatype]).append(values[0])
    with pytest.raises(BadRequestError, match=naming("[1, 2]")):
        finished(read_message(message, model, None))


def digits_message(**contents: list[Any]) -> Any:
    message = MESSAGES["ModelInferRequest"]()
    tensor = message.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


def test_an_image_is_an_element_of_bytes() -> None:
    message = MESSAGES["ModelInferRequest"]()
    tensor = message.inputs.add(name="input", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"one", b"other"])
    requests, _ = finished(read_message(message, ANIMALS, None))
    assert [bytes(each.payload) for each in requests] == [b"one", b"other"]
    assert all(each.is_image for each in requests)


@pytest.mark.parametrize("wrong", ["other field", "two fields", "mixed", "too many", "no contents"])
def test_contents_that_contradict_are_refused(wrong: str) -> None:
    message = digits_message(fp32_contents=[1.0] * 4)
    contents = message.inputs[0].contents
    if wrong == "other field":
        contents.ClearField("fp32_contents")
        contents.fp64_contents.extend([1.0] * 4)
    elif wrong == "two fields":
        contents.int_contents.append(1)
    elif wrong == "mixed":
        message.raw_input_contents.append(bytes(16))
    elif wrong == "too many":
        message = digits_message()
        message.raw_input_contents.extend([bytes(16), b""])
    else:
        contents.Clear()
    with pytest.raises(BadRequestError, match=r"contents|bytes"):
        finished(read_message(message, DIGITS, None))


def test_a_response_has_the_raw_outputs_and_the_id() -> None:
    message = digits_message(fp32_contents=[1.0] * 4)
    message.id = "mine"
    _, form = finished(read_message(message, DIGITS, None))
    result = Result(Status.OK, 6, np.float32([[0.25, 0.5, 0.25]]).tobytes())
    response = finished(write_message(InferenceOutcome(DIGITS, 1, [result], form, None)))
    expected, (raw,) = finished(response_of(DIGITS, 1, [result], form))
    assert (response.id, response.model_name, response.model_version) == ("mine", "digits", "6")
    assert list(response.raw_output_contents) == [raw] == [result.payload]
    assert list(response.outputs[0].shape) == expected["outputs"][0]["shape"]


def test_a_message_that_is_damaged_is_a_bad_request() -> None:
    with pytest.raises(BadRequestError, match="ModelInferRequest"):
        parsed("ModelInferRequest", b"\xff\xff\xff")
