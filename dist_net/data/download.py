"""Download over HTTP, resumed where an earlier try was cut off."""

import fcntl
import hashlib
import http
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, cast

from dist_net.data.cache import CHUNK_BYTES, Cache, PublishedFile
from dist_net.data.fetch import BytesReceived, Progress
from dist_net.errors import DownloadError

MOST_CONNECTIONS = 8
"""How often a transfer that is cut off goes on, as long as each connection adds to it."""


class Download:
    """The source ``base_url/NAME``, and then ``suffix``, for an HTTP or HTTPS address.

    What has arrived is kept in a part file in the cache directory, and the next call goes on from
    there. ``timeout_s`` bounds each wait for the server, not the whole transfer.
    """

    def __init__(self, base_url: str, timeout_s: float = 10.0, suffix: str = ".gz") -> None:
        self.name = f"download from {base_url}"
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self.suffix = suffix

    def deliver(self, files: Sequence[PublishedFile], cache: Cache, progress: Progress) -> None:
        """Download, verify and store each file; raises ``DownloadError`` and ``ContentError``."""
        if not self.base_url.startswith(("http://", "https://")):
            raise DownloadError(f"{self.base_url!r}: expected an http:// or https:// address")
        cache.directory.mkdir(parents=True, exist_ok=True)
        for file in files:
            url = f"{self.base_url}/{file.name}{self.suffix}"
            # One for each address: the same content may be compressed differently elsewhere.
            mark = hashlib.sha256(url.encode()).hexdigest()[:8]
            path = cache.directory / f"{file.name}.{mark}.part"
            with _part_file(path) as part:
                self._receive(url, file, part, progress)
                part.seek(0)
                try:
                    cache.store(file, part)
                finally:  # stored, or wrong and not to be resumed
                    part.truncate(0)

    def _receive(self, url: str, file: PublishedFile, part: IO[bytes], progress: Progress) -> None:
        """Append to ``part`` until it is whole, over several connections if need be."""
        for _ in range(MOST_CONNECTIONS):
            before = part.seek(0, 2)
            try:
                self._receive_once(url, file, part, progress)
            except DownloadError:
                if part.seek(0, 2) <= before:
                    raise
            else:
                return
        raise DownloadError(f"{url}: cut off {MOST_CONNECTIONS} times, {part.tell()} bytes kept")

    def _receive_once(
        self, url: str, file: PublishedFile, part: IO[bytes], progress: Progress
    ) -> None:
        start = part.tell()
        with self._connect(url, start) as response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                part.truncate(0)  # the server sends the whole file, asked for a range or not
                start = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                part.truncate(0)  # the next call begins anew
                raise DownloadError(f"{url}: sent another part than from byte {start} on")
            received = start
            total = None if response.length is None else start + response.length
            progress(BytesReceived(file.name, received, total))
            while chunk := _read(url, response):
                part.write(chunk)
                received += len(chunk)
                # gzip adds a little to what cannot be compressed; beyond that it is another file.
                if received > max(file.sizes_bytes) * 1.01 + 1024:
                    part.truncate(0)
                    raise DownloadError(f"{url}: larger than the {file.sizes} bytes expected")
                progress(BytesReceived(file.name, received, total))
        if total is not None and received < total:
            raise DownloadError(f"{url}: cut off after {received} of {total} bytes")

    def _connect(self, url: str, start: int) -> HTTPResponse:
        """Ask for the bytes from ``start`` on."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        try:
            request = urllib.request.Request(url, headers=headers)
            return cast(HTTPResponse, urllib.request.urlopen(request, timeout=self.timeout_s))
        except urllib.error.HTTPError as error:
            error.close()
            if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return self._connect(url, 0)  # nothing is left: the part is whole or wrong
            raise DownloadError(f"{url}: HTTP {error.code} {error.reason}") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise DownloadError(f"{url}: {reason or type(error).__name__}") from error


def _read(url: str, response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, HTTPException) as error:
        raise DownloadError(f"{url}: connection lost: {error or type(error).__name__}") from error


@contextmanager
def _part_file(path: Path) -> Iterator[IO[bytes]]:
    """Open the part file of an earlier try, for appending; removed if it is empty in the end.

    Another process that downloads the same file holds a lock on it; then this one does not wait,
    but downloads into a file of its own.
    """
    with path.open("a+b") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with tempfile.TemporaryFile("a+b", dir=path.parent) as own:
                yield own
            return
        try:
            yield part
        finally:
            if part.seek(0, 2) == 0:
                path.unlink(missing_ok=True)
