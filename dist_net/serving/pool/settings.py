"""The limits of the inference pool."""

import math
from dataclasses import dataclass

from dist_net.errors import SettingError

MIB = 1 << 20
MAX_TIMEOUT_S = 60.0
"""The maximum timeout of a request, unless the default is longer."""


@dataclass(frozen=True)
class PoolSettings:
    """Validated at creation. Raise ``SettingError`` for a value out of range.

    A batch has at most ``max_batch_size`` rows. It waits for more until its oldest request is
    ``batch_timeout_s`` old (0: it never waits). At most ``queue_requests`` requests of each model
    are queued. The payloads of all unanswered requests have at most ``queue_bytes``, divided
    equally among the models. ``default_timeout_s`` applies to requests without a timeout. A worker
    counts as lost if it is silent for ``heartbeat_timeout_s``, or takes longer than
    ``max_batch_s`` for a batch or ``max_load_s`` to load a version.
    """

    max_batch_size: int = 8
    batch_timeout_s: float = 0.0
    queue_requests: int = 1024
    queue_bytes: int = 256 * MIB
    default_timeout_s: float = 10.0
    heartbeat_interval_s: float = 0.2
    heartbeat_timeout_s: float = 1.5
    max_batch_s: float = 60.0
    max_load_s: float = 300.0

    def allowed_s(self, timeout_s: float | None) -> float:
        """Return the timeout of a request that specifies ``timeout_s``."""
        return min(timeout_s or self.default_timeout_s, max(self.default_timeout_s, MAX_TIMEOUT_S))

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(getattr(PoolSettings, name), int):  # its default
                if not isinstance(value, int) or value < 1:
                    raise SettingError(f"{name} is {value!r}: expected a whole number, at least 1")
            elif not 0 <= value < math.inf or (value == 0 and name != "batch_timeout_s"):
                expected = "0 or above" if name == "batch_timeout_s" else "above 0"
                raise SettingError(f"{name} is {value!r}: expected seconds, {expected}")
        if self.heartbeat_timeout_s < 2 * self.heartbeat_interval_s:
            raise SettingError(
                f"heartbeat_timeout_s is {self.heartbeat_timeout_s:g}: expected at least twice the "
                f"heartbeat_interval_s of {self.heartbeat_interval_s:g}, or healthy workers would "
                f"be given up"
            )
