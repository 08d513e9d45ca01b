"""Files that appear whole or not at all, and the disk that they are on."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol


class AppendedFile(Protocol):
    """A file that is open to be appended to. Raises OSError."""

    def write(self, content: bytes | bytearray) -> int:
        """Appends as much as there is room for; how many bytes that was."""
        ...

    def sync(self) -> None:
        """Returns when all that was written is on the disk."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """What a run asks of its file system: this host's, or a simulation's. Raises OSError."""

    def exists(self, path: Path) -> bool: ...
    def size(self, path: Path) -> int: ...
    def read(self, path: Path, start: int = 0, size: int = -1) -> bytes:
        """Return ``size`` bytes from ``start`` on, or as many as there are; -1: all."""
        ...

    def write(self, path: Path, *parts: bytes | memoryview) -> None: ...
    def sync(self, path: Path) -> None: ...
    def rename(self, old: Path, new: Path) -> None: ...
    def link(self, old: Path, new: Path) -> None: ...
    def remove(self, path: Path) -> None: ...
    def names(self, directory: Path) -> list[str]: ...

    def append_to(self, path: Path, kept_bytes: int) -> AppendedFile:
        """Opens a file, which may be new, to append to its first bytes; removes the others."""
        ...

    def new_file(self, path: Path) -> AbstractContextManager[object]:
        """A context with a new file, which others do not take for one that was abandoned."""
        ...

    def remove_abandoned(self, path: Path) -> None:
        """Removes what processes that are gone left half written for ``path``."""
        ...


class HostDisk:
    """This host's file system."""

    def exists(self, path: Path) -> bool:
        return path.exists()

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def read(self, path: Path, start: int = 0, size: int = -1) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def write(self, path: Path, *parts: bytes | memoryview) -> None:
        # In place, not truncated first: a full disk has room for what a file holds already.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
            file.writelines(parts)
            file.truncate()

    def sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def link(self, old: Path, new: Path) -> None:
        new.hardlink_to(old)

    def remove(self, path: Path) -> None:
        path.unlink()

    def names(self, directory: Path) -> list[str]:
        return [path.name for path in directory.iterdir()]

    def append_to(self, path: Path, kept_bytes: int) -> AppendedFile:
        return AppendedHostFile(path, kept_bytes)

    def new_file(self, path: Path) -> AbstractContextManager[object]:
        while True:
            file = path.open("wb")
            with suppress(OSError):  # there are file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # it was removed before it was locked

    def remove_abandoned(self, path: Path) -> None:
        for abandoned in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
            with suppress(OSError), abandoned.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                abandoned.unlink()


class AppendedHostFile:
    """A file of this host that is open to be appended to."""

    def __init__(self, path: Path, kept_bytes: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.ftruncate(self._descriptor, kept_bytes)
        except OSError:
            self.close()
            raise

    def write(self, content: bytes | bytearray) -> int:
        return os.write(self._descriptor, content)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


HOST_DISK = HostDisk()


@contextmanager
def replacing(path: Path, disk: Disk = HOST_DISK) -> Iterator[Path]:
    """A context with a file to write, which replaces ``path`` at the end.

    If the machine stops, ``path`` is the old file or the new one, whole. If anything is raised,
    the new file is removed; what a killed process left half written is removed by the next one
    that writes ``path``. Raises OSError where it cannot be written.
    """
    disk.remove_abandoned(path)
    # Several processes may write the same file at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with disk.new_file(partial):
        try:
            yield partial
            disk.sync(partial)
            disk.rename(partial, path)
        except BaseException:
            with suppress(OSError):
                disk.remove(partial)
            raise
    disk.sync(path.parent)  # without this a power cut may undo the renaming
