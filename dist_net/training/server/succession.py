"""When a standby begins the next term, as a state machine: events in, decisions out. No I/O.

See ``dist_net.training.server.standbys`` for the rule. A host counts if one of its processes has
lost the server, too: it requests work from the standby, or follows it, after the standby heard the
server last. Of several standbys, the standby with the newest state begins, then the first in the
server's list.
"""

from dist_net.training.server.standbys import NOTHING, Remembered, is_majority
from dist_net.wire.lateness import Standstill
from dist_net.wire.messages import Follow, Followed
from dist_net.wire.standbys import MAX_STANDBYS, Standby

VISIT_S = 10.0
"""How long a visit counts: visitors try each standby in turn."""


class Succession:
    """The standby at ``address``, on ``host``. Times are seconds on one monotonic clock.

    ``heard_s`` is at first the start of the process: the one before may have heard the server then.
    """

    def __init__(self, host: str, address: str, takeover_after_s: float, now: float) -> None:
        self._host = host
        self._address = address
        self._takeover_after_s = takeover_after_s
        self.heard_s, self._stops = now, Standstill(now)
        self.others = NOTHING
        """The hosts, standbys and former servers of the run, for its next server."""
        self._visits_s: dict[str, float] = {}
        self._rivals: dict[str, tuple[Follow, float]] = {}  # by address

    def hears(self, followed: Followed, server: Standby, now: float) -> None:
        """Take in an answer of the server at this place, as of the time of its request."""
        others = Remembered.from_json(followed.others)
        hosts = dict.fromkeys((followed.host, *others.hosts))
        former = dict.fromkeys(((server.address, server.public_key), *others.former))
        known = tuple(hosts), others.standbys, tuple(former)[:MAX_STANDBYS]
        self.others = Remembered(*known, followed.term)
        self.heard_s = max(self.heard_s, min(followed.sent_s, now))

    def visits(self, host: str, now: float) -> None:
        """Record that a worker of ``host`` requests work, if it is a host of the run."""
        if host in self.others.hosts:
            self._visits_s[host] = now

    def follows(self, follow: Follow, now: float) -> None:
        """Record that another standby follows this one; it counts after as long a silence."""
        self._rivals.pop(follow.address, None)
        self._rivals[follow.address] = follow, now
        if len(self._rivals) > 2 * MAX_STANDBYS:  # former addresses of restarted ones
            del self._rivals[next(iter(self._rivals))]
        if follow.sent_s >= follow.heard_s + self._takeover_after_s:
            self.visits(follow.host, now)

    def is_due(self, term: int, version: int, now: float) -> bool:
        """Return whether to begin the next term from the state ``version`` of ``term``.

        Call this several times a second. Time in which this process was stopped does not count. A
        standby without an address only copies.
        """
        self.heard_s += self._stops.seconds(now)
        if now < self.heard_s + self._takeover_after_s or not self._address:
            return False
        since_s = max(self.heard_s, now - VISIT_S)
        reached = {host for host, seen_s in self._visits_s.items() if seen_s > since_s}
        hosts = {*self.others.hosts, self._host}
        if not is_majority(hosts, reached | {self._host}, self.others.first):
            return False
        own = -term, -version, self._place_of(self._address)
        return all(
            own < (-rival.copied_term, -rival.version, self._place_of(rival.address))
            for rival, seen_s in self._rivals.values()
            if seen_s > since_s and rival.copied_term  # else it has no state yet
        )

    def _place_of(self, address: str) -> int:
        places = [each[0] for each in self.others.standbys]
        return places.index(address) if address in places else len(places)
