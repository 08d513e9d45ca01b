"""Checks of extensions over HTTP, if the server's metadata lists them.

The sources are headings of Triton's pages on its extensions, which other servers follow.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from open_inference.rest_checks import UNKNOWN
from open_inference.server import JSON_LENGTH, Reply, Server
from open_inference.suite import CONVENTION, MUST, Family, NotOffered
from open_inference.tensors import INTEGERS, are_close, integer_limits, packed

binary = Family("binary tensors", "binary_tensor_data")
classes = Family("classification", "classification")
configuration = Family("model configuration", "model_configuration")
statistics = Family("statistics", "statistics")
repository = Family("model repository", "model_repository")

_REQUEST = "Binary Tensor Request"
_RESPONSE = "Binary Tensor Response"


# Binary tensors


def raw_request(server: Server, rows: int = 1) -> tuple[dict[str, Any], bytes]:
    """Return the plain request with raw inputs: its JSON, and the bytes that follow."""
    inputs, raw = [], b""
    for tensor in server.tensors(rows):
        content = tensor.raw()
        described = tensor.as_json() | {"parameters": {"binary_data_size": len(content)}}
        inputs.append({name: value for name, value in described.items() if name != "data"})
        raw += content
    return {"inputs": inputs}, raw


@binary(_REQUEST, "raw inputs: the same outputs as for JSON")
def raw_inputs(server: Server) -> None:
    server.require_same(server.infer(*raw_request(server)))


@binary(_REQUEST, "raw inputs and an id: the id is returned")
def raw_inputs_id(server: Server) -> None:
    request, raw = raw_request(server)
    reply = server.infer(request | {"id": "ä raw"}, raw)
    reply.require(reply.accepted().get("id") == "ä raw", '"id": "ä raw"')


@binary(_REQUEST, "raw inputs, Content-Type application/json: the same outputs", CONVENTION)
def raw_inputs_as_json(server: Server) -> None:
    kind = {"Content-Type": "application/json"}
    server.require_same(server.infer(*raw_request(server), headers=kind))


@binary(_REQUEST, "two rows of raw inputs: the same outputs as for JSON")
def raw_rows(server: Server) -> None:
    if not server.is_batched:
        raise NotOffered("the first axis is not variable")
    expected = server.infer(server.request(rows=2))
    server.require_same(server.infer(*raw_request(server, rows=2)), expected)


@binary(_REQUEST, "the limits of integer types: raw and JSON have the same outputs")
def limits(server: Server) -> None:
    inputs, raws = [], b""
    for tensor in server.tensors():
        described = tensor.as_json()
        if tensor.datatype in INTEGERS:
            smallest, greatest = integer_limits(tensor.datatype)
            described["data"] = [(smallest, greatest)[o % 2] for o in range(len(tensor.values))]
        inputs.append(described)
        raws += packed(tensor.datatype, described["data"])
    as_json = server.infer({"inputs": inputs})
    if not any(each["datatype"] in INTEGERS for each in inputs) or as_json.status != 200:
        raise NotOffered("the model takes no integers, or not their limits")
    server.require_same(server.infer(raw_request(server)[0], raws), as_json)


@binary(_REQUEST, "the header with JSON alone: the same outputs")
def no_raw_inputs(server: Server) -> None:
    server.require_same(server.infer(server.request(), b""))


@binary(_REQUEST, "one raw input, the others as JSON: the same outputs")
def mixed_inputs(server: Server) -> None:
    for name in server.require_several("inputs"):
        raw_ones = {each["name"]: each for each in raw_request(server)[0]["inputs"]}
        request = server.request()
        request["inputs"] = [
            raw_ones[name] if each["name"] == name else each for each in request["inputs"]
        ]
        (raw,) = (each.raw() for each in server.tensors() if each.name == name)
        server.require_same(server.infer(request, raw))


@binary(_REQUEST, "raw inputs in another order: the same outputs")
def reversed_raw(server: Server) -> None:
    server.require_several("inputs")
    request, _ = raw_request(server)
    request["inputs"].reverse()
    raw = b"".join(each.raw() for each in reversed(server.tensors()))
    server.require_same(server.infer(request, raw))


def _all_raw(server: Server) -> Reply:
    return server.infer(server.request() | {"parameters": {"binary_data_output": True}})


@binary(_RESPONSE, "binary_data_output: every output is raw")
def raw_outputs(server: Server) -> None:
    reply = _all_raw(server)
    found, contents = reply.parts()
    reply.require(contents.keys() == {each["name"] for each in found["outputs"]}, "raw outputs")


@binary(_RESPONSE, "binary_data_output: the same values as JSON")
def raw_output_values(server: Server) -> None:
    reply = _all_raw(server)
    reply.parts()
    server.require_same(reply)


@binary(_RESPONSE, "raw outputs: sizes that follow from shapes and data types")
def raw_output_sizes(server: Server) -> None:
    reply = _all_raw(server)
    found, contents = reply.parts()
    for output in found["outputs"]:
        if output["datatype"] != "BYTES":
            element = len(packed(output["datatype"], [0]))
            size = math.prod(output["shape"]) * element
            reply.require(len(contents[output["name"]]) == size, f"{size:,} bytes")


@binary(_RESPONSE, "raw outputs: Content-Type application/octet-stream", CONVENTION)
def raw_output_type(server: Server) -> None:
    kind = (reply := _all_raw(server)).headers.get("content-type", "")
    reply.require(kind.startswith("application/octet-stream"), f"octet-stream, not {kind!r}")


@binary(_RESPONSE, "raw outputs and an id: the id is returned")
def raw_output_id(server: Server) -> None:
    raw = {"id": "raw", "parameters": {"binary_data_output": True}}
    reply = server.infer(server.request() | raw)
    reply.require(reply.parts()[0].get("id") == "raw", '"id": "raw"')


def _named_outputs(server: Server, is_raw: Callable[[int], bool], default: bool) -> Reply:
    names = [each["name"] for each in server.metadata["outputs"]]
    outputs = [
        {"name": name, "parameters": {"binary_data": is_raw(place)}}
        for place, name in enumerate(names)
    ]
    parameters = {"binary_data_output": default}
    return server.infer(server.request() | {"outputs": outputs, "parameters": parameters})


@binary(_RESPONSE, "binary_data of each output: raw")
def named_raw(server: Server) -> None:
    reply = _named_outputs(server, lambda _: True, default=False)
    reply.require(len(reply.parts()[1]) == len(server.metadata["outputs"]), "raw outputs")


@binary(_RESPONSE, "binary_data false: JSON, whatever binary_data_output is")
def named_json(server: Server) -> None:
    reply = _named_outputs(server, lambda _: False, default=True)
    has_data = all("data" in each for each in reply.accepted()["outputs"])
    reply.require(has_data, "data in the JSON of every output")


@binary(_RESPONSE, "binary_data of one output: it alone is raw")
def named_one(server: Server) -> None:
    first, *_ = server.require_several("outputs")
    reply = _named_outputs(server, lambda place: place == 0, default=False)
    found, contents = reply.parts()
    reply.require(contents.keys() == {first}, f"raw bytes of {first} alone")
    server.require_same(reply)
    reply.require(len(found["outputs"]) > 1, "the other outputs as JSON")


@binary("Raw Binary Request", "a body of raw bytes alone: the same outputs", CONVENTION)
def raw_body(server: Server) -> None:
    tensors = server.tensors()
    variable = [
        size for each in server.metadata["inputs"] for size in each["shape"][1:] if size < 0
    ]
    if len(tensors) > 1 or variable or not server.is_batched:
        raise NotOffered("the model's only input would need a shape")
    path = f"{server.path()}/infer"
    reply = server.send("POST", path, tensors[0].raw(), {JSON_LENGTH: "0"})
    server.require_same(reply)


Broken = tuple[Any, bytes, Mapping[str, str]]
"""A request's JSON, the bytes that follow it, and headers besides the JSON's length."""


def _refused(what: str, change: Callable[[dict[str, Any], bytes], Broken]) -> None:
    def reply_of(server: Server) -> Reply:
        request, raw, headers = change(*raw_request(server))
        return server.infer(request, raw, headers)

    @binary(_REQUEST, f"{what}: the error object", MUST)
    def check(server: Server) -> None:
        reply_of(server).require_error()

    @binary("Triton, HTTP status codes", f"{what}: status 4xx", CONVENTION)
    def check_status(server: Server) -> None:
        reply = reply_of(server)
        reply.require(400 <= reply.status < 500, "a status 4xx")


def _sized(request: dict[str, Any], size: object) -> dict[str, Any]:
    first, *others = request["inputs"]
    return {"inputs": [first | {"parameters": {"binary_data_size": size}}, *others]}


_refused("a byte too few", lambda request, raw: (request, raw[:-1], {}))
_refused("a byte too many", lambda request, raw: (request, raw + b"\0", {}))
_refused("a size that is negative", lambda request, raw: (_sized(request, -4), raw, {}))
_refused("a size with a fraction", lambda request, raw: (_sized(request, 1.5), raw, {}))
_refused("a size of 2**63", lambda request, raw: (_sized(request, 2**63), raw, {}))
_refused("a size that is a string", lambda request, raw: (_sized(request, "all"), raw, {}))
_refused("a header beyond the body", lambda request, raw: (request, raw, {JSON_LENGTH: "99999999"}))
_refused("a header that is negative", lambda request, raw: (request, raw, {JSON_LENGTH: "-1"}))
_refused("a header that is no number", lambda request, raw: (request, raw, {JSON_LENGTH: "all"}))
_refused("a header that cuts the JSON", lambda request, raw: (request, raw, {JSON_LENGTH: "10"}))
_refused(
    "raw bytes and data of one input",
    lambda request, raw: (
        {"inputs": [each | {"data": [0]} for each in request["inputs"]]},
        raw,
        {},
    ),
)
_refused("raw bytes of no input", lambda _, raw: ({"inputs": []}, raw, {}))


# Classification

_MANY = 10**6


def _classified(server: Server, count: int, rows: int = 1) -> tuple[Reply, dict[str, Any]]:
    """Return a reply with the classes of the output that has most of them, and this output."""
    name = _classes_output(server)[0]
    outputs = [{"name": name, "parameters": {"classification": count}}]
    reply = server.infer(server.request(rows) | {"outputs": outputs})
    if 400 <= reply.status < 500:  # of a model that is no classifier
        reply.require_error()
        raise NotOffered(f"the server refuses classes of {name}: {reply.json()['error']}")
    (found,) = reply.accepted()["outputs"]
    return reply, found


def _classes_output(server: Server) -> tuple[str, str, list[int], list[Any]]:
    plain = server.outputs(server.plain)
    name, (datatype, shape, values) = max(plain.items(), key=lambda item: len(item[1][2]))
    if len(values) < 2 or datatype in ("BOOL", "BYTES"):
        raise NotOffered("no output has several numbers")
    return name, datatype, shape, values


def _entries(reply: Reply, output: dict[str, Any]) -> list[tuple[float, int]]:
    """Return the value and index of each class."""
    reply.require(all(isinstance(each, str) for each in output["data"]), "strings")
    parts = [each.split(":") for each in output["data"]]
    return [(float(value), int(index)) for value, index, *_ in parts]


@classes("Classification Extension", "one class: an output of BYTES with one element")
def one_class(server: Server) -> None:
    reply, found = _classified(server, 1)
    reply.require(found["datatype"] == "BYTES" and len(found["data"]) == 1, "one element of BYTES")


@classes("Classification Extension", "one class: the greatest value and its index")
def greatest(server: Server) -> None:
    values = _classes_output(server)[3]
    reply, found = _classified(server, 1)
    ((value, index),) = _entries(reply, found)
    is_greatest = are_close("FP16", [value, values[index]], [max(values)] * 2)
    reply.require(is_greatest, f"{max(values)} and an index of it")


@classes("Classification Extension", "two classes: two elements, the greater first")
def two_classes(server: Server) -> None:
    reply, found = _classified(server, 2)
    (first, _), (second, _) = _entries(reply, found)
    reply.require(first >= second, "values in descending order")


@classes("Classification Extension", "two classes: different indices")
def two_indices(server: Server) -> None:
    reply, found = _classified(server, 2)
    (_, first), (_, second) = _entries(reply, found)
    reply.require(first != second, "two indices")


@classes("Classification Extension", "the shape has as many elements as the data")
def classes_shape(server: Server) -> None:
    reply, found = _classified(server, 2)
    reply.require(math.prod(found["shape"]) == len(found["data"]) == 2, "a shape of two elements")


@classes("Classification Extension", "two rows: two classes of each", CONVENTION)
def classes_rows(server: Server) -> None:
    if not server.is_batched:
        raise NotOffered("the first axis is not variable")
    reply, found = _classified(server, 2, rows=2)
    reply.require(found["shape"] == [2, 2] and len(found["data"]) == 4, "the shape [2, 2]")


@classes("Classification Extension", "more classes than there are: all of them, once", CONVENTION)
def all_classes(server: Server) -> None:
    values = _classes_output(server)[3]
    reply, found = _classified(server, _MANY)
    indices = sorted(index for _, index in _entries(reply, found))
    reply.require(indices == list(range(len(values))), f"the {len(values)} classes")


@classes("Inference Response JSON Error Object", "a count that is a string: refused", CONVENTION)
def no_count(server: Server) -> None:
    _, found = _classified(server, 1)
    outputs = [{"name": found["name"], "parameters": {"classification": "two"}}]
    server.infer(server.request() | {"outputs": outputs}).require_error()


# Model configuration


def _configuration(server: Server) -> tuple[Reply, dict[str, Any]]:
    reply = server.send("GET", f"{server.path()}/config")
    return reply, reply.accepted()


@configuration("Model Configuration Response JSON Object", "the model's name")
def configuration_name(server: Server) -> None:
    reply, found = _configuration(server)
    reply.require(found.get("name") == server.model, f'"name": "{server.model}"')


def _configured(side: str, listed: str) -> None:
    @configuration("Model Configuration", f"{side}: names and data types of the metadata")
    def check(server: Server) -> None:
        reply, found = _configuration(server)
        expected = {(o["name"], _configured_type(o["datatype"])) for o in server.metadata[listed]}
        tensors = {(o["name"], o["data_type"]) for o in found[side]}
        reply.require(tensors == expected, f"{side}: {sorted(expected)}")


def _configured_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


_configured("input", "inputs")
_configured("output", "outputs")


@configuration("Model Configuration", "max_batch_size: 0 unless the first axis is variable")
def max_batch_size(server: Server) -> None:
    reply, found = _configuration(server)
    size = found.get("max_batch_size", 0)
    reply.require(type(size) is int and (size == 0 or server.is_batched), "a number of rows")


@configuration(
    "Model Configuration Response JSON Error Object", "an unknown model: the error object"
)
def unknown_configuration(server: Server) -> None:
    server.send("GET", f"{server.path(model=UNKNOWN)}/config").require_error()


# Statistics


def _statistics(server: Server, path: str = "") -> tuple[Reply, list[dict[str, Any]]]:
    reply = server.send("GET", f"{path or server.path()}/stats")
    found = reply.accepted()["model_stats"]
    return reply, [each for each in found if each["name"] == server.model]


_TIMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@statistics("Statistics Response JSON Object", "model_stats: an entry of the model")
def model_statistics(server: Server) -> None:
    reply, found = _statistics(server)
    reply.require(found, f"an entry of {server.model}")


@statistics("Statistics Response JSON Object", "all models: an entry of the model")
def all_statistics(server: Server) -> None:
    reply, found = _statistics(server, "v2/models")
    reply.require(found, f"an entry of {server.model}")


@statistics("Statistics Response JSON Object", "inference_stats: counts and nanoseconds")
def durations(server: Server) -> None:
    server.infer().accepted()
    reply, (found, *_) = _statistics(server)
    for name in _TIMES:
        entry = found["inference_stats"][name]
        is_number = all(type(entry[unit]) is int and entry[unit] >= 0 for unit in ("count", "ns"))
        reply.require(is_number, f"{name}: count and ns")


@statistics("Statistics Response JSON Object", "inference_count: grows by one for one row")
def inference_count(server: Server) -> None:
    def counted() -> int:
        return sum(each["inference_count"] for each in _statistics(server)[1])

    before = counted()
    server.infer().accepted()
    reply, _ = _statistics(server)
    reply.require(counted() == before + 1, f"inference_count: {before + 1}")


@statistics("Statistics Response JSON Object", "last_inference: milliseconds since 1970")
def last_inference(server: Server) -> None:
    before = max(each["last_inference"] for each in _statistics(server)[1])
    server.infer().accepted()
    reply, found = _statistics(server)
    after = max(each["last_inference"] for each in found)
    reply.require(after >= before and after > 1.6e12, "a time that does not go back")


@statistics("Statistics Response JSON Error Object", "an unknown model: the error object")
def unknown_statistics(server: Server) -> None:
    server.send("GET", f"{server.path(model=UNKNOWN)}/stats").require_error()


# Model repository: the index alone, since loading would change what is served


def _index(server: Server, body: Any) -> tuple[Reply, list[dict[str, Any]]]:
    reply = server.send("POST", "v2/repository/index", body)
    reply.require(reply.status == 200, "status 200")
    found = reply.json()
    reply.require(isinstance(found, list), "an array")
    return reply, [each for each in found if each["name"] == server.model]


@repository("Index", "the index lists the model")
def index(server: Server) -> None:
    reply, found = _index(server, {})
    reply.require(found, f'an entry with "name": "{server.model}"')


@repository("Index", "the model's state is READY", CONVENTION)
def index_state(server: Server) -> None:
    reply, found = _index(server, {})
    reply.require("READY" in [each.get("state") for each in found], '"state": "READY"')


@repository("Index", "models that are ready: the model among them")
def index_of_ready(server: Server) -> None:
    reply, found = _index(server, {"ready": True})
    reply.require(found, f'an entry with "name": "{server.model}"')


@repository("Load, Error Response", "an unknown model is not loaded: the error object")
def unknown_load(server: Server) -> None:
    server.send("POST", f"v2/repository/models/{UNKNOWN}/load", {}).require_error()
