"""The pace of a standby's copy: which parts it requests, and how far the server sees it. Pure.

A standby requests a state in parts, several at a time. Times are seconds on the clock of one host.
"""

import math
from collections import deque
from typing import NamedTuple

from dist_net.training.server.standby_copy import SentState
from dist_net.wire.messages import Follow

QUEUE_S = 0.1
"""How long other messages wait behind the parts on their way, however fast the link is."""

PARTS = 8
MIN_PART_BYTES, MAX_PART_BYTES = 1 << 12, 1 << 20
MIN_WINDOW_BYTES, MAX_WINDOW_BYTES = 1 << 14, 32 << 20
SHORTEST_S, MAX_USED_S = 1e-6, 1.0  # of a part: it takes longer if the process was stopped

BUSY_SHARE = 0.2
"""The share of the link that a copy takes while states travel to workers; else it takes all."""

KEEPS_UP_S = 10.0
"""A copy that is behind or missing for longer is named."""

PROGRESS_S, PROGRESS_SHARE = 10.0, 0.01
SLOW_DISK_BYTES_PER_S = 5e6  # a network disk or a memory card
"""A run ends when no copy has gained this share of the last state for ``PROGRESS_S``, or is whole
and not on the disk after the time that a slow one takes."""


class _Part(NamedTuple):
    size: int
    sent_s: float
    arrived_before: int
    is_alone: bool
    fills_window: bool


class CopyWindow:
    """The parts that a standby has requested and not received, in order.

    They are what the link delivers in a round trip and ``QUEUE_S``. The link's rate is what arrived
    while a part was on its way, if the window was full.
    """

    def __init__(self) -> None:
        self._parts: deque[_Part] = deque()
        self._arrived_bytes = 0
        self._bytes_per_s = 0.0
        self._round_trip_s = 0.0
        self._next_s = -math.inf

    @property
    def travelling_bytes(self) -> int:
        return sum(each.size for each in self._parts)

    @property
    def _limit_bytes(self) -> int:
        limit = self._bytes_per_s * (self._round_trip_s + QUEUE_S)
        return int(min(max(limit, MIN_WINDOW_BYTES), MAX_WINDOW_BYTES))

    def next_part(self, left_bytes: int, now: float) -> int:
        """Return the size of the part to request now; 0: none yet."""
        part = min(max(self._limit_bytes // PARTS, MIN_PART_BYTES), MAX_PART_BYTES, left_bytes)
        has_room = not self._parts or self.travelling_bytes + part <= self._limit_bytes
        return part if has_room and now >= self._next_s else 0

    def requested(self, size: int, now: float) -> None:
        is_full = self.travelling_bytes + 2 * size > self._limit_bytes
        self._parts.append(_Part(size, now, self._arrived_bytes, not self._parts, is_full))

    def is_due(self, sent_s: float) -> bool:
        """Return whether an answer to this request is that of the first part, or behind it."""
        return bool(self._parts) and sent_s >= self._parts[0].sent_s

    def arrived(self, size: int, share: float, now: float) -> None:
        """Take in the first part. Pause if copies may take only a ``share`` of the link."""
        part = self._parts.popleft()
        if not size:  # the copy has this state
            return
        self._arrived_bytes += size
        took_s = max(now - part.sent_s, SHORTEST_S)
        bytes_per_s = (self._arrived_bytes - part.arrived_before) / took_s
        if part.fills_window or bytes_per_s > self._bytes_per_s:
            self._bytes_per_s = bytes_per_s
        if part.is_alone or took_s < self._round_trip_s:
            self._round_trip_s = took_s
        used_s = min(size / self._bytes_per_s, MAX_USED_S)
        self._next_s = max(self._next_s, now) + (1 / share - 1) * used_s

    def clear(self) -> None:
        self._parts.clear()


class CopyProgress:
    """A standby's copy as its server sees it: of ``version``, None without one of this term.

    ``sent``, if any, is the state on its way.
    """

    def __init__(self) -> None:
        self.version: int | None = None
        self.samples = 0
        self.sent: SentState | None = None
        self._newest = 0  # the server's version at the last request
        self._current_s: dict[int, float] = {}  # when the versions sent were last the newest
        self._complete_s = math.inf  # when the copy last had the newest, or was first heard of
        self._longest_s = 0.0  # behind, when its version arrived
        self._arrived_bytes = self._gained_bytes = self._state_bytes = 0
        self._gained_s = 0.0

    def sends(self, state: SentState, now: float) -> None:
        former = list(self._current_s.items())[-2:]  # one may still be written
        self.sent, self._current_s = state, dict([*former, (state.version, now)])
        self._state_bytes = state.size

    def follows(self, follow: Follow, term: int, newest: int, now: float) -> None:
        """Take in a request to the server of this term, which has the version ``newest``."""
        version = follow.version if follow.copied_term == term else None
        if newest in self._current_s:
            self._current_s[newest] = now
        if newest != self._newest:
            self._newest, self._gained_bytes, self._gained_s = newest, 0, now
        if version != self.version:
            self._longest_s = 0.0 if self.version is None else self.behind_s(now)
            self._complete_s = self._current_s.get(follow.version, self._complete_s)
        self._complete_s = now if version == newest else min(self._complete_s, now)
        self.version, self.samples = version, follow.samples
        if self.sent is not None and self.sent.version == version:
            self.sent = None  # its arrays are kept no longer
        self._arrived_bytes = follow.state_bytes
        gained_bytes = follow.state_bytes - self._gained_bytes
        self._state_bytes = 0 if self.sent is None else self.sent.size
        is_newest = follow.state_version == newest
        if is_newest and gained_bytes > PROGRESS_SHARE * self._state_bytes:
            self._gained_bytes, self._gained_s = follow.state_bytes, now

    @property
    def arrived_share(self) -> float:
        """The share of ``sent`` that has arrived."""
        return min(1.0, self._arrived_bytes / (self._state_bytes or math.inf))

    def behind_s(self, now: float) -> float:
        """Return the time for which the copy has lacked a version."""
        return 0.0 if self.version == self._newest else max(0.0, now - self._complete_s)

    def is_awaited(self, now: float) -> bool:
        """Return whether the copy lacks the newest version, and may soon have it."""
        patience_s = PROGRESS_S
        if self.arrived_share == 1.0:
            patience_s += self._state_bytes / SLOW_DISK_BYTES_PER_S
        return self.version != self._newest and now < self._gained_s + patience_s

    def warning(self, now: float) -> str | None:
        """Return a phrase if the copy has been behind or missing for ``KEEPS_UP_S``."""
        behind_s = max(self._longest_s, self.behind_s(now))
        if behind_s < KEEPS_UP_S:
            return None
        if self.version is None:
            return f"has no copy yet after {behind_s:.0f} s: {self.arrived_share:.0%} has arrived"
        return f"has a copy that is up to {behind_s:.0f} s behind"
