"""The open connections: whose they are, how long each waits for its client, which gives way. Pure.

A connection waits for the server from the end of a request until its answer is written. Otherwise
it waits for its client: for a first byte, the rest of a handshake, a head or a body, for the next
request, or until the client has read its answer. Bytes that the client sends or reads count against
the wait, at the minimum rate: a client that keeps the rate is not waited for at all.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

Connection = TypeVar("Connection", bound=Hashable)


class OpenConnections(Generic[Connection]):
    """The connections and waits by client; ``now`` is in seconds, of any one clock."""

    def __init__(self, min_bytes_per_s: float) -> None:
        self._min_bytes_per_s = min_bytes_per_s
        self._clients: dict[Connection, Hashable] = {}
        self._by_client: dict[Hashable, dict[Connection, None]] = {}  # oldest first
        self._since_s: dict[Connection, float] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._clients

    def all(self) -> list[Connection]:
        return list(self._clients)

    def assign(self, connection: Connection, client: Hashable) -> None:
        """Add a connection of a client, or move it to another client."""
        self._leave(connection)
        self._clients[connection] = client
        self._by_client.setdefault(client, {})[connection] = None

    def close(self, connection: Connection) -> None:
        self._leave(connection)
        self.end_wait(connection)

    def begin_wait(self, connection: Connection, now: float) -> None:
        """Begin to wait for the client, unless that has begun."""
        if connection in self._clients:
            self._since_s.setdefault(connection, now)

    def end_wait(self, connection: Connection) -> None:
        self._since_s.pop(connection, None)

    def is_waiting(self, connection: Connection) -> bool:
        return connection in self._since_s

    def transferred(self, connection: Connection, count: int, now: float) -> None:
        """Count bytes that the client sent or read since the last call."""
        if connection in self._since_s:
            since_s = self._since_s[connection] + count / self._min_bytes_per_s
            self._since_s[connection] = min(since_s, now)

    def waited_s(self, connection: Connection, now: float) -> float:
        """Return the seconds without progress at the minimum rate; 0 if the server is at work."""
        return now - self._since_s.get(connection, now)

    def giving_way(self) -> tuple[Connection, Hashable]:
        """Return a connection of the client that has most, and the client.

        It is the connection that waits longest, the oldest of several; or else the newest, which
        has cost least. Raise ValueError without connections.
        """
        client, most = max(self._by_client.items(), key=lambda each: len(each[1]))
        waiting = [each for each in most if each in self._since_s]
        longest = min(waiting, key=self._since_s.__getitem__, default=next(reversed(most)))
        return longest, client

    def _leave(self, connection: Connection) -> None:
        client = self._clients.pop(connection, None)
        if client is not None:
            del self._by_client[client][connection]
            if not self._by_client[client]:
                del self._by_client[client]
