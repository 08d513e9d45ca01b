"""Files that appear whole, and what becomes of those that were left half written."""

import fcntl
from pathlib import Path

import pytest

from dist_net.ground.files import replacing


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "weights[1]"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert files_in(tmp_path) == ["weights[1]"]


def test_nothing_is_left_of_a_file_whose_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as partial:
        partial.with_name("nothing").rename(partial)
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["weights"]


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(
    tmp_path: Path,
) -> None:
    abandoned, written, other = (
        tmp_path / f"{name}.partial" for name in ("weights[1].1", "weights[1].2", "weights.3")
    )
    for each in (abandoned, other):
        each.write_text("half")
    with written.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with replacing(tmp_path / "weights[1]") as partial:
            partial.write_text("new")
    assert files_in(tmp_path) == [other.name, "weights[1]", written.name]


def test_a_file_that_is_being_written_is_not_removed_by_one_who_writes_it_too(
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights"
    with replacing(path) as partial:
        partial.write_text("first")
        first = partial.rename(tmp_path / "weights.1.partial")  # as another process would call it
        with replacing(path) as second:
            second.write_text("second")
        first.rename(partial)
    assert path.read_text() == "first"
