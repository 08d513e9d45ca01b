"""A fake of a server of the protocol over gRPC, in front of ``FakeServer``, with a fault.

A fault changes a response before it is sent. It returns None, or the status to fail with.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from fake_open_inference import JSON_LENGTH, TYPES, FakeReply, FakeServer, require
from open_inference.grpc_messages import CLASSES, CONTENTS

GrpcFault = Callable[[str, Any, Any], grpc.StatusCode | None]
_CODES = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND}
_PATHS = {
    "ServerLive": "/v2/health/live",
    "ServerReady": "/v2/health/ready",
    "ServerMetadata": "/v2",
    "ModelReady": "/ready",
    "ModelMetadata": "",
    "ModelInfer": "/infer",
}


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, fault: GrpcFault) -> None:
        self.server, self.fault = FakeServer(lambda _: None), fault

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        if name == "Check":
            return grpc.unary_unary_rpc_method_handler(self._health)
        if name == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(
                self._stream,
                CLASSES["ModelInferRequest"].FromString,
                CLASSES["ModelStreamInferResponse"].SerializeToString,
            )

        def unary(request: Any, context: Any) -> Any:
            reply, response = self._respond(name, request)
            code = self.fault(name, request, response) or _CODES.get(reply.status)
            if code not in (None, grpc.StatusCode.OK):
                context.abort(code, "refused")
            return response

        return grpc.unary_unary_rpc_method_handler(
            unary,
            CLASSES[f"{name}Request"].FromString,
            CLASSES[f"{name}Response"].SerializeToString,
        )

    def _health(self, request: Any, context: Any) -> bytes:
        if code := self.fault("Check", request, None):
            context.abort(code, "refused")
        return b"\x08\x01"

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            reply, found = self._respond("ModelInfer", request)
            error = "" if reply.status == 200 else "refused"
            response = CLASSES["ModelStreamInferResponse"](
                error_message=error, infer_response=found
            )
            if code := self.fault("ModelStreamInfer", request, response):
                context.abort(code, "refused")
            yield response

    def _respond(self, name: str, request: Any) -> tuple[FakeReply, Any]:
        response, path = CLASSES[f"{name}Response"](), _PATHS[name]
        if name.startswith("Model"):
            is_infer = name == "ModelInfer"
            model = request.model_name if is_infer else request.name
            version = request.model_version if is_infer else request.version
            path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}{path}"
        if name != "ModelInfer":
            reply = self.server.reply_to("GET", path, {}, b"")
            if reply.status == 200:
                _fill(response, reply.content)
            return reply, response
        try:
            text, raw = _as_http(request)
        except Exception:
            return FakeReply(path, None, 400), response
        reply = self.server.reply_to("POST", path, {JSON_LENGTH: str(len(text))}, text + raw)
        if reply.status == 200:
            contents = list(reply.raw.values())
            outputs = [each | {"parameters": {}} for each in reply.content["outputs"]]
            _fill(response, reply.content | {"outputs": outputs})
            response.raw_output_contents.extend(contents)
        return reply, response


def _as_http(request: Any) -> tuple[bytes, bytes]:
    """Return a request as JSON and raw bytes, with raw outputs."""
    content: dict[str, Any] = {"id": request.id, "parameters": {"binary_data_output": True}}
    raws = list(request.raw_input_contents)
    is_raw = bool(raws)
    require(len(raws) in (0, len(request.inputs)))
    inputs = []
    for place, each in enumerate(request.inputs):
        require(not (is_raw and each.contents.ByteSize()))
        if not is_raw:
            values = list(getattr(each.contents, CONTENTS[each.datatype]))
            raws.append(np.array(values, TYPES[each.datatype]).tobytes())
        size = {"binary_data_size": len(raws[place])}
        described = {"name": each.name, "shape": [*each.shape], "datatype": each.datatype}
        inputs.append(described | {"parameters": size})
    outputs = [{"name": each.name, "parameters": {"binary_data": True}} for each in request.outputs]
    content |= {"inputs": inputs} | ({"outputs": outputs} if outputs else {})
    return json.dumps(content).encode(), b"".join(raws)


def _fill(message: Any, content: dict[str, Any]) -> None:
    """Copy the fields of a JSON object that the message has."""
    for name, value in content.items():
        if name not in message.DESCRIPTOR.fields_by_name or name == "parameters":
            continue
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for each in value:
                _fill(getattr(message, name).add(), each)
        elif isinstance(value, list | tuple):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)


@contextmanager
def fake_grpc_server(fault: GrpcFault = lambda *_: None) -> Iterator[str]:
    """Serve until the end of the block; the value is the server's address."""
    handler = _Handler(fault)
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, handlers=[handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
            handler.server.server_close()
