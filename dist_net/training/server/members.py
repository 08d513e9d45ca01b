"""The workers of a run, and when each was last heard. Pure; time is passed in."""

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
"""The longest pause between two calls of `expired`, unless the server itself stood still."""

PIPELINES = {2: PIPELINE, 8: Pipeline(2, 1), math.inf: Pipeline(1, 1)}
"""The longest pipelines that a worker may have, by how many workers there are at most."""

SLOWEST_TO_MEAN = 10
"""How many times as long as the others a worker may take for a step."""

SLOW_TO_MEDIAN = 2
"""Who needs more times as long for a step is not waited for, where workers may be left behind."""

LATE_S = 0.2
LATE_TIMES = 3
"""How long, at least and in times of what is usual, something may take before it is late."""

STEPS_TO_AVERAGE = 4

ROUND_TRIPS_KEPT = 9
NAMES_KEPT = 1024


@dataclass(slots=True)
class Member:
    """One worker. Times are in seconds on the server's clock.

    ``node`` is the connection by which its last request came; ``identity`` is what its `Join` said.
    ``received_id`` and ``answered_id`` number its last request and the last that was answered.
    ``progress_s``: when it last asked for work or pushed. ``pins``: snapshots stay as they are
    until it has moved on to newer ones. ``shared``: it reads them in shared memory. ``refusals``
    counts the gradients refused in a row.
    ``told_to_stop``: it knows that the run is over, so if it goes silent it is not lost. ``clock``:
    how many steps it has completed in step with others; who was idle is not behind for it, nor
    who ``is_left_behind`` because it is slow. Such a step takes ``step_s``, and the one under way
    began at ``step_began_s``. ``starts`` counts the processes of its name that joined, each with an
    identity of its own; ``is_restart``: it is not the first, and joins for the first time.
    ``staleness_sum`` is of all its ``pushes``; ``lease_times`` are of its local steps.
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
    speed: RecentSpeed = field(default_factory=RecentSpeed)
    round_trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=ROUND_TRIPS_KEPT))

    @property
    def round_trip_s(self) -> float:
        """The median of the last heartbeats' times there and back; 0: there was none yet."""
        return median(self.round_trips_s) if self.round_trips_s else 0.0

    def under_way_s(self, now: float) -> float:
        """How long its step has taken; 0: it has no work."""
        return 0.0 if self.step_began_s is None else now - self.step_began_s

    def completes(self, steps: int, now: float) -> None:
        """Count steps that were taken in step with others."""
        self.clock += steps
        if self.step_began_s is not None:
            took_s = now - self.step_began_s
            self.step_s += (took_s - self.step_s) / (STEPS_TO_AVERAGE if self.step_s else 1)

    def took_local_steps(self, minibatches: int, computed_s: float, now: float) -> None:
        """Measure a lease of local steps, of which the worker computed for ``computed_s``."""
        latest = measured(self.under_way_s(now), computed_s, minibatches)
        if latest is not None:
            known = self.lease_times
            self.lease_times = latest if known is None else known.averaged(latest)

    def report(self, now: float) -> dict[str, Any]:
        """Return what a run's report says of this worker; its speed is that of its last work."""
        return {
            "id": self.worker_id,
            "name": self.name,
            "starts": self.starts,
            **self.equipment._asdict(),
            "pushes": self.pushes,
            "samples_per_s": self.speed.samples_per_s(now),
            "staleness_mean": self.staleness_sum / self.pushes if self.pushes else 0.0,
            "round_trip_s": self.round_trip_s,
            "heard_s_ago": now - self.heard_s,
            "progress_s_ago": now - self.progress_s,
        }


class Membership:
    """The workers by id, which counts up from ``first_worker_id``; none is given twice.

    A worker is overdue when nothing was heard of it for ``heartbeat_timeout_s``. How long a step
    takes does not matter: heartbeats come from a thread of their own.
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
        """Whether those that are ahead wait for others."""
        return self._consistency.goes_in_step(len(self._members))

    def leave_slow_behind(self, now: float) -> None:
        """Judge anew for whom the others do not wait; to be called several times a second."""
        if not (usual_s := self.usual_step_s):
            return
        late_s = max(LATE_S, LATE_TIMES * usual_s)
        for each in self._members.values():
            is_late = each.under_way_s(now) > late_s
            each.is_left_behind = each.step_s > SLOW_TO_MEDIAN * usual_s or is_late

    @property
    def usual_step_s(self) -> float:
        """The median time of a step; 0: there has been none in step with others."""
        known_s = [each.step_s for each in self._members.values() if each.step_s]
        return median(known_s) if known_s else 0.0

    def stalled(self, now: float) -> list[Member]:
        """Return the workers whose step takes too long for others to wait for it.

        That is ``SLOWEST_TO_MEAN`` times as long as usual, and at least the progress timeout.
        """
        max_s = max(self._progress_timeout_s, SLOWEST_TO_MEAN * self.usual_step_s)
        return [each for each in self._members.values() if each.under_way_s(now) > max_s]

    @property
    def pipeline(self) -> Pipeline:
        """How far each worker may run ahead of the server; the less, the more workers there are.

        More gradients on their way mean fewer and shorter waits, but a greater staleness, to which
        every worker's gradients add. Four workers that learn with momentum ended 3 % less accurate
        with two gradients in a push than with one. Who waits for others does not run ahead.
        """
        if self.go_in_step:
            return Pipeline(1, 1)
        depth, grouped = next(
            pipeline for workers, pipeline in PIPELINES.items() if len(self._members) <= workers
        )
        return Pipeline(min(self._pipeline.depth, depth), min(self._pipeline.grouped, grouped))

    @property
    def staleness_limit(self) -> int:
        """How stale a gradient may be to be applied still.

        While one worker computes, each of the others may push all that it has computed, and more
        than once if that one is slow. Beyond the limit, it was not slow but stopped.
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
        """Take a worker in under a new id; ``request_id`` is that of its `Join`."""
        facts = node, name, identity, now, now, now, equipment, *self._started(name, identity)
        member = Member(self._next_worker_id, *facts, request_id, request_id)
        self._members[member.worker_id] = member
        self._next_worker_id += 1
        return member

    def _started(self, name: str, identity: int) -> tuple[int, bool]:
        """Return how many processes of this name joined, and whether this one is a restart."""
        last, starts = self._starts.pop(name, (identity, 1))
        is_restart = last != identity
        self._starts[name] = identity, starts + is_restart
        if len(self._starts) > NAMES_KEPT:
            del self._starts[next(iter(self._starts))]
        return starts + is_restart, is_restart

    def former(self, node: bytes, identity: int) -> list[Member]:
        """Return the memberships that a worker has, which joins through this node."""
        return [
            member
            for member in self._members.values()
            if member.node == node or member.identity == identity
        ]

    def heard(self, worker_id: int, identity: int, now: float) -> Member | None:
        """Note that the worker was heard, and return it; None: no member has these two numbers."""
        member = self._members.get(worker_id)
        if member is None or member.identity != identity:
            return None
        member.heard_s = now
        return member

    def remove(self, worker_id: int) -> None:
        del self._members[worker_id]

    def expired(self, now: float) -> list[Member]:
        """Return the workers that are overdue; they stay members until they are removed.

        To be called several times a second. Time in which the server stood still, and so could not
        hear anybody, does not count.
        """
        if self._looked_s is not None:
            stood_still_s = max(0.0, now - self._looked_s - MAX_LOOK_S)
            for member in self._members.values():
                member.heard_s = min(member.heard_s + stood_still_s, now)
                if member.step_began_s is not None:
                    member.step_began_s = min(member.step_began_s + stood_still_s, now)
        self._looked_s = now
        return [
            member
            for member in self._members.values()
            if now - member.heard_s > self._heartbeat_timeout_s
        ]
