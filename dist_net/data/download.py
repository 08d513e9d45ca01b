"""Download published files over HTTP, resuming an interrupted download."""

import fcntl
import hashlib
import http
import os
import re
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
