"""Files that records are appended to as soon as there is room for them."""

from __future__ import annotations

from pathlib import Path

MAX_UNWRITTEN_BYTES = 2**26


class LateFiles:
    """What cannot be written, as on a full disk, is kept, and written before what comes later.

    ``error`` says why, while something is kept; None: nothing is.
    """

    def __init__(self) -> None:
        self._unwritten: dict[Path, bytearray] = {}
        self.error: OSError | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether too much could not be written to be kept any longer."""
        return sum(map(len, self._unwritten.values())) > MAX_UNWRITTEN_BYTES

    def append(self, path: Path, content: bytes) -> None:
        """Adds to what ``write`` is to append to a file."""
        self._unwritten.setdefault(path, bytearray()).extend(content)

    def write(self) -> None:
        """Appends all that there is room for."""
        self.error = None
        for path, content in list(self._unwritten.items()):
            try:
                with path.open("ab", buffering=0) as file:
                    while content:
                        del content[: file.write(content)]
                del self._unwritten[path]
            except OSError as error:
                self.error = error
