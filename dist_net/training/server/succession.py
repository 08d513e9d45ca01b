"""When a standby begins the next term, as a state machine: events in, decisions out. No I/O.

See ``dist_net.training.server.standbys`` for the rule. A voter counts if it has lost the server,
too: it requests work from the standby, or follows it, after the standby heard the server last. Of
several standbys, the standby with the newest state begins, then the first in the server's list.
"""

from dist_net.training.server.members import NO_WORKER, VoterId
from dist_net.training.server.standbys import NOTHING, Remembered, ids_of, is_majority
from dist_net.wire.lateness import Standstill
from dist_net.wire.messages import Follow, Followed
from dist_net.wire.standbys import MAX_STANDBYS, ServerPlaces, Standby, standbys_in

VISIT_S = 10.0
"""How long a visit counts: visitors try each standby in turn."""


class Succession:
    """The standby at ``own``. Times are seconds on one monotonic clock.

    It counts as heard at the start of the process: the one before may have heard the server then.
    """

    def __init__(self, own: Standby, takeover_after_s: float, now: float) -> None:
        self._own = own
        self._takeover_after_s = takeover_after_s
        self.places, self._stops = ServerPlaces(own=own.address, now=now), Standstill(now)
        self.others = NOTHING
        """The voters, standbys and former servers of the run, for its next server."""
        self._visits_s: dict[VoterId, float] = {}
        self._rivals: dict[str, tuple[Follow, float]] = {}  # by address

    def hears(self, followed: Followed, server: Standby, now: float) -> None:
        """Take in an answer of the server at this place, as of the time of its request."""
        others = Remembered.from_json(followed.others)
        former = dict.fromkeys(((server.address, server.public_key), *others.former))
        known = others.voters, others.standbys, tuple(former)[:MAX_STANDBYS]
        self.others = Remembered(*known, followed.term)
        self.places.learn(standbys_in(followed.standbys))
        self.places.heard_s = max(self.places.heard_s, min(followed.sent_s, now))

    def visits(self, voter_id: VoterId, now: float) -> None:
        """Record that a peer has lost the server, if it is a voter of the run."""
        if voter_id in ids_of(*self.others.voters):
            self._visits_s[voter_id] = now

    def follows(self, follow: Follow, now: float) -> None:
        """Record that another standby follows this one; it counts after as long a silence."""
        self._rivals.pop(follow.address, None)
        self._rivals[follow.address] = follow, now
        if len(self._rivals) > 2 * MAX_STANDBYS:  # former addresses of restarted ones
            del self._rivals[next(iter(self._rivals))]
        if follow.sent_s >= follow.heard_s + self._takeover_after_s:
            self.visits((follow.public_key, NO_WORKER), now)

    def is_due(self, term: int, version: int, now: float) -> bool:
        """Return whether to begin the next term from the state ``version`` of ``term``.

        Call this several times a second. Time in which this process was stopped does not count. A
        standby without an address only copies.
        """
        self.places.heard_s += self._stops.seconds(now)
        if now < self.places.heard_s + self._takeover_after_s or not self._own.address:
            return False
        since_s = max(self.places.heard_s, now - VISIT_S)
        reached = {voter for voter, seen_s in self._visits_s.items() if seen_s > since_s}
        lists, own_id = self.others.voters, (self._own.public_key, NO_WORKER)
        has_vote = lists != () and own_id in ids_of(lists[-1])
        if not has_vote or not all(is_majority(each, reached | {own_id}) for each in lists):
            return False
        own = -term, -version, self._place_of(self._own.address)
        return all(
            own < (-rival.copied_term, -rival.version, self._place_of(rival.address))
            for rival, seen_s in self._rivals.values()
            if seen_s > since_s and rival.copied_term  # else it has no state yet
        )

    def _place_of(self, address: str) -> int:
        places = [each[0] for each in self.others.standbys]
        return places.index(address) if address in places else len(places)
