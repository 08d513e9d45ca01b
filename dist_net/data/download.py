"""Sources of published files: HTTP, which resumes an interrupted download, and Debian packages."""

import fcntl
import hashlib
import http
import os
import re
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO

from dist_net.data.published_files import CHUNK_BYTES, FetchEvent, Progress, PublishedFile
from dist_net.errors import SourceError

TIMEOUT_S = 10.0
"""The longest wait for the server to connect or to send more, not for the whole transfer."""

APT_TIMEOUT_S = 600.0
MAX_CONNECTIONS = 8
"""Reconnect this often to resume a transfer, if each connection adds to it."""


def download(
    base_url: str,
    suffix: str,
    files: Sequence[PublishedFile],
    directory: Path,
    progress: Progress,
) -> None:
    """Download ``base_url/NAME`` + ``suffix``, plain or gzip, for each file, and store it.

    An interrupted download leaves a part file, from which the next call resumes. Raises
    ``SourceError``.
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
    """Yield ``(offset, total_bytes, chunk)`` from byte ``start``, or from an earlier one.

    A server without support for ranges sends everything. Raise ``SourceError``.
    """
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

    If another process downloads the same file, or the file system has no locks, yield a temporary
    file instead of waiting.
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

    ``package_directory`` is the absolute path at which the installed package has the files. Raises
    ``SourceError``.
    """
    with tempfile.TemporaryDirectory(prefix="dist-net-") as name:
        root = Path(name)
        _run(
            ["apt-get", "download", package],
            root,
            progress,
            "if apt's package lists are missing or old, run as root: apt-get update",
        )
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
