"""The process that decodes pictures, so that one that is hostile ends no other process.

    python -m dist_net.cluster.processes.picture_worker JOB

JOB is a ``PictureJob`` as JSON. On stdin, a Unix socket, come chunks of pictures, a line each:
``{"first_row": 32, "paths": ["cat/a.jpg", ...]}``. Each is answered there by a line
``{"skipped": {"cat/a.jpg": "an empty file", ...}}`` when its rows are written; the first line,
``{}``, says that the process is ready. It ends when the other end is closed, and by SIGALRM when a
picture takes too long. Prints ``FAILED REASON`` on stdout when it ends for a reason of its own.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.cluster.entry import entry_point
from dist_net.cluster.picture_preparation import PictureJob
from dist_net.errors import CacheError, ImageError

KEPT_BYTES = 64 << 20  # enough for most pictures; the memory of a huge one is given back


class RowFile:
    """A file of rows of one size, which several processes write, each its own rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("r+b", buffering=0)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, first_row: int, rows: NDArray[Any]) -> None:
        """Writes rows of a chunk; raises CacheError where there is no room.

        They are not written through a mapping: that would end the process when the disk is full.
        """
        try:
            self._file.seek(first_row * rows[0].nbytes)
            left = rows.data.cast("B")
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise CacheError(f"{self._path}: {error.strerror}; expected room for it") from error


class PictureWorker:
    """Decodes chunks of pictures into rows."""

    def __init__(self, job: PictureJob, pixels: RowFile | None) -> None:
        self._job = job
        self._pixels = pixels
        self._rows = np.zeros((job.chunk_size, *job.preprocessing.shape), np.uint8)

    def skipped_in(self, first_row: int, paths: Sequence[str]) -> dict[str, str]:
        """Decodes a chunk and writes its rows; gives why some were skipped."""
        rows = self._rows[: len(paths)]
        skipped = {}
        for row, path in zip(rows, paths, strict=True):
            try:
                row[...] = self._decoded(path)
            except ImageError as error:
                row[...] = 0
                skipped[path] = self._reason(error, path)
        if self._pixels is not None:
            self._pixels.write(first_row, rows)
        return skipped

    def _decoded(self, path: str) -> NDArray[np.uint8]:
        # Python's own handlers do not run while a decoder hangs: the signal ends the process.
        signal.setitimer(signal.ITIMER_REAL, self._job.most_s_per_picture)
        try:
            return self._job.preprocessing.input_of(Path(self._job.root) / path)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _reason(self, error: ImageError, path: str) -> str:
        """The error without the path, with which it begins; in one line, as errors are."""
        called = " ".join(f"{Path(self._job.root) / path}:".split())
        return str(error).removeprefix(called).strip()


def add_arguments(parser: ArgumentParser) -> None:
    """Declares what the worker is told."""
    parser.add_argument("job", type=PictureJob.from_json)


def run(arguments: Namespace) -> int:
    """Decodes until the other end is closed."""
    job: PictureJob = arguments.job
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with ExitStack() as stack:
        conversation = stack.enter_context(socket.socket(fileno=sys.stdin.fileno()))
        chunks = stack.enter_context(conversation.makefile("r"))
        answers = stack.enter_context(conversation.makefile("w"))
        pixels = stack.enter_context(RowFile(Path(job.pixels))) if job.pixels else None
        worker = PictureWorker(job, pixels)
        print("{}", file=answers, flush=True)
        for line in chunks:
            skipped = worker.skipped_in(**json.loads(line))
            print(json.dumps({"skipped": skipped}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run, kept_bytes=KEPT_BYTES))
