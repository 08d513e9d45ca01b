"""POST /v2/models/MODEL[/versions/VERSION]/infer, the Open Inference Protocol's inference request.

A request's body is JSON. Raw tensors may follow it; then the header Inference-Header-Content-Length
is the length of the JSON, and 0 means that the whole body is the only input. A model that takes
images also accepts JPEG, PNG or HEIC files as BYTES.

Raw tensors are little-endian and row-major. An element of BYTES is its length, a little-endian
uint32, followed by its content.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dist_net.errors import BadRequestError, RequestTooLargeError
from dist_net.images.labels import likeliest
from dist_net.nets.tensor_specs import TYPE_CODES, TensorSpec, from_bytes, to_bytes
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.exchange import (
    HttpExchange,
    RequestExchange,
    RequestMemory,
    description_of,
    version_number,
)
from dist_net.serving.http.json_tensors import (
    MAX_JSON_BYTES,
    SLICE_ELEMENTS,
    JsonArray,
    Sliced,
    json_object,
    shown,
    sliced_json,
    tensor_from_json,
)
from dist_net.serving.http.replies import JSON_LENGTH, HttpReply, result_reply
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import InferenceRequest, Payload, Result, Status
from dist_net.wire.serving_messages import MAX_REQUEST_BYTES

# Each image becomes a separate request to the pool, which batches them.
MAX_IMAGES = 64
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_UNSUPPORTED = ("priority", "sequence_id", "sequence_start", "sequence_end", "shared_memory_region")
_US_PER_S = 1e6
_LENGTH = struct.Struct("<I")
_NUMBER_BYTES = 16  # as JSON, about
CLASS_BYTES = 64
SLICE_CLASSES = 2**8  # named at a time, in about 0.2 ms


@dataclass(frozen=True)
class InferEndpoint:
    """The endpoint of inference requests: an ASGI application, cheaper than a function's route."""

    gateway: Gateway
    memory: RequestMemory

    def routes(self) -> list[Route]:
        models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        return [Route(f"{model}/infer", self, methods=["POST"]) for model in models]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = await self._infer(Request(scope, receive))
        await reply(scope, receive, send)

    async def _infer(self, request: Request) -> HttpReply:
        name, version = request.path_params["model"], version_number(request)
        exchange = HttpExchange(self.memory, request)
        json_bytes = exchange.size_header(JSON_LENGTH)
        content = await exchange.body()
        inference = await infer(
            exchange,
            self.gateway,
            (name, version),
            lambda model: read_request(content, json_bytes, model, version),
        )
        if inference.failure is not None:
            return result_reply(inference.failure)
        answer, json_bytes = await exchange.in_slices(encode_response(*inference[:4]))
        if json_bytes is None:
            return HttpReply(answer)
        results = inference.results
        slowest = 1e3 * max(o.queue_s for o in results), 1e3 * max(o.compute_s for o in results)
        timing = b"server-timing", b"queue;dur=%.3f, compute;dur=%.3f" % slowest
        headers = [(JSON_LENGTH, b"%d" % json_bytes), timing]
        return HttpReply(answer, headers=headers, content_type=b"application/octet-stream")


class OutputForm(NamedTuple):
    """The requested form of an output: raw or JSON, all numbers or only the ``top`` classes."""

    name: str
    is_binary: bool = False
    top: int = 0


class ResponseForm(NamedTuple):
    outputs: tuple[OutputForm, ...]
    request_id: str | None = None


class InferenceOutcome(NamedTuple):
    """The results of a request for ``rows`` rows; ``failure`` is the first that is not OK."""

    model: ModelDescription
    rows: int
    results: Sequence[Result]
    form: ResponseForm
    failure: Result | None


ReadRequest = Callable[[ModelDescription], Sliced[tuple[list[InferenceRequest], ResponseForm]]]


async def infer(
    exchange: RequestExchange, gateway: Gateway, named: tuple[str, int | None], read: ReadRequest
) -> InferenceOutcome:
    """Return what the model of this name and version computes for a request.

    ``read`` returns the request's meaning for a model, as ``read_request``.
    """
    checked = None
    # A model may be loaded while the request is read: the model that answers must be the model
    # that it was checked for. ``infer`` admits the request before its first await.
    while (model := description_of(gateway, *named)) is not checked:
        checked = model
        requests, form = await exchange.in_slices(read(model))
    results, failure = await exchange.infer(gateway, model, requests), None
    for place, result in enumerate(results, 1):  # the protocol has no partial answers
        if result.status != Status.OK:
            where = f"image {place} of {len(results)}: " if len(results) > 1 else ""
            failure = replace(result, reason=f"{where}{result.reason}")
            break
    return InferenceOutcome(model, sum(each.rows for each in requests), results, form, failure)


def read_request(
    body: Payload, json_bytes: int | None, model: ModelDescription, version: int | None
) -> Sliced[tuple[list[InferenceRequest], ResponseForm]]:
    """Return the requests in a body, one per tensor or image, and the form of the response.

    ``json_bytes`` is the header's value (None without the header), ``version`` the path's.
    Payloads may borrow ``body``. Raise BadRequestError for a body that does not follow the
    protocol, uses an unsupported extension or does not fit the model; RequestTooLargeError for too
    many images or too much JSON. It yields between slices of long arrays.
    """
    if json_bytes == 0:
        form = ResponseForm(tuple(OutputForm(each.name) for each in model.outputs))
        return [_raw_request(memoryview(body), model, version)], form
    text: Payload = body if json_bytes is None else memoryview(body)[:json_bytes]
    if len(text) < (json_bytes or 0):
        raise BadRequestError(
            f"Inference-Header-Content-Length is {json_bytes:,} and the body has {len(body):,} "
            f"bytes; expected at most that"
        )
    request, arrays = json_object(text, partial(_example, model))
    raw = memoryview(body)[len(text) :]
    return (yield from meaning_of(request, arrays, raw, model, version))


def meaning_of(
    request: dict[str, Any],
    arrays: Mapping[str, JsonArray],
    raw: memoryview,
    model: ModelDescription,
    version: int | None,
) -> Sliced[tuple[list[InferenceRequest], ResponseForm]]:
    """Return the requests in a JSON object, its ``arrays`` and the ``raw`` tensors after it."""
    parameters = _parameters(request, "request")
    payloads, is_image, rows = yield from _payloads(request.get("inputs"), arrays, raw, model)
    timeout = 0 if (timeout := parameters.get("timeout")) is None else timeout
    if type(timeout) is not int or timeout < 0:
        raise BadRequestError(f'"timeout" is {shown(timeout)}; expected whole microseconds')
    timeout_s = timeout / _US_PER_S or None  # the pool's default
    if len(payloads) > 1 and version is None:
        version = model.version  # all rows of a response must be computed by one version
    form = _form(request, parameters, model)
    inferences = [
        InferenceRequest(
            model.name, payload, rows, is_image, version, timeout_s, repeat_id=form.request_id or ""
        )
        for payload in payloads
    ]
    return inferences, form


def _raw_request(
    body: memoryview, model: ModelDescription, version: int | None
) -> InferenceRequest:
    if len(model.inputs) > 1 or not model.is_batched:
        raise BadRequestError(
            f"{model.name} needs names and shapes; expected JSON{_example(model)}"
        )
    rows, rest = divmod(len(body), model.row_bytes)
    looks_like_image = bytes(body[:8]).startswith(_IMAGE_STARTS)
    if model.takes_images and (looks_like_image or rest or not rows):
        return InferenceRequest(model.name, body, is_image=True, version=version)
    shape = (max(rows, 1), *model.input_shape)
    payload = tensor_from_bytes(body, model.input_datatype, shape)
    return InferenceRequest(model.name, payload, rows, version=version)


def _example(model: ModelDescription) -> str:
    """Return a request for the message of an error, to copy and complete."""
    tensors = []
    for name, datatype, shape in model.inputs:
        sizes = [abs(size) for size in full_shape(model, shape)]
        data = f"[{prod(sizes):,} numbers]"
        tensors.append({"name": name, "shape": sizes, "datatype": datatype, "data": data})
    text = orjson.dumps({"inputs": tensors}).decode()
    return ", such as " + text.replace('"[', "[").replace(']"', "]")


def full_shape(model: ModelDescription, shape: tuple[int, ...]) -> list[int]:
    return [-1, *shape] if model.is_batched else [*shape]


def _parameters(owner: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequestError(
            f"parameters of the {what} is {shown(parameters)}; expected a JSON object"
        )
    for name in _UNSUPPORTED:
        if parameters.get(name):  # 0, "" and false mean none
            raise BadRequestError(
                f'"{name}" is {shown(parameters[name])}; priorities, sequences and shared memory '
                f"are not supported; expected {what} parameters without them",
                http_code=501,
            )
    return parameters


def _payloads(
    inputs: Any, arrays: Mapping[str, JsonArray], raw: memoryview, model: ModelDescription
) -> Sliced[tuple[Sequence[Payload], bool, int]]:
    """Return the payloads, whether they are images, and the rows of each."""
    given = _objects(
        inputs, "inputs", [each.name for each in model.inputs], partial(_example, model)
    )
    if len(given) < len(model.inputs):
        raise BadRequestError(
            f'"inputs" has {len(given)} inputs; expected {len(model.inputs)}{_example(model)}'
        )
    found = {name: _parameters(each, "input") for name, each in given.items()}
    sizes = {
        name: each["binary_data_size"]
        for name, each in found.items()
        if each.get("binary_data_size") is not None
    }
    are_sizes = all(type(size) is int and size >= 0 for size in sizes.values())
    if not are_sizes or sum(sizes.values()) != len(raw):
        raise BadRequestError(
            f"binary_data_size is {', '.join(map(shown, sizes.values())) or None}, and "
            f"{len(raw):,} bytes follow the JSON; expected equal sizes; the header "
            f"Inference-Header-Content-Length is the length of the JSON"
        )
    places = pairwise(accumulate(sizes.values(), initial=0))
    contents = {name: raw[slice(*place)] for name, place in zip(sizes, places, strict=True)}
    if any(given[name].get("data") is not None for name in contents):
        raise BadRequestError(
            'an input has "data" and raw bytes (binary_data_size); expected one of them'
        )
    first = given[model.inputs[0].name]
    if first.get("datatype") == "BYTES" and model.takes_images:
        return _images(contents.get(model.inputs[0].name), first.get("shape")), True, 1
    tensors = {}
    for spec in model.inputs:
        content = contents.get(spec.name)
        tensors[spec.name] = yield from _tensor(given[spec.name], arrays, content, spec, model)
    rows = {len(each) for each in tensors.values()} if model.is_batched else {1}
    if len(rows) > 1:
        raise BadRequestError(f"the inputs have {sorted(rows)} rows; expected equal numbers")
    return (to_bytes(tensors, model.inputs, model.is_batched),), False, rows.pop()


def _objects(
    found: Any, what: str, names: Sequence[str], example: Callable[[], str] = str
) -> dict[str, dict[str, Any]]:
    """Return the inputs or outputs of a request by name, in its order."""
    if not (isinstance(found, list) and found and all(isinstance(each, dict) for each in found)):
        raise BadRequestError(
            f'"{what}" is {shown(found)}; expected an array of JSON objects{example()}'
        )
    by_name = {}
    for each in found:
        name = each.get("name")
        if name not in names or name in by_name:
            raise BadRequestError(
                f"no {what.removesuffix('s')} {shown(name)}, or it is repeated; expected the "
                f"names {', '.join(names)}"
            )
        by_name[name] = each
    return by_name


def _tensor(
    given: dict[str, Any],
    arrays: Mapping[str, JsonArray],
    content: memoryview | None,
    spec: TensorSpec,
    model: ModelDescription,
) -> Sliced[NDArray[Any]]:
    """Return an input of a request; it may borrow ``content``."""
    shape, datatype = given.get("shape"), given.get("datatype")
    if datatype != spec.datatype:
        or_images = ", or BYTES for images" if model.takes_images else ""
        raise BadRequestError(
            f"the datatype of the input {spec.name} is {shown(datatype)}; {model.name} expects "
            f"{spec.datatype}{or_images}"
        )
    sizes, expected = _sizes(shape), full_shape(model, spec.shape)
    if sizes is None or not spec._replace(shape=tuple(expected)).fits(sizes):
        raise BadRequestError(
            f"the shape of the input {spec.name} is {shown(shape)}; {model.name} expects "
            f"{expected}, where -1 stands for any number, with at most {MAX_REQUEST_BYTES:,} bytes"
        )
    if content is not None:
        raw: Payload = tensor_from_bytes(content, datatype, sizes)
    else:
        raw = yield from tensor_from_json(given.get("data"), arrays, datatype, sizes)
    return np.frombuffer(raw, spec.dtype).reshape(sizes, copy=False)


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


def _sizes(shape: Any) -> tuple[int, ...] | None:
    """Return the shape; None unless it is an array of integers from 0 up, of a possible size.

    The size of an array without elements is the size of its other axes.
    """
    if isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape):
        is_possible = prod(max(size, 1) for size in shape) <= MAX_REQUEST_BYTES
        return tuple(shape) if is_possible else None
    return None


def _form(
    request: dict[str, Any], parameters: dict[str, Any], model: ModelDescription
) -> ResponseForm:
    request_id = request.get("id")
    if not isinstance(request_id, str | None):
        raise BadRequestError(f'"id" is {shown(request_id)}; expected a string')
    names = [each.name for each in model.outputs]
    found = request.get("outputs")
    if found is None or found == []:
        found = [{"name": name} for name in names]
    outputs = []
    for name, each in _objects(found, "outputs", names).items():
        own = _parameters(each, "output")
        is_binary = own.get("binary_data", parameters.get("binary_data_output", False))
        if type(is_binary) is not bool:
            raise BadRequestError(f"binary_data is {shown(is_binary)}; expected true or false")
        top = own.get("classification", 0)
        if type(top) is not int or top < 0:
            raise BadRequestError(f'"classification" is {shown(top)}; expected a number of classes')
        if top and not model.has_classes:
            raise BadRequestError(f"{model.name} has no classes; expected no classification")
        outputs.append(OutputForm(name, is_binary, top))
    return ResponseForm(tuple(outputs), request_id)


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
    return b"".join(_LENGTH.pack(len(each)) + each for each in elements)


def require_short_json(size_bytes: int) -> None:
    """Refuse an answer that would be long JSON: writing it would hold up every other client."""
    if size_bytes > MAX_JSON_BYTES:
        raise BadRequestError(
            f"the answer would have about {size_bytes:,} bytes of JSON; expected at most "
            f"{MAX_JSON_BYTES:,}; request binary outputs (binary_data_output), or fewer classes"
        )


def encode_response(
    model: ModelDescription, rows: int, results: Sequence[Result], form: ResponseForm
) -> Sliced[tuple[bytes, int | None]]:
    """Return the body, and the length of its JSON if raw bytes follow; see ``response_of``."""
    response, raws = yield from response_of(model, rows, results, form)
    text = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    is_raw = any(each.is_binary for each in form.outputs)
    return (b"".join((text, *raws)), len(text)) if is_raw else (text, None)


def response_of(
    model: ModelDescription, rows: int, results: Sequence[Result], form: ResponseForm
) -> Sliced[tuple[dict[str, Any], list[bytes]]]:
    """Return a response, and the raw bytes of each output or b"". All results must be OK.

    Their ``rows`` are joined. If classes are requested, an output is (rows, top) BYTES, each
    ``value:index:label``, likeliest first. Raise BadRequestError for outputs that are not finite,
    unless binary outputs are requested.
    """
    payload = results[0].payload if len(results) == 1 else b"".join(o.payload for o in results)
    tensors = from_bytes(payload, model.outputs, model.is_batched)
    datatypes = {each.name: each.datatype for each in model.outputs}
    sizes = {each.name: 1 if each.top else tensors[each.name].size for each in form.outputs}
    as_json = (each for each in form.outputs if not each.is_binary)
    require_short_json(
        sum(
            rows * min(each.top, model.classes) * CLASS_BYTES + sizes[each.name] * _NUMBER_BYTES
            for each in as_json
        )
    )
    outputs, raws = [], []
    for name, is_binary, top in form.outputs:
        values: Any = np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape, copy=False)
        if (top or not is_binary) and not np.isfinite(values).all():
            raise BadRequestError(
                "outputs for this input are not finite, which JSON and class names cannot express; "
                "expected an input in the net's range, or a request for binary outputs"
            )
        shape, datatype = [*values.shape], datatypes[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        flat, raw = values.reshape(-1, copy=False), b""
        slices: Iterable[Any] = (
            flat[start : start + SLICE_ELEMENTS] for start in range(0, flat.size, SLICE_ELEMENTS)
        )
        if top:
            rowwise = flat.reshape(rows, flat.size // max(rows, 1), copy=False)
            slices = _classified(rowwise, top, results[0].labels)
            output |= {"datatype": "BYTES", "shape": [rows, min(top, rowwise.shape[1])]}
        if not is_binary:
            output["data"] = yield from sliced_json(slices)
        elif top:
            for names in slices:
                raw += bytes_of_elements(each.encode() for each in names)
                yield
        else:
            raw = flat.tobytes()
        if is_binary:
            output["parameters"] = {"binary_data_size": len(raw)}
        outputs.append(output)
        raws.append(raw)
    version = str(results[0].version)
    response = {"model_name": model.name, "model_version": version, "outputs": outputs}
    response |= {} if form.request_id is None else {"id": form.request_id}
    return response, raws


def _classified(
    probabilities: NDArray[np.float32], top: int, labels: Sequence[str]
) -> Iterator[list[str]]:
    """Yield the ``top`` classes of each row as the classification extension does, in slices."""
    for row in probabilities:
        best = likeliest(row, top)
        for start in range(0, len(best), SLICE_CLASSES):
            yield [
                f"{row[index]:f}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
                for index in best[start : start + SLICE_CLASSES]
            ]
