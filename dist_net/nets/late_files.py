"""Appending to files despite a full disk; apart from ``run_directory`` as it knows no runs."""

from __future__ import annotations

from pathlib import Path

MAX_UNWRITTEN_BYTES = 2**26


class LateFiles:
    """Files to append to. Content that cannot be written is kept and written first next time.

    ``error`` is the reason while content is kept; otherwise None.
    """

    def __init__(self) -> None:
        self._unwritten: dict[Path, bytearray] = {}
        self.error: OSError | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether the kept content exceeds ``MAX_UNWRITTEN_BYTES``."""
        return sum(map(len, self._unwritten.values())) > MAX_UNWRITTEN_BYTES

    def append(self, path: Path, content: bytes) -> None:
        """Add content for ``write`` to append to a file."""
        self._unwritten.setdefault(path, bytearray()).extend(content)

    def write(self) -> None:
        """Append all content that the disk has room for."""
        self.error = None
        for path, content in list(self._unwritten.items()):
            try:
                with path.open("ab", buffering=0) as file:
                    while content:
                        del content[: file.write(content)]
                del self._unwritten[path]
            except OSError as error:
                self.error = error
