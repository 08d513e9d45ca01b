"""Leases: the ledger of a run's samples, and the strategies by which leases are granted. Pure.

A run is ``epochs`` passes over ``samples`` samples, each in another shuffled order. A *lease* is a
contiguous range of one epoch's order, held by one worker. Every sample of every epoch is in exactly
one place: in the pool of unleased ranges, leased, collected (its result has arrived), or applied.

An idle worker may take another worker's lease, too: both compute the same samples from the same
state, as *rivals*. The first result counts and ends the rival's lease.

A strategy decides when leases are granted, and when and how their results are applied;
``STRATEGIES`` has the strategy of each ``Consistency``. Another mode is another subclass of
``Strategy`` in that table: ``docs/learn/extending.md`` shows one.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from dist_net.errors import CheckpointError, SettingError
from dist_net.training.server.consistency import Consistency, OuterStep
from dist_net.training.server.journal_records import Applied
from dist_net.training.server.members import Member, Membership
from dist_net.training.server.round_plan import (
    PlannedRun,
    RoundPlan,
    divided_minibatch,
    plan_round,
)
from dist_net.wire.lateness import late_after_s
from dist_net.wire.lease_steps import LeaseSteps


class Range(NamedTuple):
    """Samples ``start`` up to ``stop`` of the shuffled order of ``epoch``."""

    epoch: int
    start: int
    stop: int

    @property
    def samples(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class Lease:
    """Local steps of a worker, from the state ``version``. ``rival`` also takes them."""

    lease_id: int
    steps: LeaseSteps
    rival: int | None = None
    version: int = 0

    @property
    def range(self) -> Range:
        return Range(*self.steps[:3])


class LeaseLedger:
    """Grant ranges of samples to workers and track them. A worker holds at most one lease.

    Epochs have no barrier: once one is fully leased, the next lease is of the next epoch.
    """

    def __init__(self, samples: int, epochs: int) -> None:
        self.samples = samples
        self.epochs = epochs
        self.applied_samples = 0
        self._collected: list[Range] = []
        self._pool: deque[Range] = deque()
        self._unleased = samples * epochs
        self._next_epoch = 0
        self._next_lease_id = 1
        self._leases: dict[int, Lease] = {}

    @property
    def finished(self) -> bool:
        return self.applied_samples == self.samples * self.epochs

    @property
    def everything_is_leased(self) -> bool:
        return self._unleased == 0

    @property
    def granted(self) -> int:
        """The number of leases that are held, rivals counted once, or collected."""
        return len({lease.range for lease in self._leases.values()}) + len(self._collected)

    @property
    def collected_samples(self) -> int:
        """The samples of results that have arrived and are not applied."""
        return sum(each.samples for each in self._collected)

    @property
    def awaits_results(self) -> bool:
        """Whether a worker holds a lease."""
        return bool(self._leases)

    @property
    def samples_ahead(self) -> int:
        """The samples of the range that the next lease begins."""
        return self._pool[0].samples if self._pool else self.samples

    def lease_of(self, worker_id: int, lease_id: int | None = None) -> Lease | None:
        """Return the worker's lease, if it has this number."""
        lease = self._leases.get(worker_id)
        return lease if lease is None or lease_id in (None, lease.lease_id) else None

    def grant(
        self, worker_id: int, minibatches: int, batch_size: int, pace: int = 1, parts: int = 1
    ) -> Lease:
        """Grant up to ``minibatches`` of an epoch, if any are left, to a worker without a lease."""
        if not self._pool:
            self._pool.append(Range(self._next_epoch, 0, self.samples))
            self._next_epoch += 1
        left = self._pool.popleft()
        steps = LeaseSteps(*left, self.applied_samples, pace, batch_size, parts).first(minibatches)
        if steps.stop < left.stop:
            self._pool.appendleft(left._replace(start=steps.stop))
        self._unleased -= steps.samples
        return self._lease(worker_id, steps)

    def _lease(self, worker_id: int, steps: LeaseSteps, rival: int | None = None) -> Lease:
        lease = self._leases[worker_id] = Lease(self._next_lease_id, steps, rival)
        self._next_lease_id += 1
        return lease

    def rival_lease(self, worker_id: int, holders: Container[int] | None = None) -> Lease | None:
        """Lease the oldest lease (of ``holders``) without a rival again; None if there is none."""
        for holder, lease in self._leases.items():
            if lease.rival is None and (holders is None or holder in holders):
                lease.rival = worker_id
                return self._lease(worker_id, lease.steps, holder)
        return None

    def collect(self, worker_id: int) -> Lease:
        """Record that the result of the worker's lease has arrived; return the lease."""
        lease = self._leases.pop(worker_id)
        if lease.rival is not None:
            del self._leases[lease.rival]
        self._collected.append(lease.range)
        return lease

    def apply_collected(self) -> None:
        """Record that the collected results are in the state."""
        self.applied_samples += self.collected_samples
        self._collected.clear()

    def drop_collected(self) -> None:
        """Return the samples to the pool: their results cannot be applied."""
        for taken in sorted(self._collected, reverse=True):
            self._return(taken)
        self._collected.clear()

    def _return(self, left: Range) -> None:
        """Return samples to the pool, merged with the next: rounds are not cut short."""
        self._unleased += left.samples
        if self._pool and self._pool[0][:2] == (left.epoch, left.stop):
            left = left._replace(stop=self._pool.popleft().stop)
        self._pool.appendleft(left)

    def applied_again(self, done: Range) -> bool:
        """Record that unleased samples are in the state; return False if some are not unleased."""
        while self._next_epoch <= done.epoch < self.epochs:
            self._pool.append(Range(self._next_epoch, 0, self.samples))
            self._next_epoch += 1
        for index, (epoch, start, stop) in enumerate(self._pool):
            if epoch == done.epoch and start <= done.start < done.stop <= stop:
                del self._pool[index]
                for left in (Range(epoch, done.stop, stop), Range(epoch, start, done.start)):
                    if left.start < left.stop:
                        self._pool.insert(index, left)
                self.applied_samples += done.samples
                self._unleased -= done.samples
                return True
        return False

    def release(self, worker_id: int) -> None:
        """End the worker's lease; return its samples to the pool unless a rival holds them."""
        lease = self._leases.pop(worker_id, None)
        if lease is not None and lease.rival is not None:
            self._leases[lease.rival].rival = None
        elif lease is not None:
            self._return(lease.range)

    def to_json(self) -> dict[str, Any]:
        """Return the state for a checkpoint; leased and collected samples count as not applied."""
        leased = {lease.range for lease in self._leases.values()} | {*self._collected}
        remaining = [list(left) for left in (*sorted(leased), *self._pool)]
        return {"remaining": remaining, "next_epoch": self._next_epoch}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``to_json``; ``epochs`` may be larger.

        Raise ``SettingError`` for too few epochs, ``CheckpointError`` for ranges that overlap or
        are outside the run, and ``KeyError``, ``TypeError`` or ``ValueError`` for other JSON.
        """
        remaining = [Range(*left) for left in state["remaining"]]
        begun = state["next_epoch"]
        if any(type(number) is not int for number in (begun, *chain(*remaining))) or begun < 0:
            raise TypeError("not whole numbers")
        if begun > self.epochs:
            raise SettingError(
                f"epochs={self.epochs}: the checkpoint's run has already begun epoch {begun}; "
                f"expected epochs >= {begun}"
            )
        previous = Range(0, 0, 0)
        for left in sorted(remaining):
            free_from = previous.stop if left.epoch == previous.epoch else 0
            if left.epoch >= begun or not free_from <= left.start < left.stop <= self.samples:
                raise CheckpointError(
                    f"the checkpoint lists samples {left.start} to {left.stop} of epoch "
                    f"{left.epoch} as remaining; expected disjoint ranges in {begun} epochs of "
                    f"{self.samples} samples. Resume from another checkpoint"
                )
            previous = left
        left_over = sum(left.samples for left in remaining)
        self._pool.clear()
        for left in sorted(remaining, reverse=True):
            self._return(left)
        self._next_epoch = begun
        self.applied_samples = begun * self.samples - left_over
        self._unleased = self.samples * self.epochs - self.applied_samples


class Strategy(ABC):
    """Plan leases for the workers in ``members``, and grant them from ``ledger``.

    ``lots`` are the parts and steps of each worker that takes part in ``plan``, by its id.
    """

    def __init__(self, run: PlannedRun, members: Membership, ledger: LeaseLedger) -> None:
        self.run = run
        self.members = members
        self.ledger = ledger
        self.plan: RoundPlan | None = None
        self.lots: dict[int, tuple[int, int]] = {}
        self.began_s = 0.0
        self.last_round_s = 0.0

    @abstractmethod
    def next_lease(self, member: Member, now: float) -> Lease | None:
        """Grant unleased samples; return None if this worker must wait."""

    @abstractmethod
    def outer_step(self, results: Sequence[Applied]) -> OuterStep | None:
        """Return the outer step for the mean of the collected results; None: collect more."""

    def plan_of(self, members: Sequence[Member]) -> RoundPlan:
        """Return the plan of a round of these workers."""
        workers = [each.lease_times._replace(parts=each.parts) for each in members]
        return plan_round(self.run, workers, self.ledger.samples_ahead)

    def plan_for_present(self, now: float) -> float:
        """Plan a round of the workers that are free, or hold a lease; return when it begins."""
        # Others still compute a lease that has ended.
        holds, members = self.ledger.lease_of, self.members.members
        present = [each for each in members if each.began_s is None or holds(each.worker_id)]
        present.sort(key=lambda each: each.lease_times.seconds_for(1))
        self.plan = plan = self.plan_of(present)
        lots = zip(present, plan.parts, plan.steps, strict=True)
        self.lots = {each.worker_id: (parts, steps) for each, parts, steps in lots if steps}
        return self.members.running_s(now)

    def granted(self, member: Member) -> Lease:
        """Grant the worker its lot of the plan, or the lot of a worker that left."""
        plan = self.plan
        assert plan is not None
        parts, steps = self.lots.get(member.worker_id) or max(self.lots.values())
        parts = min(parts, member.parts)
        pace = max(1, plan.samples // steps)
        return self.ledger.grant(member.worker_id, parts * steps, plan.batch_size, pace, parts)

    def is_spare(self, member: Member) -> bool:
        """Whether the round has no lease for this worker."""
        return self.plan is not None and member.worker_id not in self.lots

    def shares_leases(self, now: float) -> bool:
        """Whether idle workers may take leases of others, too: the round is late."""
        # In a first round, the first result counts as the last round.
        late_s = late_after_s(self.last_round_s, self.plan.seconds if self.plan else 0.0)
        return self._round_s(now) > late_s

    def _round_s(self, now: float) -> float:
        """Return the time since the round began, without pauses of the server."""
        return self.members.running_s(now) - self.began_s

    def collected(self, results: Sequence[Applied], now: float) -> OuterStep | None:
        """Return the outer step that ends the round; None: it goes on."""
        if (outer := self.outer_step(results)) or not self.last_round_s:
            self.last_round_s = self._round_s(now)
        self.plan = None if outer else self.plan
        return outer


class Rounds(Strategy):
    """Every worker takes one lease of a round; their mean is applied once all have arrived."""

    def __init__(self, run: PlannedRun, members: Membership, ledger: LeaseLedger) -> None:
        super().__init__(run, members, ledger)
        self._awaited: set[int] = set()  # workers that have not begun

    @property
    def _has_room(self) -> bool:
        """Whether leases are left in the round."""
        if self.ledger.everything_is_leased:
            return False
        return self.plan is None or self.ledger.granted < len(self.lots)

    def next_lease(self, member: Member, now: float) -> Lease | None:
        if not self._has_room:
            return None
        if self.plan is None:
            self.began_s = self.plan_for_present(now)
            self._awaited = {*self.lots}
        if member.worker_id not in self._awaited:
            # The lease of a worker that left is for any other.
            awaited = self._awaited & {each.worker_id for each in self.members.members}
            if self.ledger.granted + len(awaited) >= len(self.lots):
                return None
        self._awaited.discard(member.worker_id)
        return self.granted(member)

    def outer_step(self, results: Sequence[Applied]) -> OuterStep | None:
        if self.ledger.awaits_results or self._has_room:
            return None
        assert self.plan is not None
        return self.plan.outer


class Asynchronous(Strategy):
    """Workers never wait, and each result is applied at once, as one of several."""

    def next_lease(self, member: Member, now: float) -> Lease | None:
        if self.ledger.everything_is_leased:
            return None
        began_s = self.plan_for_present(now)
        if member.worker_id not in self.lots:
            return None
        self.began_s = began_s
        return self.granted(member)

    def outer_step(self, results: Sequence[Applied]) -> OuterStep | None:
        workers = divided_minibatch(self.run, max(1, self.members.parts)).workers
        rate = min(1.0, sum(each.steps.parts for each in results) / workers)
        return OuterStep(rate, 0.0, rate)

    def shares_leases(self, now: float) -> bool:
        return self.ledger.everything_is_leased or super().shares_leases(now)


STRATEGIES: dict[Consistency, type[Strategy]] = {
    Consistency.ROUNDS: Rounds,
    Consistency.BSP: Rounds,
    Consistency.ASYNC: Asynchronous,
}
