"""The conformance suite: a correct server passes, and every check fails for a server with faults.

The servers are fakes, except for the last one, which is dist_net's.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from fake_open_inference import EXTENSIONS, JSON_LENGTH, MODELS, FakeReply, Fault, fake_server
from open_inference.__main__ import main
from open_inference.server import Server
from open_inference.suite import CHECKS, FAIL, MUST, NOT_OFFERED, PASS, Outcome, run_checks

# Another module of tests may have registered gRPC's.
HTTP_CHECKS = [each for each in CHECKS if not each.family.startswith("gRPC")]


def outcomes_of(fault: Fault) -> list[Outcome]:
    with fake_server(fault) as address:
        servers = [Server(address, name, extensions=EXTENSIONS) for name in MODELS]
        return [each for server in servers for each in run_checks(server, HTTP_CHECKS)]


def failures(fault: Fault) -> set[str]:
    return {f"{o.family}: {o.name}" for o in outcomes_of(fault) if o.result == FAIL}


def is_infer(reply: FakeReply) -> bool:
    return reply.path.endswith("/infer") and reply.status == 200


def on_infer(change: Any) -> Fault:
    return lambda reply: change(reply) if is_infer(reply) else None


def first_output(change: Any) -> Fault:
    return on_infer(lambda reply: change(reply.content["outputs"][0]))


def at(ending: str, change: Any) -> Fault:
    def fault(reply: FakeReply) -> None:
        if reply.path.endswith(ending) and reply.status == 200:
            change(reply.content)

    return fault


def nothing(reply: FakeReply) -> None:
    reply.status, reply.content, reply.raw = 200, {}, {}


def broken(reply: FakeReply) -> None:
    reply.status, reply.content, reply.raw, reply.headers = 500, {"detail": "x"}, {}, {}
    reply.headers["content-type"] = "text/plain"


def errors_as_text(reply: FakeReply) -> None:
    if reply.status >= 400:
        reply.content = "sorry"


def errors_as_success(reply: FakeReply) -> None:
    if reply.status >= 400:
        reply.status = 200


def errors_as_500(reply: FakeReply) -> None:
    reply.status = 500 if reply.status >= 400 else 200


def swap_raw(reply: FakeReply) -> None:
    reply.raw = dict(reversed(reply.raw.items()))


def classified(change: Any) -> Fault:
    def fault(reply: FakeReply) -> None:
        output = reply.content["outputs"][0]
        if output["datatype"] == "BYTES":
            change(output)

    return on_infer(fault)


def set_item(name: str, value: Any) -> Any:
    return lambda owner: owner.update({name: value})


def scaled(output: dict[str, Any]) -> None:
    if "data" in output and output["datatype"] != "BYTES":
        output["data"] = [3 * each + 1 for each in output["data"]]


# Each fault, and checks of which every one must notice it; none may pass it unnoticed.
FAULTS: dict[str, tuple[Fault, list[str]]] = {
    "a server that is not live": (
        at("health/live", set_item("live", False)),
        ["REST health: a live server: live is true"],
    ),
    "a server that is not ready": (
        at("health/ready", set_item("ready", False)),
        ["REST health: a ready server: ready (in the schema: live) is true"],
    ),
    "another model is ready": (
        at("/ready", lambda content: content.update(name="other") if "name" in content else None),
        ["REST health: a ready model: its name"],
    ),
    "extensions that are a string": (
        at("/v2", set_item("extensions", "binary_tensor_data")),
        ["REST metadata: the server's extensions: an array of strings"],
    ),
    "an output of no known type": (
        at("/pair", lambda content: content["outputs"][1].update(datatype="LONG")),
        ["REST metadata: the model's outputs: known data types"],
    ),
    "two inputs of one name": (
        at("/pair", lambda content: content["inputs"][1].update(name="x")),
        ["REST metadata: the model's inputs: different names"],
    ),
    "a shape of strings": (
        at("/pair", lambda content: content["outputs"][1].update(shape=["N", 2])),
        ["REST metadata: the model's outputs: shapes of integers, -1 if variable"],
    ),
    "errors without the error object": (
        errors_as_text,
        [
            "REST errors: too few elements: the error object",
            "REST errors: an unknown model: the error object",
            "REST metadata: an unknown model: an HTTP error with the error object",
            "binary tensors: a byte too few: the error object",
            "statistics: an unknown model: the error object",
            "model repository: an unknown model is not loaded: the error object",
            "classification: a count that is a string: refused",
        ],
    ),
    "errors with status 500": (
        errors_as_500,
        [
            "REST errors: too few elements: status 4xx",
            "REST errors: an unknown model: status 404",
            "binary tensors: a byte too many: status 4xx",
            "REST errors: GET of the path of inference: status 405",
        ],
    ),
    "errors with status 200": (
        errors_as_success,
        [
            "REST health: an unknown model: not ready",
            "REST errors: JSON cut short: the error object",
            "binary tensors: a header beyond the body: the error object",
        ],
    ),
    "an id in lower case": (
        on_infer(lambda reply: reply.content.update(id=reply.content.get("id", "").lower()[:100])),
        ["REST inference: an id is returned: 200 characters"],
    ),
    "an id for all requests": (
        on_infer(lambda reply: reply.content.update(id="42")),
        [
            "REST inference: an id is returned: a UUID",
            "REST inference: concurrent requests: each has its own id and outputs",
            "binary tensors: raw outputs and an id: the id is returned",
        ],
    ),
    "a version that is a number": (
        on_infer(lambda reply: reply.content.update(model_version=1)),
        [
            "REST inference: a response: model_version, if any, is a string",
            "REST inference: a listed version: it answers",
        ],
    ),
    "the name of another model": (
        on_infer(lambda reply: reply.content.update(model_name="other")),
        ["REST inference: a response: model_name as requested"],
    ),
    "a shape with a string": (
        first_output(lambda output: output["shape"].__setitem__(0, "1")),
        ["REST inference: each output: a shape of integers"],
    ),
    "one element too few": (
        first_output(lambda output: output.get("data", [0]).pop()),
        ["REST inference: each output: as many elements as its shape"],
    ),
    "numbers as strings": (
        first_output(lambda output: output.update(data=[*map(str, output.get("data", "1"))])),
        ["REST inference: each output: elements of its data type"],
    ),
    "data nested in an axis too many": (
        first_output(lambda output: output.update(data=[[output.get("data", [0])]])),
        ["REST inference: each output: data flat, or nested like its shape"],
    ),
    "another data type": (
        first_output(set_item("datatype", "FP64")),
        ["REST inference: each output: the metadata's data type"],
    ),
    "an axis too many": (
        first_output(lambda output: output["shape"].append(1)),
        ["REST inference: each output: the metadata's shape"],
    ),
    "one output for all": (
        on_infer(lambda reply: reply.content["outputs"].append(dict(reply.content["outputs"][0]))),
        ["REST inference: one output by name: only this output"],
    ),
    "a parameter that is an object": (
        on_infer(lambda reply: reply.content.update(parameters={"timing": {}})),
        ["REST inference: parameters of a response: objects of strings, numbers and booleans"],
    ),
    "constant outputs": (
        first_output(
            lambda output: (
                output.update(data=[1.0] * 3 * output["shape"][0])
                if "data" in output and output["name"] == "scores" and output["datatype"] != "BYTES"
                else None
            )
        ),
        ["REST inference: different data: different outputs, in row-major order"],
    ),
    "other values as JSON": (
        first_output(scaled),
        [
            "binary tensors: binary_data_output: the same values as JSON",
            "classification: one class: the greatest value and its index",
        ],
    ),
    "raw outputs in another order": (
        on_infer(swap_raw),
        ["binary tensors: binary_data_output: the same values as JSON"],
    ),
    "a byte after the raw outputs": (
        on_infer(lambda reply: reply.raw and reply.raw.update(more=b"\0")),
        ["binary tensors: binary_data_output: every output is raw"],
    ),
    "a length of JSON that is wrong": (
        on_infer(lambda reply: reply.raw and reply.headers.update({JSON_LENGTH: "7"})),
        ["binary tensors: binary_data of each output: raw"],
    ),
    "classes in ascending order": (
        classified(lambda output: output["data"].sort()),
        ["classification: two classes: two elements, the greater first"],
    ),
    "the same class twice": (
        classified(lambda output: output.update(data=output["data"][:1] * len(output["data"]))),
        ["classification: two classes: different indices"],
    ),
    "classes of one row": (
        classified(lambda output: output.update(shape=[1, len(output["data"])])),
        ["classification: two rows: two classes of each"],
    ),
    "another type in the configuration": (
        at("/config", lambda content: content["input"][0].update(data_type="TYPE_STRING")),
        ["model configuration: input: names and data types of the metadata"],
    ),
    "statistics that stand still": (
        at("/stats", lambda content: content["model_stats"][0].update(inference_count=0)),
        ["statistics: inference_count: grows by one for one row"],
    ),
    "a time in seconds": (
        at(
            "/stats", lambda content: content["model_stats"][0].update(last_inference=1_700_000_000)
        ),
        ["statistics: last_inference: milliseconds since 1970"],
    ),
    "a model that is not in the index": (
        at("/index", lambda content: content.clear()),
        [
            "model repository: the index lists the model",
            "model repository: the model's state is READY",
        ],
    ),
}


def test_a_correct_server_passes_and_every_check_applies_to_one_of_its_models() -> None:
    outcomes = outcomes_of(lambda _: None)
    assert not [each for each in outcomes if each.result == FAIL]
    passed = {(each.family, each.name) for each in outcomes if each.result == PASS}
    assert passed == {(each.family, each.name) for each in HTTP_CHECKS}
    assert len(passed) == len(HTTP_CHECKS) >= 150


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_the_checks_of_its_subject(fault: str) -> None:
    inject, expected = FAULTS[fault]
    assert {*expected} - failures(inject) == set()


def test_every_check_fails_for_a_server_that_is_broken_or_accepts_everything() -> None:
    found = failures(broken) | failures(nothing)
    assert {f"{each.family}: {each.name}" for each in HTTP_CHECKS} - found == set()


def test_the_command_prints_a_table_writes_json_and_reports_failures_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server() as address:
        assert main([address, "--model", "pair"]) == 0
    capsys.readouterr()
    path = tmp_path / "found"
    with fake_server(FAULTS["the name of another model"][0]) as address:
        assert main([address, "--model", "pair", "--json", str(path)]) == 1
    printed = capsys.readouterr().out
    assert '"model_name": "other"' in printed
    assert '"model_name": "pair"' in printed
    found = json.loads(path.read_text())
    assert len(found) == len(HTTP_CHECKS)
    (failed,) = [each for each in found if each["result"] == FAIL]
    assert failed["source"] == "Inference Response JSON Object"
    assert failed["level"] == MUST
    assert NOT_OFFERED in {each["result"] for each in found}
