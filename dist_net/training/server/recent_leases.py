"""What the workers of a run did lately: computing, exchanging, waiting. Pure; time is passed in."""

from collections import deque
from typing import Any

PIECE_S = 0.1
"""Shorter leases of a worker, one after another, are one piece: a report has a bounded size."""

PIECES_KEPT = 256
Piece = tuple[float, float, float, float]  # began_s, ended_s, computed_s, exchanged_s


class RecentLeases:
    """The newest ``PIECES_KEPT`` pieces of all workers, numbered from 0."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, tuple[str, str], Piece]] = deque(maxlen=PIECES_KEPT)
        self._growing: dict[int, Piece] = {}
        self._next_number = 0

    def ended(
        self, worker_id: int, who: tuple[str, str], began_s: float, computed_s: float, now: float
    ) -> None:
        """Record that a lease of a worker, ``who`` is its host and name, has ended."""
        computed_s = min(computed_s, now - began_s)
        first_s, _, *before = self._growing.pop(worker_id, (began_s, 0.0, 0.0, 0.0))
        piece = first_s, now, before[0] + computed_s, before[1] + now - began_s - computed_s
        if now - first_s < PIECE_S:
            self._growing[worker_id] = piece
        else:
            self._pieces.append((self._next_number, who, piece))
            self._next_number += 1

    def forget(self, worker_id: int) -> None:
        self._growing.pop(worker_id, None)

    def report(self, now: float) -> list[list[Any]]:
        """Return of each piece: number, host, name, and seconds.

        They are: since its begin, since its end, computing, exchanging states.
        """
        return [
            [number, *who, *(round(each, 3) for each in (now - began_s, now - ended_s, *spent_s))]
            for number, who, (began_s, ended_s, *spent_s) in self._pieces
        ]
