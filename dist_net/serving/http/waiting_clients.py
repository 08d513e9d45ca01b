"""The connections that wait for their clients, and how long each has waited. Pure.

A connection waits for the server from the end of a request until its answer is written. Otherwise
it waits for its client: for the rest of a handshake, a head or a body, for the next request, or
until the client has read its answer. Bytes that the client sends or reads count against the wait,
at the minimum rate: a client that keeps the rate is not waited for at all.
"""

from collections.abc import Hashable


class WaitingClients:
    """The waits by connection; ``now`` is in seconds, of any one clock."""

    def __init__(self, min_bytes_per_s: float) -> None:
        self._min_bytes_per_s = min_bytes_per_s
        self._since_s: dict[Hashable, float] = {}

    def begin(self, connection: Hashable, now: float) -> None:
        """Begin to wait for the client, unless that has begun."""
        self._since_s.setdefault(connection, now)

    def end(self, connection: Hashable) -> None:
        self._since_s.pop(connection, None)

    def transferred(self, connection: Hashable, count: int, now: float) -> None:
        """Count bytes that the client sent or read since the last call."""
        if connection in self._since_s:
            since_s = self._since_s[connection] + count / self._min_bytes_per_s
            self._since_s[connection] = min(since_s, now)

    def waited_s(self, connection: Hashable, now: float) -> float:
        """Return the seconds without progress at the minimum rate; 0 if the server is at work."""
        return now - self._since_s.get(connection, now)

    def longest(self) -> Hashable:
        """Return the longest waiting connection; raise ValueError if none waits."""
        return min(self._since_s, key=self._since_s.__getitem__)
