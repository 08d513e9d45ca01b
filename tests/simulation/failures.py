"""How a simulation fails."""


class InvariantBrokenError(AssertionError):
    """Something that must always hold does not."""


class SimulationFailedError(Exception):
    """A simulation broke an invariant: its seed, which one, and the last events."""


def require(holds: bool, broken: str) -> None:
    """Raise InvariantBrokenError unless it holds."""
    if not holds:
        raise InvariantBrokenError(broken)
