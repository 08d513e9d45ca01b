"""POST /v2/models/MODEL[/versions/VERSION]/infer, the Open Inference Protocol's inference request.

A request's body is JSON. Raw tensors may follow it; then the header Inference-Header-Content-Length
is the length of the JSON, and 0 means that the whole body is the input. A model has one input: a
tensor of its type, (rows, *input_shape), or, if it takes images, JPEG or PNG files as BYTES.

Raw tensors are little-endian and row-major. An element of BYTES is its length, a little-endian
uint32, followed by its content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import prod
from reprlib import Repr
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dist_net.errors import BadRequestError, RequestTooLargeError
from dist_net.images.labels import likeliest
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.exchange import (
    HttpExchange,
    RequestMemory,
    description_of,
    version_number,
)
from dist_net.serving.http.replies import JSON_LENGTH, HttpReply, result_reply
from dist_net.serving.pool.description import TYPE_CODES, ModelDescription
from dist_net.serving.pool.requests import InferenceRequest, Payload, Result, Status

INPUT = "input"

# Each image becomes a separate request to the pool, which batches them.
MAX_IMAGES = 64
MAX_JSON_BYTES = 4 * 2**20
_SHORT_JSON_BYTES = 2**16
# Parsing holds the interpreter's lock: for 0.1 s with 4 MiB of numbers, but for 1 s with as many
# empty objects, which would take 35 times the memory of their text. So long JSON may have fewer.
_MAX_JSON = {b"{": 64, b'"': 4096, b"[": 2**16}
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_UNSUPPORTED = ("priority", "sequence_id", "sequence_start", "sequence_end", "shared_memory_region")
_US_PER_S = 1e6
_LENGTH = struct.Struct("<I")
_SHOWN = Repr()
_SHOWN.maxlevel = 2  # instead of descending a thousand nested lists
_SHOWN.maxstring = _SHOWN.maxother = 60


class InferEndpoint:
    """The endpoint of inference requests: an ASGI application, cheaper than a function's route."""

    def __init__(self, gateway: Gateway, memory: RequestMemory) -> None:
        self._gateway = gateway
        self._memory = memory

    def routes(self) -> list[Route]:
        """Return the routes to the newest version and to a named one."""
        models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        return [Route(f"{model}/infer", self, methods=["POST"]) for model in models]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = await self._infer(Request(scope, receive))
        await reply(scope, receive, send)

    async def _infer(self, request: Request) -> HttpReply:
        name, version = request.path_params["model"], version_number(request)
        with HttpExchange(self._memory, request) as exchange:
            json_bytes = exchange.size_header(JSON_LENGTH)
            content = await exchange.body()
            parsed_bytes = len(content) if json_bytes is None else json_bytes
            model = None
            # A model may be loaded while a thread parses: the model that answers must be the model
            # that the request was checked for. ``infer`` admits the request before its first await.
            while (newest := description_of(self._gateway, name, version)) is not model:
                model = newest
                read = partial(read_request, content, json_bytes, model, version)
                requests, form = await exchange.off_loop(parsed_bytes, read)
            results = await exchange.infer(self._gateway, requests)
            if (failed := _first_failure(results)) is not None:
                return result_reply(failed)
            rows = sum(each.rows for each in requests)
            encode = partial(encode_response, name, rows, results, form)
            answer, json_bytes = await exchange.off_loop(classes_bytes(results), encode)
        if json_bytes is None:
            return HttpReply(answer)
        length = (JSON_LENGTH, b"%d" % json_bytes)
        return HttpReply(answer, headers=[length], content_type=b"application/octet-stream")


def _first_failure(results: Sequence[Result]) -> Result | None:
    """Return the first result that is not OK: the protocol has no partial answers."""
    for place, result in enumerate(results, 1):
        if result.status != Status.OK:
            if len(results) == 1:
                return result
            return replace(result, reason=f"image {place} of {len(results)}: {result.reason}")
    return None


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """The requested form of a response: its id, raw or JSON, all numbers or only the ``top``
    classes, and the name of the output.
    """

    request_id: str = ""
    is_binary: bool = False
    top: int = 0
    output: str = "probabilities"


def output_name(model: ModelDescription) -> str:
    """Return the name of a model's output."""
    return "probabilities" if model.has_classes else "values"


def read_request(
    body: Payload, json_bytes: int | None, model: ModelDescription, version: int | None
) -> tuple[list[InferenceRequest], ResponseForm]:
    """Return the requests in a body, one per tensor or image, and the form of the response.

    ``json_bytes`` is the header's value (None without the header), ``version`` the path's.
    Payloads may borrow ``body``. Raise BadRequestError for a body that does not follow the
    protocol, uses an unsupported extension or does not fit the model; RequestTooLargeError for too
    many images or too much JSON.
    """
    if json_bytes == 0:
        form = ResponseForm(output=output_name(model))
        return [_raw_request(memoryview(body), model, version)], form
    text: Payload = body if json_bytes is None else memoryview(body)[:json_bytes]
    if len(text) < (json_bytes or 0):
        raise BadRequestError(
            f"Inference-Header-Content-Length is {json_bytes:,} and the body has {len(body):,} "
            f"bytes; expected at most that"
        )
    request = json_object(text, _example(model))
    parameters = _parameters(request, "request")
    raw = memoryview(body)[len(text) :]
    payloads, is_image, rows = _input(request.get("inputs"), raw, model)
    timeout_s = _timeout_s(parameters.get("timeout"))
    if len(payloads) > 1 and version is None:
        version = model.version  # all rows of a response must be computed by one version
    inferences = [
        InferenceRequest(model.name, payload, rows, is_image, version, timeout_s)
        for payload in payloads
    ]
    return inferences, _form(request, parameters, model)


def _raw_request(
    body: memoryview, model: ModelDescription, version: int | None
) -> InferenceRequest:
    rows, rest = divmod(len(body), model.row_bytes)
    looks_like_image = bytes(body[:8]).startswith(_IMAGE_STARTS)
    if model.takes_images and (looks_like_image or rest or not rows):
        return InferenceRequest(model.name, body, is_image=True, version=version)
    shape = (max(rows, 1), *model.input_shape)
    payload = tensor_from_bytes(body, model.input_datatype, shape)
    return InferenceRequest(model.name, payload, rows, version=version)


def json_object(text: Payload, example: str = "") -> dict[str, Any]:
    """Return the JSON object in a body. Raise BadRequestError or RequestTooLargeError.

    Their messages about another body end with ``example``.
    """
    if len(text) > MAX_JSON_BYTES:
        raise RequestTooLargeError(
            f"{len(text):,} bytes of JSON; expected at most {MAX_JSON_BYTES:,}; send larger "
            f"tensors as raw bytes after it (binary_data_size)"
        )
    for character, limit in _MAX_JSON.items() if len(text) > _SHORT_JSON_BYTES else ():
        if (count := bytes(text).count(character)) > limit:
            raise RequestTooLargeError(
                f"the JSON contains {character.decode()!r} {count:,} times; expected at most "
                f"{limit:,}"
            )
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(
            f"the request is not JSON: {error}; expected a JSON object{example}"
        ) from error
    if not isinstance(request, dict):
        raise BadRequestError(f"the request is {shown(request)}; expected a JSON object{example}")
    return request


def _example(model: ModelDescription) -> str:
    """Return a request for the message of an error, to copy and complete."""
    shape = [1, *model.input_shape]
    tensor = {"name": INPUT, "shape": shape, "datatype": model.input_datatype, "data": [0]}
    text = orjson.dumps({"inputs": [tensor]}).decode()
    return f", such as {text.replace('[0]', f'[{prod(shape):,} numbers]')}"


def _object(value: Any, what: str) -> dict[str, Any]:
    """Return ``value`` if it is a JSON object, or an empty one for None."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError(f"{what} is {shown(value)}; expected a JSON object")
    return value


def _parameters(owner: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the parameters of the request, the input or the output."""
    parameters = _object(owner.get("parameters"), f"parameters of the {what}")
    for name in _UNSUPPORTED:
        if parameters.get(name):  # 0, "" and false mean none
            raise BadRequestError(
                f'"{name}" is {shown(parameters[name])}; priorities, sequences and shared memory '
                f"are not supported; expected {what} parameters without them",
                http_code=501,
            )
    return parameters


def _input(
    inputs: Any, raw: memoryview, model: ModelDescription
) -> tuple[Sequence[Payload], bool, int]:
    """Return the payloads, whether they are images, and the rows of each."""
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise BadRequestError(
            f'"inputs" is {shown(inputs)}; expected an array of one JSON object{_example(model)}'
        )
    tensor: dict[str, Any] = inputs[0]
    if tensor.get("name") != INPUT:
        raise BadRequestError(f'no input {shown(tensor.get("name"))}; expected the name "{INPUT}"')
    content = _raw_content(_parameters(tensor, "input"), raw)
    if content is not None and tensor.get("data") is not None:
        raise BadRequestError(
            'the input has "data" and raw bytes (binary_data_size); expected one of them'
        )
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if datatype == "BYTES" and model.takes_images:
        return _images(content, shape), True, 1
    if datatype != model.input_datatype:
        or_images = ", or BYTES for images" if model.takes_images else ""
        raise BadRequestError(
            f"the datatype of the input is {shown(datatype)}; {model.name} expects "
            f"{model.input_datatype}{or_images}"
        )
    sizes = _sizes(shape)
    if not sizes or sizes[1:] != model.input_shape:
        raise BadRequestError(
            f"the shape of the input is {shown(shape)}; {model.name} expects "
            f"{[-1, *model.input_shape]}, where -1 stands for any number of rows"
        )
    if content is None:
        return (tensor_from_json(tensor.get("data"), datatype, sizes),), False, sizes[0]
    return (tensor_from_bytes(content, datatype, sizes),), False, sizes[0]


def _raw_content(parameters: dict[str, Any], raw: memoryview) -> memoryview | None:
    """Return the input's raw bytes after the JSON; None if the JSON contains the input."""
    size = parameters.get("binary_data_size")
    if size is None and not raw:
        return None
    if type(size) is not int or size != len(raw):
        raise BadRequestError(
            f"binary_data_size is {shown(size)}, and {len(raw):,} bytes follow the JSON; expected "
            f"equal sizes; the header Inference-Header-Content-Length is the length of the JSON"
        )
    return raw


def _images(content: memoryview | None, shape: Any) -> list[memoryview]:
    if content is None:
        raise BadRequestError(
            "images cannot be sent inside JSON; send them as raw bytes after it (binary_data_size)"
        )
    count, *rest = _sizes(shape) or (0,)
    if not count or any(size != 1 for size in rest):
        raise BadRequestError(f"the shape of the input is {shown(shape)}; expected [images]")
    if count > MAX_IMAGES:
        raise RequestTooLargeError(
            f"{count:,} images in one request; expected at most {MAX_IMAGES}"
        )
    return elements_of_bytes(content, count)


def _sizes(shape: Any) -> tuple[int, ...]:
    """Return the shape; an empty one unless it is an array of positive integers."""
    if isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape):
        return tuple(shape)
    return ()


def _timeout_s(timeout: Any) -> float | None:
    """Convert microseconds; 0 selects the pool's default, None."""
    if timeout is None:
        return None
    if type(timeout) is not int or timeout < 0:
        raise BadRequestError(f'"timeout" is {shown(timeout)}; expected whole microseconds')
    return timeout / _US_PER_S or None


def _form(
    request: dict[str, Any], parameters: dict[str, Any], model: ModelDescription
) -> ResponseForm:
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
        raise BadRequestError(f'"classification" is {shown(top)}; expected a number of classes')
    if top and not model.has_classes:
        raise BadRequestError(f"{model.name} has no classes; expected no classification")
    return ResponseForm(request_id, is_binary, top, name)


def _output(outputs: Any, name: str) -> dict[str, Any]:
    """Return the parameters of the requested output; empty if the request names none."""
    if outputs is None or outputs == []:
        return {}
    if not (isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], dict)):
        raise BadRequestError(f'"outputs" is {shown(outputs)}; expected an array of one object')
    if outputs[0].get("name") != name:
        raise BadRequestError(
            f'no output {shown(outputs[0].get("name"))}; expected the name "{name}"'
        )
    return _parameters(outputs[0], "output")


def shown(value: object) -> str:
    """Return a value from a request for a message, shortened."""
    return _SHOWN.repr(value)


def tensor_from_json(data: Any, datatype: str, shape: Sequence[int]) -> bytes:
    """Return the raw bytes of a tensor in a JSON array, flat or nested like its shape.

    Raise BadRequestError for another number of elements, or if an element is not a number in the
    type's range.
    """
    elements = _flat(data, shape)
    if len(elements) != prod(shape):
        raise BadRequestError(
            f'"data" has {len(elements):,} elements; expected {prod(shape):,}, for the shape '
            f"{list(shape)}"
        )
    try:
        if bool in set(map(type, elements)):  # which struct takes for 1 and 0
            raise struct.error("required argument is not true or false")
        # Stricter than NumPy, which takes "1" and null for numbers and pads every string to the
        # length of the longest; and twice as fast.
        return struct.pack(f"<{len(elements)}{TYPE_CODES[datatype]}", *elements)
    except (struct.error, OverflowError) as error:
        raise BadRequestError(f'"data" holds more than numbers of {datatype}: {error}') from error


def tensor_from_bytes(raw: Payload, datatype: str, shape: Sequence[int]) -> Payload:
    """Return ``raw`` itself; raise BadRequestError unless it has the size of this tensor."""
    expected = struct.calcsize("<" + TYPE_CODES[datatype]) * prod(shape)
    if len(raw) != expected:
        raise BadRequestError(
            f"{len(raw):,} bytes for a tensor of {datatype} and the shape {list(shape)}; expected "
            f"{expected:,}"
        )
    return raw


def elements_of_bytes(raw: Payload, count: int) -> list[memoryview]:
    """Return ``count`` elements of a tensor of BYTES, borrowed. Raise BadRequestError."""
    found: list[memoryview] = []
    left = memoryview(raw)
    while left and len(found) < count:
        start = _LENGTH.size
        end = start + _LENGTH.unpack_from(left)[0] if len(left) >= start else start
        if end > len(left):
            raise BadRequestError(
                f"element {len(found)} of a tensor of BYTES ends {end - len(left):,} bytes after "
                f"the tensor; expected a length (uint32, little-endian) and as many bytes"
            )
        found.append(left[start:end])
        left = left[end:]
    if left or len(found) != count:
        raise BadRequestError(
            f"a tensor of BYTES has {len(found)} elements and {len(left):,} bytes after them; "
            f"expected {count} elements, according to its shape"
        )
    return found


def bytes_of_elements(elements: Iterable[bytes]) -> bytes:
    return b"".join(chain.from_iterable((_LENGTH.pack(len(each)), each) for each in elements))


def _flat(data: Any, shape: Sequence[int]) -> list[Any]:
    """Return the elements of lists nested like ``shape``; a flat list is returned as it is."""
    if not isinstance(data, list):
        raise BadRequestError(f'"data" is {shown(data)}; expected an array')
    if not (data and isinstance(data[0], list)):
        return data
    rows = [data]
    for size in shape:
        if any(not isinstance(row, list) or len(row) != size for row in rows):
            raise BadRequestError(
                f'"data" is not nested like its shape {list(shape)}; expected that, or all '
                f"elements in one array"
            )
        rows = list(chain.from_iterable(rows))
    return rows


def classes_bytes(results: Sequence[Result]) -> int:
    """Return about how many bytes the classes of results take as JSON: 64 for 4 in an output."""
    return 16 * sum(len(result.payload) for result in results)


def encode_response(
    model: str, rows: int, results: Sequence[Result], form: ResponseForm
) -> tuple[bytes, int | None]:
    """Return the body, and the length of its JSON if raw bytes follow. All results must be OK.

    Their ``rows`` become one output: (rows, classes) float32; or, if classes are requested,
    (rows, top) BYTES, each ``value:index:label``, likeliest first. Raise BadRequestError for
    outputs that are not finite, unless binary outputs are requested.
    """
    payload = results[0].payload if len(results) == 1 else b"".join(o.payload for o in results)
    probabilities = np.frombuffer(payload, "<f4").reshape(rows, -1, copy=False)
    if (form.top or not form.is_binary) and not np.isfinite(probabilities).all():
        raise BadRequestError(
            "outputs for this input are not finite, which JSON and class names cannot express; "
            "expected an input in the net's range, or a request for binary outputs"
        )
    output: dict[str, Any] = {"name": form.output, "datatype": "FP32"}
    data: Any = probabilities.reshape(-1, copy=False)
    raw: Payload = payload
    if form.top:
        data = _classified(probabilities, form.top, results[0].labels)
        output["datatype"] = "BYTES"
        raw = bytes_of_elements(text.encode() for text in data) if form.is_binary else b""
    output["shape"] = [rows, len(data) // rows]
    if form.is_binary:
        output["parameters"] = {"binary_data_size": len(raw)}
    else:
        output["data"] = data
    response: dict[str, Any] = {
        "model_name": model,
        "model_version": str(results[0].version),
        "outputs": [output],
    }
    if form.request_id:
        response["id"] = form.request_id
    text = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    return (text + raw, len(text)) if form.is_binary else (text, None)


def _classified(probabilities: NDArray[np.float32], top: int, labels: Sequence[str]) -> list[str]:
    """Return the ``top`` classes of each row in the format of the classification extension."""
    return [
        f"{row[index]:f}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
        for row, best in zip(probabilities, likeliest(probabilities, top), strict=True)
        for index in best
    ]
