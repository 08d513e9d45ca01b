"""The model loader with sources that fail, hang or crash. Real processes read them."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from PIL import Image

from dist_net.nets.onnx_gate import PixelOptions
from dist_net.nets.sources import FollowedRun, FoundModel, ModelSource, OnnxFile, TrainedRun
from dist_net.serving.model_loader import MAX_READ_S, ModelLoader
from dist_net.serving.model_reading import ModelReader
from dist_net.serving.pool.description import ModelDescription
from dist_net.wire.serving_messages import Drop, ModelPrepared, PrepareModel
from dist_net.wire.transport import ServerSocket
from foreign_files import graph, sum_and_product, tensor, written
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


class CrashingFile(OnnxFile):
    """A file that ends the process that reads it, as the kernel does without memory."""

    def read(self) -> FoundModel:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Clock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s


class Gateway:
    """The gateway's side of a loader that runs in a thread."""

    def __init__(self, server: ServerSocket, loader: ModelLoader, clock: Clock) -> None:
        self._server = server
        self.loader = loader
        self.clock = clock
        joined = server.receive(60)
        assert joined is not None
        self._node = joined[0]

    def requests(self, model: str, version: int) -> None:
        self._server.send(self._node, PrepareModel(model, version))

    def drops(self, model: str, version: int) -> None:
        self._server.send(self._node, Drop(model, version))

    def hears(self) -> ModelPrepared:
        received = self._server.receive(60)
        assert received is not None
        assert isinstance(received[1], ModelPrepared)
        return received[1]

    def answer(self, model: str, version: int) -> ModelPrepared:
        self.requests(model, version)
        answer = self.hears()
        assert (answer.model, answer.requested) == (model, version)
        return answer


Serve = Callable[..., Gateway]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a loader with sources by name."""
    with ExitStack() as stack:

        def start(**sources: ModelSource) -> Gateway:
            server = stack.enter_context(ServerSocket(["tcp://127.0.0.1:0"]))
            clock = Clock()
            address = server.contact_addresses[0]
            loader = ModelLoader(address, sources, tmp_path / "prepared", clock=clock)
            stack.enter_context(loader)
            thread = Thread(target=loader.serve)
            thread.start()
            stack.callback(thread.join)
            stack.callback(loader.stop, "the test is over")
            return Gateway(server, loader, clock)

        yield start


def onnx_file(path: Path, model: ModelProto) -> OnnxFile:
    return OnnxFile(written(model, path), None, PixelOptions())


def endless() -> ModelProto:
    """A loop of 2**62 turns."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Sin", ["before"], ["after"]),
        ],
        "body",
        [
            tensor("turn", [], TensorProto.INT64),
            tensor("go", [], TensorProto.BOOL),
            tensor("before", ["N", 1]),
        ],
        [tensor("goes", [], TensorProto.BOOL), tensor("after", ["N", 1])],
    )
    loop = helper.make_node("Loop", ["turns", "true", "x"], ["y"], body=body)
    turns, true = np.int64(2**62), np.bool_(True)
    return graph([loop], [tensor("x", ["N", 1])], [tensor("y", ["N", 1])], turns=turns, true=true)


def test_an_error_that_nobody_expected_is_an_answer(serve: Serve) -> None:
    gateway = serve(m=OddRun())
    expected = ModelPrepared("m", 3, "", "ZeroDivisionError: in the recipe", requested=3)
    assert gateway.answer("m", 3) == expected


def test_a_run_is_followed_whatever_it_raises(tmp_path: Path) -> None:
    run, reported = OddRun(), list[ModelPrepared]()
    reader = ModelReader("m", run, tmp_path, reported.append)
    pauses_s = [1.0]
    for _ in range(6):
        pauses_s.append(reader.followed(pauses_s[-1]))
    assert pauses_s == [1, 2, 4, 8, 16, 30, 30]
    assert (run.reads, reported) == (6, [])


def test_a_source_that_hangs_keeps_no_other_model_from_being_read(
    serve: Serve, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "labels")  # nobody writes to it
    hanging = onnx_file(tmp_path / "hangs.onnx", sum_and_product())
    hanging = OnnxFile(hanging.path, tmp_path / "labels", PixelOptions())
    gateway = serve(hangs=hanging, m=onnx_file(tmp_path / "m.onnx", sum_and_product()))
    gateway.requests("hangs", 1)
    assert not gateway.answer("m", 1).reason
    gateway.clock.time_s += MAX_READ_S + 1
    late = gateway.hears()
    assert (late.model, late.requested) == ("hangs", 1)
    assert "took longer than 300 s" in late.reason
    (tmp_path / "labels").unlink()
    (tmp_path / "labels").write_text("a\nb\nc")
    assert not gateway.answer("hangs", 2).reason


def test_a_newer_request_ends_the_process_of_an_older_one(serve: Serve, tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx", endless())
    gateway = serve(m=file)
    gateway.requests("m", 1)
    busy = eventually_reading(gateway)
    onnx_file(file.path, sum_and_product())
    assert not gateway.answer("m", 2).reason
    assert not Path(f"/proc/{busy}").exists()


def eventually_reading(gateway: Gateway) -> int:
    """Return the id of the process that reads "m", once it has been forked."""
    while "m" not in gateway.loader._readings:
        pass
    return gateway.loader._readings["m"].process.process_id


def test_a_file_that_ends_its_process_ends_no_other(serve: Serve, tmp_path: Path) -> None:
    good = onnx_file(tmp_path / "m.onnx", sum_and_product())
    gateway = serve(bad=CrashingFile(good.path, None, PixelOptions()), m=good)
    for version in (1, 2):
        assert "SIGKILL" in gateway.answer("bad", version).reason
    assert not gateway.answer("m", 1).reason


def test_a_file_is_removed_once_no_version_uses_it(serve: Serve, tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx", sum_and_product())
    gateway = serve(m=file)

    def arrays(answer: ModelPrepared) -> Path:
        return Path(ModelDescription.from_json(answer.description).arrays_path)

    first, again = (arrays(gateway.answer("m", version)) for version in (1, 2))
    assert first == again
    for version in range(3, 8):  # however many came later
        onnx_file(file.path, sum_and_product(opset=10 + version))
        last = arrays(gateway.answer("m", version))
    gateway.drops("m", 2)
    assert arrays(gateway.answer("m", 8)) == last
    assert first.exists()
    gateway.drops("m", 1)
    gateway.drops("m", 7)
    assert arrays(gateway.answer("m", 9)) == last
    assert not first.exists()
    assert last.exists()


@pytest.fixture
def folder_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_images_that_a_run_held_out_go_with_its_model(serve: Serve, folder_run: Path) -> None:
    prepared = serve(m=TrainedRun(folder_run, None, lambda *_: None)).answer("m", 1)
    labels, images = prepared.payloads[::2], prepared.payloads[1::2]
    assert labels == (b"red", b"green", b"blue") * 4
    held_out = np.load(folder_run / "held_out.npy")
    order = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    for place, png in zip(order, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png))), held_out[place])


@pytest.mark.parametrize("damage", ["cut", "empty", "zip", "shape", "type", "labels", "pickle"])
def test_a_run_whose_held_out_images_are_damaged_is_served_without_them(
    serve: Serve, folder_run: Path, damage: str
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
    prepared = serve(m=TrainedRun(folder_run, None, lambda *_: None)).answer("m", 1)
    assert (prepared.reason, prepared.payloads) == ("", ())
    assert ModelDescription.from_json(prepared.description).labels == ("red", "green", "blue")
