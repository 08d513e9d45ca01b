"""A fake of a server of the Open Inference Protocol, correct but for the fault that a test injects.

It has two models, which share their arithmetic: ``pair`` with two inputs and outputs, ``single``
with one. A fault changes a reply before it is sent.
"""

import gzip
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np

JSON_LENGTH = "inference-header-content-length"
EXTENSIONS = (
    *("binary_tensor_data", "classification", "model_configuration"),
    *("statistics", "model_repository"),
)
TYPES = {"FP32": "<f4", "INT64": "<i8"}
INPUTS = {"x": ("FP32", 3), "n": ("INT64", 2)}
OUTPUTS = {"scores": ("FP32", 3), "doubled": ("INT64", 2)}
MODELS = {"pair": (INPUTS, OUTPUTS), "single": ({"x": INPUTS["x"]}, {"scores": OUTPUTS["scores"]})}


class RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class FakeReply:
    path: str
    request: Any
    status: int = 200
    content: Any = None
    raw: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        text = json.dumps(self.content).encode()
        self.headers.setdefault("content-type", "application/json")
        if self.raw:
            self.headers.setdefault(JSON_LENGTH, str(len(text)))
        return text + b"".join(self.raw.values())


Fault = Callable[[FakeReply], None]


def require(holds: object, reason: str = "it does not follow the protocol") -> None:
    if not holds:
        raise RefusedError(400, reason)


class FakeServer(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault, self.rows, self.last_ms = fault, 0, 0

    def reply_to(self, method: str, path: str, headers: Any, body: bytes) -> FakeReply:
        reply = FakeReply(path, None)
        try:
            self._answer(reply, method, headers, body)
        except RefusedError as error:
            reply.status, reply.content = error.status, {"error": str(error)}
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            reply.status, reply.content = 400, {"error": "it does not follow the protocol"}
        return reply

    def _answer(self, reply: FakeReply, method: str, headers: Any, body: bytes) -> None:
        name, _, what = reply.path.removeprefix("/v2/models/").partition("/")
        if what.startswith("versions/"):
            version, _, what = what.removeprefix("versions/").partition("/")
            if version != "1":
                raise RefusedError(404, "no such version")
        if method != ("POST" if what == "infer" or "repository" in reply.path else "GET"):
            raise RefusedError(405, "another method")
        whole: dict[str, Any] = {
            "/v2": {"name": "fake", "version": "0", "extensions": EXTENSIONS},
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            "/v2/models/stats": {"model_stats": [self._statistics(each) for each in MODELS]},
            "/v2/repository/index": [{"name": each, "state": "READY"} for each in MODELS],
        }
        if reply.path in whole:
            reply.content = whole[reply.path]
            return
        if name not in MODELS:
            raise RefusedError(404, "no such model")
        if what == "infer":
            self._infer(reply, name, headers, body)
            return
        inputs, outputs = MODELS[name]
        contents: dict[str, Any] = {
            "ready": {"name": name, "ready": True},
            "": {"name": name, "versions": ["1"], "platform": "fake_numpy"}
            | {"inputs": _metadata(inputs), "outputs": _metadata(outputs)},
            "config": {"name": name, "max_batch_size": 8}
            | {"input": _configured(inputs), "output": _configured(outputs)},
            "stats": {"model_stats": [self._statistics(name)]},
        }
        reply.content = contents[what]

    def _statistics(self, name: str) -> dict[str, Any]:
        times = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "name": name,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "inference_stats": {each: {"count": 0, "ns": 0} for each in times},
        }

    def _infer(self, reply: FakeReply, name: str, headers: Any, body: bytes) -> None:
        inputs, outputs = MODELS[name]
        size = headers.get(JSON_LENGTH)
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if size == "0":
            given = {"name": "x", "shape": [len(body) // 12, 3], "datatype": "FP32"}
            given["parameters"] = {"binary_data_size": len(body)}
            request, raw = {"inputs": [given]}, body
        else:
            require(size is None or (size.isdigit() and int(size) <= len(body)))
            text = body if size is None else body[: int(size)]
            request, raw = json.loads(text), body[len(text) :]
        reply.request = request
        require(isinstance(request.get("id", ""), str))
        require(isinstance(request.get("parameters", {}), dict))
        tensors = {}
        for each in request["inputs"]:
            tensors[each["name"]], raw = _tensor(each, raw, *inputs[each["name"]])
        require(tensors.keys() == inputs.keys() and not raw)
        x, n = tensors["x"], tensors.get("n")
        computed = {"scores": x * np.float32(2) + (0 if n is None else n[:, :1] % 7)}
        computed["scores"] = computed["scores"].astype(np.float32)
        if n is not None:
            computed["doubled"] = 2 * n
        self.rows, self.last_ms = self.rows + len(x), time.time_ns() // 10**6
        wanted = request.get("outputs") or [{"name": each} for each in outputs]
        require(isinstance(wanted, list))
        default = request.get("parameters", {}).get("binary_data_output", False)
        reply.content = {"model_name": name, "model_version": "1", "outputs": []}
        reply.content |= {"id": request["id"]} if "id" in request else {}
        for each in wanted:
            _add_output(reply, each, computed[each["name"]], default)
        if reply.raw:
            reply.headers["content-type"] = "application/octet-stream"


def _add_output(reply: FakeReply, wanted: Any, values: Any, default: bool) -> None:
    name, parameters = wanted["name"], wanted.get("parameters", {})
    output = {"name": name, "datatype": OUTPUTS[name][0], "shape": list(values.shape)}
    if count := parameters.get("classification"):
        best = np.argsort(-values, axis=1)[:, :count]
        output |= {"datatype": "BYTES", "shape": list(best.shape)}
        pairs = zip(values, best, strict=True)
        output["data"] = [f"{row[place]:f}:{place}" for row, places in pairs for place in places]
    elif parameters.get("binary_data", default):
        reply.raw[name] = values.tobytes()
        output["parameters"] = {"binary_data_size": values.nbytes}
    else:
        output["data"] = values.ravel().tolist()
    reply.content["outputs"].append(output)


def _tensor(given: Any, raw: bytes, datatype: str, columns: int) -> tuple[Any, bytes]:
    """Return an input of a request, and the bytes that follow it."""
    shape, dtype = given["shape"], TYPES[given["datatype"]]
    require(given["datatype"] == datatype and isinstance(shape, list))
    require(len(shape) == 2 and shape[1] == columns and all(type(each) is int for each in shape))
    require(0 <= shape[0] < 100)
    size = given.get("parameters", {}).get("binary_data_size")
    if size is not None:
        expected = 1 * np.dtype(dtype).itemsize * math.prod(shape)
        require("data" not in given and type(size) is int and size == expected <= len(raw))
        return np.frombuffer(raw[:size], dtype).reshape(shape), raw[size:]
    require(isinstance(given["data"], list))
    values = np.array(given["data"], dtype)
    require(values.ndim == 1 or values.shape == tuple(shape))
    return values.reshape(shape), raw


def _metadata(tensors: dict[str, tuple[str, int]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": [-1, columns]}
        for name, (datatype, columns) in tensors.items()
    ]


def _configured(tensors: dict[str, tuple[str, int]]) -> list[dict[str, Any]]:
    return [{"name": name, "data_type": f"TYPE_{each[0]}"} for name, each in tensors.items()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for each reply, which no delayed acknowledgement holds up
    server: FakeServer

    def do_GET(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        reply = self.server.reply_to(self.command, self.path, self.headers, body)
        self.server.fault(reply)
        content = reply.encoded()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def fake_server(fault: Fault = lambda _: None) -> Iterator[str]:
    """Serve until the end of the block; the value is the server's URL."""
    server = FakeServer(fault)
    server.daemon_threads = False
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
