"""A log on stderr that does not outgrow its file."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 8 << 20
LINES_BETWEEN_LOOKS = 256


class BoundedLog(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr. Where that is a file to which this process appends, as a child's is, only
    the newest lines are kept: half of ``max_bytes`` when there are more.

    Terminals, pipes and files that a shell has opened for writing are left alone.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self._lines += 1
        if self._lines % LINES_BETWEEN_LOOKS == 0:
            with suppress(OSError):  # a system without /proc
                self._shorten()

    def _shorten(self) -> None:
        descriptor = self.stream.fileno()
        status = os.fstat(descriptor)
        appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        if not (stat.S_ISREG(status.st_mode) and appends and status.st_size > self._max_bytes):
            return
        self.flush()
        # By the descriptor, since the file may have another name by now.
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
            file.seek(-self._max_bytes // 2, os.SEEK_END)
            newest = file.read().partition(b"\n")[2]
        os.ftruncate(descriptor, 0)
        os.write(descriptor, newest)
