"""A checkpoint holds a run, survives a crash at any moment, and is refused when it is no good."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dist_net.errors import (
    BadInputError,
    CheckpointError,
    FileWriteError,
    NotACheckpointError,
)
from dist_net.ground import checkpoint as module
from dist_net.ground.checkpoint import (
    DIGEST_KEY,
    FORMAT_KEY,
    FORMAT_VERSION,
    METADATA_FIELDS,
    Checkpoint,
    read_checkpoint,
    read_resumable_checkpoint,
    write_checkpoint,
)
from dist_net.ground.vector import Vector
from dist_net.training.server.run_report import run_report
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.messages import Join
from naming import naming

# Not in the order of the alphabet, which is that of the file.
LAYOUT = (("second/weight", (2, 3)), ("first/bias", (4,)), ("scale", ()))


def a_checkpoint(version: int = 7) -> Checkpoint:
    return Checkpoint(
        recipe="digits",
        recipe_digest="abc",
        layout=LAYOUT,
        version=version,
        settings={"samples": 60, "optimizer": "Momentum(momentum=0.9)"},
        ledger={"remaining": [[0, 32, 60]], "next_epoch": 1},
        counters={"metrics": {"seconds": 1.5}},
        weights=np.arange(11, dtype=np.float32),
        optimizer_state={"velocity": -np.arange(11, dtype=np.float32)},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def test_what_was_written_is_read(path: Path) -> None:
    written = replace(a_checkpoint(), recipe_record={"class_names": ["one", "two"]})
    write_checkpoint(path, written)
    read = read_checkpoint(path)
    for name in METADATA_FIELDS:
        assert getattr(read, name) == getattr(written, name)
    np.testing.assert_array_equal(read.weights, written.weights)
    assert list(read.optimizer_state) == ["velocity"]
    np.testing.assert_array_equal(read.optimizer_state["velocity"], -np.arange(11))
    read.require_layout(LAYOUT)


def test_buffers_are_kept_beside_an_optimizers_state_of_the_parameters_alone(path: Path) -> None:
    state = {"velocity": -np.arange(10, dtype=np.float32)}  # of all but the last array, a buffer
    write_checkpoint(path, replace(a_checkpoint(), optimizer_state=state))
    read = read_checkpoint(path)
    np.testing.assert_array_equal(read.weights, np.arange(11))
    np.testing.assert_array_equal(read.optimizer_state["velocity"], -np.arange(10))


def test_parameters_lie_in_the_file_under_their_own_names_and_shapes(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    tensors = load_file(path)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        **dict(LAYOUT),
        "optimizer/velocity": (11,),
    }
    np.testing.assert_array_equal(tensors["first/bias"], [6, 7, 8, 9])


@pytest.mark.parametrize("layout", [LAYOUT[:2], (*LAYOUT, ("more", (1,))), (("other", (2, 3)),)])
def test_a_checkpoint_of_another_model_is_refused(
    layout: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:
    with pytest.raises(CheckpointError, match=naming("'digits'", "model")):
        a_checkpoint().require_layout(layout)


def test_the_difference_between_two_models_is_named() -> None:
    layout = (LAYOUT[0], ("first/bias", (5,)), LAYOUT[2])
    with pytest.raises(CheckpointError, match=naming("first/bias (4,)", "first/bias (5,)")):
        a_checkpoint().require_layout(layout)


def test_a_checkpoint_cut_short_anywhere_is_refused(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    content = path.read_bytes()
    for length in (9, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=naming(path, "header")):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"# not a checkpoint\n" * 100, bytes(1000)])
def test_another_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(NotACheckpointError, match=naming("checkpoint.safetensors", ".safetensors")):
        read_checkpoint(path)


@pytest.mark.parametrize("metadata", [{"format": "pt"}, None])
def test_a_safetensors_file_of_another_program_is_refused(
    path: Path, metadata: dict[str, str] | None
) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, path, metadata=metadata)
    with pytest.raises(NotACheckpointError, match=naming("checkpoint.safetensors", ".safetensors")):
        read_checkpoint(path)


def rewritten(path: Path, metadata: dict[str, str], without: str = "", **changed: Vector) -> None:
    """Write the file at ``path`` anew with other metadata and tensors, and the digest of those."""
    with safe_open(path, framework="numpy") as file:
        metadata = {**file.metadata(), **metadata}
    tensors = {**load_file(path), **changed}
    tensors.pop(without, None)
    metadata[DIGEST_KEY] = module._digest(metadata, tensors)
    save_file(tensors, path, metadata)


def test_a_checkpoint_of_a_later_format_is_refused(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    rewritten(path, {FORMAT_KEY: json.dumps(FORMAT_VERSION + 1)})
    with pytest.raises(
        CheckpointError,
        match=naming(f"format {FORMAT_VERSION + 1}", FORMAT_VERSION),
    ):
        read_checkpoint(path)


def test_a_checkpoint_of_an_earlier_release_has_no_digest_and_is_read(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    with safe_open(path, framework="numpy") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != DIGEST_KEY}
    save_file(load_file(path), path, metadata | {FORMAT_KEY: "1"})
    assert read_checkpoint(path).version == 7


def test_a_flipped_bit_anywhere_is_noticed(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    content = path.read_bytes()
    for offset in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        with pytest.raises(BadInputError):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"ledger": "{"}, "JSONDecodeError"),
        ({"ledger": "[" * 100_000}, "RecursionError"),
        ({"ledger": "[]"}, "ledger"),
        ({"recipe": "5"}, "recipe"),
        ({"version": "null"}, "version"),
        ({"version": "-3"}, "version"),
        ({"version": "true"}, "version"),
        ({"layout": "[5]"}, "int"),
        ({"layout": '[["scale", [2]]]'}, r"scale \(2,\)"),
        ({FORMAT_KEY: '"2"'}, "format"),
    ],
)
def test_a_checkpoint_with_another_thing_for_a_part_is_refused(
    path: Path, metadata: dict[str, str], names: str
) -> None:
    write_checkpoint(path, a_checkpoint())
    rewritten(path, metadata)
    with pytest.raises(CheckpointError, match=names):
        read_checkpoint(path)


def test_weights_that_are_missing_or_not_finite_are_refused(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    rewritten(path, {}, without="first/bias")
    with pytest.raises(CheckpointError, match=naming("first/bias (4,)")):
        read_checkpoint(path)
    for bad in (np.full(4, np.nan, np.float32), np.zeros(4, np.int32)):
        write_checkpoint(path, a_checkpoint())
        rewritten(path, {}, **{"first/bias": bad})
        with pytest.raises(CheckpointError, match=naming("first/bias", "finite")):
            read_checkpoint(path)


def kept(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


def name_of(version: int) -> str:
    return f"checkpoint-version-{version}.safetensors"


def test_the_last_checkpoints_are_kept(path: Path) -> None:
    previous = None
    for version in (0, 10, 20, 30):
        write_checkpoint(path, a_checkpoint(version), kept=3, previous_version=previous)
        previous = version
    assert kept(path) == {path.name, name_of(20), name_of(10)}
    assert read_checkpoint(path.with_name(name_of(10))).version == 10
    write_checkpoint(path, a_checkpoint(40), kept=1, previous_version=30)
    assert kept(path) == {path.name}


@pytest.mark.parametrize("damage", ["flipped bit", "empty", "missing"])
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    for version in (10, 20, 30):
        write_checkpoint(path, a_checkpoint(version), kept=3, previous_version=version - 10 or None)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(damaged if damage == "flipped bit" else b"")
    with pytest.raises(CheckpointError, match=naming(path)):  # an earlier one is another model
        read_checkpoint(path)
    read = read_resumable_checkpoint(path)
    assert read.version == 20
    assert "version 20, is used" in str(read.damage)
    assert "version 20, is used" in caplog.text
    path.with_name(name_of(20)).write_bytes(damaged)
    assert read_resumable_checkpoint(path).version == 10

    # The server goes on from there: neither the damaged one nor what it has gone back behind stay.
    write_checkpoint(path, a_checkpoint(15), kept=3, previous_version=10)
    assert kept(path) == {path.name, name_of(10)}
    resumed = read_resumable_checkpoint(path)
    assert (resumed.version, resumed.damage) == (15, None)


def test_a_checkpoint_that_is_damaged_with_all_before_it_is_refused(path: Path) -> None:
    for version in (10, 20):
        write_checkpoint(path, a_checkpoint(version), kept=3, previous_version=version - 10 or None)
    for each in path.parent.iterdir():
        each.write_bytes(each.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        read_resumable_checkpoint(path)


def test_a_disk_without_links_keeps_one_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    write_checkpoint(path, a_checkpoint(10), kept=3)
    write_checkpoint(path, a_checkpoint(20), kept=3, previous_version=10)
    assert kept(path) == {path.name}


GARBAGE = [None, True, -3, 0.5, 2**70, float("inf"), "x", [], {}, [[]], [None], {"x": 1}]


def places(part: Any, *place: Any) -> list[tuple[Any, ...]]:
    """The places in a JSON object at which something else may stand."""
    items = list(part.items() if isinstance(part, dict) else enumerate(part or []))
    return [
        found
        for key, value in items
        for found in ([(*place, key)] if not isinstance(value, dict | list) else [])
        or [(*place, key), *places(value, *place, key)]
    ]


def test_a_run_goes_on_from_a_checkpoint_or_refuses_it_whatever_it_holds() -> None:
    settings = RunSettings("line", "abc", (("weight", (3,)),), 64, 2, 8)
    run = RunState(settings, np.zeros(3, np.float32))
    run.metrics.pushes_accepted(8, -1.0, 0, [0, 5], 1.0)
    run.metrics.record(8, 64, 1, 0.1)
    run.metrics.pushes_accepted(8, 1.0, 0, [0, 5], 1.0)
    worker = run.members.join(b"a", Join("a", 1, "", 3), 0.0)
    run.ledger.grant(worker.worker_id, 1, 2)
    whole = run.checkpoint()
    refused = tried = 0
    for part in ("settings", "ledger", "counters"):
        for place in places(getattr(whole, part)):
            for garbage in (*GARBAGE, ...):
                changed = json.loads(json.dumps(getattr(whole, part)))
                inner = changed
                for key in place[:-1]:
                    inner = inner[key]
                if garbage is ...:
                    del inner[place[-1]]
                else:
                    inner[place[-1]] = garbage
                tried += 1
                try:
                    resumed = RunState.resumed(settings, replace(whole, **{part: changed}))
                except BadInputError:
                    refused += 1
                    continue
                json.dumps(run_report(resumed, 0, 1.0))
                resumed.ledger.grant(1, 1, 2)
                resumed.metrics.pushes_accepted(8, 1.0, 0, [0, 5], 1.0)
                resumed.metrics.record(16, 64, 2, 0.1)
                resumed.checkpoint()
    assert refused > tried // 4 > 100


def test_a_missing_checkpoint_and_a_directory_are_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=naming(path, "No such file")):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_checkpoint(path.parent)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write_checkpoint(path, a_checkpoint(version=1))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(FileWriteError, match=naming(path, "No space left")):
        write_checkpoint(path, a_checkpoint(version=2))
    assert read_checkpoint(path).version == 1


def test_the_new_one_is_on_the_disk_before_it_takes_the_old_ones_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(path, a_checkpoint(version=1))
    steps: list[tuple[str, int]] = []
    fsync, replacement = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        steps.append(("fsync", read_checkpoint(path).version))

    def note_replace(source: Path, target: Path) -> None:
        replacement(source, target)
        steps.append(("replace", read_checkpoint(path).version))

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_checkpoint(path, a_checkpoint(version=2))
    assert steps == [("fsync", 1), ("replace", 2), ("fsync", 2)]
    assert list(path.parent.iterdir()) == [path]


def test_a_half_written_one_of_before_does_no_harm(path: Path) -> None:
    path.with_name(f"{path.name}.{os.getpid()}.partial").write_bytes(b"x" * 100_000)
    write_checkpoint(path, replace(a_checkpoint(), version=3))
    assert read_checkpoint(path).version == 3
