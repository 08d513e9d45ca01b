"""Files that appear at once, when they are complete. Whoever writes says what failed to him."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` at the end; until then, ``path`` is as it was.

    Whenever the machine stops, the file is the old one or the new one. Raises OSError where it
    cannot be written; whatever is raised, nothing is left behind.
    """
    # Several processes may prepare the same kernels at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial, os.O_RDONLY)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    # Without this a crash of the machine may undo the renaming.
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
