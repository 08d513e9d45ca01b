"""A checkpoint holds a run, survives a crash at any moment, and is refused when it is no good."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dist_net.errors import (
    CheckpointDamagedError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointMissingError,
    CheckpointWriteError,
    NotACheckpointError,
)
from dist_net.parameter_server.checkpoint import (
    FORMAT_KEY,
    FORMAT_VERSION,
    METADATA_FIELDS,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)

# Not in the order of the alphabet, which is that of the file.
LAYOUT = (("second/weight", (2, 3)), ("first/bias", (4,)), ("scale", ()))


def a_checkpoint(version: int = 7) -> Checkpoint:
    return Checkpoint(
        recipe="digits",
        recipe_digest="abc",
        layout=LAYOUT,
        version=version,
        settings={"samples": 60, "optimizer": "Momentum(momentum=0.9)"},
        ledger={"remaining": [[0, 32, 60]], "next_epoch": 1, "next_lease_id": 2},
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
    with pytest.raises(CheckpointMismatchError, match="another model"):
        a_checkpoint().require_layout(layout)


def test_the_difference_between_two_models_is_named() -> None:
    layout = (LAYOUT[0], ("first/bias", (5,)), LAYOUT[2])
    with pytest.raises(CheckpointMismatchError, match=r"bias \(4,\), expected first/bias \(5,\)"):
        a_checkpoint().require_layout(layout)


def test_a_checkpoint_cut_short_anywhere_is_refused(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    content = path.read_bytes()
    for length in (9, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointDamagedError, match="cut short"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"# not a checkpoint\n" * 100, bytes(1000)])
def test_another_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(NotACheckpointError, match="is not a checkpoint"):
        read_checkpoint(path)


def test_a_safetensors_file_of_somebody_else_is_refused(path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, path, metadata={"format": "pt"})
    with pytest.raises(NotACheckpointError, match="is not a checkpoint"):
        read_checkpoint(path)


def rewritten(path: Path, metadata: dict[str, str], without: str = "") -> None:
    """Write the file at ``path`` anew with some metadata replaced and a tensor left out."""
    with safe_open(path, framework="numpy") as file:
        metadata = {**file.metadata(), **metadata}
    tensors = load_file(path)
    tensors.pop(without, None)
    save_file(tensors, path, metadata)


def test_a_checkpoint_of_a_later_format_is_refused(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    rewritten(path, {FORMAT_KEY: json.dumps(FORMAT_VERSION + 1)})
    with pytest.raises(CheckpointFormatError, match=f"format {FORMAT_VERSION + 1}.*upgrade"):
        read_checkpoint(path)


def test_a_checkpoint_without_one_of_its_parts_is_refused(path: Path) -> None:
    write_checkpoint(path, a_checkpoint())
    rewritten(path, {}, without="first/bias")
    with pytest.raises(CheckpointDamagedError, match=r"does not hold first/bias \(4,\)"):
        read_checkpoint(path)
    for name, text in (("ledger", "{"), ("recipe", "5")):
        write_checkpoint(path, a_checkpoint())
        rewritten(path, {name: text})
        with pytest.raises(CheckpointDamagedError, match=name):
            read_checkpoint(path)


def test_a_missing_checkpoint_and_a_directory_are_refused(path: Path) -> None:
    with pytest.raises(CheckpointMissingError, match="No such file"):
        read_checkpoint(path)
    with pytest.raises(CheckpointMissingError, match="directory"):
        read_checkpoint(path.parent)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write_checkpoint(path, a_checkpoint(version=1))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(CheckpointWriteError, match="No space left"):
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
