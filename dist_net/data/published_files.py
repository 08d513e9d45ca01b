"""Published files in a cache directory: check, store and fetch them.

Touches the cache directory only; ``download`` and ``debian`` provide the sources.
"""

import gzip
import hashlib
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from dist_net.errors import FetchError, SourceError
from dist_net.files import replacing

CHUNK_BYTES = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchEvent:
    """A line for the user or, with ``received``, the state of the download of the file ``text``.

    ``received`` and ``total`` are in bytes; ``total`` is None if the server does not announce it.
    """

    text: str
    received: int | None = None
    total: int | None = None


Progress = Callable[[FetchEvent], None]


@dataclass(frozen=True)
class PublishedFile:
    """A file identified by its decompressed content: by size, and by SHA-256 if one is published.

    ``sizes_bytes`` lists every valid size.
    """

    name: str
    sizes_bytes: tuple[int, ...]
    sha256: str | None = None

    @property
    def sizes(self) -> str:
        """Return the sizes as text, such as ``60,008``."""
        return " or ".join(f"{size_bytes:,}" for size_bytes in self.sizes_bytes)

    def check(self, path: Path) -> None:
        """Raise ``SourceError`` unless the file at ``path`` has the published content."""
        if not path.is_file():
            raise SourceError(f"{self.name} is missing")
        size_bytes = path.stat().st_size
        if size_bytes not in self.sizes_bytes:
            raise SourceError(f"{self.name} has {size_bytes:,} bytes; expected {self.sizes}")
        if self.sha256 is None:
            return
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        if sha256 != self.sha256:
            raise SourceError(f"{self.name} has SHA-256 {sha256}; expected {self.sha256}")

    def check_cached(self, directory: Path) -> None:
        """Check the file in ``directory``; hash it only if it is newer than its last hash.

        ``NAME.sha256``, in the format of ``sha256sum``, records that the hash was right.
        """
        path, stamp = directory / self.name, directory / f"{self.name}.sha256"
        line = f"{self.sha256}  {self.name}\n"
        with suppress(OSError):
            hashed, found = stamp.stat(), path.stat()
            is_unchanged = hashed.st_mtime_ns >= found.st_mtime_ns
            is_unchanged &= found.st_size in self.sizes_bytes
            if is_unchanged and stamp.read_bytes() == line.encode():
                return
        self.check(path)
        if self.sha256 is not None:
            with suppress(OSError):  # a read-only cache is hashed at every start
                stamp.write_text(line)

    def is_cached(self, directory: Path) -> bool:
        """Return whether ``directory`` holds the file with the published content."""
        with suppress(SourceError):
            self.check_cached(directory)
            return True
        return False

    def store(self, content: IO[bytes], directory: Path) -> None:
        """Write ``content``, plain or gzip, to ``directory`` under this name.

        The file appears when it is complete and verified. Raise ``SourceError`` for other content
        and ``OSError`` if the directory is not writable.
        """
        content.seek(0)
        is_compressed = content.read(2) == GZIP_MAGIC
        content.seek(0)
        plain = gzip.GzipFile(fileobj=content, mode="rb") if is_compressed else content
        with replacing(directory / self.name) as unverified:
            with unverified.open("wb") as target:
                try:
                    for chunk in iter(partial(plain.read, CHUNK_BYTES), b""):
                        target.write(chunk)
                        if target.tell() > max(self.sizes_bytes):  # do not fill the disk
                            raise SourceError(f"{self.name} exceeds {self.sizes} bytes")
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    raise SourceError(f"{self.name} is damaged gzip content: {error}") from error
            self.check(unverified)


Source = Callable[[Sequence[PublishedFile], Path, Progress], None]
"""Store the files in the directory and report progress, or raise ``SourceError``."""


def _find_cached(files: Sequence[PublishedFile], directory: Path, _: Progress) -> None:
    """The first source: raise ``SourceError`` if a file is not in the cache directory."""
    for file in files:
        file.check_cached(directory)


def fetch(
    name: str,
    files: Sequence[PublishedFile],
    directory: Path,
    sources: Mapping[str, Source],
    progress: Progress,
    advice: str,
) -> None:
    """Make sure that ``directory`` holds all ``files``, verified.

    ``sources`` maps descriptions to sources, which are tried in order for the files still missing.
    Raise ``FetchError``, with the reason of each source and ``advice``, or if the directory is not
    usable.
    """
    failures = []
    cached: dict[str, Source] = {f"cache directory {directory}": _find_cached}
    for source, deliver in (cached | dict(sources)).items():
        progress(FetchEvent(f"{name}: trying {source}"))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            deliver([each for each in files if not each.is_cached(directory)], directory, progress)
        except SourceError as error:
            logger.info("source_failed name=%s source=%r reason=%s", name, source, error)
            failures.append(f"{source}: {error}")
            progress(FetchEvent(f"  no: {error}"))
        except OSError as error:
            raise FetchError(
                f"cannot store {name} in {directory}: {error}; expected a writable directory with "
                "free space. Choose another one"
            ) from error
        else:
            progress(FetchEvent("  ok"))
            return
    wanted = ", ".join(f"{file.name} ({file.sizes} bytes)" for file in files)
    raise FetchError(
        f"no source could deliver {name}: {'; '.join(failures)}. Connect to a network, or put "
        f"into {directory}, decompressed: {wanted}; {advice}"
    )
