"""The errors of a simulation."""


class InvariantBrokenError(AssertionError):
    """An invariant does not hold."""


class SimulationFailedError(Exception):
    """A simulation broke an invariant: its seed, the command to repeat it, and the last events."""

    def __init__(self, seed: int, error: Exception, events: str, options: str = "") -> None:
        command = f"PYTHONPATH=tests python -m simulation {seed}{options}"
        what = f"seed {seed}: {type(error).__name__}: {error}"
        super().__init__(f"{what}\nrepeat it with: {command}\n{events}")


def require(holds: bool, broken: str) -> None:
    """Raise InvariantBrokenError unless the condition holds."""
    if not holds:
        raise InvariantBrokenError(broken)
