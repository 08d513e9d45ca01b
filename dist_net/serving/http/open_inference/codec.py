"""Requests and answers of the Open Inference Protocol: bytes to questions, results to bytes; pure.

A request's body is JSON. Raw tensors may follow it; then the header Inference-Header-Content-Length
gives the length of the JSON, and 0 means that the whole body is the input. A model has one input: a
tensor of its type, (rows, *input_shape), or, if it takes images, JPEG or PNG files as BYTES.

Raw tensors are little-endian and row-major. An element of BYTES is its length, a little-endian
uint32, followed by its content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from reprlib import Repr
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from dist_net.errors import (
    BadRequestError,
    QuestionError,
    RequestTooLargeError,
    UnsupportedRequestError,
)
from dist_net.images.labels import likeliest
from dist_net.serving.pool.description import TYPE_CODES, ModelDescription
from dist_net.serving.pool.requests import Payload, Question, Result

INPUT = "input"

# Each image of a request is a question of its own; the pool batches them.
MAX_IMAGES = 64
MAX_JSON_BYTES = 4 * 2**20
_SHORT_JSON_BYTES = 2**16
# Parsing holds the interpreter's lock: for 0.1 s with 4 MiB of numbers, but for 1 s with as many
# empty objects, which would take 35 times the memory of their text. So longer JSON has fewer.
_MAX_JSON = {b"{": 64, b'"': 4096, b"[": 2**16}
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_NOT_OFFERED = ("priority", "sequence_id", "sequence_start", "sequence_end")
_US_PER_S = 1e6
_LENGTH = struct.Struct("<I")
_SHOWN = Repr()
_SHOWN.maxlevel = 2  # so that a thousand nested lists are not followed to the bottom
_SHOWN.maxstring = _SHOWN.maxother = 60


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the answer should look: its id, raw or JSON, all numbers or only the ``top`` classes, and
    what the output is called.
    """

    request_id: str = ""
    is_binary: bool = False
    top: int = 0
    output: str = "probabilities"


def output_name(model: ModelDescription) -> str:
    """What a model's output is called: its numbers are probabilities if it has classes."""
    return "probabilities" if model.has_classes else "output"


def read_request(
    body: Payload, json_bytes: int | None, model: ModelDescription, version: int | None
) -> tuple[list[Question], Wanted]:
    """The questions in a body, one for a tensor or one for each image, and the answer's form.

    ``json_bytes`` is the header's value (None without the header), ``version`` the path's.
    Payloads may borrow ``body``. Raises BadRequestError for a body that is not the protocol's,
    QuestionError for an input that does not fit the model, RequestTooLargeError for too many
    images or too much JSON, UnsupportedRequestError for what is not offered.
    """
    if json_bytes == 0:
        return [_raw_question(memoryview(body), model, version)], Wanted(output=output_name(model))
    text: Payload = body if json_bytes is None else memoryview(body)[:json_bytes]
    if len(text) < (json_bytes or 0):
        raise BadRequestError(
            f"Inference-Header-Content-Length is {json_bytes:,} and the body has {len(body):,} "
            f"bytes; expected at most that"
        )
    request = json_object(text)
    parameters = _object(request.get("parameters"), "parameters")
    for name in _NOT_OFFERED:
        if parameters.get(name):  # 0, "" and false mean none
            raise UnsupportedRequestError(
                f'"{name}" is {shown(parameters[name])}; priorities and sequences are not offered; '
                f"expected a request without them"
            )
    raw = memoryview(body)[len(text) :]
    payloads, is_image, rows = _input(request.get("inputs"), raw, model)
    timeout_s = _timeout_s(parameters.get("timeout"))
    if len(payloads) > 1 and version is None:
        version = model.version  # one answer is of one version, even if a newer one is loaded now
    questions = [
        Question(model.name, payload, rows, is_image, version, timeout_s) for payload in payloads
    ]
    return questions, _wanted(request, parameters, model)


def _raw_question(body: memoryview, model: ModelDescription, version: int | None) -> Question:
    rows, rest = divmod(len(body), model.row_bytes)
    looks_like_one = bytes(body[:8]).startswith(_IMAGE_STARTS)
    if model.takes_images and (looks_like_one or rest or not rows):
        return Question(model.name, body, is_image=True, version=version)
    shape = (max(rows, 1), *model.input_shape)
    payload = tensor_from_bytes(body, model.input_datatype, shape)
    return Question(model.name, payload, rows, version=version)


def json_object(text: Payload) -> dict[str, Any]:
    """The JSON object in a body. Raises BadRequestError, RequestTooLargeError for a long one."""
    if len(text) > MAX_JSON_BYTES:
        raise RequestTooLargeError(
            f"{len(text):,} bytes of JSON; expected at most {MAX_JSON_BYTES:,}; send larger "
            f"tensors as raw bytes after it (binary_data_size)"
        )
    for character, limit in _MAX_JSON.items() if len(text) > _SHORT_JSON_BYTES else ():
        if (count := bytes(text).count(character)) > limit:
            raise RequestTooLargeError(
                f"the JSON has {count:,} times {character.decode()!r}; expected at most {limit:,}"
            )
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request is not JSON: {error}") from error
    return _object(request, "request")


def _object(value: Any, what: str) -> dict[str, Any]:
    """``value`` if it is a JSON object; an empty one for None."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError(f"{what} is {shown(value)}; expected a JSON object")
    return value


def _input(
    inputs: Any, raw: memoryview, model: ModelDescription
) -> tuple[Sequence[Payload], bool, int]:
    """The payloads, whether they are images, and the rows of each."""
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise BadRequestError(f'"inputs" is {shown(inputs)}; expected an array of one JSON object')
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("name") != INPUT:
        raise QuestionError(f'no input {shown(tensor.get("name"))}; expected the name "{INPUT}"')
    content = _raw_content(_object(tensor.get("parameters"), "parameters of the input"), raw)
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if datatype == "BYTES" and model.takes_images:
        return _images(content, shape), True, 1
    if datatype != model.input_datatype:
        or_images = ", or BYTES for images" if model.takes_images else ""
        raise QuestionError(
            f"the datatype of the input is {shown(datatype)}; {model.name} expects "
            f"{model.input_datatype}{or_images}"
        )
    sizes = _sizes(shape)
    if not sizes or sizes[1:] != model.input_shape:
        raise QuestionError(
            f"the shape of the input is {shown(shape)}; {model.name} expects "
            f"{[-1, *model.input_shape]}, where -1 stands for any number of rows"
        )
    if content is None:
        return (tensor_from_json(tensor.get("data"), datatype, sizes),), False, sizes[0]
    return (tensor_from_bytes(content, datatype, sizes),), False, sizes[0]


def _raw_content(parameters: dict[str, Any], raw: memoryview) -> memoryview | None:
    """The input's raw bytes after the JSON; None if it is in the JSON."""
    if "shared_memory_region" in parameters:
        raise UnsupportedRequestError(
            "tensors in shared memory are not offered; expected them in the body"
        )
    size = parameters.get("binary_data_size")
    if size is None and not raw:
        return None
    if type(size) is not int or size != len(raw):
        raise BadRequestError(
            f"binary_data_size is {shown(size)}, and {len(raw):,} bytes follow the JSON; expected "
            f"these to be the same; the header Inference-Header-Content-Length says where the "
            f"JSON ends"
        )
    return raw


def _images(content: memoryview | None, shape: Any) -> list[memoryview]:
    if content is None:
        raise QuestionError(
            "images cannot be sent inside JSON; expected them as raw bytes after it "
            "(binary_data_size)"
        )
    count, *rest = _sizes(shape) or (0,)
    if not count or any(size != 1 for size in rest):
        raise QuestionError(f"the shape of the input is {shown(shape)}; expected [images]")
    if count > MAX_IMAGES:
        raise RequestTooLargeError(
            f"{count:,} images in one request; expected at most {MAX_IMAGES}"
        )
    return elements_of_bytes(content, count)


def _sizes(shape: Any) -> tuple[int, ...]:
    """The shape; empty unless it is an array of positive integers."""
    if isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape):
        return tuple(shape)
    return ()


def _timeout_s(timeout: Any) -> float | None:
    """From microseconds; None, the pool's default, for 0."""
    if timeout is None:
        return None
    if type(timeout) is not int or timeout < 0:
        raise BadRequestError(f'"timeout" is {shown(timeout)}; expected whole microseconds')
    return timeout / _US_PER_S or None


def _wanted(request: dict[str, Any], parameters: dict[str, Any], model: ModelDescription) -> Wanted:
    request_id = request.get("id", "")
    if not isinstance(request_id, str):
        raise BadRequestError(f'"id" is {shown(request_id)}; expected a string')
    name = output_name(model)
    output = _output(request.get("outputs"), name)
    is_binary = output.get("binary_data", parameters.get("binary_data_output", False))
    if type(is_binary) is not bool:
        raise BadRequestError(f"binary_data is {shown(is_binary)}; expected true or false")
    top = output.get("classification", 0)
    if type(top) is not int or top < 0:
        raise BadRequestError(f'"classification" is {shown(top)}; expected how many classes')
    if top and not model.has_classes:
        raise QuestionError(f"{model.name} has no classes; expected no classification")
    return Wanted(request_id, is_binary, top, name)


def _output(outputs: Any, name: str) -> dict[str, Any]:
    """The parameters of the output that is asked for; empty if none is named."""
    if outputs is None or outputs == []:
        return {}
    if not (isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], dict)):
        raise BadRequestError(f'"outputs" is {shown(outputs)}; expected an array of one object')
    if outputs[0].get("name") != name:
        raise QuestionError(
            f'no output {shown(outputs[0].get("name"))}; expected the name "{name}"'
        )
    parameters = _object(outputs[0].get("parameters"), "parameters of the output")
    if "shared_memory_region" in parameters:
        raise UnsupportedRequestError(
            "outputs in shared memory are not offered; expected none of its parameters"
        )
    return parameters


def shown(value: object) -> str:
    """A value from a request, cut short for a message."""
    return _SHOWN.repr(value)


def tensor_from_json(data: Any, datatype: str, shape: Sequence[int]) -> bytes:
    """The raw bytes of a tensor given as a JSON array, flat or nested like its shape.

    Raises QuestionError unless it has as many elements as expected, numbers in the type's range.
    """
    elements = _flat(data, shape)
    if len(elements) != prod(shape):
        raise QuestionError(
            f'"data" has {len(elements):,} elements; expected {prod(shape):,}, for the shape '
            f"{list(shape)}"
        )
    try:
        # Stricter than NumPy, which takes "1" and null for numbers and pads every string to the
        # length of the longest; and twice as fast.
        return struct.pack(f"<{len(elements)}{TYPE_CODES[datatype]}", *elements)
    except (struct.error, OverflowError) as error:
        raise QuestionError(f'"data" holds more than numbers of {datatype}: {error}') from error


def tensor_from_bytes(raw: Payload, datatype: str, shape: Sequence[int]) -> Payload:
    """``raw`` itself; raises QuestionError unless it has the size of this tensor."""
    expected = struct.calcsize("<" + TYPE_CODES[datatype]) * prod(shape)
    if len(raw) != expected:
        raise QuestionError(
            f"{len(raw):,} bytes for a tensor of {datatype} and the shape {list(shape)}; expected "
            f"{expected:,}"
        )
    return raw


def elements_of_bytes(raw: Payload, count: int) -> list[memoryview]:
    """The ``count`` elements of a tensor of BYTES, borrowed; raises QuestionError for others."""
    found: list[memoryview] = []
    left = memoryview(raw)
    while left and len(found) < count:
        start = _LENGTH.size
        end = start + _LENGTH.unpack_from(left)[0] if len(left) >= start else start
        if end > len(left):
            raise QuestionError(
                f"element {len(found)} of a tensor of BYTES ends {end - len(left):,} bytes after "
                f"the tensor; expected a length (uint32, little-endian) and as many bytes"
            )
        found.append(left[start:end])
        left = left[end:]
    if left or len(found) != count:
        raise QuestionError(
            f"a tensor of BYTES has {len(found)} elements and {len(left):,} bytes after them; "
            f"expected {count} elements, as its shape says, and nothing else"
        )
    return found


def bytes_of_elements(elements: Iterable[bytes]) -> bytes:
    return b"".join(chain.from_iterable((_LENGTH.pack(len(each)), each) for each in elements))


def _flat(data: Any, shape: Sequence[int]) -> list[Any]:
    """The elements of lists nested as ``shape`` says; a flat list is returned as it is."""
    if not isinstance(data, list):
        raise QuestionError(f'"data" is {shown(data)}; expected an array')
    if not (data and isinstance(data[0], list)):
        return data
    rows = [data]
    for size in shape:
        if any(not isinstance(row, list) or len(row) != size for row in rows):
            raise QuestionError(
                f'"data" is not nested as its shape {list(shape)} says; expected that, or all '
                f"elements in one array"
            )
        rows = list(chain.from_iterable(rows))
    return rows


def encode_response(
    model: str, rows: int, results: Sequence[Result], wanted: Wanted
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON if raw bytes follow. All results must be OK.

    Their ``rows`` become one output: (rows, classes) float32; or, where classes are wanted,
    (rows, top) BYTES, each ``value:index:label``, likeliest first. Raises QuestionError for
    outputs that are not finite, unless they are wanted in binary.
    """
    payload = results[0].payload if len(results) == 1 else b"".join(o.payload for o in results)
    probabilities = np.frombuffer(payload, "<f4").reshape(rows, -1, copy=False)
    if (wanted.top or not wanted.is_binary) and not np.isfinite(probabilities).all():
        raise QuestionError(
            "outputs for this input are not finite, which JSON and class names cannot express; "
            "expected an input in the net's range, or a request for binary outputs"
        )
    output: dict[str, Any] = {"name": wanted.output, "datatype": "FP32"}
    data: Any = probabilities.reshape(-1, copy=False)
    raw: Payload = payload
    if wanted.top:
        data = _classified(probabilities, wanted.top, results[0].labels)
        output["datatype"] = "BYTES"
        raw = bytes_of_elements(text.encode() for text in data) if wanted.is_binary else b""
    output["shape"] = [rows, len(data) // rows]
    if wanted.is_binary:
        output["parameters"] = {"binary_data_size": len(raw)}
    else:
        output["data"] = data
    response: dict[str, Any] = {
        "model_name": model,
        "model_version": str(results[0].version),
        "outputs": [output],
    }
    if wanted.request_id:
        response["id"] = wanted.request_id
    text = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    return (text + raw, len(text)) if wanted.is_binary else (text, None)


def _classified(probabilities: NDArray[np.float32], top: int, labels: Sequence[str]) -> list[str]:
    """The ``top`` classes of each row, as the classification extension writes them."""
    return [
        f"{row[index]:f}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
        for row, best in zip(probabilities, likeliest(probabilities, top), strict=True)
        for index in best
    ]
