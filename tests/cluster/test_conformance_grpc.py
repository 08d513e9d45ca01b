"""The gRPC part of the conformance suite: a correct fake passes, and every check can fail."""

from typing import Any

import pytest

pytest.importorskip("grpc", reason="grpcio is not installed")

import grpc

from fake_open_inference import MODELS, fake_server
from fake_open_inference_grpc import GrpcFault, fake_grpc_server
from open_inference.grpc_checks import GrpcDoor
from open_inference.server import Server
from open_inference.suite import CHECKS, FAIL, PASS, Outcome, run_checks

GRPC_CHECKS = [each for each in CHECKS if each.family.startswith("gRPC")]


def outcomes_of(fault: GrpcFault) -> list[Outcome]:
    with fake_server() as rest, fake_grpc_server(fault) as address:
        door = GrpcDoor(address)
        try:
            servers = [Server(rest, name, grpc=door) for name in MODELS]
            return [each for server in servers for each in run_checks(server, GRPC_CHECKS)]
        finally:
            door.close()


def failures(fault: GrpcFault) -> set[str]:
    return {f"{o.family}: {o.name}" for o in outcomes_of(fault) if o.result == FAIL}


def on(call: str, change: Any) -> GrpcFault:
    """Return a fault that changes the responses of one call."""
    return lambda name, _, response: change(response) and None if name == call else None


def everything_fails(*_: object) -> grpc.StatusCode:
    return grpc.StatusCode.INTERNAL


def accepts_everything(name: str, _: object, response: Any) -> grpc.StatusCode:
    if name in ("ModelReady", "ModelMetadata", "ModelInfer"):
        response.Clear()
    if name == "ModelReady":
        response.ready = True
    return grpc.StatusCode.OK


FAULTS: dict[str, tuple[GrpcFault, list[str]]] = {
    "not live": (
        on("ServerLive", lambda response: response.Clear()),
        ["gRPC health: a live server: live is true"],
    ),
    "another name": (
        on("ServerMetadata", lambda response: setattr(response, "name", "other")),
        ["gRPC metadata: the server's name: as over HTTP"],
    ),
    "other shapes": (
        on("ModelMetadata", lambda response: [o.shape.append(1) for o in response.inputs]),
        ["gRPC metadata: the model's inputs: names, types and shapes as over HTTP"],
    ),
    "no id": (
        on("ModelInfer", lambda response: response.ClearField("id")),
        [
            "gRPC inference: an id is returned: digits",
            "gRPC inference: concurrent calls: each has its own id and outputs",
        ],
    ),
    "raw outputs that are too short": (
        on(
            "ModelInfer",
            lambda response: (
                response.raw_output_contents
                and response.raw_output_contents.append(response.raw_output_contents.pop()[:-4])
            ),
        ),
        [
            "gRPC inference: raw outputs: sizes that follow from shapes and data types",
            "gRPC inference: raw contents: the outputs as over HTTP",
            "gRPC errors: after a broken call: a valid one is answered",
        ],
    ),
    "raw and typed outputs": (
        on(
            "ModelInfer",
            lambda response: (
                response.outputs[0].contents.fp32_contents.append(1.0) if response.outputs else None
            ),
        ),
        [
            "gRPC inference: raw outputs: as many as outputs, and no typed contents beside them",
        ],
    ),
    "no messages of errors": (
        on("ModelStreamInfer", lambda response: response.ClearField("error_message")),
        ["gRPC inference: a broken request in a stream: its error_message"],
    ),
}


def test_a_correct_server_passes_and_every_check_applies_to_one_of_its_models() -> None:
    outcomes = outcomes_of(lambda *_: None)
    assert not [each for each in outcomes if each.result == FAIL]
    assert {each.name for each in outcomes if each.result == PASS} == {o.name for o in GRPC_CHECKS}
    assert len(GRPC_CHECKS) > 50


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_the_checks_of_its_subject(fault: str) -> None:
    inject, expected = FAULTS[fault]
    assert {*expected} - failures(inject) == set()


def test_every_check_fails_for_a_server_that_fails_or_accepts_everything() -> None:
    found = failures(everything_fails) | failures(accepts_everything)
    assert {f"{each.family}: {each.name}" for each in GRPC_CHECKS} - found == set()
