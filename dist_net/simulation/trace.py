"""What a simulation says when what must always hold does not: its seed, and what led there."""

from dist_net.simulation.schedule import EventSchedule


class InvariantBrokenError(AssertionError):
    """Something that must always hold does not."""


class SimulationTrace:
    """What is said of the simulation of a seed; the schedule keeps the last of it."""

    def __init__(self, seed: int, schedule: EventSchedule) -> None:
        self._seed = seed
        self._schedule = schedule

    @property
    def text(self) -> str:
        return self._schedule.trace()

    def say(self, line: str) -> None:
        self._schedule.note("", line)

    def require(self, holds: bool, broken: str) -> None:
        """Raise InvariantBrokenError, with the seed and what led there, unless it holds."""
        if not holds:
            raise InvariantBrokenError(f"seed {self._seed}: {broken}\n{self.text}")
