"""Published files in a cache: check, store and fetch them, by HTTP or from Debian's packages."""

import fcntl
import gzip
import hashlib
import http
import logging
import os
import re
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from dist_net.errors import FetchError, SourceError
from dist_net.ground.files import replacing

CHUNK_BYTES = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"
TIMEOUT_S = 10.0
"""The longest wait for the server to connect or to send more, not for the whole transfer."""

APT_TIMEOUT_S = 600.0
MAX_CONNECTIONS = 8
"""Reconnect this often to resume a transfer, if each connection adds to it."""

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
    """A file identified by its decompressed content: its size, and its SHA-256 if published."""

    name: str
    sizes_bytes: tuple[int, ...]
    sha256: str | None = None

    @property
    def sizes(self) -> str:
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
        with suppress(SourceError):
            self.check_cached(directory)
            return True
        return False

    def store(self, content: IO[bytes], directory: Path) -> None:
        """Write ``content``, plain or gzip, once it is verified. Raise SourceError and OSError."""
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
    Raise ``FetchError``, with each source's reason and ``advice``, or for an unusable directory.
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


def download(
    base_url: str, suffix: str, files: Sequence[PublishedFile], directory: Path, progress: Progress
) -> None:
    """Download ``base_url/NAME`` + ``suffix``, plain or gzip, for each file, and store it.

    The next call resumes from an interrupted download's part file. Raise ``SourceError``.
    """
    if not base_url.startswith(("http://", "https://")):
        raise SourceError(f"{base_url!r}: expected an http:// or https:// address")
    for file in files:
        url = f"{base_url.rstrip('/')}/{file.name}{suffix}"
        # Another server may have compressed the same content differently.
        mark = hashlib.sha256(url.encode()).hexdigest()[:8]
        with _part_file(directory / f"{file.name}.{mark}.part") as part:
            _receive(url, file, part, progress)
            try:
                file.store(part, directory)
            finally:
                part.truncate(0)


def _receive(url: str, file: PublishedFile, part: IO[bytes], progress: Progress) -> None:
    """Complete ``part``, over several connections if needed."""
    max_bytes = max(file.sizes_bytes) * 1.01 + 1024  # gzip enlarges incompressible content
    for connections_left in reversed(range(MAX_CONNECTIONS)):
        start = part.seek(0, os.SEEK_END)
        try:
            for offset, total, chunk in _chunks(url, start):
                part.truncate(offset)
                part.write(chunk)
                received = offset + len(chunk)
                if received > max_bytes:
                    part.truncate(0)
                    raise SourceError(f"{url} exceeds the expected {file.sizes} bytes")
                progress(FetchEvent(file.name, received, total))
        except SourceError:
            if not connections_left or part.seek(0, os.SEEK_END) <= start:
                raise
        else:
            return


def _chunks(url: str, start: int) -> Iterator[tuple[int, int | None, bytes]]:
    """Yield ``(offset, total_bytes, chunk)`` from ``start``, or all of it. Raise SourceError."""
    import urllib.error  # late, as the next two: 13 ms of each start, and few processes fetch
    import urllib.request
    from http.client import HTTPException

    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            content_range = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            offset = int(content_range[1]) if content_range else 0
            if offset > start:
                if start == 0:
                    raise SourceError(f"{url}: the server sent bytes from {offset:,}, not 0")
                yield from _chunks(url, 0)
                return
            total = None if response.length is None else offset + response.length
            while chunk := response.read(CHUNK_BYTES):
                yield offset, total, chunk
                offset += len(chunk)
    except urllib.error.HTTPError as error:
        error.close()
        if not start or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise SourceError(f"{url}: HTTP {error.code} {error.reason}") from error
        yield from _chunks(url, 0)  # the part file is already complete, or wrong
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise SourceError(f"{url}: {reason or type(error).__name__}") from error
    else:
        if total is not None and offset < total:
            raise SourceError(f"{url}: connection lost after {offset:,} of {total:,} bytes")


@contextmanager
def _part_file(path: Path) -> Iterator[IO[bytes]]:
    """Open the part file for appending; delete it on exit if it is empty.

    Yield a temporary file if another process downloads it, or the file system has no locks.
    """
    with path.open("a+b") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with tempfile.TemporaryFile("a+b", dir=path.parent) as temporary:
                yield temporary
            return
        try:
            yield part
        finally:
            if part.seek(0, os.SEEK_END) == 0:
                path.unlink(missing_ok=True)


def copy_from_directory(
    source: Path, files: Sequence[PublishedFile], directory: Path, _: Progress
) -> None:
    """Store each file from ``source/NAME.gz``; raise ``SourceError``."""
    for file in files:
        path = source / f"{file.name}.gz"
        try:
            content = path.open("rb")
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        with content:
            file.store(content, directory)


def copy_from_archive(
    package: str,
    package_directory: Path,
    files: Sequence[PublishedFile],
    directory: Path,
    progress: Progress,
) -> None:
    """Download the package, unpack it without installing it, and store each file.

    ``package_directory`` is the absolute path of the files once installed. Raise ``SourceError``.
    """
    with tempfile.TemporaryDirectory(prefix="dist-net-") as name:
        root = Path(name)
        advice = "if apt's package lists are missing or old, run as root: apt-get update"
        _run(["apt-get", "download", package], root, progress, advice)
        archives = [path.name for path in root.glob("*.deb")]
        _run(["dpkg-deb", "-x", *archives, "."], root, progress)
        source = root / package_directory.relative_to("/")
        copy_from_directory(source, files, directory, progress)


def _run(command: list[str], directory: Path, progress: Progress, advice: str = "") -> None:
    """Run a command of the system in ``directory``; raise ``SourceError`` if it fails."""
    progress(FetchEvent(f"  running {' '.join(command)}"))
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=APT_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise SourceError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{command[0]} did not finish within {APT_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("E:")]  # apt marks its errors
        reason = (errors or lines or [f"{command[0]} exited with code {done.returncode}"])[0]
        raise SourceError("; ".join(filter(None, (reason, advice))))
