"""When a lease is late: one rule for the workers of a round and for the processes of one host."""

LATE_S, LATE_FACTOR, EXPECTED_FACTOR, FIRST_LEASE_S = 0.2, 3, 1.5, 3.0

MAX_LOOK_S = 0.5
"""The longest pause between two looks of a process that was not stopped."""


def late_after_s(usual_s: float, planned_s: float = 0.0) -> float:
    """Return after how many seconds a lease is late: an idle worker then takes it too.

    The first result counts. A lease usually takes ``usual_s``; 0: unknown. Time in which the
    process that waits was stopped does not count: see ``Standstill``.
    """
    return max(LATE_S, LATE_FACTOR * (usual_s or FIRST_LEASE_S), EXPECTED_FACTOR * planned_s)


class Standstill:
    """Notices that this process was stopped: by Ctrl-Z or SIGSTOP, or with the whole machine.

    Messages that did not arrive meanwhile are not late: this process could not have received them.
    Call a method several times a second.
    """

    def __init__(self, now: float | None = None) -> None:
        self._looked_s = now
        self._stopped_s = 0.0

    def seconds(self, now: float) -> float:
        """Return how long the process was stopped since the last call."""
        looked_s, self._looked_s = self._looked_s, now
        stopped_s = 0.0 if looked_s is None else max(0.0, now - looked_s - MAX_LOOK_S)
        self._stopped_s += stopped_s
        return stopped_s

    def running_s(self, now: float) -> float:
        """Return ``now`` on a clock without the time in which the process was stopped."""
        self.seconds(now)
        return now - self._stopped_s
