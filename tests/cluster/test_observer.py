"""What an observer makes of a server's answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from dist_net.errors import NoAnswerError, ProtocolError, RecipeError
from dist_net.nets import observer as observer_module
from dist_net.nets.observer import Observer, recipe_at, value_in
from dist_net.nets.recipes.image_recipe import IMAGES
from dist_net.wire.messages import Refuse, Snapshot, StatusReport, StatusRequest
from dist_net.wire.transport import ServerSocket
from naming import naming


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "its report has no 'version'"),
    ],
)
def test_a_report_that_is_none_is_refused(report: str, reason: str) -> None:
    with ServerSocket(["tcp://127.0.0.1:0"]) as server:

        def answer(_: float) -> None:
            received = server.receive(0.0)
            if received is not None:
                node, request = received
                assert isinstance(request, StatusRequest)
                server.send(node, StatusReport(report))

        address = server.contact_addresses[0]
        with (
            Observer(address, while_waiting=answer) as observer,
            pytest.raises(ProtocolError, match=reason),
        ):
            value_in(observer.status(), "version", address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "ipc://@nobody"])
def test_a_run_that_has_ended_is_not_waited_for(address: str) -> None:
    with (
        Observer(address, timeout_s=1e6) as observer,
        pytest.raises(
            NoAnswerError, match=naming(address, "no server listens on it", "the server has ended")
        ),
    ):
        observer.status()


def test_an_observer_asks_again_for_a_snapshot_that_the_server_cannot_send_yet() -> None:
    weights = np.ones(3, np.float32)
    answers = [Refuse("the last one is still on its way", may_rejoin=True), Snapshot(1, 2, weights)]
    with ServerSocket(["tcp://127.0.0.1:0"]) as server:

        def answer(_: float) -> None:
            if (received := server.receive(0.0)) is not None:
                server.send(received[0], answers.pop(0))

        with Observer(server.contact_addresses[0], while_waiting=answer) as observer:
            assert observer.snapshot().version == 1
    assert not answers


def test_a_server_is_silent_since_the_request_and_not_while_its_observer_was_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now: list[float] = [0.0]
    waited: list[float] = []
    monkeypatch.setattr(observer_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with ServerSocket(["tcp://127.0.0.1:0"]) as server:

        def answer(waited_s: float) -> None:
            waited.append(waited_s)
            if (received := server.receive(0.0)) is not None:
                server.send(received[0], StatusReport("{}"))

        with Observer(server.contact_addresses[0], while_waiting=answer) as observer:
            observer.status()
            now[0] += 60  # an evaluation
            observer.status()
    assert set(waited) == {0.0}


def test_a_worker_from_elsewhere_is_told_that_a_folder_of_images_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Observer, "status", lambda *_: {"recipe": IMAGES})
    with pytest.raises(RecipeError, match=naming("tcp://127.0.0.1:1", "dist-net join")):
        recipe_at("tcp://127.0.0.1:1", None, 1.0)
