"""The state of a run, and the changes that keep its parts consistent. No I/O.

The parts are the workers (``members``), their leases (``ledger``), the weights (``store``) and the
counters (``metrics``).
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from dist_net.errors import CheckpointError, JournalDamagedError
from dist_net.nets.checkpoint import MALFORMED, Checkpoint
from dist_net.training.server.consistency import (
    ASYNC,
    AUTOMATIC_STEPS,
    ONE_FOR_EACH_WORKER,
    Round,
)
from dist_net.training.server.journal import Applied
from dist_net.training.server.lease_lengths import longest_round, needed_round, round_of
from dist_net.training.server.leases import Lease, LeaseLedger, Range
from dist_net.training.server.members import LATE_FACTOR, LATE_S, Member, Membership
from dist_net.training.server.metrics import RunMetrics
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.slowness import slowness_of
from dist_net.training.server.store import Buffers, PrivateBuffers, WeightStore
from dist_net.vector import Vector
from dist_net.wire.messages import Pipeline, Push
from dist_net.wire.packing import pack_weights

STALENESS_WITHOUT_COST = 12.0
"""Mean staleness; see "Many workers" in docs/benchmarks.md."""

WORKERS_PER_REPORT = 200  # fit into one message, however long their names are


class RunState:
    """A new run. ``weights`` are copied into ``buffers``, which are borrowed.

    ``buffers``: see ``WeightStore``; None for two private vectors. ``first_worker_id`` must be
    larger than any id of a resumed server, whose workers may still run.
    """

    def __init__(
        self,
        settings: RunSettings,
        weights: Vector,
        buffers: Buffers | None = None,
        first_worker_id: int = 1,
    ) -> None:
        self.settings = settings
        round_leases = settings.consistency.round_leases
        # Workers that wait for each other must not run ahead.
        pipeline = settings.pipeline if settings.consistency.may_run_ahead else Pipeline(1, 1)
        self.members = Membership(
            *(settings.heartbeat_timeout_s, first_worker_id, pipeline, settings.consistency),
            settings.progress_timeout_s,
        )
        self.ledger = LeaseLedger(
            settings.samples,
            settings.epochs,
            settings.batch_size,
            settings.lease_minibatches
            if round_leases is None
            else settings.consistency.first_steps,
            pipeline.gradients,
            round_leases,
        )
        self.round = None if round_leases is None else Round(settings.buffer_count)
        self._round_began_s: float | None = None
        self._last_round_s = 0.0
        self._packed: tuple[int, Vector] | None = None
        self.store = WeightStore(
            PrivateBuffers(weights.size) if buffers is None else buffers,
            weights,
            settings.start_rule(),
            settings.pipeline.snapshots,
            settings.average_decay,
        )
        self.metrics = RunMetrics()
        self.is_resumed = False
        self.resume_warnings: list[str] = []

    @classmethod
    def resumed(
        cls,
        settings: RunSettings,
        checkpoint: Checkpoint,
        buffers: Buffers | None = None,
        first_worker_id: int = 1,
    ) -> Self:
        """Resume a run from ``checkpoint``, in the same epoch and with the optimizer's state.

        Raise ``CheckpointError`` unless model, samples, seed, optimizer and, for runs of
        rounds, consistency are the checkpoint's; other settings may change, and ``epochs`` may be
        larger. Raise ``CheckpointError`` for a checkpoint that no server wrote.
        """
        checkpoint.require_layout(settings.layout)
        try:
            return cls._resumed(settings, checkpoint, buffers, first_worker_id)
        except MALFORMED as error:
            raise CheckpointError(
                f"the checkpoint of recipe {checkpoint.recipe!r} is incomplete or damaged "
                f"({error!r:.200}); expected a checkpoint of a training run: resume from another"
            ) from error

    @classmethod
    def _resumed(
        cls,
        settings: RunSettings,
        checkpoint: Checkpoint,
        buffers: Buffers | None,
        first_worker_id: int,
    ) -> Self:
        own = settings.to_json()
        for name in ("samples", "seed", "optimizer"):
            if own[name] != checkpoint.settings[name]:
                raise CheckpointError(
                    f"the checkpoint of recipe {checkpoint.recipe!r} is of another run: its {name} "
                    f"is {checkpoint.settings[name]}, expected {own[name]}; resume with "
                    f"{checkpoint.settings[name]}"
                )
        former = str(checkpoint.settings.get("consistency", ASYNC))
        if former != own["consistency"] and any(
            each.startswith(("bsp", "local")) for each in (former, own["consistency"])
        ):
            raise CheckpointError(
                f"consistency={own['consistency']}: the checkpoint is of a run with {former}, "
                f"whose updates differ; resume with consistency={former}"
            )
        run = cls(settings, checkpoint.weights, buffers, first_worker_id)
        run.is_resumed = True
        run.resume_warnings += [] if checkpoint.damage is None else [checkpoint.damage]
        run.store.restore(checkpoint.version, checkpoint.optimizer_state)
        run.ledger.restore(checkpoint.ledger)
        run.metrics = RunMetrics.from_json(checkpoint.counters["metrics"])
        return run

    def checkpoint(self, into: Checkpoint | None = None) -> Checkpoint:
        """Return a copy of the state for ``resumed``, to be written while training continues.

        Reuse the vectors of ``into``, an earlier checkpoint of this run that is no longer needed:
        copying into new memory takes several times as long.
        """
        state = {} if into is None else into.optimizer_state
        return Checkpoint(
            recipe=self.settings.recipe,
            recipe_digest=self.settings.recipe_digest,
            recipe_record=self.settings.recipe_record,
            layout=self.settings.layout,
            version=self.store.version,
            settings=self.settings.to_json(),
            ledger=self.ledger.to_json(),
            counters={"metrics": self.metrics.to_json()},
            weights=_copied(self.store.weights, None if into is None else into.weights),
            optimizer_state={
                name: _copied(vector, state.get(name)) for name, vector in self.store.state.items()
            },
        )

    def apply_again(
        self, push: Sequence[Applied], gradients: Sequence[Vector], loss_sum: float, correct: int
    ) -> bool:
        """Apply a pass of the journal with gradients that were computed again.

        Pass the mean as the only gradient of a pass that was averaged. Return False, and change
        nothing, if the result is not finite. Raise ``JournalDamagedError`` for samples that were
        applied before. No worker may hold a lease.
        """
        rates = [applied.learning_rate for applied in push[: len(gradients)]]
        is_good = (
            self._apply_mean(gradients[0], rates[0])
            if push[0].averaged
            else self.store.apply(gradients, rates)
        )
        if not is_good:
            return False
        for applied in push:
            done = Range(applied.epoch, applied.start, applied.stop)
            if not self.ledger.applied_again(done):
                raise JournalDamagedError(
                    f"the journal applies samples {done.start} to {done.stop} of epoch "
                    f"{done.epoch} a second time at version {applied.version}; expected each "
                    f"sample once in each of {self.settings.epochs} epochs"
                )
        samples = sum(applied.samples for applied in push)
        staleness = [applied.version - 1 - applied.base_version for applied in push]
        self.metrics.push_applied(samples, loss_sum, correct, staleness, 0.0)
        self._record(rates[-1])
        return True

    def _record(self, learning_rate: float) -> None:
        applied, version = self.ledger.applied_samples, self.store.version
        self.metrics.record_if_due(self.settings, applied, version, learning_rate)

    def collect(self, member: Member, push: Push, now: float) -> tuple[Applied, ...] | None:
        """Add a push that is due to its round, and apply the round once it is complete.

        Return the journal's record of each applied gradient. Return None if a gradient, or the
        result of the round, is not finite; after such a result, the round's samples return to the
        pool.
        """
        if self.round is None or not math.isfinite(push.loss_sum):
            return None
        size, packed_bits = self.settings.vector_size, self.packed_bits(member)
        copies = [self.round.copied(gradient, size, packed_bits) for gradient in push.gradients]
        gradients = [copy for copy in copies if copy is not None]
        if len(gradients) < len(copies):
            return None
        if self._round_began_s is None:
            self._round_began_s = now
        for stop, base_version, gradient in zip(
            push.stops, push.base_versions, gradients, strict=True
        ):
            parts = self.ledger.parts(member.worker_id)
            taken = self.ledger.collected(member.worker_id, stop)
            origin = push.worker_id, push.lease_id, *taken, base_version
            how = self.learning_rate_of(taken), 1, True, packed_bits, parts
            self.round.add(Applied(0, *origin, *how), gradient)
        self.round.loss_sum += push.loss_sum
        self.round.correct += push.correct
        member.pushes += len(push.gradients)
        return self._apply_round(self.round, now) if self.ledger.round_is_collected else ()

    def has_late_leases(self, now: float) -> bool:
        """Check whether idle workers may share other workers' leases of the round.

        Only late leases are shared: the next round waits for all holders.
        """
        usual_s = max(self._last_round_s, self.members.usual_step_s)
        late_s = max(LATE_S, LATE_FACTOR * usual_s)
        return self._round_began_s is not None and now - self._round_began_s > late_s

    def _apply_round(self, collected: Round, now: float) -> tuple[Applied, ...] | None:
        """Apply the mean of a round's gradients, or differences, as one update."""
        records = collected.records
        samples, rate = sum(each.samples for each in records), records[-1].learning_rate
        if not self._apply_mean(collected.mean(self.settings.takes_local_steps), rate):
            self.ledger.round_dropped()
            collected.clear()
            return None
        self.ledger.round_applied()
        for member in self.members.members:
            member.refusals = 0
        sums = collected.loss_sum, collected.correct
        self.metrics.push_applied(samples, *sums, [0] * len(records), now)
        collected.clear()
        self._last_round_s = now - (self._round_began_s or now)
        self._round_began_s = now
        self._record(rate)
        version = self.store.version
        return tuple(each._replace(version=version, together=len(records)) for each in records)

    def _apply_mean(self, mean: Vector, learning_rate: float) -> bool:
        """Apply the mean of a round's gradients, or differences; False if it is not finite."""
        if self.settings.takes_local_steps:
            learning_rate = self.settings.outer_learning_rate
            # The rule takes observed buffers, but the workers sent differences.
            buffers = slice(self.store.rule.trained_size, mean.size)
            np.subtract(self.store.weights[buffers], mean[buffers], out=mean[buffers])
        return self.store.apply([mean], [learning_rate])

    def packed_bits(self, member: Member) -> int:
        """Return the bits of each element between this worker and the server; 0: not packed."""
        is_packed = self.settings.takes_local_steps and not member.shared
        return member.packed_bits if is_packed else 0

    def packed_weights(self) -> Vector:
        """Return the current weights packed: the same bytes for every worker."""
        if self._packed is None or self._packed[0] != self.store.version:
            self._packed = self.store.version, pack_weights(self.store.weights)
        return self._packed[1]

    def grant(self, member: Member, now: float) -> Lease | None:
        """Return the worker's lease of a round; None if nothing can be leased now."""
        ledger = self.ledger
        is_open = self.settings.consistency.round_leases == ONE_FOR_EACH_WORKER
        if is_open and ledger.is_between_rounds:
            ledger.round_leases = len(self.members)
        length = (self._local_steps_of(member), member.parts) if is_open else ()
        return ledger.grant(member.worker_id, self.has_late_leases(now), *length)

    @property
    def _minibatches(self) -> int:
        return self.settings.epochs * math.ceil(self.settings.samples / self.settings.batch_size)

    def _local_steps_of(self, member: Member) -> int | None:
        """Return the local steps of the worker's next lease; None: its times are unknown."""
        times = [each.lease_times for each in self.members.members if each.lease_times is not None]
        if member.lease_times is None:
            return None
        steps = self.settings.consistency.local_steps
        seconds = (
            round_of(times, steps)
            if steps
            else min(needed_round(times), longest_round(times, self._minibatches))
        )
        length = member.lease_times.steps_in(seconds)
        if member.lease_times.exchanges_too_long(length):
            member.packed_bits = 4
        return length

    @property
    def link_warning(self) -> str | None:
        """The reason why workers on other hosts do not pay off, with automatic local steps."""
        known = [each for each in self.members.members if each.lease_times is not None]
        if self.settings.consistency.local_steps != AUTOMATIC_STEPS or not known:
            return None
        times = [each.lease_times for each in known if each.lease_times is not None]
        needed_s, longest_s = needed_round(times), longest_round(times, self._minibatches)
        if needed_s <= longest_s:
            return None
        slowest = max(zip(times, known, strict=True), key=lambda pair: pair[0].exchange_s)
        exchange_s, minibatch_s, _ = slowest[0]
        return (
            f"an exchange with {slowest[1].name} takes {exchange_s:.3g} s, a minibatch "
            f"{minibatch_s:.3g} s: leases of {slowest[0].steps_in(needed_s):,} local steps would "
            f"keep exchanges to a tenth of its time, but more than "
            f"{slowest[0].steps_in(longest_s):,} cost accuracy, so that a worker on this link "
            f"does not pay off. It would with exchanges {needed_s / longest_s:.1f} times as fast, "
            f"or that many times the epochs or the time of a minibatch"
        )

    def learning_rate_of(self, samples: Lease | Range) -> float:
        """Return the learning rate of a lease in a run of rounds.

        With local steps it is the rate in the middle of the lease: a schedule may begin at 0.
        """
        half = samples.samples / 2 if self.settings.takes_local_steps else 0
        return self.settings.learning_rate_after(self.ledger.applied_samples + half)

    def remove(self, member: Member) -> None:
        """Remove a worker, and return the rest of its lease to the pool."""
        self.ledger.release(member.worker_id)
        self.store.dismiss(member.worker_id)
        self.members.remove(member.worker_id)

    @property
    def staleness_warning(self) -> str | None:
        """A remedy for gradients so stale that accuracy suffers; None if they are not."""
        records = self.metrics.records
        staleness = (records[-1]["staleness_mean"] if records else None) or 0.0
        if staleness <= STALENESS_WITHOUT_COST:
            return None
        remedy = "--consistency auto"
        if self.settings.consistency.is_automatic:
            remedy = f"more than {self.settings.epochs} epochs"
        return (
            f"recent gradients are {staleness:.0f} updates old on average, which costs accuracy; "
            f"use {remedy}, fewer workers, or a learning rate below "
            f"{self.settings.learning_rate:g}"
        )

    def report(self, first_record: int, now: float) -> dict[str, Any]:
        """Return the counters, the workers, and the metric records from ``first_record`` on."""
        applied_samples = self.ledger.applied_samples
        return {
            "samples": applied_samples,
            "samples_total": self.settings.samples_total,
            "epochs": self.settings.epochs,
            "version": self.store.version,
            **self.metrics.report(applied_samples, first_record),
            "staleness_warning": self.staleness_warning,
            "link_warning": self.link_warning,
            "resume_warnings": self.resume_warnings,
            "worker_count": len(self.members),
            "workers": self._worker_reports(now),
        }

    def _worker_reports(self, now: float) -> list[dict[str, Any]]:
        """Return a report of each worker, up to ``WORKERS_PER_REPORT``, slow workers first."""
        members = self.members.members
        found = slowness_of(members, now, self.settings.heartbeat_timeout_s)
        if len(members) > WORKERS_PER_REPORT:
            members = tuple(sorted(members, key=lambda each: not found[each.worker_id].is_slow))
        return [
            {
                **member.report(now),
                "speed_share": found[member.worker_id].share,
                "is_slow": found[member.worker_id].is_slow,
                "slow_because": found[member.worker_id].causes,
            }
            for member in members[:WORKERS_PER_REPORT]
        ]


def _copied(vector: Vector, into: Vector | None) -> Vector:
    if into is None:
        return vector.astype(np.float32)
    np.copyto(into, vector, casting="same_kind")
    return into
