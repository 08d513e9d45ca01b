"""The standbys that follow a run, and the voters that its server needs. Pure.

A standby begins the next term if a majority of the voters has not heard the server for
``takeover_after_s``. A voter that hears the server promises to stay with it for some time; the
server applies results only while a majority is bound by a promise. The majorities share a voter, so
two servers never apply results at the same time: see ``docs/decisions/0027-terms.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dist_net.errors import ProtocolError
from dist_net.ground.json_records import record_from_json
from dist_net.training.server.copy_pace import CopyProgress
from dist_net.training.server.members import NO_WORKER, Member, Membership, Promise, VoterId
from dist_net.training.server.settings import CONTINUES, RunSettings
from dist_net.wire.messages import Follow
from dist_net.wire.standbys import MAX_STANDBYS, NOWHERE, PATIENCE, Standby, standbys_text

MAX_WORKER_VOTES = 5
"""The votes of all workers together, and of the server, and of each standby."""

FORGOTTEN_AFTER_S = 60.0
"""A standby that is silent for longer has no vote, if the server has a majority without it."""


class Voter(NamedTuple):
    """The server, a standby, or a process of a worker; ``label`` is what it calls itself."""

    public_key: str
    identity: int
    votes: int
    label: str

    @property
    def voter_id(self) -> VoterId:
        return self.public_key, self.identity


Voters = tuple[Voter, ...]


def is_majority(voters: Voters, reached: Collection[VoterId]) -> bool:
    """Return whether ``reached`` has most of the votes, or half of them with the first voter."""
    lead = sum(each.votes if each.voter_id in reached else -each.votes for each in voters)
    return lead > 0 or (lead == 0 and voters[0].voter_id in reached)


def ids_of(*lists: Voters) -> set[VoterId]:
    return {each.voter_id for voters in lists for each in voters}


def fingerprint(voters: Voters) -> str:
    """Return a digest: a standby confirms by it that it has stored these voters."""
    return hashlib.sha256(json.dumps(voters).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Follower:
    """A standby. It has stored the list of ``voters``, a fingerprint.

    It ``may_succeed`` unless it is silent for long, or has returned with another list.
    """

    standby: Standby
    host: str
    promise: Promise = field(default_factory=Promise)
    heard_s: float = 0.0
    copy: CopyProgress = field(default_factory=CopyProgress)
    voters: str = ""
    may_succeed: bool = False

    @property
    def voter_id(self) -> VoterId:
        return self.standby.public_key, NO_WORKER


class Remembered(NamedTuple):
    """The voters and the standbys of a run, for its next server.

    ``voters`` are one or two lists: a majority of each is needed. Standbys have an address, a
    public key ("" without keys), and a host. ``former``: the places of earlier servers. A standby
    has heard of ``term``, and its copy is of ``version`` in ``copied_term``.
    """

    voters: tuple[Voters, ...] = ()
    standbys: tuple[tuple[str, str, str], ...] = ()
    former: tuple[tuple[str, str], ...] = ()
    term: int = 0
    version: int = 0
    copied_term: int = 0

    @classmethod
    def from_json(cls, text: str | bytes) -> Remembered:
        """Raise ``ProtocolError`` unless ``text`` is a JSON array of the fields."""
        try:
            remembered = record_from_json(cls, json.loads(text))
            if not all(remembered.voters):
                raise ValueError("a list of no voters")
        except (ValueError, TypeError, RecursionError) as error:
            raise ProtocolError(
                f"the run's voters are {text[:80]!r}; expected them as this release writes them"
            ) from error
        return remembered


NOTHING = Remembered()


class RunPlace(NamedTuple):
    """The server at ``own``, on ``host``; ``remembered`` is of an earlier start of the server."""

    host: str = ""
    own: Standby = NOWHERE
    remembered: Remembered = NOTHING


ALONE = RunPlace()


class Standbys:
    """The standbys of the run of the server at ``place``; times are on its clock."""

    def __init__(self, members: Membership, settings: RunSettings, place: RunPlace) -> None:
        host, own, remembered = place
        self._members = members
        self.host = host
        self._own = Voter(own.public_key, NO_WORKER, MAX_WORKER_VOTES, host)
        self._lasts_s = min(settings.takeover_after_s, PATIENCE * settings.heartbeat_timeout_s)
        self._goes_on_alone = settings.minority == CONTINUES
        self._former = remembered.former
        self._has_begun = not remembered.voters
        self._lists = remembered.voters or ((self._own,),)
        self._began_s = math.nan
        self._followers: dict[str, Follower] = {}
        for address, key, host_of in remembered.standbys:
            standby = Standby(address, key)
            if standby.name != own.name:
                self._followers[standby.name] = Follower(standby, host_of, may_succeed=True)

    @property
    def text(self) -> str:
        """The list for everyone in touch with the server; "" without standbys."""
        return standbys_text(each.standby for each in self._successors)

    @property
    def _successors(self) -> list[Follower]:
        """The standbys that may begin the next term; one without an address only copies."""
        return [each for each in self._rivals if each.may_succeed]

    @property
    def _rivals(self) -> list[Follower]:
        return [each for each in self._followers.values() if each.standby.address]

    @property
    def remembered(self) -> Remembered:
        standbys = ((*each.standby, each.host) for each in self._successors)
        return Remembered(self._lists, tuple(standbys), self._former)

    def ends(self, voter_id: VoterId, now: float) -> None:
        """Record that a voter has ended, and so will follow no other server: it counts no more.

        A standby that does not know it yet needs a majority with it, which is also one without.
        """
        if voter_id[1] == NO_WORKER:
            self._followers.pop(voter_id[0], None)
        rest = (tuple(v for v in voters if v.voter_id != voter_id) for voters in self._lists)
        self._lists = tuple(filter(None, rest)) or ((self._own,),)
        self._update_voters(now)

    def follows(self, follow: Follow, now: float) -> bool:
        """Record a standby's request; return False at ``MAX_STANDBYS``."""
        standby = Standby(follow.address, follow.public_key)
        known = self._followers.get(standby.name)
        if follow.leaves:
            self.ends((standby.name, NO_WORKER), now)
            return True
        if known is None and len(self._followers) == MAX_STANDBYS:
            return False
        if known is None or known.standby != standby:  # restarted, it may have another address
            known = self._followers[standby.name] = Follower(standby, follow.host)
        known.heard_s, known.voters = now, follow.voters
        known.may_succeed |= follow.voters in ("", *map(fingerprint, self._lists))
        known.promise.renew(follow.sent_s, follow.heard_s, now)
        self._update_voters(now)
        return True

    def keep(self, may_follow: Callable[[str], bool], now: float) -> None:
        """Forget standbys with revoked public keys."""
        for name, each in list(self._followers.items()):
            if not may_follow(each.standby.public_key):
                self.ends((name, NO_WORKER), now)

    def forget(self, name: str, now: float) -> str | None:
        """Take an operator's word that a voter has ended; return why it is refused, or None."""
        missing = self._missing(now)
        found = [each for each in missing if name in (each.label, each.public_key)]
        if len(found) != 1:
            known = ", ".join(f"{each.label} ({each.public_key})" for each in missing) or "none"
            return f"{name!r} is {len(found)} of the members that are missing, which are: {known}"
        self.ends(found[0].voter_id, now)
        return None

    def follower(self, follow: Follow) -> Follower:
        """Return the standby that sent the request, which ``follows`` has recorded."""
        return self._followers[Standby(follow.address, follow.public_key).name]

    def hold(self, now: float) -> bool:
        """Return whether the server may apply results."""
        return self._is_free or self._goes_on_alone or self._has_majority(now)

    def _has_majority(self, now: float) -> bool:
        bound = self._bound(now)
        return all(is_majority(each, bound) for each in self._lists)

    def majority_until_s(self) -> float:
        """Return until when no other server can begin a term, if no further message arrives."""
        if self._is_free or self._goes_on_alone:
            return math.inf
        ends = [each.promise.ends_s(self._lasts_s) for each in self._peers]
        known = (each for each in (math.inf, *ends) if self._has_majority(math.nextafter(each, 0)))
        return max(known, default=-math.inf)

    @property
    def _is_free(self) -> bool:
        """Whether no standby may take over, and no former server has a majority."""
        return self._has_begun and not self._rivals

    @property
    def is_alone(self) -> bool:
        """Whether the run has no other host: no standby, and no former server."""
        return self._has_begun and not (self._followers or self._former)

    @property
    def _peers(self) -> list[Member | Follower]:
        return [*self._members.members, *self._followers.values()]

    def _bound(self, now: float) -> set[VoterId]:
        """Return the server, and the peers that are bound by a promise."""
        bound = {each.voter_id for each in self._peers if each.promise.holds(self._lasts_s, now)}
        return {self._own.voter_id} | bound

    def _voters(self, now: float) -> dict[Voter, bool]:
        """Return whether each voter is bound."""
        bound = self._bound(now)
        return {each: each.voter_id in bound for each in (*self._lists[0], *self._lists[-1])}

    def _missing(self, now: float) -> list[Voter]:
        return [each for each, is_bound in self._voters(now).items() if not is_bound]

    def may_apply(self, member: Member, now: float) -> bool:
        """Return whether this worker's result may be applied."""
        return self._is_free or (member.promise.holds(self._lasts_s, now) and self.hold(now))

    def tick(self, now: float) -> None:
        """Forget standbys that have been silent for long, unless most voters are."""
        if math.isnan(self._began_s):
            self._began_s = now
        self._has_begun = self._has_begun or self._has_majority(now)
        for name, each in list(self._followers.items()) if self.hold(now) else ():
            silent_s = now - max(each.heard_s, self._began_s)
            each.may_succeed = silent_s < FORGOTTEN_AFTER_S
            # By then, bound voters have heard that it is no successor, and will not visit it.
            if silent_s > FORGOTTEN_AFTER_S + self._lasts_s:
                del self._followers[name]
        self._update_voters(now)

    def _update_voters(self, now: float) -> None:
        """Replace the list of voters, in two steps.

        Both lists count until each standby of the earlier one has stored the later one: two servers
        always need a majority of the same list.
        """
        if len(self._lists) == 1 and self.hold(now):
            bound = self._bound(now)
            voters = self._present_voters(bound)
            if voters != self._lists[0] and is_majority(voters, bound):
                self._lists = (*self._lists, voters)
        later, earlier = fingerprint(self._lists[-1]), ids_of(self._lists[0])
        if all(each.voters == later for each in self._rivals if each.voter_id in earlier):
            self._lists = self._lists[-1:]
        if self._is_free:
            self._lists = ((self._own,),)

    def _present_voters(self, bound: set[VoterId]) -> Voters:
        """Return the standbys, the server, and the workers with a seat.

        A worker's seat is for one process of each key, and needs an applied result. Workers keep
        their seats; free seats go to the first that joined.
        """
        own, votes = self._own, MAX_WORKER_VOTES
        standbys = [
            Voter(*each.voter_id, votes, each.host)
            for each in self._successors
            if each.standby.public_key not in ("", own.public_key)
        ]
        keys = {"", own.public_key, *(each.standby.public_key for each in self._followers.values())}
        seated = ids_of(self._lists[-1])
        workers: list[Voter] = []
        for each in sorted(self._members.members, key=lambda each: each.voter_id not in seated):
            has_earned = each.voter_id in seated or (each.pushes and each.voter_id in bound)
            if has_earned and each.voter_id[0] not in keys and len(workers) < votes:
                workers.append(Voter(*each.voter_id, 1, each.host or each.name))
                keys.add(each.voter_id[0])
        return (*standbys, own, *workers)

    def warning(self, now: float) -> str | None:
        """Return why the run waits, or None."""
        if self.hold(now):
            return None
        missing = ", ".join(each.label for each in self._missing(now))
        return (
            f"the run waits: hosts are missing ({missing}), and a standby among them may go on "
            f"with it. It continues when they return. For one that never will, and where no server "
            f"of this run is left: dist-net members forget ADDRESS NAME"
        )

    def elsewhere(self, now: float) -> list[Standby]:
        """Return the places of silent standbys and former servers, where a server may run."""
        silent = [each for each in self._rivals if now > each.heard_s + self._lasts_s]
        return [each.standby for each in silent] + [Standby(*each) for each in self._former]

    def voters(self, now: float) -> list[dict[str, Any]]:
        return [
            {"name": label, "public_key": key, "votes": votes, "is_bound": is_bound}
            for (key, _, votes, label), is_bound in self._voters(now).items()
        ]

    def report(self, version: int, samples: int, now: float) -> list[dict[str, Any]]:
        return [
            {
                "address": each.standby.address,
                "host": each.host,
                "heard_s_ago": now - each.heard_s,
                "has_copy": each.copy.version is not None,
                "arrived_share": each.copy.arrived_share,
                "versions_behind": version - (each.copy.version or 0),
                "samples_behind": samples - each.copy.samples,
                "seconds_behind": each.copy.behind_s(now),
            }
            for each in self._followers.values()
        ]

    def awaited(self, now: float) -> list[str]:
        """Return the standbys that may soon have the newest version, and lack it."""
        return [
            f"{each.host} ({each.copy.arrived_share:.0%})"
            for each in self._successors
            if each.copy.is_awaited(now)
        ]

    def lacking(self, version: int) -> list[str]:
        return [each.host for each in self._successors if each.copy.version != version]

    def copy_warning(self, now: float) -> str | None:
        """Return which copies are missing, or cannot keep up, or None."""
        found = [(each.host, each.copy.warning(now)) for each in self._followers.values()]
        if not (named := ", ".join(f"{host} {what}" for host, what in found if what)):
            return None
        return (
            f"a standby cannot keep up: {named}. That much work is repeated if the server's host "
            f"is lost. A state takes as long as its way to the standby and to the disk there"
        )
