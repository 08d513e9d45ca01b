"""Directories of a running process, and the removal of directories of killed processes.

A process locks a file in its directory; the kernel releases the lock when the process ends.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import platformdirs

from dist_net.errors import FileWriteError, SettingError

logger = logging.getLogger(__name__)

TEMPORARY = "dist-net-"
ADDRESSES, KEYS = "addresses", "keys-for-them"  # in the directory of a process: see ``announce``
MAX_PARENT_BYTES = 80
"""A Unix socket's path has at most 107 bytes (unix(7)); names below the parent take up to 26."""

LOGS = "pool-"
LOCK = "lock"
LOGS_KEPT = 10


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Create a private directory with a path for Unix sockets; raise ``FileWriteError``."""
    try:
        parent = _parent()
        _remove_abandoned(parent, TEMPORARY, kept=0)
        directory = tempfile.TemporaryDirectory(
            prefix=TEMPORARY, dir=parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise FileWriteError(
            f"no temporary directory can be created ({error}); set TMPDIR to a writable directory"
        ) from error
    with directory as name, _locked(Path(name)):
        yield Path(name)


def _parent() -> Path:
    """Return the system's temporary directory, or /tmp if its path is too long for sockets."""
    parent = Path(tempfile.gettempdir())
    return parent if len(os.fsencode(parent)) <= MAX_PARENT_BYTES else Path("/tmp")


def announce(directory: Path, addresses: Sequence[str], keys: Path) -> None:
    """Let commands of this user find a server's keys while the temporary ``directory`` exists."""
    with suppress(OSError):  # a full disk: they require --keys, as from other hosts
        (directory / KEYS).symlink_to(keys.resolve())
        (directory / ADDRESSES).write_text("\n".join(addresses))


def announced_keys(address: str) -> Path | None:
    """Return the directory of the keys that a process of this user announced for an address."""
    for directory in _parent().glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # it is removed meanwhile, or announces none
            is_own = directory.lstat().st_uid == os.getuid()
            if is_own and address in (directory / ADDRESSES).read_text().splitlines():
                return (directory / KEYS).resolve()
    return None


@contextmanager
def log_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a log directory; keep ``LOGS_KEPT`` of ended processes. Raise OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent, prefix, kept=LOGS_KEPT)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    with _locked(directory):
        yield directory


def open_logs(opened: ExitStack, prefix: str, otherwise: Path, parent: Path | None = None) -> Path:
    """Return a ``log_directory`` in ``parent``, by default the user's, until ``opened`` is closed.

    Return ``otherwise`` if the user has none, as in a container; raise SettingError for ``parent``.
    """
    place = parent or platformdirs.user_log_path("dist-net", appauthor=False)
    try:
        return opened.enter_context(log_directory(place, prefix))
    except OSError as error:
        if parent is not None:
            raise SettingError(
                f"--log-dir {parent}: {error.strerror}; expected a writable directory"
            ) from error
        logger.info("logs_not_kept directory=%s reason=%s", place, error.strerror)
        return otherwise


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    # Renamed once it is locked: no process finds an unlocked file.
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
    """Remove this user's directories of ended processes, except the newest ``kept``."""
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
