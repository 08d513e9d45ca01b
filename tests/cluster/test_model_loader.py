"""The model loader, whatever its sources raise."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image

from dist_net.errors import ModelLoadError
from dist_net.nets.sources import FollowedRun, FoundModel, TrainedRun
from dist_net.serving.model_loader import FOLLOW_EVERY_S, MAX_READ_S, ModelLoader
from dist_net.serving.pool.description import ModelDescription
from dist_net.wire.serving_messages import ModelPrepared, PrepareModel
from dist_net.wire.transport import ServerSocket
from image_runs import write_run


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
def server() -> Iterator[ServerSocket]:
    with ServerSocket(["tcp://127.0.0.1:0"]) as server:
        yield server


@pytest.fixture
def loader(
    server: ServerSocket, run: OddRun, clock: Clock, tmp_path: Path
) -> Iterator[ModelLoader]:
    address = server.contact_addresses[0]
    with ModelLoader(address, {"m": run}, tmp_path, clock=clock) as loader:
        yield loader


def test_an_error_that_nobody_expected_is_an_answer(loader: ModelLoader) -> None:
    assert loader._readers["m"].prepare(3) == ModelPrepared(
        "m", 3, "", "ZeroDivisionError: in the recipe", requested=3
    )


def test_a_run_is_followed_without_being_asked_for_it_and_whatever_it_raises(
    loader: ModelLoader, run: OddRun, clock: Clock
) -> None:
    for _ in range(3):
        loader._readers["m"].follow()
    assert run.reads == 3
    assert loader._readers["m"]._follow_at_s == clock.time_s + 8 * FOLLOW_EVERY_S


class HangingRun(TrainedRun):
    """A run on a file server that is gone until it is ``released``."""

    def __init__(self) -> None:
        self.released = Event()

    def read(self) -> FoundModel:
        self.released.wait()
        raise ModelLoadError("the file server has answered")


def test_a_source_that_hangs_keeps_no_other_model_from_being_read(
    clock: Clock, tmp_path: Path
) -> None:
    hanging = HangingRun()
    run = TrainedRun(write_run(tmp_path / "run"), None, lambda *_: None)
    with ServerSocket(["tcp://127.0.0.1:0"]) as server:
        address = server.contact_addresses[0]

        def load() -> None:
            with ModelLoader(
                address, {"hangs": hanging, "m": run}, tmp_path, clock=clock
            ) as loader:
                loaders.append(loader)
                loader.serve()

        def answer() -> ModelPrepared:
            received = server.receive(60)
            assert received is not None
            assert isinstance(received[1], ModelPrepared)
            return received[1]

        loaders: list[ModelLoader] = []
        thread = Thread(target=load)
        thread.start()
        try:
            received = server.receive(60)
            assert received is not None
            for model in ("hangs", "m"):
                server.send(received[0], PrepareModel(model, 1))
            assert answer()[:2] == ("m", 1)
            clock.time_s += MAX_READ_S + 1
            late = answer()
            assert (late.model, late.requested) == ("hangs", 1)
            assert "takes longer than 300 s" in late.reason
            hanging.released.set()
            assert answer().reason == "the file server has answered"
        finally:
            hanging.released.set()
            loaders[0].stop("the test is over")
            for each in (thread, *loaders[0]._readers.values()):
                each.join()


def test_a_version_that_nobody_asked_for_is_passed_on(
    loader: ModelLoader, server: ServerSocket
) -> None:
    came = ModelPrepared("m", 7, "{}", "")
    loader._read.put(came)
    loader.answer()
    received = server.receive(60)
    assert received is not None
    assert received[1] == came


@pytest.fixture
def folder_run(loader: ModelLoader, tmp_path: Path) -> Path:
    """A run on a folder of images, which the loader knows as "m"."""
    run = write_run(tmp_path / "run")
    loader._readers["m"]._source = TrainedRun(run, None, lambda *_: None)
    return run


def test_images_that_a_run_held_out_go_with_its_model(
    loader: ModelLoader, folder_run: Path
) -> None:
    prepared = loader._readers["m"].prepare(1)
    labels, images = prepared.payloads[::2], prepared.payloads[1::2]
    assert labels == (b"red", b"green", b"blue") * 4
    held_out = np.load(folder_run / "held_out.npy")
    order = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    for place, png in zip(order, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png))), held_out[place])


@pytest.mark.parametrize("damage", ["cut", "empty", "zip", "shape", "type", "labels", "pickle"])
def test_a_run_whose_held_out_images_are_damaged_is_served_without_them(
    loader: ModelLoader, folder_run: Path, damage: str
) -> None:
    file = folder_run / "held_out.npy"
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "empty":
            file.write_bytes(b"")
        case "zip":
            with file.open("wb") as opened:
                np.savez(opened, np.zeros(1))
        case "shape":
            np.save(file, np.zeros((12, 8, 9, 3), np.uint8))
        case "type":
            np.save(file, np.zeros((12, 8, 8, 3), np.float32))
        case "labels":
            (folder_run / "held_out.json").write_text('{"labels": [0, 1, 7]}')
        case "pickle":
            np.save(file, np.array([{}]), allow_pickle=True)
    prepared = loader._readers["m"].prepare(1)
    assert (prepared.reason, prepared.payloads) == ("", ())
    assert ModelDescription.from_json(prepared.description).labels == ("red", "green", "blue")
