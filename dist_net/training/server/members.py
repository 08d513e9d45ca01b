"""The workers of a run and their heartbeats. Pure; time is passed in."""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from dist_net.training.server.consistency import ASYNC, Consistency
from dist_net.training.server.lease_lengths import LeaseTimes, measured
from dist_net.training.server.metrics import RecentSpeed
from dist_net.wire.messages import PIPELINE, UNKNOWN_EQUIPMENT, Equipment, Pipeline

MAX_LOOK_S = 0.5
"""The longest pause between two calls of ``expired`` unless the server was stopped."""

PIPELINES = {2: PIPELINE, 8: Pipeline(2, 1), math.inf: Pipeline(1, 1)}
"""The longest pipeline of a worker by the maximum number of workers."""

SLOWEST_TO_MEAN = 10
"""The longest step of a worker as a multiple of the other workers' mean."""

SLOW_TO_MEDIAN = 2
"""A worker whose steps take longer than this multiple of the median is left behind (``auto``)."""

LATE_S = 0.2
LATE_FACTOR = 3
"""Late means longer than ``LATE_FACTOR`` times the usual time, and at least ``LATE_S``."""

STEPS_TO_AVERAGE = 4

ROUND_TRIPS_KEPT = 9
NAMES_KEPT = 1024


@dataclass(slots=True)
class Member:
    """One worker. Times are in seconds on the server's clock.

    ``node`` is the connection of its last request; ``identity`` was in its ``Join``.
    ``received_id`` and ``answered_id`` are the numbers of its last request and the last answered
    request. ``progress_s`` is the time of its last pull or push. With ``pins``, the server keeps
    its snapshots until it has newer ones; with ``shared``, it reads them in shared memory.
    ``refusals`` counts the gradients refused in a row. A worker that was ``told_to_stop`` and goes
    silent is not lost. ``clock`` counts its steps completed in step with others; idle workers, and
    slow ones that are ``is_left_behind``, need not catch up. Its steps take ``step_s``; the
    current step began at ``step_began_s``. ``starts`` counts the processes of its name that
    joined; with ``is_restart``, this process was not the first and has just joined.
    ``staleness_sum`` is the sum over its ``pushes``; ``lease_times`` are of its local steps, which
    ``parts`` processes take at the same time; its differences travel in ``packed_bits``.
    """

    worker_id: int
    node: bytes
    name: str
    identity: int
    joined_s: float
    heard_s: float
    progress_s: float
    equipment: Equipment = UNKNOWN_EQUIPMENT
    starts: int = 1
    is_restart: bool = False
    received_id: int = 0
    answered_id: int = 0
    pins: bool = False
    shared: bool = False
    pushes: int = 0
    refusals: int = 0
    told_to_stop: bool = False
    clock: int = 0
    is_idle: bool = True
    is_left_behind: bool = False
    step_s: float = 0.0
    step_began_s: float | None = None
    staleness_sum: int = 0
    lease_times: LeaseTimes | None = None
    parts: int = 1
    packed_bits: int = 8
    speed: RecentSpeed = field(default_factory=RecentSpeed)
    round_trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=ROUND_TRIPS_KEPT))

    @property
    def round_trip_s(self) -> float:
        """The median round trip of the last heartbeats; 0 before the first."""
        return median(self.round_trips_s) if self.round_trips_s else 0.0

    def under_way_s(self, now: float) -> float:
        """Return the duration of the current step so far; 0 without work."""
        return 0.0 if self.step_began_s is None else now - self.step_began_s

    def completes(self, steps: int, now: float) -> None:
        """Count steps completed in step with others."""
        self.clock += steps
        if self.step_began_s is not None:
            took_s = now - self.step_began_s
            self.step_s += (took_s - self.step_s) / (STEPS_TO_AVERAGE if self.step_s else 1)

    def took_local_steps(self, minibatches: int, computed_s: float, now: float) -> None:
        """Measure a lease of local steps, of which the worker computed for ``computed_s``."""
        latest = measured(self.under_way_s(now), computed_s, minibatches, self.parts)
        if latest is not None:
            known = self.lease_times
            self.lease_times = latest if known is None else known.averaged(latest)

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
            "round_trip_s": self.round_trip_s,
            "heard_s_ago": now - self.heard_s,
            "progress_s_ago": now - self.progress_s,
        }


class Membership:
    """The workers by id. Ids count up from ``first_worker_id`` and are never reused.

    A worker is overdue after ``heartbeat_timeout_s`` of silence. The duration of steps does not
    matter: a separate thread sends heartbeats.
    """

    def __init__(
        self,
        heartbeat_timeout_s: float,
        first_worker_id: int = 1,
        pipeline: Pipeline = PIPELINE,
        consistency: Consistency = ASYNC,
        progress_timeout_s: float = math.inf,
    ) -> None:
        self._pipeline = pipeline
        self._consistency = consistency
        self._next_worker_id = first_worker_id
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._progress_timeout_s = progress_timeout_s
        self._members: dict[int, Member] = {}
        self._starts: dict[str, tuple[int, int]] = {}  # by name: the last identity, and how many
        self._looked_s: float | None = None
        self.slowest_to_mean: float = SLOWEST_TO_MEAN

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    @property
    def go_in_step(self) -> bool:
        """Whether fast workers wait for others."""
        return self._consistency.goes_in_step(len(self._members))

    def leave_slow_behind(self, now: float) -> None:
        """Update which workers the others do not wait for; call this several times a second."""
        if not (usual_s := self.usual_step_s):
            return
        late_s = max(LATE_S, LATE_FACTOR * usual_s)
        for each in self._members.values():
            is_late = each.under_way_s(now) > late_s
            each.is_left_behind = each.step_s > SLOW_TO_MEDIAN * usual_s or is_late

    @property
    def usual_step_s(self) -> float:
        """The median time of a step; 0 before the first one in step with others."""
        known_s = [each.step_s for each in self._members.values() if each.step_s]
        return median(known_s) if known_s else 0.0

    def stalled(self, now: float) -> list[Member]:
        """Return the workers whose step takes too long for others to wait.

        Too long means ``SLOWEST_TO_MEAN`` times the usual time, and at least the progress timeout.
        """
        max_s = max(self._progress_timeout_s, SLOWEST_TO_MEAN * self.usual_step_s)
        return [each for each in self._members.values() if each.under_way_s(now) > max_s]

    @property
    def pipeline(self) -> Pipeline:
        """The lead of each worker over the server, shorter with more workers.

        More gradients in flight mean fewer and shorter waits, but more staleness. Four workers
        with momentum ended 3 % less accurate with two gradients in a push than with one. Workers
        that wait for others do not run ahead.
        """
        if self.go_in_step:
            return Pipeline(1, 1)
        depth, grouped = next(
            pipeline for workers, pipeline in PIPELINES.items() if len(self._members) <= workers
        )
        return Pipeline(min(self._pipeline.depth, depth), min(self._pipeline.grouped, grouped))

    @property
    def staleness_limit(self) -> int:
        """The largest staleness of a gradient that is still applied.

        While a worker computes, the others may push all gradients of their pipelines, and more than
        once if it is slow. Beyond the limit it was not slow but stopped.
        """
        return int(self.slowest_to_mean * self.pipeline.gradients * len(self._members))

    def join(
        self,
        node: bytes,
        name: str,
        identity: int,
        now: float,
        equipment: Equipment = UNKNOWN_EQUIPMENT,
        request_id: int = 0,
    ) -> Member:
        """Add a worker under a new id; ``request_id`` is the number of its ``Join``."""
        facts = node, name, identity, now, now, now, equipment, *self._started(name, identity)
        member = Member(self._next_worker_id, *facts, request_id, request_id)
        self._members[member.worker_id] = member
        self._next_worker_id += 1
        return member

    def _started(self, name: str, identity: int) -> tuple[int, bool]:
        """Return the number of processes of this name, and whether this one is a restart."""
        last, starts = self._starts.pop(name, (identity, 1))
        is_restart = last != identity
        self._starts[name] = identity, starts + is_restart
        if len(self._starts) > NAMES_KEPT:
            del self._starts[next(iter(self._starts))]
        return starts + is_restart, is_restart

    def former(self, node: bytes, identity: int) -> list[Member]:
        """Return the earlier memberships of a worker that joins again."""
        return [
            member
            for member in self._members.values()
            if member.node == node or member.identity == identity
        ]

    def heard(self, worker_id: int, identity: int, now: float) -> Member | None:
        """Record a sign of life and return the worker; None if the numbers are unknown."""
        member = self._members.get(worker_id)
        if member is None or member.identity != identity:
            return None
        member.heard_s = now
        return member

    def remove(self, worker_id: int) -> None:
        del self._members[worker_id]

    def expired(self, now: float) -> list[Member]:
        """Return the overdue workers, which remain members until they are removed.

        Call this several times a second. Time in which the server was stopped does not count: it
        could not receive heartbeats.
        """
        if self._looked_s is not None:
            stopped_s = max(0.0, now - self._looked_s - MAX_LOOK_S)
            for member in self._members.values():
                member.heard_s = min(member.heard_s + stopped_s, now)
                if member.step_began_s is not None:
                    member.step_began_s = min(member.step_began_s + stopped_s, now)
        self._looked_s = now
        return [
            member
            for member in self._members.values()
            if now - member.heard_s > self._heartbeat_timeout_s
        ]
