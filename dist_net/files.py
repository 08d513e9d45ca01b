"""Files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A context with a file to write, which replaces ``path`` at the end.

    If the machine stops, ``path`` is the old file or the new one, whole. If anything is raised,
    the new file is removed; what a killed process left half written is removed by the next one
    that writes ``path``. Raises OSError where it cannot be written.
    """
    for abandoned in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        _remove_unless_locked(abandoned)
    # Several processes may write the same file at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with _locked(partial):
        try:
            yield partial
            _sync(partial, os.O_RDONLY)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
    # Without this a power cut may undo the renaming.
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _locked(path: Path) -> IO[bytes]:
    """A new file, open and locked: it is not taken for one that a killed process left."""
    while True:
        file = path.open("wb")
        with suppress(OSError):  # there are file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it was removed before it was locked


def _remove_unless_locked(path: Path) -> None:
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
