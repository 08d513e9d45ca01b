"""A run's directory is one process's at a time, and what a killed one left in it is removed."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from dist_net.errors import RunDirectoryError
from dist_net.models.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "digits", datetime(2026, 11, 25))


def test_a_second_run_in_a_directory_is_refused_and_told_whose_it_is(
    directory: RunDirectory,
) -> None:
    again = RunDirectory(directory.path)
    with (
        directory.locked(),
        pytest.raises(RunDirectoryError, match=rf"in use by process {os.getpid()} on \S+; "),
        again.locked(patience_s=0.1),
    ):
        pass
    with again.locked():
        pass


def test_who_is_at_a_run_is_said_rather_than_that_there_is_one(directory: RunDirectory) -> None:
    directory.append_metrics([{"kind": "test"}])
    with directory.locked(), pytest.raises(RunDirectoryError, match=f"process {os.getpid()}"):
        RunDirectory.create(directory.path, "digits", datetime(2026, 11, 25))
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        RunDirectory.create(directory.path, "digits", datetime(2026, 11, 25))


def test_a_child_that_inherits_the_lock_holds_it_when_its_parent_is_gone(
    directory: RunDirectory,
) -> None:
    with directory.locked():
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=directory.lock_descriptors,
        )
    with child, pytest.raises(RunDirectoryError, match="in use"), directory.locked():
        pass
    with directory.locked():
        pass
