"""Decode the images of a folder with a pool of processes.

A hostile file may crash or hang the process that decodes it, which breaks the whole pool. The
images that the pool was decoding are then tried again one at a time, and an image that breaks a
pool by itself is skipped.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.data.prepared_images import ImageCache, ImagePreprocessing, PreparedImages
from dist_net.errors import DatasetError, FetchError, ImageError, ProcessFailedError
from dist_net.processes.entry import keep_freed_memory, terminate_after, use_threads
from dist_net.processes.equipment import available_cores

CHUNK_SIZE = 16
MAX_S_PER_IMAGE = 30.0
START_WITHIN_S = 60.0
KEPT_BYTES = 64 << 20  # enough for most images; the memory of a huge image is returned
MAX_SKIPPED = 0.1
NAMED = 3

ShowCount = Callable[[int, int], None]
"""Called with the number of images done and their total."""


class ImageChunk(NamedTuple):
    """Images that a worker decodes into consecutive rows."""

    first_row: int
    paths: Sequence[str]


@dataclass(frozen=True)
class ImageJob:
    """A folder, its preprocessing and the file of rows; without ``pixels``, write nothing."""

    root: Path
    preprocessing: ImagePreprocessing
    pixels: Path | None
    max_s_per_image: float = MAX_S_PER_IMAGE

    def decode(self, chunk: ImageChunk) -> dict[str, str]:
        """Write the rows of a chunk, and return the reason for each path that was skipped.

        An image ends this process after ``max_s_per_image``. Raise FetchError if the disk is full.
        """
        rows = np.zeros((len(chunk.paths), *self.preprocessing.shape), np.uint8)
        skipped = {}
        for row, path in zip(rows, chunk.paths, strict=True):
            # The default action of SIGALRM: Python's own handlers wait until a decoder returns.
            signal.setitimer(signal.ITIMER_REAL, self.max_s_per_image)
            try:
                row[...] = self.preprocessing.input_of(self.root / path)
            except ImageError as error:
                # The message starts with the path, on a single line.
                prefix = " ".join(f"{self.root / path}:".split())
                skipped[path] = str(error).removeprefix(prefix).strip()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        if self.pixels is not None:
            write_rows(self.pixels, chunk.first_row, rows)
        return skipped


def write_rows(path: Path, first_row: int, rows: NDArray[Any]) -> None:
    """Write rows into a file; raise FetchError on a full disk, which would end a mapping."""
    try:
        with path.open("r+b") as file:
            file.seek(first_row * rows[0].nbytes)
            file.write(rows.data)
    except OSError as error:
        raise FetchError(f"{path}: {error.strerror}; expected room for the rows") from error


def prepare_images(
    cache: ImageCache,
    logs: Path,
    *,
    workers: int | None = None,
    show: ShowCount = lambda _done, _total: None,
    waiting: Callable[[], None] = lambda: None,
    max_s_per_image: float = MAX_S_PER_IMAGE,
) -> PreparedImages:
    """Return the folder's images from the cache; decode those it lacks with ``workers`` processes.

    An image that ends its process, or takes longer than ``max_s_per_image``, is skipped.
    ``waiting`` is called if another run is preparing the same images. The processes log to the
    directory ``logs``. Raise DatasetError if too many images cannot be used, FetchError
    if the cache cannot be written, and ProcessFailedError if the processes cannot start.
    """

    def decode(pixels: Path | None, rows: Sequence[int]) -> dict[str, str]:
        root = cache.folder.root.absolute()
        job = ImageJob(root, cache.preprocessing, pixels and pixels.absolute(), max_s_per_image)
        images = cache.folder.images
        decoding = _Decoding(job, len(images), len(rows), logs / "image-workers.log", show)
        chunks = deque(
            ImageChunk(part[0], [images[row].path for row in part])
            for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
            for part in (run[at : at + CHUNK_SIZE] for at in range(0, len(run), CHUNK_SIZE))
        )
        decoding.run(chunks, min(workers or available_cores(), len(chunks)))
        return decoding.skipped

    return cache.prepare(decode, waiting)


def require_few_skipped(source: object, skipped: Mapping[str, str], total: int) -> None:
    """Raise DatasetError if more than a tenth of the images are skipped."""
    if len(skipped) > MAX_SKIPPED * total:
        named = [f"{path}: {reason}" for path, reason in skipped.items()][:NAMED]
        more = "; and more" if len(skipped) > len(named) else ""
        raise DatasetError(
            f"{source}: {len(skipped):,} of {total:,} images cannot be used; expected at most "
            f"{MAX_SKIPPED:.0%}. Repair or remove them: {'; '.join(named)}{more}"
        )


@dataclass(eq=False)
class _Decoding:
    """A job and its progress; a new pool replaces the pool that an image breaks.

    ``total``: the images to decode, of the folder's ``images``.
    """

    job: ImageJob
    images: int
    total: int
    log: Path
    show: ShowCount
    done: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def run(self, chunks: deque[ImageChunk], workers: int) -> None:
        """Decode every chunk; the processes have ended when this method returns or raises."""
        self.show(0, self.total)
        while chunks:
            lost, _ = self._decode(chunks, workers)
            alone = deque(
                ImageChunk(chunk.first_row + index, [path])
                for chunk in lost
                for index, path in enumerate(chunk.paths)
            )
            while alone:
                lost, exit_code = self._decode(alone, 1)
                for chunk in lost:
                    self._record(chunk, {chunk.paths[0]: self._reason(exit_code)})

    def _decode(
        self, chunks: deque[ImageChunk], workers: int
    ) -> tuple[list[ImageChunk], int | None]:
        """Decode until all is done or a process dies; return lost chunks, the last exit code."""
        others = set(active_children())
        processes = dict.fromkeys(others)
        running: dict[Future[dict[str, str]], ImageChunk] = {}
        max_s = START_WITHIN_S + CHUNK_SIZE * self.job.max_s_per_image
        spawn = get_context("spawn")
        pool = ProcessPoolExecutor(workers, spawn, _start_worker, (self.log, os.getpid()))
        try:
            while chunks or running:
                while chunks and len(running) < workers:
                    with _as_worker_needs():
                        future = pool.submit(self.job.decode, chunks[0])
                        processes.update(dict.fromkeys(active_children()))
                    running[future] = chunks.popleft()
                finished, _ = wait(running, max_s, FIRST_COMPLETED)
                if not finished:
                    raise ProcessFailedError(
                        f"no image was decoded within {max_s:g} s (log: {self.log})"
                    )
                for future in finished:
                    self._record(running[future], future.result())
                    del running[future]
        except BrokenProcessPool:
            pass
        finally:
            own = [process for process in processes if process not in others]
            for process in own:
                process.kill()
            pool.shutdown()
        return list(running.values()), own[-1].exitcode

    def _record(self, chunk: ImageChunk, skipped: Mapping[str, str]) -> None:
        self.skipped |= skipped
        require_few_skipped(self.job.root, self.skipped, self.images)
        self.done += len(chunk.paths)
        self.show(self.done, self.total)

    def _reason(self, exit_code: int | None) -> str:
        """Return the reason for skipping an image; raise ProcessFailedError without a signal."""
        if exit_code is None or exit_code >= 0:
            raise ProcessFailedError(
                f"a process that decodes images ended with code {exit_code} (log: {self.log})"
            )
        if exit_code == -signal.SIGALRM:
            return f"not decoded within {self.job.max_s_per_image:g} s"
        name = signal.strsignal(-exit_code)
        return f"the process that decoded it ended by signal {-exit_code}, {name}"


@contextmanager
def _as_worker_needs() -> Iterator[None]:
    """Start processes that ignore the terminal's interrupts and do not import the user's script.

    The parent ends them in order. A script without ``if __name__ == "__main__"`` would train again.
    """
    main = sys.modules["__main__"]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker(log: Path, parent: int) -> None:
    """Set up a process of the pool; the process ends when its parent ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:  # also for the output of decoders
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.setpgid(0, 0)  # not suspended with the parent, so that no image exceeds its time limit
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    terminate_after(parent)
    use_threads(1)
    keep_freed_memory(KEPT_BYTES)
