"""The state of a run, and the changes that keep its parts consistent. No I/O.

The parts are the workers (``members``), who computes what (``ledger``), the weights (``store``) and
the counters (``metrics``).
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from dist_net.errors import CheckpointMismatchError
from dist_net.optim import start_rule
from dist_net.parameter_server.checkpoint import Checkpoint
from dist_net.parameter_server.leases import LeaseLedger
from dist_net.parameter_server.members import Member, Membership
from dist_net.parameter_server.metrics import RunMetrics
from dist_net.parameter_server.settings import RunSettings
from dist_net.parameter_server.store import WeightStore
from dist_net.vector import Vector
from dist_net.wire.messages import Push


class RunState:
    """A run from its beginning. ``weights`` are copied into ``buffers``, which are borrowed.

    ``buffers`` are float32 vectors, which may lie in shared memory: two, and one more for each
    worker that reads the weights in place. None: two private ones. ``first_worker_id`` is larger
    than any id of a server that this one resumes, whose workers may still be there.
    """

    def __init__(
        self,
        settings: RunSettings,
        weights: Vector,
        buffers: Sequence[Vector] | None = None,
        first_worker_id: int = 1,
    ) -> None:
        self.settings = settings
        self.members = Membership(settings.heartbeat_timeout_s, first_worker_id, settings.pipeline)
        self.ledger = LeaseLedger(
            settings.samples,
            settings.epochs,
            settings.batch_size,
            settings.lease_minibatches,
            settings.pipeline.gradients,
        )
        self.store = WeightStore(
            [np.empty_like(weights) for _ in range(2)] if buffers is None else buffers,
            weights,
            start_rule(settings.optimizer, settings.layout, settings.momenta, settings.clip_norm),
            settings.pipeline.snapshots,
            settings.average_decay,
        )
        self.metrics = RunMetrics()

    @classmethod
    def resumed(
        cls,
        settings: RunSettings,
        checkpoint: Checkpoint,
        buffers: Sequence[Vector] | None = None,
        first_worker_id: int = 1,
    ) -> Self:
        """Go on where ``checkpoint`` ends, in the same epoch and with the optimizer's state.

        Model, samples, seed and optimizer must be those of the checkpoint, else
        ``CheckpointMismatchError``; all else may change, and there may be more epochs.
        """
        checkpoint.require_layout(settings.layout)
        own = settings.to_json()
        for name in ("samples", "seed", "optimizer"):
            if own[name] != checkpoint.settings[name]:
                raise CheckpointMismatchError(
                    f"the checkpoint of recipe {checkpoint.recipe!r} is of another run: its {name} "
                    f"is {checkpoint.settings[name]}, expected {own[name]}; resume with the former"
                )
        run = cls(settings, checkpoint.weights, buffers, first_worker_id)
        run.store.restore(checkpoint.version, checkpoint.optimizer_state)
        run.ledger.restore(checkpoint.ledger)
        run.metrics = RunMetrics.from_json(checkpoint.counters["metrics"])
        return run

    def checkpoint(self) -> Checkpoint:
        """Return all that ``resumed`` needs, copied: it may be written while training goes on."""
        return Checkpoint(
            recipe=self.settings.recipe,
            recipe_digest=self.settings.recipe_digest,
            recipe_record=self.settings.recipe_record,
            layout=self.settings.layout,
            version=self.store.version,
            settings=self.settings.to_json(),
            ledger=self.ledger.to_json(),
            counters={"metrics": self.metrics.to_json()},
            weights=self.store.weights.copy(),
            optimizer_state={
                name: vector.astype(np.float32) for name, vector in self.store.state.items()
            },
        )

    def staleness(self, push: Push) -> list[int]:
        """Return the staleness that each gradient of the push has if it is applied now."""
        # The gradients before it in its push are in the weights by then.
        return [
            self.store.version + earlier - base_version
            for earlier, base_version in enumerate(push.base_versions)
        ]

    def apply(self, member: Member, push: Push, now: float) -> bool:
        """Apply a push that is due; False, and nothing changed, if the result is not finite."""
        settings, ledger, store, metrics = self.settings, self.ledger, self.store, self.metrics
        before = ledger.applied_samples
        rates = [
            settings.learning_rate_after(before + start - push.start)
            for start in (push.start, *push.stops[:-1])
        ]
        staleness = self.staleness(push)
        if not math.isfinite(push.loss_sum) or not store.apply(push.gradients, rates):
            return False
        samples = push.stop - push.start
        ledger.applied(member.worker_id, push.stop)
        member.pushes += len(push.gradients)
        member.samples += samples
        member.refusals = 0
        metrics.push_applied(samples, push.loss_sum, push.correct, staleness, now)
        if metrics.record_due(ledger.applied_samples, settings.samples):
            metrics.record(
                ledger.applied_samples,
                settings.samples,
                store.version,
                rates[-1],
                has_accuracy=settings.has_classes,
            )
        return True

    def remove(self, member: Member) -> None:
        """Remove a worker; what it has not done goes back to the pool."""
        self.ledger.release(member.worker_id)
        self.store.dismiss(member.worker_id)
        self.members.remove(member.worker_id)

    def report(self, first_record: int, now: float) -> dict[str, Any]:
        """Return the counters, the workers, and the metric records from ``first_record`` on."""
        applied_samples = self.ledger.applied_samples
        return {
            "samples": applied_samples,
            "samples_total": self.settings.samples_total,
            "epochs": self.settings.epochs,
            "version": self.store.version,
            **self.metrics.report(applied_samples, first_record),
            "workers": [member.report(now) for member in self.members.members],
        }
