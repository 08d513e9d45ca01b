"""The file timeline.jsonl of a run's directory: written by the run, and followed by its viewers."""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_net.errors import RunDirectoryError
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.run.run_timeline import (
    Moment,
    MomentsOfReports,
    RunTimeline,
    is_line,
    one_moment,
)

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 0.5
MAX_FILE_BYTES = 2**22
"""A longer file is replaced by the ``RunTimeline`` of its lines, next at twice the size of that."""

MAX_READ_BYTES = 2**24
LINES_KEPT = 500


class TimelineFile:
    """Append to a run's timeline. A file that cannot be written is no reason to end a run."""

    def __init__(self, directory: RunDirectory, now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._now = now
        self._of_reports = MomentsOfReports()
        self._max_bytes = MAX_FILE_BYTES
        self._unwritten: list[Moment] = []
        self._written: Moment = {}
        self._next_s = 0.0

    def reported(self, report: Mapping[str, Any]) -> None:
        self._take(self._of_reports.moment(report, self._now()))

    def notified(self, text: str) -> None:
        now = round(self._now(), 3)
        self._take({"at": now, "events": [{"at": now, "text": text}]})

    def _take(self, moment: Moment) -> None:
        self._unwritten.append(moment)
        is_news = moment["events"] or moment.get("state") != self._written.get("state")
        if not is_news and moment["at"] < self._next_s:
            return
        self._next_s = moment["at"] + WRITE_EVERY_S
        joined, self._unwritten = one_moment(self._unwritten), []
        is_new = {name: each != self._written.get(name) for name, each in joined.items()}
        changed = {name: joined[name] for name in joined if name == "at" or is_new[name]}
        self._written |= changed
        try:
            self._append(json.dumps(changed) + "\n")
        except (OSError, RunDirectoryError) as error:
            logger.debug("timeline_not_written error=%s", error)

    def _append(self, line: str) -> None:
        path = self._directory.timeline
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
            size = file.tell()
        if size > self._max_bytes:
            timeline = RunTimeline()
            for each in read_lines(path, 0)[2]:
                timeline.take(each)
            text = "".join(f"{json.dumps(each)}\n" for each in timeline.lines)
            self._directory.write(path, text)
            self._max_bytes = max(MAX_FILE_BYTES, min(2 * len(text), MAX_READ_BYTES // 2))


def read_lines(path: Path, offset: int) -> tuple[int, int, list[dict[str, Any]]]:
    """Return the file's identity, where its last whole line ends, and its lines from ``offset``.

    Lines that are neither moments nor records are left out. Raise OSError.
    """
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(MAX_READ_BYTES)
        identity = os.fstat(file.fileno()).st_ino
    whole = content.rfind(b"\n") + 1
    found = []
    for line in content[:whole].splitlines():
        with suppress(ValueError, RecursionError):
            record = json.loads(line, parse_constant=lambda _: None)
            if is_line(record):
                found.append(record)
    return identity, offset + whole, found


class FollowedDirectory:
    """Follow the files of a run, which may be running, by reading what is appended to them.

    Each of several viewers has seen a part of its timeline. ``server``: the address of a server on
    another host, of whose reports the files are. ``polled_s``: for the caller of ``poll``.
    ``report``: of a folder of images.
    """

    def __init__(self, directory: RunDirectory, server: str = "") -> None:
        name = server or directory.path.resolve().name
        is_folder = directory.folder.is_file()
        self.about = {"name": name, "is_elsewhere": server != "", "is_folder": is_folder}
        self.report = directory.report
        self.polled_s = 0.0
        self._paths = directory.metrics, directory.timeline, directory.outcome
        self._start = time.time_ns()
        self._clear()
        self.poll()

    def _clear(self) -> None:
        self._start += 1
        self._timeline = RunTimeline()
        self._recent: deque[str] = deque(maxlen=LINES_KEPT)
        self._count = 0
        self._whole = -1, ""
        self._read: dict[Path, tuple[int, int]] = {}

    def poll(self) -> None:
        """Take in what is new."""
        if any(map(self._is_replaced, self._paths)):
            self._clear()
        for path in self._paths:
            _, offset = self._read.get(path, (0, 0))
            with suppress(OSError):
                identity, end, lines = read_lines(path, offset)
                self._read[path] = identity, end
                for line in lines:
                    self._timeline.take(line)
                    self._recent.append(json.dumps(line))
                self._count += len(lines)

    def since(self, seen: str) -> tuple[str, str]:
        """Return what a viewer has seen once it has read the message, and the message.

        The message is a JSON object: ``lines``, all of them if it has ``about``, or else those
        since ``seen``; "" if there are none.
        """
        start, _, number = seen.partition("-")
        unseen = self._count - int(number) if number.isdecimal() and len(number) < 20 else -1
        seen = f"{self._start}-{self._count}"
        if start == str(self._start) and 0 <= unseen <= len(self._recent):
            lines = ", ".join(list(self._recent)[len(self._recent) - unseen :])
            return seen, f'{{"lines": [{lines}]}}' if unseen else ""
        if self._whole[0] != self._count:
            whole = {"about": self.about, "lines": self._timeline.lines}
            self._whole = self._count, json.dumps(whole)
        return seen, self._whole[1]

    def _is_replaced(self, path: Path) -> bool:
        identity, offset = self._read.get(path, (0, 0))
        with suppress(OSError):
            status = path.stat()
            return bool(identity) and (status.st_ino != identity or status.st_size < offset)
        return bool(identity)
