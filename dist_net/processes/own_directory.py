"""Directories that belong to a running process, and removing those that killed processes left.

A process holds a lock on a file in its directory until it ends, in whatever way.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = "dist-net-"
MAX_PARENT_BYTES = 80
"""A Unix socket's path has at most 107 bytes (unix(7)), of which ours need up to 26 more."""

LOGS = "pool-"
LOCK = "lock"
LOGS_KEPT = 10


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A context with a private directory whose path is short enough for a Unix socket in it."""
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent)) > MAX_PARENT_BYTES:
        parent = Path("/tmp")
    _remove_abandoned(parent, TEMPORARY, kept=0)
    with (
        tempfile.TemporaryDirectory(
            prefix=TEMPORARY, dir=parent, ignore_cleanup_errors=True
        ) as name,
        _locked(Path(name)),
    ):
        yield Path(name)


@contextmanager
def log_directory(parent: Path, prefix: str = LOGS) -> Iterator[Path]:
    """A new directory in ``parent``, for logs that stay; its name begins with ``prefix``.

    Of those that no process uses any more, the last ``LOGS_KEPT`` are kept. Raises OSError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent, prefix, kept=LOGS_KEPT)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    with _locked(directory):
        yield directory


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    # It gets its name once it is locked, so that nobody finds it unlocked.
    unfinished = directory / f"{LOCK}.new"
    with unfinished.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        unfinished.rename(directory / LOCK)
        itself = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(itself, fcntl.LOCK_SH)  # systemd-tmpfiles spares directories with a lock
            yield
        finally:
            os.close(itself)


def _remove_abandoned(parent: Path, prefix: str, kept: int) -> None:
    """Removes this user's directories whose process has ended, except the newest ``kept``."""
    abandoned = []
    for lock in parent.glob(f"{prefix}*/{LOCK}"):
        # Another process may be removing the same directory. Other users' are left alone.
        with suppress(OSError):
            is_own = lock.parent.lstat().st_uid == lock.lstat().st_uid == os.getuid()
            if is_own and not _is_held(lock):
                abandoned.append((lock.stat().st_mtime, lock.parent))
    abandoned.sort()
    for _, directory in abandoned[: max(0, len(abandoned) - kept)]:
        shutil.rmtree(directory, ignore_errors=True)


def _is_held(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
