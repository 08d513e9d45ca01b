"""Darknet's files, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dist_net.errors import NetworkWriteError
from dist_net.files import replacing


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which becomes ``path`` at the end; raises NetworkWriteError."""
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            yield file
    except OSError as error:
        raise NetworkWriteError(
            f"{path} could not be written: {error.strerror}; expected a directory that is "
            f"writable and has space"
        ) from error
