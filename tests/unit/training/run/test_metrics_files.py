"""A run's metrics: lines and event files, written in the end although the disk was full."""

import json
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_net.errors import FileWriteError
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.run import metrics_files
from dist_net.training.run.metrics_files import MetricsFiles, crc32c
from naming import naming

TRAIN = [
    {"kind": "train", "samples": 300, "loss": 2.25, "accuracy": 0.5, "epoch": 0.5},
    {"kind": "train", "samples": 70_000, "loss": 1.125, "accuracy": None, "epoch": 1.5},
]
TEST = {"kind": "test", "samples": 70_000, "loss": 1.5, "accuracy": 0.75, "version": 9}


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


@pytest.fixture
def written(tmp_path: Path) -> Path:
    MetricsFiles(RunDirectory(tmp_path), tensorboard=True).append([*TRAIN, TEST])
    return tmp_path / "tensorboard"


def records(file: Path) -> list[bytes]:
    """The contents of a TFRecord file, whose checksums are checked."""
    content, found = file.read_bytes(), []
    while content:
        length, checksum = struct.unpack_from("<QI", content)
        body = content[12 : 12 + length]
        for sum_of, part in ((checksum, content[:8]), (content[12 + length :], body)):
            masked = sum_of if isinstance(sum_of, int) else struct.unpack_from("<I", sum_of)[0]
            rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
            assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc32c(part)
        found.append(body)
        content = content[16 + length :]
    return found


def test_a_record_is_an_event_between_its_checksums(written: Path) -> None:
    (file,) = (written / "test").iterdir()
    version, event = records(file)
    assert version.endswith(b"\x1a\rbrain.Event:2")
    # Field 2, the step: 70,000 as a varint; field 5, the summary; in it a value for each number.
    assert event[9:13] == b"\x10\xf0\xa2\x04"
    assert event[13] == 5 << 3 | 2
    assert b"\x0a\x0b\x0a\x04loss\x15" + struct.pack("<f", 1.5) in event
    assert b"samples" not in event


def test_a_run_that_goes_on_writes_its_files_anew(tmp_path: Path) -> None:
    for _ in range(2):
        MetricsFiles(RunDirectory(tmp_path), tensorboard=True).append(iter(TRAIN))
    (file,) = (tmp_path / "tensorboard" / "train").iterdir()
    assert len(records(file)) == 3


def test_tensorboard_reads_them(written: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="TensorBoard is not installed (the extra `peers` brings it)",
    )
    found = {}
    for kind in ("train", "test"):
        events = accumulator.EventAccumulator(str(written / kind)).Reload()
        for tag in events.Tags()["scalars"]:
            found[kind, tag] = [(each.step, each.value) for each in events.Scalars(tag)]
    assert found == {
        ("train", "loss"): [(300, 2.25), (70_000, 1.125)],
        ("train", "accuracy"): [(300, 0.5)],
        ("train", "epoch"): [(300, 0.5), (70_000, 1.5)],
        ("test", "loss"): [(70_000, 1.5)],
        ("test", "accuracy"): [(70_000, 0.75)],
        ("test", "version"): [(70_000, 9)],
    }


@pytest.fixture
def file_size() -> Iterator[Callable[[int], None]]:
    """Limits the size of the files that this process writes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_run_keeps_its_metrics_until_there_is_room(
    tmp_path: Path, file_size: Callable[[int], None]
) -> None:
    directory = RunDirectory(tmp_path)
    files = MetricsFiles(directory)
    records = [{"kind": "train", "samples": number} for number in range(3)]
    line_bytes = len(json.dumps(records[0])) + 1
    file_size(line_bytes + 4)
    for record in records:
        files.append([record])
    assert files.error is not None
    assert "metrics.jsonl cannot be written: File too large; expected" in files.error
    assert directory.metrics.stat().st_size == line_bytes + 4
    assert directory.read_metrics() == records[:1]
    file_size(resource.RLIM_INFINITY)
    files.append([])
    assert files.error is None
    assert directory.read_metrics() == records


@pytest.mark.parametrize("torn", ['{"kind": "tr', json.dumps(TRAIN[0])[:-1], "\0\0", "{"])
def test_records_follow_a_line_within_which_a_process_was_killed(tmp_path: Path, torn: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.metrics.write_text(torn)
    assert directory.read_metrics() == []
    for record in TRAIN:
        MetricsFiles(directory).append([record])
    assert directory.read_metrics() == TRAIN


def test_one_file_that_cannot_be_written_keeps_no_other_waiting(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    files = MetricsFiles(directory, tensorboard=True)
    directory.metrics.mkdir()
    files.append(TRAIN)
    assert files.error is not None
    (file,) = (tmp_path / "tensorboard" / "train").iterdir()
    assert len(records(file)) == 3


def test_too_much_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = MetricsFiles(RunDirectory(tmp_path / "nowhere"))
    files.append([TEST])
    monkeypatch.setattr(metrics_files, "MAX_UNWRITTEN_BYTES", 10)
    with pytest.raises(FileWriteError, match=naming("metrics.jsonl")):
        files.append([])
