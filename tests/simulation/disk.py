"""A disk in memory that loses unsynced content, fills up, and is interrupted in writes."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from dist_net.ground.checkpoint import Checkpoint, read_checkpoint
from dist_net.ground.files import AppendedFile, Disk


class ProcessKilledError(BaseException):
    """The process that used the disk was killed; even its cleanup must not run."""


REFUSED = {
    errno.ENOSPC: {"write"},
    errno.EROFS: {"write", "change"},
    errno.EIO: {"sync"},
}
"""The kinds of operations that fail with each error."""

ROOM_FOR_ALL, ROOM_FOR_A_PART = 0.15, 0.4
"""The probabilities that a full disk has room for all or a part of a write."""


class StoredFile:
    """The content of a file as processes read it, and the part that is durable."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = b""

    def lose_unsynced(self, random: np.random.Generator) -> None:
        """Return to a random moment since the last sync; the last bytes may be torn."""
        common = _common_bytes(self.content, self.durable)
        if common < len(self.durable) and random.random() < 0.5:
            kept = self.durable  # it was cut since, but that is undone
        else:
            kept = bytes(self.content[: random.integers(common, len(self.content) + 1)])
            torn = int(random.integers(len(kept) - common + 1)) if random.random() < 0.5 else 0
            kept = kept[: len(kept) - torn] + bytes(torn)
        self.content, self.durable = bytearray(kept), kept


def _common_bytes(one: bytearray, other: bytes) -> int:
    """Return the length of the common prefix."""
    if one.startswith(other):
        return len(other)
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(one))


class VirtualDisk(Disk):
    """A disk in memory.

    Operations fail with the error ``failure``, one of ``REFUSED``, unless it is None. After
    ``kill_after`` more operations the process that uses the disk is killed; None: never.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.failure: int | None = None
        self.kill_after: int | None = None
        self._random = random
        self._files: dict[Path, StoredFile] = {}
        self._durable: dict[Path, StoredFile] = {}
        self._renamed: list[dict[Path, StoredFile]] = []

    def crash(self) -> None:
        """Lose some unsynced content, as a host does when it loses power."""
        moments = [self._durable, *self._renamed]
        self._files = dict(moments[int(self._random.integers(len(moments)))])
        self._sync_names()
        for file in self._files.values():
            file.lose_unsynced(self._random)

    def exists(self, path: Path) -> bool:
        return path in self._files

    def size(self, path: Path) -> int:
        return len(self._file(path).content)

    def read(self, path: Path, start: int = 0, size: int = -1) -> bytes:
        content = self._file(path).content
        return bytes(content[start:] if size < 0 else content[start : start + size])

    def write(self, path: Path, *parts: bytes | memoryview) -> None:
        content = b"".join(parts)
        file = self._opened(path)
        file.content.clear()
        if self.append(file, content) < len(content):
            self.operate("write")

    def sync(self, path: Path) -> None:
        self.operate("sync")
        if path in self._files:
            self._files[path].durable = bytes(self._files[path].content)
        else:
            self._sync_names()

    def rename(self, old: Path, new: Path) -> None:
        self.operate("change")
        self._files[new] = self._files.pop(old)
        self._renamed.append(dict(self._files))

    def link(self, old: Path, new: Path) -> None:
        self.operate("change")
        self._files[new] = self._file(old)
        self._renamed.append(dict(self._files))

    def names(self, directory: Path) -> list[str]:
        return [path.name for path in self._files if path.parent == directory]

    def remove(self, path: Path) -> None:
        self.operate("change")
        self._file(path)
        del self._files[path]
        self._renamed.append(dict(self._files))

    def append_to(self, path: Path, kept_bytes: int) -> "AppendedVirtualFile":
        self.operate("change")
        file = self._opened(path)
        del file.content[kept_bytes:]
        return AppendedVirtualFile(self, file)

    @contextmanager
    def new_file(self, path: Path) -> Iterator[None]:
        self.operate("change")
        self._files[path] = StoredFile()
        self._renamed.append(dict(self._files))
        yield

    def remove_abandoned(self, path: Path) -> None:
        for name in [each for each in self._files if each.name.startswith(f"{path.name}.")]:
            if name.suffix == ".partial":
                self.remove(name)

    def append(self, file: StoredFile, content: bytes | bytearray) -> int:
        """Append all of the content, or the part that the disk has room for.

        Raises OSError if there is no room, and ProcessKilledError after a part.
        """
        room = self._random.random() if self.failure == errno.ENOSPC else 1.0
        try:
            self.operate("sync" if room < ROOM_FOR_A_PART else "write")
        except ProcessKilledError:
            file.content += content[: self._random.integers(len(content) + 1)]
            raise
        written = content
        if ROOM_FOR_ALL <= room < ROOM_FOR_A_PART:
            written = content[: self._random.integers(max(len(content), 1))]
        file.content += written
        return len(written)

    def operate(self, kind: str) -> None:
        """Count an operation of a kind in ``REFUSED``, and raise the error that is due."""
        if self.kill_after is not None:
            self.kill_after -= 1
            if self.kill_after < 0:
                raise ProcessKilledError
        if self.failure is not None and kind in REFUSED[self.failure]:
            raise OSError(self.failure, os.strerror(self.failure))

    def _opened(self, path: Path) -> StoredFile:
        """Return the file, creating it if necessary."""
        if path not in self._files:
            self._files[path] = StoredFile()
            self._renamed.append(dict(self._files))
        return self._files[path]

    def _file(self, path: Path) -> StoredFile:
        if path not in self._files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._files[path]

    def _sync_names(self) -> None:
        self._durable = dict(self._files)
        self._renamed.clear()


class AppendedVirtualFile(AppendedFile):
    """A file opened for appending."""

    def __init__(self, disk: VirtualDisk, file: StoredFile) -> None:
        self._disk = disk
        self._file = file

    def write(self, content: bytes | bytearray) -> int:
        return self._disk.append(self._file, content)

    def sync(self) -> None:
        self._disk.operate("sync")
        self._file.durable = bytes(self._file.content)

    def close(self) -> None:
        """Do nothing."""


def checkpoint_on(disk: Disk, path: Path) -> Checkpoint:
    """Return the checkpoint in a file of a virtual disk, by way of a real file."""
    with NamedTemporaryFile() as file:
        file.write(disk.read(path))
        file.flush()
        return read_checkpoint(Path(file.name))
