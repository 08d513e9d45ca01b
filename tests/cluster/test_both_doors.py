"""HTTP and gRPC are two doors to one pool: drawn requests have the same answers and errors.

Both servers are real, on loopback and on one event loop; the gateway behind them is a fake.
"""

import asyncio
import http.client
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("grpc_health", reason="grpcio is not installed (the extra `grpc`)")

import grpc

from described import described
from dist_net.nets.tensor_specs import TensorSpec
from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.grpc.grpc_messages import MESSAGES
from dist_net.serving.grpc.grpc_server import _STATUS_OF_CODE, GrpcServer
from dist_net.serving.http.application import application
from dist_net.serving.http.replies import JSON_LENGTH
from dist_net.serving.http.server import HttpServer
from dist_net.serving.http.settings import HttpSettings
from fake_service import ANIMALS, BAD_IMAGE, DIGITS, FakeService, served

NUMBERS = described("numbers", inputs=(TensorSpec("input", "INT64", ()),), has_classes=False)
CALL = "/inference.GRPCInferenceService/"
DEADLINE_S = 30.0

Answer = tuple[grpc.StatusCode, Any]


class Doors(NamedTuple):
    """The two doors to one fake."""

    fake: Any
    http: str
    channel: grpc.Channel

    def over_http(
        self, path: str, body: bytes | None = None, json_bytes: int | None = None
    ) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection(self.http, timeout=DEADLINE_S)
        try:
            headers = {} if json_bytes is None else {JSON_LENGTH.decode(): str(json_bytes)}
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def over_grpc(self, call: str, message: Any) -> Answer:
        """The response, or the text of the error."""
        try:
            content = self.channel.unary_unary(f"{CALL}{call}")(
                message.SerializeToString(), timeout=DEADLINE_S
            )
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, MESSAGES[f"{call}Response"].FromString(content)


@contextmanager
def opened_doors() -> Iterator[Doors]:
    """Servers on an event loop in a thread."""
    started, loop = threading.Event(), asyncio.new_event_loop()
    found: dict[str, Any] = {}

    async def serve() -> None:
        settings = HttpSettings(address="127.0.0.1:0")
        ledger = ClientLedger(settings.queue_bytes)
        fake: Any = FakeService()
        fake.served = {each.name: served(each, 2) for each in (DIGITS, ANIMALS, NUMBERS)}
        app = application(fake, settings, ledger=ledger)
        http_server = HttpServer(app)
        grpc_server = GrpcServer(fake, settings, app.refusals, ledger)
        tasks = [asyncio.create_task(each.serve()) for each in (http_server, grpc_server)]
        found.update(
            fake=fake, http=http_server.url.removeprefix("http://"), grpc=grpc_server.address
        )
        found["stop"] = stop = asyncio.Event()
        started.set()
        await stop.wait()
        await grpc_server.stop(0.0)
        http_server.stop()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(DEADLINE_S)
    with grpc.insecure_channel(found["grpc"]) as channel:
        yield Doors(found["fake"], found["http"], channel)
    loop.call_soon_threadsafe(found["stop"].set)
    thread.join()
    loop.close()


names = st.sampled_from(["digits"] * 4 + ["animals"] * 3 + ["numbers"] * 3 + ["digit"])
versions = st.sampled_from(["", "", "", "2", "1", "3", "7", "9", "x", "-1", "9" * 30])
parameters = st.dictionaries(
    st.sampled_from(["timeout", "priority", "classification", "sequence_id", "other"]),
    st.one_of(st.booleans(), st.integers(-1, 5), st.integers(2**40, 2**62), st.text(max_size=3)),
    max_size=1,
)
image = b"\x03\0\0\0png"
bad = len(BAD_IMAGE).to_bytes(4, "little") + BAD_IMAGE
tensors = st.one_of(
    st.sampled_from(
        [
            ("input", "FP32", [1, 4], bytes(16)),
            ("input", "FP32", [2, 4], bytes(range(32))),
            ("input", "UINT8", [1, 2, 2, 3], bytes(range(12))),
            ("input", "INT64", [3], bytes(24)),
            ("input", "BYTES", [1], image),
            ("input", "BYTES", [2], image + bad),
            ("input", "BYTES", [1], bad),
        ]
    ),
    st.tuples(
        st.sampled_from(["input", "input", "other", ""]),
        st.sampled_from(["FP32", "INT64", "BYTES", "FP16", ""]),
        st.lists(st.integers(-1, 3), max_size=3) | st.just([2**40, 2**40]),
        st.binary(max_size=20),
    ),
)
outputs = st.lists(
    st.tuples(st.sampled_from(["probabilities", "values", "none"]), parameters), max_size=1
)


def add_parameters(owner: Any, values: dict[str, Any]) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param"}
    for key, value in values.items():
        setattr(owner.parameters.add(key=key).value, kinds[type(value)], value)


def model_path(name: str, version: str) -> str:
    return f"/v2/models/{name}" + (f"/versions/{version}" if version else "")


def require_same(by_http: tuple[int, bytes, Any], by_grpc: Answer) -> bool:
    """Return whether both succeeded; an error has the same code and text."""
    (code, body, _), (status, answer) = by_http, by_grpc
    if code == 200:
        assert status is grpc.StatusCode.OK, answer
        return True
    assert (status, answer) == (_STATUS_OF_CODE[code], json.loads(body)["error"][:1000])
    return False


def require_same_answers(
    doors: Doors,
    name: str,
    version: str,
    inputs: list[Any],
    wanted: list[Any],
    of_request: dict[str, Any],
    request_id: str,
) -> None:
    message = MESSAGES["ModelInferRequest"](model_name=name, model_version=version, id=request_id)
    add_parameters(message, of_request)
    listed = []
    for (tensor, datatype, shape, raw), values in inputs:
        added = message.inputs.add(name=tensor, datatype=datatype, shape=shape)
        add_parameters(added, values)
        message.raw_input_contents.append(raw)
        size = {"binary_data_size": len(raw)}
        own = {"name": tensor, "datatype": datatype, "shape": shape}
        listed.append(own | {"parameters": values | size})
    for output, values in wanted:
        add_parameters(message.outputs.add(name=output), values)
    request: dict[str, Any] = {
        "inputs": listed,
        "outputs": [{"name": o, "parameters": v | {"binary_data": True}} for o, v in wanted],
        "parameters": of_request | {"binary_data_output": True},
    }
    request |= {"id": request_id} if request_id else {}
    text = json.dumps(request).encode()
    body = text + b"".join(raw for (*_, raw), _ in inputs)
    by_http = doors.over_http(f"{model_path(name, version)}/infer", body, len(text))
    by_grpc = doors.over_grpc("ModelInfer", message)
    if not require_same(by_http, by_grpc):
        return
    (_, content, headers), (_, answer) = by_http, by_grpc
    json_bytes = int(headers[JSON_LENGTH.decode()])
    expected = json.loads(content[:json_bytes])
    assert (answer.model_name, answer.model_version, answer.id) == (
        *(expected["model_name"], expected["model_version"]),
        expected.get("id", ""),
    )
    assert [(o.name, o.datatype, [*o.shape]) for o in answer.outputs] == [
        (o["name"], o["datatype"], o["shape"]) for o in expected["outputs"]
    ]
    assert b"".join(answer.raw_output_contents) == content[json_bytes:]


def require_same_descriptions(doors: Doors, name: str, version: str) -> None:
    path = model_path(name, version)
    message = MESSAGES["ModelReadyRequest"](name=name, version=version)
    by_http, by_grpc = doors.over_http(f"{path}/ready"), doors.over_grpc("ModelReady", message)
    if require_same(by_http, by_grpc):
        assert by_grpc[1].ready
    message = MESSAGES["ModelMetadataRequest"](name=name, version=version)
    by_http, by_grpc = doors.over_http(path), doors.over_grpc("ModelMetadata", message)
    if require_same(by_http, by_grpc):
        expected, found = json.loads(by_http[1]), by_grpc[1]
        assert (found.name, [*found.versions]) == (expected["name"], expected["versions"])
        for ours, theirs in ((found.inputs, "inputs"), (found.outputs, "outputs")):
            assert [(o.name, o.datatype, [*o.shape]) for o in ours] == [
                (o["name"], o["datatype"], o["shape"]) for o in expected[theirs]
            ]


def test_drawn_requests_have_the_same_answers_and_errors() -> None:
    inputs = st.lists(st.tuples(tensors, parameters), max_size=2)
    with opened_doors() as doors:
        drawn = names, versions, inputs, outputs, parameters, st.text(max_size=3)
        given(st.just(doors), *drawn)(require_same_answers)()


def test_models_are_described_alike() -> None:
    with opened_doors() as doors:
        given(st.just(doors), names, versions)(require_same_descriptions)()


def test_a_call_that_is_refused_after_its_client_left_is_no_defect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "dist_net.serving.grpc")
    with opened_doors() as doors:
        begun, has_left = threading.Event(), threading.Event()
        models = doors.fake.models

        def models_later() -> Any:
            begun.set()
            assert has_left.wait(DEADLINE_S)
            time.sleep(0.2)  # until gRPC's threads have read it; the event loop has not
            return models()

        doors.fake.models = models_later
        message = MESSAGES["ModelReadyRequest"](name="digit").SerializeToString()
        call = doors.channel.unary_unary(f"{CALL}ModelReady").future(message)
        assert begun.wait(DEADLINE_S)
        call.cancel()
        has_left.set()
        doors.over_grpc("ServerLive", MESSAGES["ServerLiveRequest"]())
    assert "client_gone call=ModelReady" in caplog.messages
