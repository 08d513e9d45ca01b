"""The errors of a simulation."""


class InvariantBrokenError(AssertionError):
    """An invariant does not hold."""


class SimulationFailedError(Exception):
    """A simulation broke an invariant: its seed, the invariant, and the last events."""


def require(holds: bool, broken: str) -> None:
    """Raise InvariantBrokenError unless the condition holds."""
    if not holds:
        raise InvariantBrokenError(broken)
