"""Model readers with sources that fail, hang or crash. Real processes read them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import msgpack
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from PIL import Image

from dist_net.nets.sources.followed_run import FollowedRun
from dist_net.nets.sources.found_model import FoundModel
from dist_net.processes.fork_server import ForkingProcesses
from dist_net.serving.gateway.pool_processes import MAX_READ_S, PoolSources
from dist_net.serving.model_reading import ModelReader, answer_file
from dist_net.serving.pool.description import ModelDescription
from dist_net.wire.codec import encode
from dist_net.wire.serving_messages import ModelPrepared
from foreign_files import graph, sum_and_product, tensor, written
from image_runs import write_run
from reading_models import DEADLINE_S, Readers, arrays, forking, reading


class OddRun(FollowedRun):
    """A training run whose server says what is no report, and whose recipe's code is broken."""

    def __init__(self) -> None:
        self.reads = 0

    def version(self) -> int:
        self.reads += 1
        raise ValueError("this is no JSON")

    def read(self) -> FoundModel:
        raise ZeroDivisionError("in the recipe")


Read = Callable[..., Readers]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkingProcesses]:
    with forking(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture
def read(forks: ForkingProcesses, tmp_path: Path) -> Iterator[Read]:
    """Read models from sources by name."""
    directory = tmp_path / "prepared"
    directory.mkdir()
    with ExitStack() as stack:
        yield lambda **sources: stack.enter_context(reading(forks, directory, sources))


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


def test_an_error_that_nobody_expected_is_an_answer(tmp_path: Path) -> None:
    reported: list[ModelPrepared] = []
    ModelReader("m", OddRun(), tmp_path, reported.append).prepare(3)
    assert reported == [ModelPrepared("m", 3, "", "ZeroDivisionError: in the recipe", requested=3)]


def test_a_run_is_followed_whatever_it_raises(tmp_path: Path) -> None:
    run, reported = OddRun(), list[ModelPrepared]()
    reader = ModelReader("m", run, tmp_path, reported.append)
    pauses_s = [1.0]
    for _ in range(6):
        pauses_s.append(reader.followed(pauses_s[-1]))
    assert pauses_s == [1, 2, 4, 8, 16, 30, 30]
    assert (run.reads, reported) == (6, [])


@pytest.fixture
def hanging(tmp_path: Path) -> str:
    """A source that hangs until its labels are written."""
    file = written(sum_and_product(), tmp_path / "hangs.onnx")
    os.mkfifo(tmp_path / "labels")  # nobody writes to it
    return f"{file},labels={tmp_path / 'labels'}"


@pytest.fixture
def good(tmp_path: Path) -> str:
    return str(written(sum_and_product(), tmp_path / "m.onnx"))


@pytest.mark.thorough
def test_a_source_that_hangs_keeps_no_other_model_from_being_read(
    read: Read, hanging: str, good: str, tmp_path: Path
) -> None:
    readers = read(hangs=hanging, m=good)
    readers.requests("hangs", 1)
    assert not readers.answer("m", 1).reason
    readers.time_s += MAX_READ_S + 1
    late = readers.hears()
    assert (late.model, late.requested) == ("hangs", 1)
    assert "took longer than 300 s" in late.reason
    (tmp_path / "labels").unlink()
    (tmp_path / "labels").write_text("a\nb\nc")
    assert not readers.answer("hangs", 2).reason


@pytest.mark.thorough
def test_a_newer_request_ends_the_process_of_an_older_one(read: Read, tmp_path: Path) -> None:
    file = written(endless(), tmp_path / "m.onnx")
    readers = read(m=str(file))
    readers.requests("m", 1)
    busy = readers.process_of("m")
    written(sum_and_product(), file)
    assert not readers.answer("m", 2).reason
    assert not Path(f"/proc/{busy}").exists()


def test_a_file_that_ends_its_process_ends_no_other(read: Read, hanging: str, good: str) -> None:
    readers = read(bad=hanging, m=good)
    for version in (1, 2):
        readers.requests("bad", version)
        os.kill(readers.process_of("bad"), signal.SIGKILL)  # as the kernel does without memory
        answer = readers.hears()
        assert (answer.model, answer.requested) == ("bad", version)
        assert "SIGKILL" in answer.reason
    assert not readers.answer("m", 1).reason


@pytest.mark.thorough
@pytest.mark.parametrize(
    "kind", ["bytes", "no message", "no frames", "deep JSON", "pipe", "directory"]
)
def test_an_answer_of_a_process_that_its_file_controls_is_refused(
    read: Read, hanging: str, good: str, kind: str, tmp_path: Path
) -> None:
    readers = read(bad=hanging, m=good)
    readers.requests("bad", 1)
    process_id = readers.process_of("bad")
    answer = answer_file(tmp_path / "prepared", "bad")
    match kind:
        case "bytes":
            answer.write_bytes(b"\xc1")
        case "no message":
            answer.write_bytes(b"\x91\xc4\x01a")
        case "no frames":
            answer.write_bytes(msgpack.packb([1]))
        case "deep JSON":
            frames = encode(ModelPrepared("bad", 1, 100_000 * "[", "", 1, False))
            answer.write_bytes(msgpack.packb([bytes(each) for each in frames]))
        case "pipe":
            os.mkfifo(answer)
        case "directory":
            answer.mkdir()
    assert "expected" in readers.hears().reason
    while readers.readers._readings:
        readers.poll()
    assert not Path(f"/proc/{process_id}").exists()
    assert not readers.answer("m", 1).reason


class Unborn:
    """Stands in for a process that the fork server, which still starts, has not forked."""

    process_id, exit_code = -1, None


def test_the_time_to_read_begins_when_the_process_does(tmp_path: Path) -> None:
    sources = PoolSources({"m": ()}, (), tmp_path)
    readers = Readers(SimpleNamespace(start=lambda _: Unborn(), receive=print), sources)  # type: ignore[arg-type]
    readers.requests("m", 1)
    for _ in range(3):
        readers.poll()
        readers.time_s += MAX_READ_S
    assert readers.reported == []


def test_a_source_that_is_gone_says_so(read: Read, good: str) -> None:
    readers = read(m=good)
    Path(good).unlink()
    answer = readers.answer("m", 1)
    assert "no model" in answer.reason
    assert answer.is_bad_input


def test_a_file_is_removed_once_no_version_uses_it(read: Read, good: str) -> None:
    readers = read(m=good)
    first, again = (arrays(readers.answer("m", version)) for version in (1, 2))
    assert first == again
    for version in range(3, 8):  # however many came later
        written(sum_and_product(opset=10 + version), Path(good))
        last = arrays(readers.answer("m", version))
    readers.removes("m", 2)
    assert arrays(readers.answer("m", 8)) == last
    assert first.exists()
    readers.removes("m", 1)
    readers.removes("m", 7)
    assert arrays(readers.answer("m", 9)) == last
    assert not first.exists()
    assert last.exists()
    last.unlink()
    for version in (8, 9):
        readers.removes("m", version)


def test_a_model_is_read_again_if_its_file_was_removed_before_the_answer_came(
    read: Read, good: str, tmp_path: Path
) -> None:
    readers = read(m=good)
    readers.answer("m", 1)
    while readers.readers._readings:
        readers.poll()
    readers.requests("m", 2)
    readers.process_of("m")
    until_s = time.monotonic() + DEADLINE_S
    while not (answer_file(tmp_path / "prepared", "m").exists() or readers.reported):
        assert time.monotonic() < until_s
    readers.removes("m", 1)
    assert arrays(readers.hears()).exists()


LIMITED = """
import os, time
from dist_net.serving.model_reading import limit_process
while time.process_time() < 1.2:
    pass  # imports on a slow machine take longer than the limit
limit_process(64 << 20, 1, 64)
"""


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("bytearray(16 << 20)", 0),
        ("bytearray(256 << 20)", "MemoryError"),
        ("[os.dup(0) for _ in range(100)]", "Too many open files"),
        ("while True: pass", -signal.SIGXCPU),
    ],
)
def test_memory_open_files_and_time_are_limited(code: str, end: int | str) -> None:
    command = [sys.executable, "-c", LIMITED + code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if isinstance(end, str):
        assert end in ended.stderr
    else:
        assert ended.returncode in (end, -signal.SIGKILL if end else 0)


@pytest.fixture
def folder_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_images_that_a_run_held_out_go_with_its_model(read: Read, folder_run: Path) -> None:
    prepared = read(m=str(folder_run)).answer("m", 1)
    labels, images = prepared.payloads[::2], prepared.payloads[1::2]
    assert labels == (b"red", b"green", b"blue") * 4
    held_out = np.load(folder_run / "held_out.npy")
    order = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    for place, png in zip(order, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png))), held_out[place])


@pytest.mark.parametrize("damage", ["cut", "empty", "zip", "shape", "type", "labels", "pickle"])
def test_a_run_whose_held_out_images_are_damaged_is_served_without_them(
    read: Read, folder_run: Path, damage: str
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
    prepared = read(m=str(folder_run)).answer("m", 1)
    assert (prepared.reason, prepared.payloads) == ("", ())
    assert ModelDescription.from_json(prepared.description).labels == ("red", "green", "blue")
