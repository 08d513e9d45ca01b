"""What processes leave behind, and who removes it."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_net.errors import FileWriteError
from dist_net.processes.own_directory import (
    LOGS_KEPT,
    announce,
    announced_keys,
    log_directory,
    temporary_directory,
)
from dist_net.wire.address import listen_address

SCRIPT = """
import signal, sys, tempfile
from pathlib import Path
from dist_net.processes.own_directory import {name}
tempfile.tempdir = sys.argv[1]
with {call} as directory:
    (directory / "left.log").write_text("its last words")
    print(directory, flush=True)
    sys.stdin.read()
"""
TEMPORARY = SCRIPT.format(name="temporary_directory", call="temporary_directory()")
LOGS = SCRIPT.format(name="log_directory", call="log_directory(Path(sys.argv[1]), 'pool-')")


@contextmanager
def running(script: str, parent: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process with such a directory, which is killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip()), process
        process.send_signal(signal.SIGKILL)


def test_what_a_killed_process_left_is_removed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreign = tmp_path / "dist-net-other"  # nobody ever locked it
    foreign.mkdir()
    with running(TEMPORARY, tmp_path) as (used, _):
        with running(TEMPORARY, tmp_path) as (killed, _):
            pass
        assert (killed / "left.log").exists()
        with temporary_directory() as own:
            assert {*tmp_path.iterdir()} == {foreign, used, own}
    assert {*tmp_path.iterdir()} == {foreign, used}


def test_a_socket_fits_into_it_however_long_the_temporary_directorys_path_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (80, 81, 200):
        parent = tmp_path / ("x" * (size - len(str(tmp_path)) - 1))
        parent.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(parent))
        with temporary_directory() as own:
            assert listen_address(f"ipc://{own}/server")
            assert (own.parent == parent) == (size <= 80)
            announce(own, ["tcp://host:1", f"tcp://host:{size}"], tmp_path)
            assert announced_keys(f"tcp://host:{size}") == tmp_path
        assert announced_keys(f"tcp://host:{size}") is None


def test_cleaners_that_respect_locks_spare_it() -> None:
    with temporary_directory() as directory:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


def test_logs_stay_and_only_the_oldest_go(tmp_path: Path) -> None:
    with running(LOGS, tmp_path) as (used, _):
        for index in range(LOGS_KEPT + 3):
            with log_directory(tmp_path, "pool-") as own:
                (own / "worker.log").write_text(str(index))
        texts = {path.read_text() for path in tmp_path.glob("*/worker.log")}
        assert texts == {str(index) for index in range(2, LOGS_KEPT + 3)}
        assert (used / "left.log").exists()


def test_a_temporary_directory_that_cannot_be_created_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(FileWriteError, match="set TMPDIR"), temporary_directory():
        pass
