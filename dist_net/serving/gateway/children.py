"""What the gateway asks of whoever starts its host's workers."""

from __future__ import annotations

from typing import Protocol


class Children(Protocol):
    """The workers that this host's gateway has started itself."""

    def kill(self, process_id: int, host: str, reason: str) -> None:
        """Ends one that the pool has given up, if it is one of these; another takes its place."""
        ...
