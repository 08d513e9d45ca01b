"""Atomic replacement of files, and the file system as an interface."""

import errno
import fcntl
import glob
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dist_net.errors import BadInputError, FileWriteError


@contextmanager
def refusing_long_names() -> Iterator[None]:
    """Raise BadInputError if the body is passed a name that is too long for a file."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = str(error.filename)[:80]
        raise BadInputError(f"{name!r}... is too long for the name of a file or a model") from error


class AppendedFile:
    """A file opened for appending. Its methods raise OSError."""

    def __init__(self, path: Path, kept_bytes: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.ftruncate(self._descriptor, kept_bytes)
        except OSError:
            self.close()
            raise

    def write(self, content: bytes | bytearray) -> int:
        """Append as much as fits on the disk, and return the number of bytes."""
        return os.write(self._descriptor, content)

    def sync(self) -> None:
        """Block until the written content is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class Disk:
    """The file system of a run. Its methods raise OSError; a simulation overrides all of them."""

    def exists(self, path: Path) -> bool:
        return path.exists()

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def read(self, path: Path, start: int = 0, size: int = -1) -> bytes:
        """Return up to ``size`` bytes from ``start`` on; -1: all."""
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def write(self, path: Path, *parts: bytes | memoryview) -> None:
        # In place, not truncated first: a full disk still has room for the file's old size.
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
        """Open or create a file, truncate it to ``kept_bytes``, and append to it."""
        return AppendedFile(path, kept_bytes)

    def new_file(self, path: Path) -> AbstractContextManager[object]:
        """Create a file that ``remove_abandoned`` of other processes spares within the context."""
        while True:
            file = path.open("wb")
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # another process removed it before it was locked

    def remove_abandoned(self, path: Path) -> None:
        """Remove incomplete files for ``path`` left by processes that have exited."""
        for abandoned in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
            with suppress(OSError), abandoned.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                abandoned.unlink()


HOST_DISK = Disk()


@contextmanager
def replacing(path: Path, disk: Disk = HOST_DISK) -> Iterator[Path]:
    """Yield a new file that replaces ``path`` atomically at the end of the context.

    If the machine stops, ``path`` is the complete old or new file. After an exception the new file
    is removed. The next replacement removes the file of a killed process. Raise OSError.
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
    disk.sync(path.parent)  # otherwise a power cut may undo the renaming


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes ``path`` when it is complete; raise ``FileWriteError``."""
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        raise FileWriteError(
            f"cannot write {path}: {error.strerror}; expected a writable directory with free space"
        ) from error


def read_regular_file(
    path: Path, most: int, flags: int = 0, offset: int = 0, size: int | None = None
) -> bytes:
    """Return the bytes of a file from ``offset`` on, ``size`` or all, without ever blocking.

    Raise ValueError for anything but a regular file, and for more than ``most`` bytes; OSError.
    """
    # Without O_NONBLOCK a pipe, which is refused below, would block this process.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    try:
        status = os.fstat(descriptor)
        left = status.st_size - offset
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is a pipe, a device or a directory; expected a file")
        size = left if size is None else size
        if offset < 0 or not 0 <= size <= min(left, most):
            raise ValueError(
                f"{size:,} bytes from {offset:,} on of the {status.st_size:,} of {path.name}; "
                f"expected at most {most:,}"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            file.seek(offset)
            return file.read(size)
    finally:
        os.close(descriptor)
