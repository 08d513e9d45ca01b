"""The rate of events by sender, within limits. Pure; the time is passed in."""

from collections.abc import Hashable

_MAX_IDLE = 1024


class EventRates:
    """Permit each sender ``burst`` events at once, and ``per_s`` events per second in the long run.

    The generic cell rate algorithm: one number for each sender, the time at which its events so far
    would have ended at the permitted rate.
    """

    def __init__(self) -> None:
        self._ends_s: dict[Hashable, float] = {}

    def wait_s(self, sender: Hashable, per_s: float, burst: float, now: float) -> float:
        """Count an event and return 0; or return the seconds until it would be permitted."""
        end_s = max(self._ends_s.get(sender, now), now)
        if (early_s := end_s - now - (burst - 1) / per_s) > 1e-9:
            return early_s
        if len(self._ends_s) > _MAX_IDLE:
            self._ends_s = {each: at_s for each, at_s in self._ends_s.items() if at_s > now}
        self._ends_s[sender] = end_s + 1 / per_s
        return 0.0
