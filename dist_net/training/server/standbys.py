"""The standbys that follow a run, and the hosts without which its server must not go on. Pure.

A standby may begin the next term if it has not heard the server for ``takeover_after_s``, and a
majority of the run's hosts has not either. Everyone who stays in touch with the server promises to
do so for some time after the newest message of the server; the server applies results only while a
majority of hosts is bound by a promise. The two majorities share a host, so two servers of a run do
not apply results at the same time. ``docs/decisions/0027-terms.md`` states the rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dist_net.errors import ProtocolError
from dist_net.json_records import record_from_json
from dist_net.training.server.copy_pace import CopyProgress
from dist_net.training.server.members import Member, Membership, Promise
from dist_net.training.server.settings import CONTINUES, RunSettings
from dist_net.wire.messages import Follow
from dist_net.wire.standbys import MAX_STANDBYS, PATIENCE, Standby, standbys_text

MAX_HOSTS = 512  # their names must fit into a message
FORGOTTEN_AFTER_S = 60.0
"""A host that is silent for so long no longer counts, if the server has a majority without it."""


def is_majority(hosts: Collection[str], reached: Collection[str], first: str) -> bool:
    """Return whether ``reached`` has most of the hosts.

    Half of them are enough with ``first``, the host of the first standby. So of two parts of the
    hosts, one has the majority, and never both.
    """
    twice = 2 * sum(host in reached for host in hosts)
    return twice > len(hosts) or (twice == len(hosts) and first in reached)


@dataclass(slots=True)
class Follower:
    """A standby."""

    standby: Standby
    host: str
    promise: Promise = field(default_factory=Promise)
    heard_s: float = 0.0
    copy: CopyProgress = field(default_factory=CopyProgress)


class Remembered(NamedTuple):
    """The other hosts and the standbys of a run, for its next server.

    Each standby has an address, a public key ("" without keys), and a host. ``former``: where the
    server was before, if the run has moved. A standby has heard of ``term``, and its copy is of
    ``version`` in ``copied_term``.
    """

    hosts: tuple[str, ...] = ()
    standbys: tuple[tuple[str, str, str], ...] = ()
    former: tuple[tuple[str, str], ...] = ()
    term: int = 0
    version: int = 0
    copied_term: int = 0

    @property
    def first(self) -> str:
        """The host of the first standby; "" if there is none."""
        return self.standbys[0][2] if self.standbys else ""

    @classmethod
    def from_json(cls, text: str | bytes) -> Remembered:
        """Raise ``ProtocolError`` for other text than that of a JSON array of the fields."""
        try:
            return record_from_json(cls, json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise ProtocolError(
                f"the run's hosts are {text[:80]!r}; expected them in JSON"
            ) from error


NOTHING = Remembered()


class Standbys:
    """The standbys of the run of a server on ``host``; times are on the server's clock.

    ``members`` is borrowed. ``remembered`` is of an earlier start of the server.
    """

    def __init__(
        self, members: Membership, settings: RunSettings, host: str, remembered: Remembered
    ) -> None:
        self._members = members
        self.host = host
        self._lasts_s = min(settings.takeover_after_s, PATIENCE * settings.heartbeat_timeout_s)
        self._goes_on_alone = settings.minority == CONTINUES
        self._former = remembered.former
        self._has_begun = not remembered.hosts
        others = [each for each in remembered.standbys if each[2] != host]
        known = [Follower(Standby(*each[:2]), each[2]) for each in others]
        self._followers = {each.standby.public_key or each.standby.address: each for each in known}
        self._seen_s = dict.fromkeys([*remembered.hosts, *(each.host for each in known)], math.nan)

    @property
    def text(self) -> str:
        """The list for everyone in touch with the server; "" without standbys."""
        return standbys_text(each.standby for each in self._successors)

    @property
    def _successors(self) -> list[Follower]:
        """The standbys that may begin the next term; one without an address only copies."""
        return [each for each in self._followers.values() if each.standby.address]

    @property
    def hosts(self) -> list[str]:
        """The hosts of the run, the server's first."""
        return [self.host, *(each for each in self._seen_s if each != self.host)]

    @property
    def remembered(self) -> Remembered:
        """The hosts and standbys, for another start of the server."""
        standbys = ((*each.standby, each.host) for each in self._successors)
        return Remembered(tuple(self._seen_s), tuple(standbys), self._former)

    def hears(self, host: str, now: float) -> None:
        """Record a message of a worker, or of a standby, of ``host``."""
        if host in self._seen_s or len(self._seen_s) < MAX_HOSTS:
            self._seen_s[host] = now

    def leaves(self, host: str) -> None:
        """Record that a peer of ``host`` ended in order: with its last one, the host has left."""
        if all(each.host != host for each in self._peers):
            self._seen_s.pop(host, None)

    def follows(self, follow: Follow, now: float) -> bool:
        """Record a standby's request; return False if there are too many standbys."""
        name = follow.public_key or follow.address  # a restarted standby may have another address
        known = self._followers.get(name)
        if follow.leaves:
            self._forget(name)
            return True
        if known is None and len(self._followers) == MAX_STANDBYS:
            return False
        standby = Standby(follow.address, follow.public_key)
        if known is None or known.standby != standby:
            known = self._followers[name] = Follower(standby, follow.host)
        known.heard_s = now
        known.promise.renew(follow.sent_s, follow.heard_s, now)
        self.hears(follow.host, now)
        return True

    def keep(self, may_follow: Callable[[str], bool]) -> None:
        """Forget the standbys whose public keys were revoked."""
        for name, each in list(self._followers.items()):
            if not may_follow(each.standby.public_key):
                self._forget(name)

    def _forget(self, name: str) -> None:
        if (gone := self._followers.pop(name, None)) is not None:
            self.leaves(gone.host)

    def follower(self, follow: Follow) -> Follower:
        """Return the standby that sent the request, which ``follows`` has recorded."""
        return self._followers[follow.public_key or follow.address]

    def hold(self, now: float) -> bool:
        """Return whether the server may apply results."""
        if self._is_free or self._goes_on_alone:
            return True
        first = self.remembered.first or self.host
        holds = is_majority(self.hosts, self._bound(now), first)
        self._has_begun |= holds
        return holds

    @property
    def _is_free(self) -> bool:
        """Whether no standby may take over, and no former server has a majority."""
        return self._has_begun and not self._successors

    def _bound(self, now: float) -> set[str]:
        """Return the server's host, and the hosts that are bound by a promise."""
        bound = (each.host for each in self._peers if each.promise.holds(self._lasts_s, now))
        return {self.host, *bound}

    @property
    def _peers(self) -> tuple[Member | Follower, ...]:
        return (*self._members.members, *self._followers.values())

    def may_apply(self, member: Member, now: float) -> bool:
        """Return whether the worker's result may be applied: it has seen no other server."""
        return self._is_free or (member.promise.holds(self._lasts_s, now) and self.hold(now))

    def tick(self, now: float) -> None:
        """Forget hosts that have been silent for long, unless most are."""
        if not self.hold(now):
            return
        for host, seen_s in list(self._seen_s.items()):
            if math.isnan(seen_s):  # not heard since this start
                self._seen_s[host] = now
            elif now > seen_s + FORGOTTEN_AFTER_S:
                del self._seen_s[host]
                kept = {a: each for a, each in self._followers.items() if each.host != host}
                self._followers = kept

    def warning(self, now: float) -> str | None:
        """Why the run waits; None if it does not."""
        if self.hold(now):
            return None
        missing = ", ".join(each for each in self.hosts if each not in self._bound(now))
        return (
            f"the run waits: hosts are missing ({missing}), and a standby among them may go on "
            f"with it. It continues when they return. If they never will, end it, and resume it "
            f"with --minority continue"
        )

    def elsewhere(self, now: float) -> list[Standby]:
        """Return where another server may be: the silent standbys, and the former servers."""
        silent = [each for each in self._successors if now > each.heard_s + self._lasts_s]
        return [each.standby for each in silent] + [Standby(*each) for each in self._former]

    def report(self, version: int, samples: int, now: float) -> list[dict[str, Any]]:
        """Return how far each standby is behind a server at this version."""
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
        """Return the standbys that lack the newest version, and may soon have it."""
        return [
            f"{each.host} ({each.copy.arrived_share:.0%})"
            for each in self._successors
            if each.copy.is_awaited(now)
        ]

    def lacking(self, version: int) -> list[str]:
        """Return the hosts of the standbys that lack this version."""
        return [each.host for each in self._successors if each.copy.version != version]

    def copy_warning(self, now: float) -> str | None:
        """Which copies are missing, or cannot keep up; None if there are none."""
        found = [(each.host, each.copy.warning(now)) for each in self._followers.values()]
        if not (named := ", ".join(f"{host} {what}" for host, what in found if what)):
            return None
        return (
            f"a standby cannot keep up: {named}. That much work is repeated if the server's host "
            f"is lost. A state takes as long as its way to the standby and to the disk there"
        )
