"""Preparing the pictures of a folder with processes that decode them."""

from __future__ import annotations

import json
import selectors
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_net.cluster.child import Child, end
from dist_net.cluster.cores import available_cores
from dist_net.data import default_cache_dir
from dist_net.data.picture_chunks import PictureChunk, PictureChunks
from dist_net.data.picture_folder import PictureFolder
from dist_net.data.picture_samples import PicturePreprocessing
from dist_net.data.prepared_pictures import CACHE_BYTES, PictureCache, PreparedPictures
from dist_net.errors import ProcessFailedError

WORKER_MODULE = "dist_net.cluster.processes.picture_worker"
CHUNK_SIZE = 16
MOST_S_PER_PICTURE = 30.0
START_WITHIN_S = 60.0
GRACE_S = 5.0
RECEIVED_BYTES = 1 << 16

ShowPrepared = Callable[[int, int], None]
"""Called with how many pictures are prepared, and of how many."""


@dataclass(frozen=True)
class PictureJob:
    """What a process that decodes pictures is told: where they lie, and where rows are written.

    Without ``pixels`` the pictures are only tried.
    """

    root: str
    preprocessing: PicturePreprocessing
    pixels: str | None
    chunk_size: int = CHUNK_SIZE
    most_s_per_picture: float = MOST_S_PER_PICTURE

    def to_json(self) -> str:
        """As a word of a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PictureJob:
        """The job that ``to_json`` wrote."""
        fields = json.loads(text)
        of = fields.pop("preprocessing")
        shape = tuple(of.pop("shape"))
        return cls(preprocessing=PicturePreprocessing(shape, **of), **fields)


def prepare_pictures(
    folder: PictureFolder,
    preprocessing: PicturePreprocessing,
    logs: Path,
    *,
    cache_dir: Path | None = None,
    cache_bytes: int = CACHE_BYTES,
    workers: int | None = None,
    show: ShowPrepared | None = None,
    waiting: Callable[[], None] = lambda: None,
    most_s_per_picture: float = MOST_S_PER_PICTURE,
) -> PreparedPictures:
    """The folder's pictures as a net takes them, from the cache, or decoded by ``workers``.

    A picture that ends the process that decodes it, or takes longer than ``most_s_per_picture``,
    costs that picture only. ``waiting`` is called when another run prepares the same pictures.
    Raises SkippedPicturesError if too many cannot be used, CacheError where the cache cannot be
    written, ProcessFailedError where no process can be started. ``logs`` is for the processes'.
    """

    def decode(pixels: Path | None) -> dict[str, str]:
        job = PictureJob(
            str(folder.root.absolute()),
            preprocessing,
            None if pixels is None else str(pixels.absolute()),
            most_s_per_picture=most_s_per_picture,
        )
        chunks = PictureChunks(
            str(folder.root), [each.path for each in folder.pictures], job.chunk_size
        )
        PictureProcesses(job, chunks, logs, show or _show_nobody).run(workers or available_cores())
        return chunks.skipped

    cache = PictureCache(cache_dir or default_cache_dir(), folder, preprocessing, cache_bytes)
    return cache.prepare(decode, waiting)


def _show_nobody(done: int, total: int) -> None:
    """Shows nothing."""


class Decoder:
    """A process that decodes, the socket to it, and the chunk that it has."""

    def __init__(self, name: str, job: PictureJob, logs: Path) -> None:
        self.socket, its = socket.socketpair()
        with its:
            self.child = Child(name, WORKER_MODULE, [job.to_json()], logs, its)
        self.chunk: PictureChunk | None = None
        self.is_free = False  # until it says that it is ready
        self._received = b""
        self._limit_s = job.most_s_per_picture

    def give(self, chunk: PictureChunk | None) -> None:
        """Has it decode a chunk; without one, lets it end when it has done what it has."""
        self.chunk = chunk
        self.is_free = False
        with suppress(OSError):  # it has ended, as will be noticed
            if chunk is None:
                self.socket.shutdown(socket.SHUT_WR)
            else:
                self.socket.sendall(json.dumps(chunk._asdict()).encode() + b"\n")

    def answers(self) -> list[dict[str, dict[str, str]]] | None:
        """What it answered since; None if it has ended."""
        try:
            received = self.socket.recv(RECEIVED_BYTES)
        except ConnectionError:
            received = b""
        if not received:
            return None
        *lines, self._received = (self._received + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def reason_of_end(self) -> str:
        """Why its picture is skipped; raises ProcessFailedError if it ended for its own reasons."""
        self.child.wait(GRACE_S)
        code = self.child.exit_code
        if self.chunk is None or code is None or code >= 0:
            raise self.child.failure()
        if code == -signal.SIGALRM:
            return f"not decoded within {self._limit_s:g} s"
        return f"the process that decoded it ended by signal {-code}, {signal.strsignal(-code)}"

    def close(self) -> None:
        """Ends it at once, if it runs."""
        self.child.kill()
        self.socket.close()


class PictureProcesses:
    """Processes that decode pictures until each is written or skipped.

    One that ends over a picture is replaced.
    """

    def __init__(
        self, job: PictureJob, chunks: PictureChunks, logs: Path, show: ShowPrepared
    ) -> None:
        self._job = job
        self._chunks = chunks
        self._logs = logs
        self._show = show
        self._selector = selectors.DefaultSelector()
        self._decoders: dict[str, Decoder] = {}

    def run(self, workers: int) -> None:
        """Decodes with up to so many processes; when it returns or raises, they have ended."""
        try:
            self._show(0, self._chunks.total)
            for number in range(max(1, min(workers, self._chunks.waiting))):
                self._start(f"picture-worker-{number}")
            while not self._chunks.is_complete:
                self._receive()
                self._give()
            for decoder in self._decoders.values():
                decoder.give(None)
            end([decoder.child for decoder in self._decoders.values()], GRACE_S)
        finally:
            for decoder in self._decoders.values():
                decoder.close()
            self._selector.close()

    def _start(self, name: str) -> None:
        decoder = self._decoders[name] = Decoder(name, self._job, self._logs)
        self._selector.register(decoder.socket, selectors.EVENT_READ, decoder)

    def _receive(self) -> None:
        """Waits for answers, and replaces a process that ended."""
        longest_s = START_WITHIN_S + self._job.chunk_size * self._job.most_s_per_picture
        events = self._selector.select(longest_s)
        if not events:
            raise ProcessFailedError(
                f"no process decoded a picture within {longest_s:g} s (logs: {self._logs})"
            )
        for key, _ in events:
            decoder: Decoder = key.data
            answers = decoder.answers()
            if answers is None:
                self._replace(decoder)
                continue
            for answer in answers:
                if decoder.chunk is not None:
                    self._chunks.decoded(decoder.chunk, answer["skipped"])
                    self._show(self._chunks.done, self._chunks.total)
                decoder.chunk = None
                decoder.is_free = True

    def _replace(self, decoder: Decoder) -> None:
        reason = decoder.reason_of_end()
        self._selector.unregister(decoder.socket)
        decoder.close()
        del self._decoders[decoder.child.name]
        assert decoder.chunk is not None
        self._chunks.lost(decoder.chunk, reason)
        if self._chunks.waiting:
            self._start(decoder.child.name)

    def _give(self) -> None:
        for decoder in self._decoders.values():
            if decoder.is_free and (chunk := self._chunks.take()):
                decoder.give(chunk)
