"""What a simulation says when what must always hold does not: its seed, and what led there."""

from collections import deque

from dist_net.simulation.schedule import EventSchedule

LINES_KEPT = 30


class InvariantBrokenError(AssertionError):
    """Something that must always hold does not."""


class SimulationTrace:
    """The last things that happened in the simulation of a seed, a line each."""

    def __init__(self, seed: int, schedule: EventSchedule) -> None:
        self._seed = seed
        self._schedule = schedule
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)

    def say(self, line: str) -> None:
        self.lines.append(f"{self._schedule.now_s:9.4f} s  {line}")

    def require(self, holds: bool, broken: str) -> None:
        """Raise InvariantBrokenError, with the seed and what led there, unless it holds."""
        if not holds:
            self.say(f"BROKEN: {broken}")
            raise InvariantBrokenError("\n".join([f"seed {self._seed}: {broken}", *self.lines]))
