"""A disk of its own for a test, which it may fill, or make read-only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory, at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leaves no room, until ``empty``."""
        with suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def empty(self) -> None:
        """Gives the room back."""
        self._filler.unlink()

    def make_read_only(self) -> None:
        mount("-o", "remount,ro", str(self.path))


def mount(*arguments: str) -> None:
    """Runs mount(8); skips the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@contextmanager
def small_disk(directory: Path, size_bytes: int = 2**20) -> Iterator[SmallDisk]:
    """A context with a disk of that size, which is gone afterwards."""
    directory.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={size_bytes}", "dist-net-test", str(directory))
    except FileNotFoundError:
        pytest.skip("there is no mount(8) here")
    try:
        yield SmallDisk(directory)
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
