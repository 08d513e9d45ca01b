"""Checks of the specification's REST part: health, metadata, inference and errors.

The sources are headings of inference_rest.md. The specification names few status codes and
leaves the conversion of elements to the server; details that only Triton defines are conventions.
"""

import gzip
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from open_inference.server import Reply, Server
from open_inference.suite import CONVENTION, MUST, Family, NotOffered
from open_inference.tensors import DATATYPES, are_close, is_element, nested

health = Family("REST health")
metadata = Family("REST metadata")
inference = Family("REST inference")
errors = Family("REST errors")

UNKNOWN = "no-such-name"
UNKNOWN_VERSION = "987654321"
LIVE, READY = "v2/health/live", "v2/health/ready"


# Health


def _succeeds(what: str, path: Callable[[Server], str]) -> None:
    @health("HTTP/REST, table of paths", f"{what}: status 200")
    def check(server: Server) -> None:
        reply = server.send("GET", path(server))
        reply.require(reply.status == 200, "status 200")


_succeeds("a live server", lambda _: LIVE)
_succeeds("a ready server", lambda _: READY)
_succeeds("a ready model", lambda server: f"{server.path()}/ready")


@health("Server Live Response JSON Object", "a live server: live is true")
def live_object(server: Server) -> None:
    reply = server.send("GET", LIVE)
    reply.require(reply.accepted().get("live") is True, '{"live": true}')


@health("Server Ready Response JSON Object", "a ready server: ready (in the schema: live) is true")
def ready_object(server: Server) -> None:
    reply = server.send("GET", READY)
    found = reply.accepted()
    reply.require(True in (found.get("ready"), found.get("live")), '{"ready": true}')


@health("Model Ready Response JSON Object", "a ready model: its name")
def model_ready_name(server: Server) -> None:
    reply = server.send("GET", f"{server.path()}/ready")
    reply.require(reply.accepted().get("name") == server.model, f'"name": "{server.model}"')


@health("Model Ready Response JSON Object", "a ready model: ready is true")
def model_ready_object(server: Server) -> None:
    reply = server.send("GET", f"{server.path()}/ready")
    reply.require(reply.accepted().get("ready") is True, '"ready": true')


@health("Model Metadata Response JSON Object", "each version that is listed: ready")
def version_ready(server: Server) -> None:
    for version in server.versions:
        reply = server.send("GET", f"{server.path(version)}/ready")
        reply.require(reply.accepted().get("ready") is True, 'status 200 and "ready": true')


@health("API Definitions, Model Ready", "an unknown model: not ready")
def unknown_model_ready(server: Server) -> None:
    _require_not_ready(server.send("GET", f"{server.path(model=UNKNOWN)}/ready"))


@health("API Definitions, Model Ready", "an unknown version: not ready")
def unknown_version_ready(server: Server) -> None:
    assert server.versions
    _require_not_ready(server.send("GET", f"{server.path(UNKNOWN_VERSION)}/ready"))


def _require_not_ready(reply: Reply) -> None:
    if reply.status == 200:
        reply.require(reply.json().get("ready") is False, 'an error status, or "ready": false')
    reply.require(reply.status == 200 or reply.status >= 400, "an HTTP error status")


@health("Triton, Health", "an unknown model: an error status", CONVENTION)
def unknown_model_status(server: Server) -> None:
    reply = server.send("GET", f"{server.path(model=UNKNOWN)}/ready")
    reply.require(400 <= reply.status < 500, "a status 4xx")


@health("HTTP/REST, table of paths", "POST to v2/health/live: refused", CONVENTION)
def live_by_post(server: Server) -> None:
    reply = server.send("POST", LIVE, {})
    reply.require(400 <= reply.status < 500, "a status 4xx")


# Metadata


@metadata("Server Metadata Response JSON Object", "the server: status 200 and a JSON object")
def server_metadata(server: Server) -> None:
    server.send("GET", "v2").accepted()


@metadata("Inference Request Examples", "the server: Content-Type application/json", CONVENTION)
def server_metadata_type(server: Server) -> None:
    reply = server.send("GET", "v2")
    kind = reply.headers.get("content-type", "")
    reply.require(kind.startswith("application/json"), f"application/json, not {kind!r}")


def _server_field(field: str, expected: str, holds: Callable[[Any], bool]) -> None:
    @metadata("Server Metadata Response JSON Object", f"the server's {field}: {expected}")
    def check(server: Server) -> None:
        reply = server.send("GET", "v2")
        reply.require(holds(reply.accepted().get(field)), f'"{field}": {expected}')


_server_field("name", "a string", lambda found: isinstance(found, str) and found != "")
_server_field("version", "a string", lambda found: isinstance(found, str))
_server_field("extensions", "an array of strings", lambda found: _are_strings(found))


@metadata("Model Metadata Response JSON Object", "the model: status 200 and a JSON object")
def model_metadata(server: Server) -> None:
    server.metadata_reply.accepted()


def _model_field(field: str, expected: str, holds: Callable[[Any, Server], bool]) -> None:
    @metadata("Model Metadata Response JSON Object", f"the model's {field}: {expected}")
    def check(server: Server) -> None:
        holds_now = holds(server.metadata.get(field), server)
        server.metadata_reply.require(holds_now, f'"{field}": {expected}')


_model_field("name", "as requested", lambda found, server: found == server.model)
_model_field("platform", "a string", lambda found, _: isinstance(found, str))
_model_field("versions", "different strings, if listed", lambda found, _: _are_names(found or []))


@metadata("Platforms", "the model's platform: project_format", CONVENTION)
def platform_form(server: Server) -> None:
    project, _, form = server.metadata.get("platform", "").partition("_")
    server.metadata_reply.require(project and form, '"platform": a project, "_" and a format')


def _tensor_field(side: str, what: str, holds: Callable[[list[Any]], bool]) -> None:
    @metadata("Model Metadata Response JSON Object", f"the model's {side}: {what}")
    def check(server: Server) -> None:
        found = server.metadata.get(side)
        holds_now = isinstance(found, list) and found and holds(found)
        server.metadata_reply.require(holds_now, f'"{side}": {what}')


for _side in ("inputs", "outputs"):
    _tensor_field(_side, "an array of objects", lambda found: all(type(o) is dict for o in found))
    _tensor_field(_side, "different names", lambda found: _are_names([o["name"] for o in found]))
    _tensor_field(
        _side, "known data types", lambda found: all(o["datatype"] in DATATYPES for o in found)
    )
    _tensor_field(
        _side,
        "shapes of integers, -1 if variable",
        lambda found: all(_is_shape(each["shape"], smallest=-1) for each in found),
    )


@metadata("Model Metadata", "each version that is listed: metadata of the same model")
def version_metadata(server: Server) -> None:
    for version in server.versions:
        reply = server.send("GET", server.path(version))
        reply.require(reply.accepted().get("name") == server.model, f'"name": "{server.model}"')


def _unknown_metadata(what: str, path: Callable[[Server], str]) -> None:
    source = "Model Metadata Response JSON Error Object"

    @metadata(source, f"{what}: an HTTP error with the error object")
    def check(server: Server) -> None:
        server.send("GET", path(server)).require_error()

    @metadata("Triton, Model Metadata", f"{what}: status 4xx", CONVENTION)
    def check_status(server: Server) -> None:
        reply = server.send("GET", path(server))
        reply.require(400 <= reply.status < 500, "a status 4xx")


_unknown_metadata("an unknown model", lambda server: server.path(model=UNKNOWN))
_unknown_metadata(
    "an unknown version", lambda server: server.path(UNKNOWN_VERSION * bool(server.versions))
)


def _are_strings(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def _are_names(found: Any) -> bool:
    return _are_strings(found) and "" not in found and len({*found}) == len(found)


def _is_shape(found: Any, smallest: int = 0) -> bool:
    return isinstance(found, list) and all(type(o) is int and o >= smallest for o in found)


# Inference


@inference("Inference Response JSON Object", "a valid request: status 200 and a JSON object")
def infer(server: Server) -> None:
    server.plain.accepted()


@inference("Inference Request Examples", "a response: Content-Type application/json", CONVENTION)
def infer_type(server: Server) -> None:
    kind = server.plain.headers.get("content-type", "")
    server.plain.require(kind.startswith("application/json"), f"application/json, not {kind!r}")


@inference("Inference Response JSON Object", "a response: model_name as requested")
def infer_name(server: Server) -> None:
    found = server.plain.accepted().get("model_name")
    server.plain.require(found == server.model, f'"model_name": "{server.model}"')


@inference("Inference Response JSON Object", "a response: model_version, if any, is a string")
def infer_version(server: Server) -> None:
    found = server.plain.accepted().get("model_version", "")
    server.plain.require(isinstance(found, str), '"model_version": a string')


@inference("Model Metadata Response JSON Object", "a response: model_version is one of versions")
def infer_listed_version(server: Server) -> None:
    found = server.plain.accepted().get("model_version")
    server.plain.require(found in server.versions, f"one of {', '.join(server.versions)}")


@inference("Inference Response JSON Object", "a response to a request without id: none or a string")
def infer_without_id(server: Server) -> None:
    found = server.plain.accepted().get("id", "")
    server.plain.require(isinstance(found, str), '"id": a string, or no id')


def _echoed_id(what: str, given: str) -> None:
    @inference("Inference Request JSON Object", f"an id is returned: {what}")
    def check(server: Server) -> None:
        reply = server.infer(server.request() | {"id": given})
        reply.require(reply.accepted().get("id") == given, f'"id": "{given}"')


_echoed_id("a number's digits", "42")
_echoed_id("a UUID", "6f0e2b1c-5f0a-4e8e-9b0e-0d8f4c1a7e55")
_echoed_id("an empty one", "")
_echoed_id("Unicode and quotes", 'ä € 😀 "quoted" \\')
_echoed_id("200 characters", "long" * 50)


@inference("Inference Request JSON Object", "concurrent requests: each has its own id and outputs")
def concurrent_requests(server: Server) -> None:
    def exchange(place: int) -> Reply:
        return server.infer(server.request(start=place) | {"id": f"concurrent {place}"})

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(exchange, range(16)))
    for place, reply in enumerate(replies):
        reply.require(reply.accepted().get("id") == f"concurrent {place}", "its own id")
        server.require_same(reply, server.infer(server.request(start=place)))


@inference("Inference Request JSON Object", "no outputs requested: all outputs of the metadata")
def all_outputs(server: Server) -> None:
    names = {each["name"] for each in server.metadata["outputs"]}
    found = [each["name"] for each in server.plain.accepted()["outputs"]]
    server.plain.require(sorted(found) == sorted(names), f"the outputs {', '.join(names)}")


def _each_output(what: str, holds: Callable[[dict[str, Any], dict[str, Any]], bool]) -> None:
    @inference("Response Output", f"each output: {what}")
    def check(server: Server) -> None:
        described = {each["name"]: each for each in server.metadata["outputs"]}
        found = server.plain.accepted()["outputs"]
        server.plain.require(found, "outputs")
        for each in found:
            server.plain.require(holds(each, described[each["name"]]), f"an output with {what}")


def _fits(shape: list[int], described: list[int]) -> bool:
    pairs = zip(shape, described, strict=False)
    return len(shape) == len(described) and all(size in (a, -1) for a, size in pairs)


_each_output("a shape of integers", lambda output, _: _is_shape(output["shape"]))
_each_output(
    "the metadata's data type",
    lambda output, described: output["datatype"] == described["datatype"],
)
_each_output(
    "the metadata's shape", lambda output, described: _fits(output["shape"], described["shape"])
)
_each_output(
    "as many elements as its shape",
    lambda output, _: len(_elements(output)) == math.prod(output["shape"]),
)
_each_output(
    "elements of its data type",
    lambda output, _: all(is_element(output["datatype"], value) for value in _elements(output)),
)
_each_output(
    "data flat, or nested like its shape",
    lambda output, _: (
        output["data"] in (_elements(output), nested(_elements(output), output["shape"]))
    ),
)


def _elements(output: dict[str, Any]) -> list[Any]:
    def flattened(data: Any) -> Iterator[Any]:
        for each in data:
            yield from flattened(each) if isinstance(each, list) else (each,)

    return list(flattened(output["data"]))


@inference("Parameters", "parameters of a response: objects of strings, numbers and booleans")
def response_parameters(server: Server) -> None:
    found = server.plain.accepted()
    for owner in (found, *found["outputs"]):
        parameters = owner.get("parameters") or {}
        values = parameters.values()
        is_allowed = all(isinstance(each, str | int | float | bool) for each in values)
        server.plain.require(is_allowed, "strings, numbers and booleans")


@inference("Tensor Data", "nested data: the same outputs as for flat data")
def nested_data(server: Server) -> None:
    request = server.request()
    for tensor in request["inputs"]:
        tensor["data"] = nested(tensor["data"], tensor["shape"])
    server.require_same(server.infer(request))


@inference("Tensor Data", "different data: different outputs, in row-major order", CONVENTION)
def other_data(server: Server) -> None:
    reply = server.infer(server.request(start=2))
    if server.is_repeatable:
        others = server.outputs(reply)
        is_other = server.outputs(server.plain) != others
        reply.require(is_other, "outputs that depend on the inputs")


@inference("Tensor Data", "whole numbers for floating-point elements: the same outputs")
def whole_numbers(server: Server) -> None:
    request, whole = server.request(), server.request()
    floats = [each for each in whole["inputs"] if each["datatype"].startswith("FP")]
    if not floats:
        raise NotOffered("the model has no floating-point input")
    for tensor in request["inputs"]:
        if tensor["datatype"].startswith("FP"):
            tensor["data"] = [float(round(each)) for each in tensor["data"]]
    for tensor in floats:
        tensor["data"] = [round(each) for each in tensor["data"]]
    server.require_same(server.infer(whole), server.infer(request))


def _request_as(what: str, text: Callable[[dict[str, Any]], bytes]) -> None:
    @inference("Inference Request JSON Object", f"the same request {what}: the same outputs")
    def check(server: Server) -> None:
        server.require_same(server.infer(text(server.request())))


def _escaped(request: dict[str, Any]) -> bytes:
    """Return the JSON with the first letters of names and data types as escapes."""
    text = json.dumps(request)
    for tensor in request["inputs"]:
        for word in (tensor["name"], tensor["datatype"]):
            text = text.replace(f'"{word}"', f'"\\u{ord(word[0]):04x}{word[1:]}"')
    return text.encode()


_request_as("indented", lambda request: json.dumps(request, indent=4).encode())
_request_as("without spaces", lambda request: json.dumps(request, separators=(",", ":")).encode())
_request_as("with escapes in strings", _escaped)
_request_as(
    "with members in another order",
    lambda request: json.dumps(
        {"inputs": [dict(reversed(each.items())) for each in request["inputs"]]}
    ).encode(),
)
_request_as("with empty outputs", lambda request: json.dumps(request | {"outputs": []}).encode())
_request_as(
    "with empty parameters", lambda request: json.dumps(request | {"parameters": {}}).encode()
)


@inference("Request Input", "empty parameters of each input: the same outputs")
def input_parameters(server: Server) -> None:
    request = server.request()
    for tensor in request["inputs"]:
        tensor["parameters"] = {}
    server.require_same(server.infer(request))


@inference("Request Input", "inputs in another order: the same outputs")
def reversed_inputs(server: Server) -> None:
    server.require_several("inputs")
    request = server.request()
    request["inputs"].reverse()
    server.require_same(server.infer(request))


@inference("Request Output", "all outputs by name, with empty parameters: the same outputs")
def named_outputs(server: Server) -> None:
    names = [each["name"] for each in server.metadata["outputs"]]
    listed = [{"name": name, "parameters": {}} for name in names]
    server.require_same(server.infer(server.request() | {"outputs": listed}))


@inference("Request Output", "one output by name: only this output")
def one_output(server: Server) -> None:
    for name in server.require_several("outputs"):
        reply = server.infer(server.request() | {"outputs": [{"name": name}]})
        found = [each["name"] for each in reply.accepted()["outputs"]]
        reply.require(found == [name], f"the output {name} alone")


@inference("Inference Request JSON Object", "a listed version: it answers")
def infer_of_version(server: Server) -> None:
    for version in server.versions:
        reply = server.infer(version=version)
        found = reply.accepted().get("model_version")
        reply.require(found == version, f'"model_version": "{version}"')


@inference("Request Input", "two rows: the outputs have two rows", CONVENTION)
def two_rows(server: Server) -> None:
    _require_batched(server)
    reply = server.infer(server.request(rows=2))
    for name, (_, shape, _) in server.outputs(reply).items():
        reply.require(shape[:1] == [2], f"the shape of {name} begins with 2")


@inference("Request Input", "two rows: the first row's outputs as for it alone", CONVENTION)
def first_row(server: Server) -> None:
    _require_batched(server)
    reply = server.infer(server.request(rows=2))
    found, alone = server.outputs(reply), server.outputs(server.plain)
    for name, (datatype, _, values) in alone.items():
        first = found[name][2][: len(values)]
        is_same = not server.is_repeatable or are_close(datatype, first, values)
        reply.require(is_same, f"{name} begins with {values}"[:400])


def _require_batched(server: Server) -> None:
    if not server.is_batched:
        raise NotOffered("the first axis is not variable")


@inference("HTTP/REST", "a chunked request body: the same outputs", CONVENTION)
def chunked(server: Server) -> None:
    text = json.dumps(server.request()).encode()
    pieces = iter([text[:10], text[10:]])
    server.require_same(server.infer(pieces))


@inference("HTTP/REST", "Content-Type with a charset: the same outputs", CONVENTION)
def charset(server: Server) -> None:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    server.require_same(server.infer(headers=kind))


@inference("RFC 9110, 415", "a body compressed by gzip: the same outputs, or 415", CONVENTION)
def compressed(server: Server) -> None:
    body = gzip.compress(json.dumps(server.request()).encode())
    reply = server.infer(body, headers={"Content-Encoding": "gzip"})
    if reply.status == 415:
        reply.require_error()
    else:
        server.require_same(reply)


@inference("HTTP/REST", "three requests on one connection: the same outputs", CONVENTION)
def one_connection(server: Server) -> None:
    connection = server.connection()
    try:
        for _ in range(3):
            path = f"{server.path()}/infer"
            reply = server.send("POST", path, server.request(), connection=connection)
            server.require_same(reply)
    finally:
        connection.close()


# Errors

Change = Callable[[dict[str, Any], dict[str, Any]], Any]
"""Spoil a request and its first input; return another body, or None."""


def _refused(what: str, change: Change, source: str = "Request Input", level: str = MUST) -> None:
    def reply_of(server: Server) -> Reply:
        request = server.request()
        body = change(request, request["inputs"][0])
        return server.infer(request if body is None else body)

    @errors(f"{source}; Inference Response JSON Error Object", f"{what}: the error object", level)
    def check(server: Server) -> None:
        reply_of(server).require_error()

    @errors("Triton, HTTP status codes", f"{what}: status 4xx", CONVENTION)
    def check_status(server: Server) -> None:
        reply = reply_of(server)
        reply.require(400 <= reply.status < 500, "a status 4xx")


_body = "Inference Request JSON Object"
_refused("an empty body", lambda *_: b"", _body)
_refused("JSON cut short", lambda request, _: json.dumps(request).encode()[:-9], _body)
_refused("a body that is not UTF-8", lambda *_: b'{"inputs": "\xff\xfe"}', _body)
_refused("an array as the body", lambda request, _: [request], _body)
_refused("a body without inputs", lambda *_: {"id": "1"}, _body)
_refused("inputs that are no array", lambda _, first: {"inputs": first}, _body)
_refused("inputs without elements", lambda *_: {"inputs": []}, _body)
_refused(
    "an unknown output",
    lambda request, _: request | {"outputs": [{"name": UNKNOWN}]},
    "Request Output",
)
_refused("outputs that are no array", lambda request, _: request | {"outputs": {"name": 1}}, _body)
_refused("an id that is a number", lambda request, _: request | {"id": 42}, _body, CONVENTION)
_refused(
    "parameters that are an array", lambda request, _: request | {"parameters": [1]}, "Parameters"
)
for _field in ("name", "shape", "datatype", "data"):
    _refused(
        f"an input without {_field}",
        lambda _, first, field=_field: first.pop(field) and None,  # type: ignore[misc]
    )
_refused("an unknown input", lambda _, first: first.update(name=UNKNOWN))
_refused("a negative size", lambda _, first: first.update(shape=[-1] * len(first["shape"]) or [-1]))
_refused("a size with a fraction", lambda _, first: first.update(shape=[1.5]))
_refused("a shape that is a string", lambda _, first: first.update(shape="1,4"))
_refused(
    "a shape of 2**80 elements",
    lambda _, first: first.update(shape=[2**40, 2**40]),
    "Request Input",
)
_refused("another number of axes", lambda _, first: first["shape"].append(1), level=CONVENTION)
_refused(
    "an unknown data type", lambda _, first: first.update(datatype="FLOAT"), "Tensor Data Types"
)
_refused("too few elements", lambda _, first: first["data"].pop() and None, "Tensor Data")
_refused(
    "too many elements", lambda _, first: first["data"].append(first["data"][0]), "Tensor Data"
)
_refused("data that is an object", lambda _, first: first.update(data={"0": 1}), "Tensor Data")
_refused(
    "an element that is an object",
    lambda _, first: first.update(data=[{}, *first["data"][1:]]),
    "Tensor Data",
)
_refused(
    "ragged data",
    lambda _, first: first.update(data=[[], first["data"]]),
    "Tensor Data",
    CONVENTION,
)


def _unknown_inference(what: str, path: Callable[[Server], str]) -> None:
    @errors("Inference Response JSON Error Object", f"{what}: the error object")
    def check(server: Server) -> None:
        server.send("POST", f"{path(server)}/infer", server.request()).require_error()

    @errors("Triton, HTTP status codes", f"{what}: status 404", CONVENTION)
    def check_status(server: Server) -> None:
        reply = server.send("POST", f"{path(server)}/infer", server.request())
        reply.require(reply.status == 404, "status 404")


_unknown_inference("an unknown model", lambda server: server.path(model=UNKNOWN))
_unknown_inference(
    "an unknown version", lambda server: server.path(UNKNOWN_VERSION * bool(server.versions))
)


@errors("HTTP/REST, table of paths", "GET of the path of inference: status 405", CONVENTION)
def infer_by_get(server: Server) -> None:
    reply = server.send("GET", f"{server.path()}/infer")
    reply.require(reply.status == 405, "status 405")


@errors("API Definitions, Server Live", "after a broken request: a valid one is answered")
def after_an_error(server: Server) -> None:
    server.infer(b'{"inputs": [')
    server.require_same(server.infer())
