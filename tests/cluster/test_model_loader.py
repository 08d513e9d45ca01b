"""The model loader, whatever its sources raise."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_net.cluster.model_loader import FOLLOW_EVERY_S, ModelLoader
from dist_net.models.sources import FollowedRun, FoundModel
from dist_net.wire.serving_messages import ModelPrepared
from dist_net.wire.transport import ServerSocket


class OddRun(FollowedRun):
    """A training run whose server says what is no report, and whose recipe's code is broken."""

    def __init__(self) -> None:
        self.reads = 0

    def version(self) -> int:
        self.reads += 1
        raise ValueError("this is no JSON")

    def read(self) -> FoundModel:
        raise ZeroDivisionError("in the recipe")


class Clock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run() -> OddRun:
    return OddRun()


@pytest.fixture
def loader(run: OddRun, clock: Clock, tmp_path: Path) -> Iterator[ModelLoader]:
    with (
        ServerSocket(["tcp://127.0.0.1:0"]) as server,
        ModelLoader(server.contact_addresses[0], {"m": run}, tmp_path, clock=clock) as loader,
    ):
        yield loader


def test_an_error_that_nobody_expected_is_an_answer(loader: ModelLoader) -> None:
    assert loader._prepare("m", 3) == ModelPrepared(
        "m", 3, "", "ZeroDivisionError: in the recipe", requested=3
    )


def test_a_run_is_followed_without_being_asked_for_it_and_whatever_it_raises(
    loader: ModelLoader, run: OddRun, clock: Clock
) -> None:
    for _ in range(3):
        loader._follow()
        clock.time_s += 4 * FOLLOW_EVERY_S
    assert run.reads == 2
