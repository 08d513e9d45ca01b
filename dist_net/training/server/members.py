"""The workers of a run and their heartbeats. Pure; time is passed in."""

import math
from dataclasses import dataclass, field
from typing import Any

from dist_net.ground.vector import Vector
from dist_net.training.server.metrics import RecentSpeed
from dist_net.training.server.round_plan import LeaseTimes, measured
from dist_net.wire.lateness import Standstill
from dist_net.wire.lease_steps import LeaseSteps, minibatches_in
from dist_net.wire.messages import UNKNOWN_EQUIPMENT, Equipment, Join

RETURN_S = 60.0
"""How long a silent worker without a lease is still known."""

PATIENCE_FACTOR = 3
"""The patience with a worker that returned, as a multiple of its silence."""

CLOCK_MARGIN = 0.9
"""The share of a promise that the server relies on: the clocks of hosts differ in speed."""

MAX_UNHEARD = 1000
"""The messages that a promise remembers: a peer without an answer leaves long before."""


VoterId = tuple[str, int]
"""A public key, and the identity of a worker's process; NO_WORKER: the server or a standby."""

NO_WORKER = -1


@dataclass(slots=True)
class Promise:
    """A peer's promise to stay with this server for a while after it heard it last.

    The peer counts from ``heard_s``, when it sent the newest message with an answer. Its clock may
    drift: this server counts from ``since_s`` on its own clock, when it received the message before
    that, which had an answer, too, or the ``Join`` at ``joined_s``.
    """

    joined_s: float = -math.inf
    since_s: float = -math.inf
    received: dict[float, tuple[float, float]] = field(default_factory=dict)
    """When the peer's last messages were received, and ``heard_s`` in them, by ``sent_s``."""

    def renew(self, sent_s: float, heard_s: float, now: float) -> None:
        """Take in a message of ``sent_s``, by a peer that heard this server at ``heard_s``."""
        self.since_s = max(self.since_s, self.joined_s)
        if len(self.received) == MAX_UNHEARD:
            self.received.clear()
        self.received.setdefault(sent_s, (now, heard_s))
        _, before_s = self.received.get(heard_s, (now, math.nan))
        if before_s in self.received:
            self.since_s = max(self.since_s, self.received[before_s][0])
            self.received = {sent: of for sent, of in self.received.items() if sent >= before_s}

    def ends_s(self, lasts_s: float) -> float:
        return self.since_s + CLOCK_MARGIN * lasts_s

    def holds(self, lasts_s: float, now: float) -> bool:
        return now < self.ends_s(lasts_s)


@dataclass(slots=True)
class Member:
    """One worker. Times are in seconds on the server's clock.

    ``node`` is the connection of its last request. ``received_id`` and ``answered_id`` are the
    numbers of its last request and the last answered request. ``progress_s`` is the time of its
    last pull or push. With ``shared``, states are exchanged in shared memory; ``base`` is the state
    that its lease, granted at ``began_s``, began from. ``refusals`` counts the results refused in a
    row, the first at version ``refused_from``. It is overdue after ``patience_s`` of silence.
    ``starts`` counts the processes of its name. ``lease_times`` are of its local steps, which
    ``parts`` processes take at the same time, on minibatches of ``batch_size``.
    ``exchanged_bytes``: of states, in both directions, unless they are in shared memory.
    """

    worker_id: int
    node: bytes
    name: str
    identity: int
    public_key: str
    joined_s: float
    heard_s: float
    progress_s: float
    patience_s: float
    equipment: Equipment = UNKNOWN_EQUIPMENT
    starts: int = 1
    received_id: int = 0
    answered_id: int = 0
    shared: bool = False
    parts: int = 1
    base: Vector | None = None
    pushes: int = 0
    refusals: int = 0
    refused_from: int = 0
    began_s: float | None = None
    staleness_sum: int = 0
    lease_times: LeaseTimes = field(default_factory=LeaseTimes)
    batch_size: int = 0
    exchanged_bytes: int = 0
    speed: RecentSpeed = field(default_factory=RecentSpeed)
    promise: Promise = field(default_factory=Promise)

    @property
    def voter_id(self) -> VoterId:
        return self.public_key, self.identity

    @property
    def host(self) -> str:
        """The name that it claims."""
        return self.equipment.host

    @property
    def label(self) -> str:
        """Its name and host: each host has a worker-0."""
        return f"{self.name} on {self.host or 'an unknown host'}"

    def has_computed(self, steps: LeaseSteps, computed_s: float, now: float) -> None:
        """Measure a lease, of which the worker computed for ``computed_s``."""
        took_s = 0.0 if self.began_s is None else now - self.began_s
        minibatches = minibatches_in(steps.samples, steps.batch_size)
        latest = measured(took_s, computed_s, minibatches, steps.parts)
        if latest is not None:
            is_alike = steps.batch_size == self.batch_size
            self.lease_times = self.lease_times.averaged(latest) if is_alike else latest
            self.batch_size = steps.batch_size

    def computed_of(self, steps: LeaseSteps, now: float) -> int:
        """Estimate how many samples of its lease are computed, by the times of earlier leases."""
        if self.began_s is None or not self.lease_times.step_s:
            return 0
        samples_per_s = steps.parts * self.batch_size / self.lease_times.step_s
        return min(steps.samples, int((now - self.began_s) * samples_per_s))

    def report(self, now: float) -> dict[str, Any]:
        """Return this worker's entry in a run's report; its speed is measured while it has work."""
        return {
            "id": self.worker_id,
            "name": self.name,
            "starts": self.starts,
            **self.equipment._asdict(),
            "processes": self.parts,
            "pushes": self.pushes,
            "samples_per_s": self.speed.samples_per_s(now),
            "staleness_mean": self.staleness_sum / self.pushes if self.pushes else 0.0,
            "round_trip_s": self.lease_times.exchange_s,
            "exchanged_bytes": self.exchanged_bytes,
            "heard_s_ago": now - self.heard_s,
            "progress_s_ago": now - self.progress_s,
            "lease_s": now - self.began_s if self.began_s and self.speed.is_measuring else None,
        }


class Membership:
    """The workers by id. Ids count up from ``first_worker_id`` and are never reused.

    A worker is overdue after ``heartbeat_timeout_s`` without a message, and then ``silent`` until
    the next one: others may compute its lease too.
    """

    def __init__(self, heartbeat_timeout_s: float, first_worker_id: int = 1) -> None:
        self._next_worker_id = first_worker_id
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._members: dict[int, Member] = {}
        self.silent: set[int] = set()
        self._stops = Standstill()

    def __len__(self) -> int:
        return len(self._members) - len(self.silent)

    @property
    def members(self) -> tuple[Member, ...]:
        """The workers that are not silent."""
        return tuple(each for key, each in self._members.items() if key not in self.silent)

    @property
    def parts(self) -> int:
        """The number of processes that take local steps."""
        return sum(each.parts for each in self.members)

    def join(self, node: bytes, join: Join, now: float) -> Member:
        """Add a worker under a new id."""
        before = [each for each in self._members.values() if each.name == join.name]
        starts = max((each.starts + (each.identity != join.identity) for each in before), default=1)
        who = self._next_worker_id, node, join.name, join.identity, join.public_key
        times = now, now, now, self._heartbeat_timeout_s
        numbers = starts, join.request_id, join.request_id
        member = Member(*who, *times, join.equipment, *numbers, join.shares_memory, join.parts)
        member.promise.joined_s = now
        self._members[member.worker_id] = member
        self._next_worker_id += 1
        return member

    def former(self, node: bytes, identity: int) -> list[Member]:
        """Return the earlier memberships of a worker that joins again."""
        everybody = self._members.values()
        return [each for each in everybody if each.node == node or each.identity == identity]

    def heard(self, worker_id: int, identity: int, now: float) -> Member | None:
        """Record a sign of life and return the worker; None if the numbers are unknown."""
        member = self._members.get(worker_id)
        if member is None or member.identity != identity:
            return None
        if worker_id in self.silent:
            self.silent.remove(worker_id)
            member.patience_s = max(member.patience_s, PATIENCE_FACTOR * (now - member.heard_s))
        member.heard_s = now
        return member

    def remove(self, worker_id: int) -> None:
        del self._members[worker_id]
        self.silent.discard(worker_id)

    def running_s(self, now: float) -> float:
        """Return ``now`` on a clock without the time in which the server was stopped.

        Call this several times a second: workers were heard, and began their leases, as much later.
        """
        stopped_s = self._stops.seconds(now)
        for member in self._members.values() if stopped_s else ():
            member.heard_s = min(member.heard_s + stopped_s, now)
            if member.began_s is not None:
                member.began_s = min(member.began_s + stopped_s, now)
        return self._stops.running_s(now)

    def overdue(self, now: float) -> list[Member]:
        """Return the overdue workers; ``silent`` ones after ``RETURN_S``."""
        self.running_s(now)
        return [
            member
            for worker_id, member in self._members.items()
            if now - member.heard_s > (RETURN_S if worker_id in self.silent else member.patience_s)
        ]
