"""Files that appear at once when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dist_net.errors import NetworkWriteError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which becomes ``path`` at the end; before that, ``path`` is as it was.

    Raises NetworkWriteError where it cannot be written, and then nothing is left behind.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if not isinstance(error, OSError):
            raise
        raise NetworkWriteError(
            f"{path} could not be written: {error.strerror}; expected a directory that is "
            f"writable and has space"
        ) from error
