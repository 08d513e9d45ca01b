"""Which pictures are decoded next, and which were skipped; no input or output.

A picture may end or hang the process that decodes it. So a chunk whose process was lost is tried
again picture by picture, and the one that loses its process again is skipped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dist_net.errors import SkippedPicturesError

MOST_SKIPPED = 0.1
NAMED = 3


class PictureChunk(NamedTuple):
    """Pictures that are decoded together, into consecutive rows."""

    first_row: int
    paths: Sequence[str]


class PictureChunks:
    """Hands out the pictures of a folder in chunks, and keeps account of them.

    ``source`` is what errors call the folder.
    """

    def __init__(self, source: str, paths: Sequence[str], chunk_size: int) -> None:
        self._source = source
        self._waiting = deque(
            PictureChunk(start, paths[start : start + chunk_size])
            for start in range(0, len(paths), chunk_size)
        )
        self.total = len(paths)
        self.done = 0
        self.skipped: dict[str, str] = {}

    @property
    def is_complete(self) -> bool:
        """Whether each picture is decoded or skipped."""
        return self.done == self.total

    @property
    def waiting(self) -> int:
        """How many chunks there are to hand out."""
        return len(self._waiting)

    def take(self) -> PictureChunk | None:
        """The next chunk; None while there is none to hand out."""
        return self._waiting.popleft() if self._waiting else None

    def decoded(self, chunk: PictureChunk, skipped: Mapping[str, str]) -> None:
        """A chunk is done but for some, skipped for a reason.

        Raises SkippedPicturesError when these are too many.
        """
        self.done += len(chunk.paths)
        self.skipped |= skipped
        if len(self.skipped) > MOST_SKIPPED * self.total:
            named = [f"{path}: {reason}" for path, reason in self.skipped.items()][:NAMED]
            more = "; and more" if len(self.skipped) > len(named) else ""
            raise SkippedPicturesError(
                f"{self._source}: {len(self.skipped):,} of {self.total:,} pictures cannot be used; "
                f"expected at most {MOST_SKIPPED:.0%}; mend or remove them: "
                f"{'; '.join(named)}{more}"
            )

    def lost(self, chunk: PictureChunk, reason: str) -> None:
        """The process that had this chunk ended over it; raises SkippedPicturesError."""
        if len(chunk.paths) == 1:
            self.decoded(chunk, {chunk.paths[0]: reason})
        else:
            self._waiting.extendleft(
                PictureChunk(chunk.first_row + index, [path])
                for index, path in reversed(list(enumerate(chunk.paths)))
            )
