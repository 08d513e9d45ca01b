"""The owner of a run directory: the server that was started last, on any host. One small file.

A lock cannot ensure this: on a network file system, a host that is cut off loses its locks without
noticing. Therefore each server first writes its claim to a file, and reads that file again before
it writes to the run directory, but at most ten times a second: see ``ServerLoop``.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from dist_net.errors import SupersededError
from dist_net.files import HOST_DISK, Disk

logger = logging.getLogger(__name__)

NOTICED_WITHIN_S = 0.5
"""A running server reads the claim several times a second, and so notices a newer one."""


class RunOwnership:
    """The claim of a server on ``host`` to a run directory; ``path`` is the file of the last claim.

    Before it reads anything there, the server must wait for ``NOTICED_WITHIN_S`` if
    ``was_elsewhere``: a server of another host, which claimed the directory before, may still run.
    Where nothing can be written, as on a disk that is full from the beginning, log a warning and
    check nothing.
    """

    def __init__(self, path: Path, host: str, disk: Disk = HOST_DISK) -> None:
        self._path = path
        self._disk = disk
        self._own = f"{secrets.token_hex(8)} process {os.getpid()} on {host}"
        former = self._last_claim()
        try:
            disk.write(path, self._own.encode())
        except OSError as error:
            logger.warning("run_not_claimed path=%s error=%s", path, error)
            self._own = former
        self.was_elsewhere = former != "" and not former.endswith(f" on {host}")

    def _last_claim(self) -> str:
        """Return the last claim; nothing if there is none, or it cannot be read."""
        try:
            return self._disk.read(self._path, 0, 1000).decode(errors="replace")
        except OSError:
            return ""

    def require(self) -> None:
        """Raise ``SupersededError`` if another server has claimed the run directory since."""
        last = self._last_claim()
        if last not in ("", self._own):
            raise SupersededError(
                f"another parameter server has taken over {self._path.parent} "
                f"({last.partition(' ')[2]}); this one ends and leaves the run to it. If that is "
                f"not wanted, stop the other one, then resume the run"
            )
