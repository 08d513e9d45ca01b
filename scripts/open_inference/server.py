"""The server under test over HTTP: its metadata, requests built from them, and its replies."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

from open_inference.suite import Failed, NotOffered, shortened
from open_inference.tensors import Tensor, are_close, example, flat, unpacked

JSON_LENGTH = "Inference-Header-Content-Length"
_OTHER_SIZE = 1  # of a variable axis that is not the first


@dataclass(frozen=True)
class Reply:
    sent: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def require(self, holds: object, expected: str) -> None:
        """Raise ``Failed`` unless ``holds``."""
        if not holds:
            text = self.body.decode("utf-8", "backslashreplace")
            raise Failed(self.sent, expected, shortened(f"{self.status} {text}"))

    def json(self) -> Any:
        """Return the body as JSON; NaN and infinities are not JSON."""

        def no_constant(name: str) -> float:
            raise ValueError(f"{name} is not JSON")

        try:
            return json.loads(self.body, parse_constant=no_constant)
        except ValueError:
            self.require(holds=False, expected="a body of JSON")

    def accepted(self) -> dict[str, Any]:
        """Return the JSON object of a successful response."""
        self.require(self.status == 200, "status 200")
        found = self.json()
        self.require(isinstance(found, dict), "a JSON object")
        assert isinstance(found, dict)
        return found

    def require_error(self) -> None:
        """Raise ``Failed`` unless it is an HTTP error with the protocol's error object."""
        self.require(400 <= self.status < 600, "an HTTP error status")
        found = self.json()
        has_error = isinstance(found, dict) and isinstance(found.get("error"), str)
        self.require(has_error and found["error"], 'a JSON object {"error": a message}')

    def parts(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return the JSON of a response with raw outputs, and their bytes by name."""
        self.require(self.status == 200, "status 200")
        length = self.headers.get(JSON_LENGTH.lower(), "")
        is_length = length.isascii() and length.isdigit() and int(length) <= len(self.body)
        self.require(is_length, f"the header {JSON_LENGTH}, at most the body's length")
        text, raw = self.body[: int(length)], self.body[int(length) :]
        found, contents = Reply(self.sent, 200, {}, text).accepted(), {}
        for output in found["outputs"]:
            size = (output.get("parameters") or {}).get("binary_data_size")
            if size is None:
                continue
            self.require(type(size) is int and 0 <= size <= len(raw), "the raw outputs' sizes")
            self.require("data" not in output, "no data in the JSON of a raw output")
            contents[output["name"]], raw = raw[:size], raw[size:]
        self.require(not raw, "no bytes after the last raw output")
        return found, contents


class Server:
    """One model of a server. ``rest`` is its base URL."""

    def __init__(
        self,
        rest: str,
        model: str,
        *,
        token: str = "",
        timeout_s: float = 30.0,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        extensions: tuple[str, ...] = (),
        grpc: Any = None,
    ) -> None:
        self.address = urlsplit(rest if "//" in rest else f"http://{rest}")
        self.model, self.grpc = model, grpc
        self.last_sent = ""
        self._token, self._timeout_s = token, timeout_s
        self._shapes, self._more_extensions = shapes or {}, extensions

    def connection(self) -> http.client.HTTPConnection:
        is_tls = self.address.scheme == "https"
        kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        return kind(self.address.hostname or "", self.address.port, timeout=self._timeout_s)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Reply:
        """Return the reply to a request; the body is bytes, chunks of them, or JSON."""
        if body is not None and not hasattr(body, "__next__"):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        shown = body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else ""
        sent = self.last_sent = shortened(f"{method} {path} {headers or ''} {shown}".strip())
        given = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if body is not None:
            given["Content-Type"] = "application/json"
        used = connection or self.connection()
        try:
            used.request(method, f"{self.address.path.rstrip('/')}/{path}", body,
                         {**given, **(headers or {})})  # fmt: skip
            got = used.getresponse()
            found = {name.lower(): value for name, value in got.getheaders()}
            return Reply(sent, got.status, found, got.read())
        finally:
            if connection is None:
                used.close()

    def path(self, version: str = "", model: str = "") -> str:
        named = f"v2/models/{quote(model or self.model, safe='')}"
        return f"{named}/versions/{quote(version, safe='')}" if version else named

    def infer(
        self,
        request: Any = None,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        version: str = "",
    ) -> Reply:
        """Return the reply to an inference request, by default the plain one. ``raw`` follows."""
        content = self.request() if request is None else request
        if raw is not None:
            text = json.dumps(content).encode()
            own = {JSON_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}
            content, headers = text + raw, {**own, **(headers or {})}
        return self.send("POST", f"{self.path(version)}/infer", content, headers)

    @cached_property
    def extensions(self) -> frozenset[str]:
        try:
            listed = self.send("GET", "v2").json()["extensions"]
            return frozenset((*listed, *self._more_extensions))
        except (Failed, KeyError, TypeError):
            return frozenset(self._more_extensions)

    @cached_property
    def metadata_reply(self) -> Reply:
        return self.send("GET", self.path())

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return self.metadata_reply.accepted()

    @property
    def versions(self) -> list[str]:
        versions: list[str] = self.metadata.get("versions") or []
        if not versions:
            raise NotOffered("the model's metadata lists no versions")
        return versions

    @cached_property
    def is_batched(self) -> bool:
        """Whether the first axis of all inputs and outputs is variable."""
        listed = [*self.metadata["inputs"], *self.metadata["outputs"]]
        return all(list(each["shape"])[:1] == [-1] for each in listed)

    def require_several(self, what: str) -> list[str]:
        """Return the names of the model's ``inputs`` or ``outputs``, at least two."""
        names = [each["name"] for each in self.metadata[what]]
        if len(names) < 2:
            raise NotOffered(f"the model has only one of {what}")
        return names

    def tensors(self, rows: int = 1, start: int = 0) -> list[Tensor]:
        """Return example inputs that fit the metadata; ``start`` varies their values."""
        described = self.metadata["inputs"]
        self.metadata_reply.require(described, "inputs, from which to build requests")
        return [
            example(each["name"], each["datatype"], self._shape(each, rows), start)
            for each in described
        ]

    def _shape(self, described: Mapping[str, Any], rows: int) -> list[int]:
        given = self._shapes.get(described["name"])
        first, *others = given or described["shape"] or (1,)
        sizes = [rows if described["shape"][:1] == [-1] else first, *others]
        return [_OTHER_SIZE if size == -1 else size for size in sizes] if described["shape"] else []

    def request(self, rows: int = 1, start: int = 0) -> dict[str, Any]:
        """Return a plain inference request as JSON, with flat data."""
        return {"inputs": [each.as_json() for each in self.tensors(rows, start)]}

    @cached_property
    def plain(self) -> Reply:
        """The reply to the plain request."""
        return self.infer()

    def outputs(self, reply: Reply) -> dict[str, tuple[str, list[int], list[Any]]]:
        """Return the data type, shape and elements of each output, whether JSON or raw."""
        is_raw = JSON_LENGTH.lower() in reply.headers
        found, contents = reply.parts() if is_raw else (reply.accepted(), {})
        return {
            each["name"]: (
                each["datatype"],
                each["shape"],
                unpacked(each["datatype"], contents[each["name"]])
                if each["name"] in contents
                else flat(each["data"]),
            )
            for each in found["outputs"]
        }

    @cached_property
    def is_repeatable(self) -> bool:
        """Whether the same request has the same outputs again."""
        first, second = self.outputs(self.infer()), self.outputs(self.infer())
        return all(are_close(*first[name][::2], second[name][2]) for name in first)

    def require_same(self, reply: Reply, expected: Reply | None = None) -> None:
        """Raise ``Failed`` unless the outputs equal those of ``expected``, by default ``plain``."""
        wanted = self.outputs(expected or self.plain)
        found = self.outputs(reply)
        reply.require(found.keys() == wanted.keys(), f"the outputs {', '.join(wanted)}")
        for name, (datatype, shape, values) in wanted.items():
            reply.require(found[name][:2] == (datatype, shape), f"{name}: {datatype} {shape}")
            is_same = not self.is_repeatable or are_close(datatype, found[name][2], values)
            reply.require(is_same, shortened(f"{name}: {values}"))
