"""A directory of published files, each verified once.

A file is hashed while it is stored, and a stamp is left beside it: ``NAME.sha256``, in the format
of ``sha256sum``. A file with a stamp, of the right size, and not modified since is not hashed
again. One without a good stamp (put there by hand, copied, touched) is hashed and stamped.

Files appear by a rename when they are complete. Processes that store the same file at the same
time replace it by an equal one, and whoever has mapped the older one keeps it.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dist_net.data.idx import GZIP_MAGIC
from dist_net.errors import ContentError
from dist_net.files import replacing

CHUNK_BYTES = 1 << 18


@dataclass(frozen=True)
class PublishedFile:
    """A file known by its content: sizes and ``sha256`` are those once decompressed.

    Without a ``sha256``, because the publisher gives none, it is known by its size alone, and
    where not even that is certain, by ``other_sizes_bytes`` as well.
    """

    name: str
    size_bytes: int
    sha256: str | None = None
    other_sizes_bytes: tuple[int, ...] = ()

    @property
    def sizes_bytes(self) -> tuple[int, ...]:
        return (self.size_bytes, *self.other_sizes_bytes)

    @property
    def sizes(self) -> str:
        """The same for a person: ``60,008``."""
        return " or ".join(f"{size_bytes:,}" for size_bytes in self.sizes_bytes)


class Cache:
    """Verified files in one directory, which is made when the first file is stored."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, file: PublishedFile) -> Path:
        """Return where ``file`` lies, or would lie."""
        return self.directory / file.name

    def holds(self, file: PublishedFile) -> bool:
        try:
            self.require(file)
        except ContentError:
            return False
        return True

    def require(self, file: PublishedFile) -> None:
        """Raise ``ContentError`` unless ``file`` is here with the published content."""
        path = self.path(file)
        if not path.is_file():
            raise ContentError(f"{file.name} is not there")
        found = path.stat()
        if found.st_size not in file.sizes_bytes:
            raise ContentError(f"{file.name} has {found.st_size:,} bytes, expected {file.sizes}")
        if file.sha256 is None:
            return
        stamp = self._stamp(file)
        if (
            stamp.is_file()
            and stamp.stat().st_mtime_ns >= found.st_mtime_ns
            and stamp.read_text(errors="replace") == _stamp_text(file)
        ):
            return
        with path.open("rb") as content:
            found_sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        if found_sha256 != file.sha256:
            raise ContentError(f"{file.name} has sha256 {found_sha256}, expected {file.sha256}")
        if os.access(self.directory, os.W_OK):  # a read-only cache is hashed at every start
            stamp.write_text(_stamp_text(file))

    def store(self, file: PublishedFile, content: IO[bytes]) -> None:
        """Store what ``content`` (plain or gzip, open at its beginning) holds as ``file``.

        Raises ``ContentError``, and leaves the cache as it was, when that is not the published
        content; ``OSError`` when the directory cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        is_compressed = content.read(2) == GZIP_MAGIC
        content.seek(0)
        plain = gzip.GzipFile(fileobj=content, mode="rb") if is_compressed else content
        with replacing(self.path(file)) as partial, partial.open("wb") as target:
            digest = hashlib.sha256()
            size_bytes = 0
            for chunk in _chunks(file, plain):
                digest.update(chunk)
                size_bytes += len(chunk)
                if size_bytes > max(file.sizes_bytes):  # do not fill the disk with what is wrong
                    raise ContentError(f"{file.name}: more than {file.sizes} bytes")
                target.write(chunk)
            received = f"{file.name}: received {size_bytes:,} bytes"
            if file.sha256 is None and size_bytes not in file.sizes_bytes:
                raise ContentError(f"{received}, expected {file.sizes}")
            if file.sha256 is not None and digest.hexdigest() != file.sha256:
                raise ContentError(
                    f"{received} with sha256 {digest.hexdigest()}, expected {file.sizes} with "
                    f"{file.sha256}"
                )
        if file.sha256 is not None:
            self._stamp(file).write_text(_stamp_text(file))

    def _stamp(self, file: PublishedFile) -> Path:
        return self.directory / f"{file.name}.sha256"


def _stamp_text(file: PublishedFile) -> str:
    return f"{file.sha256}  {file.name}\n"


def _chunks(file: PublishedFile, content: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    """Yield the content; a damaged gzip stream raises ``ContentError``."""
    while True:
        try:
            chunk = content.read(CHUNK_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ContentError(f"{file.name}: damaged gzip content: {error}") from error
        if not chunk:
            return
        yield chunk
