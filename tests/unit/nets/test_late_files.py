"""What a full disk refuses is appended later, whole and in order."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_net.nets import late_files
from dist_net.nets.late_files import LateFiles
from dist_net.nets.run_directory import RunDirectory


@pytest.fixture
def file_size() -> Iterator[Callable[[int], None]]:
    """Limits the size of the files that this process writes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size_bytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_that_is_cut_by_a_full_disk_is_completed_when_there_is_room(
    tmp_path: Path, file_size: Callable[[int], None]
) -> None:
    path, files = tmp_path / "lines", LateFiles()
    file_size(15)
    for line in (b"0123456789\n", b"abcdefghij\n", b"last\n"):
        files.append(path, line)
        files.write()
    assert files.error is not None
    assert path.read_bytes() == b"0123456789\nabcd"
    file_size(resource.RLIM_INFINITY)
    files.write()
    assert files.error is None
    assert path.read_bytes() == b"0123456789\nabcdefghij\nlast\n"


def test_one_file_that_cannot_be_written_keeps_no_other_waiting(tmp_path: Path) -> None:
    files = LateFiles()
    files.append(tmp_path / "no" / "file", b"a")
    files.append(tmp_path / "file", b"b")
    files.write()
    assert files.error is not None
    assert (tmp_path / "file").read_bytes() == b"b"


def test_too_much_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_files, "MAX_UNWRITTEN_BYTES", 10)
    files = LateFiles()
    files.append(tmp_path / "no" / "file", b"0123456789")
    assert not files.is_given_up
    files.append(tmp_path / "no" / "file", b"a")
    assert files.is_given_up


def test_a_run_keeps_its_metrics_until_there_is_room(
    tmp_path: Path, file_size: Callable[[int], None]
) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.make()
    records = [{"kind": "train", "samples": number} for number in range(3)]
    file_size(40)
    for record in records:
        directory.append_metrics([record])
    assert directory.metrics_error is not None
    assert "metrics.jsonl cannot be written: File too large; expected" in directory.metrics_error
    assert directory.read_metrics() == records[:1]
    file_size(resource.RLIM_INFINITY)
    directory.append_metrics([])
    assert directory.metrics_error is None
    assert directory.read_metrics() == records
