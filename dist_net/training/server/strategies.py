"""When leases are granted, and when and how their results are applied: a strategy per mode. Pure.

``STRATEGIES`` has the strategy of each ``Consistency``. Another mode is another subclass of
``Strategy`` in that table: ``docs/learn/extending.md`` shows one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from dist_net.training.server.consistency import Consistency, OuterStep
from dist_net.training.server.journal_records import Applied
from dist_net.training.server.leases import Lease, LeaseLedger
from dist_net.training.server.members import Member, Membership
from dist_net.training.server.round_plan import (
    PlannedRun,
    RoundPlan,
    divided_minibatch,
    plan_round,
)
from dist_net.wire.lateness import late_after_s


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
