"""A log that is a file keeps the newest lines; any other one is left alone."""

import logging
from pathlib import Path

from dist_net.processes.entry import BoundedLog

MAX_BYTES = 20_000
LINES = 3000


def write_lines(path: Path, mode: str) -> list[str]:
    """What the file holds after many lines."""
    with path.open(mode) as stream:
        log = BoundedLog(MAX_BYTES)
        log.setStream(stream)
        for number in range(LINES):
            log.emit(logging.makeLogRecord({"msg": f"line {number:06d}"}))
    return path.read_text().splitlines()


def test_a_file_that_is_appended_to_keeps_the_newest_lines(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "log", "a")
    assert MAX_BYTES / 4 < (tmp_path / "log").stat().st_size < 1.5 * MAX_BYTES
    first = LINES - len(lines)
    assert lines == [f"line {number:06d}" for number in range(first, LINES)]


def test_a_file_that_a_shell_has_opened_is_left_alone(tmp_path: Path) -> None:
    assert len(write_lines(tmp_path / "log", "w")) == LINES
