"""Checks of the specification's gRPC part: health, metadata, inference and errors.

The sources are headings of inference_grpc.md and comments of its messages. Which status an error
has, beyond not being OK, is a convention.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from open_inference.grpc_messages import CLASSES, CONTENTS, PACKAGE
from open_inference.rest_checks import UNKNOWN, UNKNOWN_VERSION
from open_inference.server import Server
from open_inference.suite import CONVENTION, MUST, Failed, Family, NotOffered, shortened
from open_inference.tensors import Tensor, are_close, unpacked

health = Family("gRPC health")
metadata = Family("gRPC metadata")
inference = Family("gRPC inference")
errors = Family("gRPC errors")

_STREAM = "ModelStreamInfer"
_SERVING = b"\x08\x01"  # a HealthCheckResponse whose status is 1
_CLIENTS_FAULT = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


@dataclass(frozen=True)
class GrpcReply:
    """A response, or the status and its message in place of it."""

    sent: str
    response: Any = None
    code: Any = grpc.StatusCode.OK
    details: str = ""

    def require(self, holds: object, expected: str) -> None:
        if not holds:
            received = f"{self.code.name} {self.details} {self.response or ''}"
            raise Failed(self.sent, expected, shortened(received.strip()))

    def accepted(self) -> Any:
        self.require(self.code is grpc.StatusCode.OK, "status OK")
        return self.response


class GrpcDoor:
    """A server's address for gRPC; a ``token`` is sent as over HTTP."""

    def __init__(self, address: str, *, token: str = "", timeout_s: float = 30.0) -> None:
        secure = address.startswith("https://")
        target = address.removeprefix("https://").removeprefix("http://")
        credentials = grpc.ssl_channel_credentials() if secure else None
        limits = [("grpc.max_receive_message_length", 2**26)]
        self.channel = (
            grpc.secure_channel(target, credentials, limits)
            if secure
            else grpc.insecure_channel(target, limits)
        )
        self._timeout_s = timeout_s
        self._headers = [("authorization", f"Bearer {token}")] if token else []

    def close(self) -> None:
        self.channel.close()

    def call(self, name: str, request: Any = None, **options: Any) -> GrpcReply:
        """Return the reply to a unary call of ``GRPCInferenceService``."""
        request = CLASSES[f"{name}Request"]() if request is None else request
        method = self.channel.unary_unary(
            f"/{PACKAGE}.GRPCInferenceService/{name}",
            request_serializer=CLASSES[f"{name}Request"].SerializeToString,
            response_deserializer=CLASSES[f"{name}Response"].FromString,
        )
        return self._reply(f"{name} {request}", method, request, **options)

    def healthy(self) -> GrpcReply:
        """Return the raw reply of ``grpc.health.v1.Health/Check`` about the whole server."""
        method = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        return self._reply("grpc.health.v1.Health/Check", method, b"")

    def streamed(self, requests: Sequence[Any]) -> GrpcReply:
        """Return the responses of the streaming call, as a list."""
        method = self.channel.stream_stream(
            f"/{PACKAGE}.GRPCInferenceService/{_STREAM}",
            request_serializer=CLASSES["ModelInferRequest"].SerializeToString,
            response_deserializer=CLASSES["ModelStreamInferResponse"].FromString,
        )

        def collected(_: object, **options: Any) -> list[Any]:
            return list(method(iter(requests), **options))

        return self._reply(f"{_STREAM} {list(requests)}", collected, requests)

    def _reply(self, sent: str, method: Any, request: Any, **options: Any) -> GrpcReply:
        sent = shortened(" ".join(sent.split()))
        try:
            given = {"timeout": self._timeout_s, "metadata": self._headers, **options}
            return GrpcReply(sent, method(request, **given))
        except grpc.RpcError as error:
            return GrpcReply(sent, code=error.code(), details=error.details() or "")


# Health


def _server_is(field: str) -> None:
    @health(f"Server {field.title()}", f"a {field} server: {field} is true")
    def check(server: Server) -> None:
        reply = server.grpc.call(f"Server{field.title()}")
        reply.require(getattr(reply.accepted(), field), f"{field}: true")


_server_is("live")
_server_is("ready")


def _model_ready(server: Server, name: str, version: str = "") -> GrpcReply:
    request = CLASSES["ModelReadyRequest"](name=name, version=version)
    reply: GrpcReply = server.grpc.call("ModelReady", request)
    return reply


@health("Model Ready", "a ready model: ready is true")
def model_ready(server: Server) -> None:
    reply = _model_ready(server, server.model)
    reply.require(reply.accepted().ready, "ready: true")


@health("Model Ready", "each version that is listed: ready is true")
def version_ready(server: Server) -> None:
    for version in server.versions:
        reply = _model_ready(server, server.model, version)
        reply.require(reply.accepted().ready, "ready: true")


@health("Model Ready", "an unknown model: not ready")
def unknown_ready(server: Server) -> None:
    reply = _model_ready(server, UNKNOWN)
    is_ready = reply.code is grpc.StatusCode.OK and reply.response.ready
    reply.require(not is_ready, "an error, or ready: false")


@health("grpc.health.v1", "the health service: SERVING", CONVENTION)
def health_service(server: Server) -> None:
    reply = server.grpc.healthy()
    if reply.code is grpc.StatusCode.UNIMPLEMENTED:
        raise NotOffered("the server has no health service")
    reply.require(reply.accepted() == _SERVING, "status: SERVING")


# Metadata


def _server_field(field: str, level: str) -> None:
    @metadata("Server Metadata", f"the server's {field}: as over HTTP", level)
    def check(server: Server) -> None:
        expected = server.send("GET", "v2").accepted()[field]
        reply = server.grpc.call("ServerMetadata")
        found = getattr(reply.accepted(), field)
        is_same = found == expected if isinstance(expected, str) else [*found] == expected
        reply.require(is_same, f"{field}: {expected}")


_server_field("name", MUST)
_server_field("version", MUST)
_server_field("extensions", CONVENTION)


def _metadata(server: Server, name: str, version: str = "") -> GrpcReply:
    request = CLASSES["ModelMetadataRequest"](name=name, version=version)
    reply: GrpcReply = server.grpc.call("ModelMetadata", request)
    return reply


@metadata("Model Metadata", "the model's name: as requested")
def model_name(server: Server) -> None:
    reply = _metadata(server, server.model)
    reply.require(reply.accepted().name == server.model, f"name: {server.model}")


@metadata("Model Metadata", "the model's platform and versions: as over HTTP", CONVENTION)
def model_platform(server: Server) -> None:
    reply = _metadata(server, server.model)
    found, expected = reply.accepted(), server.metadata
    versions = expected.get("versions") or []
    is_same = (found.platform, [*found.versions]) == (expected["platform"], versions)
    reply.require(is_same, f"{expected['platform']} and {versions}")


def _tensors_listed(side: str) -> None:
    @metadata("Model Metadata", f"the model's {side}: names, types and shapes as over HTTP")
    def check(server: Server) -> None:
        reply = _metadata(server, server.model)
        found = [(o.name, o.datatype, [*o.shape]) for o in getattr(reply.accepted(), side)]
        expected = [(o["name"], o["datatype"], o["shape"]) for o in server.metadata[side]]
        reply.require(found == expected, f"{side}: {expected}")


_tensors_listed("inputs")
_tensors_listed("outputs")


@metadata("Model Metadata", "each version that is listed: metadata of the same model")
def version_metadata(server: Server) -> None:
    for version in server.versions:
        reply = _metadata(server, server.model, version)
        reply.require(reply.accepted().name == server.model, f"name: {server.model}")


def _unknown(family: Family, source: str, what: str, call: Callable[[Server], GrpcReply]) -> None:
    @family(source, f"{what}: an error")
    def check(server: Server) -> None:
        reply = call(server)
        reply.require(reply.code is not grpc.StatusCode.OK, "an error")

    @family("Triton, gRPC status codes", f"{what}: NOT_FOUND", CONVENTION)
    def check_code(server: Server) -> None:
        reply = call(server)
        reply.require(reply.code is grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


_unknown(metadata, "Model Metadata", "an unknown model", lambda server: _metadata(server, UNKNOWN))
_unknown(
    metadata,
    "Model Metadata",
    "an unknown version",
    lambda server: _metadata(server, server.model, UNKNOWN_VERSION * bool(server.versions)),
)


# Inference


def infer_request(server: Server, rows: int = 1, start: int = 0, **fields: Any) -> Any:
    """Return a request with raw contents, which exist for all data types."""
    return _request(server, server.tensors(rows, start), is_raw=True, **fields)


def typed_request(server: Server, rows: int = 1) -> Any:
    tensors = server.tensors(rows)
    if not all(each.datatype in CONTENTS for each in tensors):
        raise NotOffered("the model takes FP16 or BF16, which have raw contents only")
    return _request(server, tensors, is_raw=False)


def _request(server: Server, tensors: Sequence[Tensor], *, is_raw: bool, **fields: Any) -> Any:
    request = CLASSES["ModelInferRequest"](model_name=server.model, **fields)
    for tensor in tensors:
        described = request.inputs.add(name=tensor.name, datatype=tensor.datatype)
        described.shape.extend(tensor.shape)
        if is_raw:
            request.raw_input_contents.append(tensor.raw())
        else:
            is_text = tensor.datatype == "BYTES"
            values = [each.encode() for each in tensor.values] if is_text else tensor.values
            getattr(described.contents, CONTENTS[tensor.datatype]).extend(values)
    return request


def _infer(server: Server, request: Any, **options: Any) -> GrpcReply:
    reply: GrpcReply = server.grpc.call("ModelInfer", request, **options)
    return reply


def _outputs(reply: GrpcReply) -> dict[str, tuple[str, list[int], list[Any]]]:
    """Return the data type, shape and elements of each output."""
    found, outputs = reply.accepted(), {}
    for place, each in enumerate(found.outputs):
        if found.raw_output_contents:
            values = unpacked(each.datatype, found.raw_output_contents[place])
        else:
            values = [*getattr(each.contents, CONTENTS[each.datatype])]
            values = [o.decode() for o in values] if each.datatype == "BYTES" else values
        outputs[each.name] = (each.datatype, [*each.shape], values)
    return outputs


def _require_same(server: Server, reply: GrpcReply, expected: Any = None) -> None:
    """Raise ``Failed`` unless the outputs equal those over HTTP of the plain request."""
    wanted = expected or server.outputs(server.plain)
    found = _outputs(reply)
    reply.require(found.keys() == wanted.keys(), f"the outputs {', '.join(wanted)}")
    for name, (datatype, shape, values) in wanted.items():
        reply.require(found[name][:2] == (datatype, shape), f"{name}: {datatype} {shape}")
        is_same = not server.is_repeatable or are_close(datatype, found[name][2], values)
        reply.require(is_same, shortened(f"{name}: {values}"))


@inference("raw_input_contents", "raw contents: the outputs as over HTTP")
def raw_contents(server: Server) -> None:
    _require_same(server, _infer(server, infer_request(server)))


@inference("InferTensorContents", "typed contents: the outputs as over HTTP")
def typed_contents(server: Server) -> None:
    _require_same(server, _infer(server, typed_request(server)))


@inference("Inference, model_name", "a response: model_name as requested")
def infer_name(server: Server) -> None:
    reply = _infer(server, infer_request(server))
    reply.require(reply.accepted().model_name == server.model, f"model_name: {server.model}")


@inference("Inference, model_version", "a listed version: it answers")
def infer_version(server: Server) -> None:
    for version in server.versions:
        reply = _infer(server, infer_request(server, model_version=version))
        reply.require(reply.accepted().model_version == version, f"model_version: {version}")


def _echoed_id(what: str, given: str) -> None:
    @inference("Inference, id", f"an id is returned: {what}")
    def check(server: Server) -> None:
        reply = _infer(server, infer_request(server, id=given))
        reply.require(reply.accepted().id == given, f"id: {given}")


_echoed_id("digits", "42")
_echoed_id("Unicode", "ä € 😀")


@inference("Inference, id", "concurrent calls: each has its own id and outputs")
def concurrent_calls(server: Server) -> None:
    def exchange(place: int) -> GrpcReply:
        return _infer(server, infer_request(server, start=place, id=f"concurrent {place}"))

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(exchange, range(16)))
    for place, reply in enumerate(replies):
        reply.require(reply.accepted().id == f"concurrent {place}", "its own id")
        _require_same(server, reply, _outputs(_infer(server, infer_request(server, start=place))))


@inference(
    "raw_output_contents", "raw outputs: as many as outputs, and no typed contents beside them"
)
def no_mixture(server: Server) -> None:
    reply = _infer(server, infer_request(server))
    found = reply.accepted()
    raws = len(found.raw_output_contents)
    typed = [each.contents.ByteSize() > 0 for each in found.outputs]
    reply.require(found.outputs, "outputs")
    reply.require(raws in (0, len(found.outputs)), "raw contents of all outputs or of none")
    reply.require(not (raws and any(typed)), "raw or typed contents")


@inference("raw_output_contents", "raw outputs: sizes that follow from shapes and data types")
def raw_sizes(server: Server) -> None:
    reply = _infer(server, infer_request(server))
    found = reply.accepted()
    reply.require(found.outputs, "outputs")
    for each, raw in zip(found.outputs, found.raw_output_contents, strict=False):
        values = unpacked(each.datatype, raw)
        count = 1
        for size in each.shape:
            count *= size
        reply.require(len(values) == count, f"{count} elements of {each.name}")


@inference("Inference, outputs", "all outputs by name: the outputs as over HTTP")
def named_outputs(server: Server) -> None:
    request = infer_request(server)
    for each in server.metadata["outputs"]:
        request.outputs.add(name=each["name"])
    _require_same(server, _infer(server, request))


@inference("Inference, outputs", "one output by name: only this output")
def one_output(server: Server) -> None:
    for name in server.require_several("outputs"):
        request = infer_request(server)
        request.outputs.add(name=name)
        reply = _infer(server, request)
        reply.require([*_outputs(reply)] == [name], f"the output {name} alone")


@inference("raw_input_contents", "inputs in another order: the outputs as over HTTP")
def reversed_inputs(server: Server) -> None:
    server.require_several("inputs")
    request = _request(server, server.tensors()[::-1], is_raw=True)
    _require_same(server, _infer(server, request))


@inference("Tensor Data", "two rows: the outputs as over HTTP")
def two_rows(server: Server) -> None:
    if not server.is_batched:
        raise NotOffered("the first axis is not variable")
    expected = server.outputs(server.infer(server.request(rows=2)))
    _require_same(server, _infer(server, infer_request(server, rows=2)), expected)


@inference("gRPC compression", "a request compressed by gzip: the outputs as over HTTP", CONVENTION)
def compressed(server: Server) -> None:
    request = infer_request(server)
    _require_same(server, _infer(server, request, compression=grpc.Compression.Gzip))


def _streamed(server: Server, requests: Sequence[Any]) -> GrpcReply:
    reply: GrpcReply = server.grpc.streamed(requests)
    if reply.code is grpc.StatusCode.UNIMPLEMENTED:
        raise NotOffered("the server has no streaming call")
    return reply


@inference("Triton, ModelStreamInfer", "a stream of two requests: two responses", CONVENTION)
def stream(server: Server) -> None:
    requests = [infer_request(server, id=name) for name in ("first", "second")]
    reply = _streamed(server, requests)
    found = {each.infer_response.id for each in reply.accepted()}
    reply.require(found == {"first", "second"}, "a response to each")


@inference(
    "Triton, ModelStreamInfer", "a broken request in a stream: its error_message", CONVENTION
)
def broken_stream(server: Server) -> None:
    broken = infer_request(server)
    broken.raw_input_contents.pop()
    reply = _streamed(server, [broken, infer_request(server, id="valid")])
    messages = [bool(each.error_message) for each in reply.accepted()]
    reply.require(sorted(messages) == [False, True], "one error_message and one response")


# Errors


def _refused(what: str, source: str, change: Callable[[Any], object], level: str = MUST) -> None:
    def reply_of(server: Server) -> GrpcReply:
        request = infer_request(server)
        change(request)
        return _infer(server, request)

    @errors(source, f"{what}: an error", level)
    def check(server: Server) -> None:
        reply = reply_of(server)
        reply.require(reply.code is not grpc.StatusCode.OK, "an error")

    @errors("Triton, gRPC status codes", f"{what}: INVALID_ARGUMENT or NOT_FOUND", CONVENTION)
    def check_code(server: Server) -> None:
        reply = reply_of(server)
        reply.require(reply.code in _CLIENTS_FAULT, "INVALID_ARGUMENT or NOT_FOUND")


def _reshaped(*shape: int) -> Callable[[Any], object]:
    def change(request: Any) -> None:
        del request.inputs[0].shape[:]
        request.inputs[0].shape.extend(shape)

    return change


def _without_inputs(request: Any) -> None:
    del request.inputs[:], request.raw_input_contents[:]


def _with_typed(request: Any) -> None:
    first = request.inputs[0]
    element = b"" if first.datatype == "BYTES" else 1
    getattr(first.contents, CONTENTS.get(first.datatype, "fp32_contents")).append(element)


def _resized(change: Callable[[bytes], bytes]) -> Callable[[Any], object]:
    def changed(request: Any) -> None:
        request.raw_input_contents[0] = change(request.raw_input_contents[0])

    return changed


def _set_input(field: str, value: str) -> Callable[[Any], object]:
    return lambda request: setattr(request.inputs[0], field, value)


_unknown(
    errors,
    "Inference, model_name",
    "an unknown model",
    lambda server: _infer(server, _for_model(infer_request(server), UNKNOWN)),
)
_unknown(
    errors,
    "Inference, model_version",
    "an unknown version",
    lambda server: _infer(
        server, infer_request(server, model_version=UNKNOWN_VERSION * bool(server.versions))
    ),
)


def _for_model(request: Any, name: str) -> Any:
    request.model_name = name
    return request


_refused("no inputs", "Inference, inputs", _without_inputs)
_refused("an unknown input", "Inference, inputs", _set_input("name", UNKNOWN))
_refused("an unknown data type", "Tensor Data Types", _set_input("datatype", "FLOAT"))
_refused(
    "an unknown output", "Inference, outputs", lambda request: request.outputs.add(name=UNKNOWN)
)
_refused("a negative size", "InferInputTensor, shape", _reshaped(-1, -1))
_refused("a shape of 2**80 elements", "InferInputTensor, shape", _reshaped(2**40, 2**40))
_refused(
    "too few raw contents",
    "raw_input_contents",
    lambda request: request.raw_input_contents.pop(),
)
_refused(
    "too many raw contents",
    "raw_input_contents",
    lambda request: request.raw_input_contents.append(b"1234"),
)
_refused("raw contents with a byte too few", "raw_input_contents", _resized(lambda raw: raw[:-1]))
_refused(
    "raw contents with a byte too many", "raw_input_contents", _resized(lambda raw: raw + b"1")
)
_refused("raw and typed contents", "raw_input_contents", _with_typed)


def _typed_refused(what: str, change: Callable[[Any, str], object]) -> None:
    @errors("InferTensorContents", f"{what}: an error")
    def check(server: Server) -> None:
        request = typed_request(server)
        change(request.inputs[0].contents, CONTENTS[request.inputs[0].datatype])
        reply = _infer(server, request)
        reply.require(reply.code is not grpc.StatusCode.OK, "an error")


def _other_field(contents: Any, field: str) -> None:
    other = "int64_contents" if field == "fp32_contents" else "fp32_contents"
    count = len(getattr(contents, field))
    contents.ClearField(field)
    getattr(contents, other).extend([1] * count)


_typed_refused("typed contents with an element too few", lambda o, field: getattr(o, field).pop())
_typed_refused(
    "typed contents with an element too many",
    lambda o, field: getattr(o, field).append(getattr(o, field)[0]),
)
_typed_refused("typed contents of another data type", _other_field)
_typed_refused("no contents", lambda contents, field: contents.ClearField(field))


@errors("Server Live", "after a broken call: a valid one is answered")
def after_an_error(server: Server) -> None:
    broken = infer_request(server)
    broken.raw_input_contents.pop()
    _infer(server, broken)
    _require_same(server, _infer(server, infer_request(server)))
