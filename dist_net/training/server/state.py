"""The state of a run, and the changes that keep it consistent. No I/O.

It consists of the workers (``members``), their leases (``ledger``), the ``strategy`` that grants
leases and applies results, the training state (``store``) and the counters (``metrics``).

A version of the training state is an array that never changes: a reader keeps it as long as it
likes, without a copy.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Self

import numpy as np

from dist_net.errors import CheckpointError, JournalDamagedError
from dist_net.ground.checkpoint import MALFORMED, Checkpoint, evaluated_weights
from dist_net.ground.vector import AVERAGE, Vector
from dist_net.optim import UpdateRule
from dist_net.training.server.consistency import OuterStep
from dist_net.training.server.journal_records import Applied
from dist_net.training.server.leases import STRATEGIES, Lease, LeaseLedger, Range
from dist_net.training.server.members import Member, Membership
from dist_net.training.server.metrics import RunMetrics
from dist_net.training.server.recent_leases import RecentLeases
from dist_net.training.server.round_plan import PlannedRun
from dist_net.training.server.settings import RunSettings
from dist_net.wire.lease_steps import minibatches_in
from dist_net.wire.messages import Push
from dist_net.wire.packing import StatePacking

OUTER_MOMENTUM = "outer_momentum"


def frozen(vector: Vector) -> Vector:
    """Return ``vector``, read-only from now on."""
    vector.flags.writeable = False
    return vector


class StateVersions:
    """The state of a run, ``state``, after ``version`` outer steps; see ``UpdateRule``.

    ``outer_momentum`` is the momentum of the outer steps, of the parameters' length.
    """

    def __init__(self, rule: UpdateRule, weights: Vector) -> None:
        self.rule = rule
        self.packing = StatePacking(*rule.sizes)
        self._packed: Vector | None = None
        self.version = 0
        self.state = frozen(rule.initial(weights))
        self._at_rest = frozen(np.zeros(rule.trained_size, np.float32))
        self.outer_momentum = self._at_rest

    @property
    def weights(self) -> Vector:
        """The model's vector: parameters and buffers."""
        return self.state[: self.rule.size]

    @property
    def has_momentum(self) -> bool:
        """Whether the momentum of the outer steps is not zero."""
        return self.outer_momentum is not self._at_rest

    @property
    def vectors(self) -> dict[str, Vector]:
        """The vectors for a checkpoint besides the weights, by name."""
        return self.rule.parts(self.state) | {OUTER_MOMENTUM: self.outer_momentum}

    @property
    def evaluated_weights(self) -> Vector:
        """The weights for evaluation: their average, if one is kept."""
        return evaluated_weights(self.weights, self.vectors)

    def restore(self, version: int, weights: Vector, vectors: Mapping[str, Vector]) -> None:
        """Continue from a checkpoint's ``version``, with copies of its vectors.

        An average of the weights that the checkpoint lacks starts afresh. Raise ``CheckpointError``
        for other vectors than this optimizer's.
        """
        state = self.rule.initial(weights)
        own = self.rule.parts(state) | {OUTER_MOMENTUM: self._at_rest.copy()}
        optional = {AVERAGE} & own.keys() ^ {AVERAGE} & vectors.keys()
        shapes, found = (
            {name: vector.shape for name, vector in of.items() if name not in optional}
            for of in (own, vectors)
        )
        if shapes != found:
            raise CheckpointError(
                f"the checkpoint holds the optimizer's vectors {sorted(found)}, expected "
                f"{sorted(shapes)} of the parameters' length; resume from another checkpoint"
            )
        for name in found:
            np.copyto(own[name], vectors[name])
        if (fault := self.rule.fault_of(state)) is not None:
            raise CheckpointError(
                f"the checkpoint of version {version:,} is no state of a run: {fault}; resume from "
                f"another checkpoint, such as one that dist-net replay writes"
            )
        self.version = version
        self.state, self.outer_momentum = frozen(state), frozen(own[OUTER_MOMENTUM])

    def packed_state(self) -> Vector:
        """Return the state packed for other hosts: the same bytes for every worker."""
        if self._packed is None:
            self._packed = self.packing.pack_base(self.state)
        return self._packed

    def result_of(self, pushed: Vector, base: Vector | None, is_packed: bool) -> Vector:
        """Return a new array: the state, changed as a worker changed ``base``."""
        own, n = self.state, self.rule.trained_size
        result = np.empty_like(own)
        if is_packed:
            self.packing.unpack_result(pushed, own, result)
            return result
        np.copyto(result, pushed)
        if base is not None and base is not own:  # others have changed the weights since
            result[:n] += own[:n] - base[:n]
        return result

    def apply(self, result: Vector, outer: OuterStep) -> bool:
        """Move towards ``result``, which becomes the state. Return False, unchanged, if invalid."""
        n, momentum = self.rule.trained_size, self._at_rest
        with np.errstate(all="ignore"):
            if outer.rate != 1 or outer.momentum:
                weights, moved = self.state[:n], result[:n]
                change = np.subtract(weights, moved)
                if outer.momentum:
                    momentum = np.multiply(self.outer_momentum, np.float32(outer.momentum))
                    momentum += change
                    change += np.multiply(momentum, np.float32(outer.momentum), out=moved)
                change *= np.float32(outer.rate)
                np.subtract(weights, change, out=moved)
            if outer.rate_of_others != 1:
                rest, others = self.state[n:], result[n:]
                others -= rest
                others *= np.float32(outer.rate_of_others)
                others += rest
        for place in self.rule.frozen:  # the mean of equal numbers may be rounded
            result[place] = self.state[place]
        if self.rule.fault_of(result) is not None:
            return False
        self.version += 1
        self._packed = None
        self.state, self.outer_momentum = frozen(result), frozen(momentum)
        return True


REFUSALS_IN_A_ROW = 3
LARGEST_LOSS = 1e100  # the sums of larger losses would overflow


class RunState:
    """A new run, from ``weights``; workers of a former server, with smaller ids, may run."""

    def __init__(self, settings: RunSettings, weights: Vector, first_worker_id: int = 1) -> None:
        self.settings = settings
        self.members = Membership(settings.heartbeat_timeout_s, first_worker_id)
        self.ledger = LeaseLedger(settings.samples, settings.epochs)
        self.store = StateVersions(settings.start_rule(), weights)
        self.metrics = RunMetrics()
        self.recent_leases = RecentLeases()
        self.is_resumed = False
        self.resume_warnings: list[str] = []
        facts = settings.consistency, settings.minibatches, settings.batch_size
        planned = PlannedRun(*facts, self.store.rule.has_statistics, settings.local_steps)
        self.strategy = STRATEGIES[settings.consistency](planned, self.members, self.ledger)
        self._results: list[tuple[Applied, Vector]] = []  # that are collected
        self._sums = 0.0, 0

    @classmethod
    def begun(cls, settings: RunSettings, begin: Vector | Checkpoint, random: Random) -> Self:
        """Return a new run from its first weights, or one that is resumed."""
        # Ids count up from a random number. Otherwise a resumed server could assign a new worker
        # the id of a surviving one, and mix up their heartbeats.
        first_worker_id = 1 + random.getrandbits(48)
        if isinstance(begin, Checkpoint):
            return cls.resumed(settings, begin, first_worker_id)
        return cls(settings, begin, first_worker_id)

    @classmethod
    def resumed(
        cls, settings: RunSettings, checkpoint: Checkpoint, first_worker_id: int = 1
    ) -> Self:
        """Resume a run from ``checkpoint``, in the same epoch and with the optimizer's state.

        Raise ``CheckpointError`` if no server wrote it, and unless model, samples, seed, optimizer
        and consistency are the checkpoint's; others may change, and ``epochs`` may be larger.
        """
        checkpoint.require_layout(settings.layout)
        own = settings.to_json()
        try:
            for name in ("samples", "seed", "optimizer", "consistency"):
                if own[name] != checkpoint.settings[name]:
                    raise CheckpointError(
                        f"the checkpoint of recipe {checkpoint.recipe!r} is of another run: its "
                        f"{name} is {checkpoint.settings[name]}, expected {own[name]}; resume with "
                        f"{checkpoint.settings[name]}"
                    )
            run = cls(settings, checkpoint.weights, first_worker_id)
            run.store.restore(checkpoint.version, checkpoint.weights, checkpoint.optimizer_state)
            run.ledger.restore(checkpoint.ledger)
            run.metrics = RunMetrics.from_json(checkpoint.counters["metrics"])
        except MALFORMED as error:
            raise CheckpointError(
                f"the checkpoint of recipe {checkpoint.recipe!r} is incomplete or damaged "
                f"({error!r:.200}); expected a checkpoint of a training run: resume from another"
            ) from error
        run.is_resumed = True
        run.resume_warnings += [] if checkpoint.damage is None else [checkpoint.damage]
        return run

    def checkpoint(self) -> Checkpoint:
        """Return the state for ``resumed``; its arrays never change."""
        settings, store = self.settings, self.store
        which = settings.recipe, settings.recipe_digest, settings.layout, store.version
        counters = {"metrics": self.metrics.to_json()}
        state = settings.to_json(), self.ledger.to_json(), counters
        return Checkpoint(
            *which, *state, store.weights, store.vectors, recipe_record=settings.recipe_record
        )

    def grant(self, member: Member, now: float) -> Lease | None:
        """Return the worker's lease, or grant it one; None if it must wait for other workers."""
        ledger, member.began_s = self.ledger, None
        worker_id, silent = member.worker_id, self.members.silent
        lease = ledger.lease_of(worker_id) or ledger.rival_lease(worker_id, silent)
        lease = lease or self.strategy.next_lease(member, now)
        if lease is None and self.strategy.shares_leases(now):
            lease = ledger.rival_lease(worker_id)
        if lease is not None:
            lease.version = self.store.version
            lease.steps = lease.steps._replace(progress=self.ledger.applied_samples)
            member.base, member.began_s = self.store.state, now
        return lease

    def samples_under_way(self, now: float) -> int:
        """Estimate the number of samples that are computed and not applied."""
        computed: dict[Range, int] = {}
        for member in self.members.members:
            if lease := self.ledger.lease_of(member.worker_id):
                ahead = computed.get(lease.range, 0)  # of a rival
                computed[lease.range] = max(ahead, member.computed_of(lease.steps, now))
        return self.ledger.collected_samples + sum(computed.values())

    def accept(self, member: Member, push: Push, now: float) -> tuple[Applied, ...] | str:
        """Take in the result of the worker's lease, and apply what can be applied.

        Return the journal's record of each applied result. Return the reason, and put the samples
        back into the pool, if the result, or the mean of the round, cannot be applied.
        """
        lease = self.ledger.lease_of(member.worker_id, push.lease_id)
        assert lease is not None
        assert push.state is not None
        samples = lease.steps.samples
        member.has_computed(lease.steps, push.computed_s, now)
        if member.began_s is not None:
            who = member.host, member.name
            times = member.began_s, push.computed_s, now
            self.recent_leases.ended(member.worker_id, who, *times)
        member.speed.computed(samples, now)
        result = self.store.result_of(push.state, member.base, not member.shared)
        steps = minibatches_in(samples, lease.steps.batch_size)
        fault = self.store.rule.fault_of(result, member.base, steps)
        if fault is not None or not abs(push.loss_sum) < LARGEST_LOSS:
            self.ledger.release(member.worker_id)
            return fault or f"its loss is {push.loss_sum:g}"
        self.ledger.collect(member.worker_id)
        member.pushes += 1
        member.refusals = 0
        member.staleness_sum += self.store.version - lease.version
        record = Applied(
            0, member.worker_id, lease.steps, lease.version, is_packed=not member.shared
        )
        self._results.append((record, result))
        self._sums = self._sums[0] + push.loss_sum, self._sums[1] + push.correct
        outer = self.strategy.collected([each for each, _ in self._results], now)
        return () if outer is None else self._apply_collected(outer, now)

    def _apply_collected(self, outer: OuterStep, now: float) -> tuple[Applied, ...] | str:
        """Apply the mean of the collected results as one outer step."""
        results, (loss_sum, correct) = self._results, self._sums
        self._results, self._sums = [], (0.0, 0)
        records = [record for record, _ in results]
        if not self.apply_mean(results, outer):
            self.ledger.drop_collected()
            for member in self.members.members:  # no single worker is at fault
                member.refusals, member.refused_from = REFUSALS_IN_A_ROW, self.store.version
            return "the mean of its round is not finite"
        self.ledger.apply_collected()
        self._count(records, loss_sum, correct, now)
        version, together = self.store.version, len(records)
        return tuple(
            each._replace(version=version, together=together, outer=outer)
            for each in sorted(records, key=_in_order)
        )

    def apply_mean(self, results: Sequence[tuple[Applied, Vector]], outer: OuterStep) -> bool:
        """Apply the mean over all parts, which the order of arrival does not change.

        The results are overwritten. Return False, and change nothing, if it is not finite.
        """
        ordered = sorted(results, key=lambda each: _in_order(each[0]))
        parts = sum(record.steps.parts for record, _ in ordered)
        for record, result in ordered:
            if record.steps.parts < parts:
                result *= np.float32(record.steps.parts / parts)
        (_, mean), *others = ordered
        for _, result in others:
            mean += result
        return self.store.apply(mean, outer)

    def apply_again(
        self, records: Sequence[Applied], results: Sequence[Vector], loss_sum: float, correct: int
    ) -> bool:
        """Apply results that the journal lists and that were computed again.

        Return False, and change nothing, if the new state is not finite. Raise
        ``JournalDamagedError`` for samples that were applied before. No worker may hold a lease.
        """
        pairs = list(zip(records, results, strict=True))
        if not self.apply_mean(pairs, records[0].outer):
            return False
        for record in records:
            epoch, start, stop, *_ = record.steps
            if not self.ledger.applied_again(Range(epoch, start, stop)):
                raise JournalDamagedError(
                    f"the journal applies samples {start} to {stop} of epoch {epoch} a second time "
                    f"at version {record.version}; expected each sample once in each of "
                    f"{self.settings.epochs} epochs"
                )
        self._count(records, loss_sum, correct, 0.0)
        return True

    def _count(self, records: Sequence[Applied], loss_sum: float, correct: int, now: float) -> None:
        """Count the results that made this version, and append a metric record if one is due."""
        version, samples = self.store.version, self.settings.samples
        applied = self.ledger.applied_samples
        taken = sum(each.steps.samples for each in records)
        staleness = [version - 1 - each.base_version for each in records]
        self.metrics.pushes_accepted(taken, loss_sum, correct, staleness, now)
        if self.metrics.record_due(applied, samples) or self.ledger.finished:
            rate = self.settings.learning_rate_at(records[-1].steps.progress)
            recorded = applied, samples, version, rate
            self.metrics.record(*recorded, has_accuracy=self.settings.has_classes)

    def silence(self, member: Member) -> None:
        """Let other workers compute the lease of an overdue worker at once, besides the worker."""
        lease = self.ledger.lease_of(member.worker_id)
        if lease is not None and lease.rival in self.members.silent:
            self.ledger.release(lease.rival)
        self.members.silent.add(member.worker_id)

    def remove(self, member: Member) -> None:
        """Remove a worker, and return its lease to the pool."""
        self.ledger.release(member.worker_id)
        self.recent_leases.forget(member.worker_id)
        self.members.remove(member.worker_id)


def _in_order(record: Applied) -> tuple[int, int]:
    return record.steps.epoch, record.steps.start
