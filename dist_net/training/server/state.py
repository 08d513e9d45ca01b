"""The parameter server as a state machine: messages in, commands out. No I/O.

``RunState`` holds the run's state; this module decides how a message changes it, and the answer.
"""

import json
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

from dist_net.training.server.journal import BLOCK_BYTES, Applied, JournalLag
from dist_net.training.server.members import Member
from dist_net.training.server.run_state import RunState
from dist_net.wire.messages import (
    Alive,
    Heartbeat,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    RecipeOffer,
    RecipeRequest,
    Refuse,
    SegmentAddress,
    Shutdown,
    Snapshot,
    SnapshotRequest,
    StatusReport,
    StatusRequest,
    Stop,
    Wait,
    Welcome,
    Work,
)
from dist_net.wire.packing import packed_size

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 0.01
REFUSALS_IN_A_ROW = 3


class SendToPeer(NamedTuple):
    """Send the message to the node at once: its arrays are borrowed until the next call."""

    node: bytes
    message: Message


class Forget(NamedTuple):
    """The worker is gone: release its resources, such as its mapped segment."""

    worker_id: int


class Record(NamedTuple):
    """Write the applied gradients to the journal before any later command is carried out."""

    applied: tuple[Applied, ...]


ServerCommand = SendToPeer | Forget | Record


class ParameterServer:
    """A run's server. Times are seconds on one monotonic clock.

    ``segment`` is the shared memory of the run's buffers; without it, every worker receives
    weights as frames. ``incarnation`` identifies this start of the server. ``offer`` is sent to
    hosts that request the recipe. Each worker's requests are processed once, in the order of their
    numbers. ``journal_lag`` is the lag of the disk behind the journal when last checked.
    """

    def __init__(
        self,
        run: RunState,
        segment: SegmentAddress | None = None,
        incarnation: str = "",
        offer: RecipeOffer | None = None,
    ) -> None:
        self.run = run
        self._offer = offer
        self._incarnation = incarnation
        self.stop_reason: str | None = None
        self._segment = segment
        self.checkpoint_version: int | None = None
        self._checkpoint_error: str | None = None
        self.journal_lag = JournalLag()
        self._waiting: dict[int, Member] = {}  # their answers depend on other workers

    @property
    def state(self) -> str:
        """The run's state: waiting (for a first worker), training, stopping or finished."""
        if self.run.ledger.finished:
            return "finished"
        if self.stop_reason is not None:
            return "stopping"
        return "training" if len(self.run.members) else "waiting"

    @property
    def worker_count(self) -> int:
        """The number of workers; 0 after the end of the run once every worker knows of it."""
        return len(self.run.members)

    def handle(self, node: bytes, message: Message, now: float) -> list[ServerCommand]:
        """Process a message from ``node`` and return commands; a push's gradients are borrowed.

        Log and drop messages that a server never receives.
        """
        commands: list[ServerCommand] = []
        match message:
            case Push() | Pull():
                member = self.run.members.heard(message.worker_id, message.identity, now)
                if member is None:
                    self.run.metrics.pushes_rejected += isinstance(message, Push)
                    commands = [SendToPeer(node, _unknown(message.worker_id))]
                elif message.request_id != member.received_id + 1:  # repeated, or premature
                    is_repeated = message.request_id <= member.received_id
                    self.run.metrics.duplicates_dropped += is_repeated
                else:
                    member.received_id, member.node = message.request_id, node
                    member.progress_s = now
                    commands = (
                        self._push(member, message, now)
                        if isinstance(message, Push)
                        else self._answer(member, now)
                    )
            case Heartbeat():
                commands = [SendToPeer(node, self._heartbeat(message, now))]
            case Join():
                commands = self._join(node, message, now)
            case Leave():
                commands = self._leave(message, now)
            case StatusRequest():
                commands = [SendToPeer(node, self._status(message.first_record, now))]
            case SnapshotRequest():
                commands = [SendToPeer(node, self._snapshot())]
            case Shutdown():
                commands = [SendToPeer(node, self._shut_down(message, now))]
            case RecipeRequest():
                none = Refuse("this server offers no recipe", may_rejoin=False)
                commands = [SendToPeer(node, self._offer or none)]
            case _:
                kind = type(message).__name__
                logger.warning("unexpected_message node=%s kind=%s", node.hex(), kind)
        if self._waiting:
            commands += self._answer_waiting(now)
        return commands

    def stop(self, reason: str) -> None:
        """End the run: apply nothing more, and answer every request with ``Stop``."""
        if self.stop_reason is None:
            logger.info("stopping reason=%s", reason)
            self.stop_reason = reason

    def checkpoint_written(self, version: int) -> None:
        """Record the version of the checkpoint on disk."""
        self.checkpoint_version, self._checkpoint_error = version, None

    def checkpoint_failed(self, error: str) -> None:
        """Record a failed write; reports contain the error until a checkpoint is written."""
        self._checkpoint_error = error
        self.run.metrics.checkpoints_failed += 1

    def journal_lags(self, lag: JournalLag) -> None:
        """Record the lag of the disk behind the journal, for reports."""
        if lag.error is not None and self.journal_lag.error is None:
            self.run.metrics.journal_failures += 1
        self.journal_lag = lag

    def tick(self, now: float) -> list[ServerCommand]:
        """Remove overdue workers; call this several times a second.

        Handle all received messages first: one may be a heartbeat.
        """
        expired = self.run.members.expired(now)
        commands: list[ServerCommand] = [self._lose(each, "overdue", now) for each in expired]
        if self._waiting:
            reason = "it completed no step while others waited for it"
            commands += [self._lose(each, reason, now) for each in self.run.members.stalled(now)]
        if self.run.settings.consistency.is_automatic:
            self.run.members.leave_slow_behind(now)
        return commands + self._answer_waiting(now)

    def _join(self, node: bytes, join: Join, now: float) -> list[ServerCommand]:
        run, settings = self.run, self.run.settings
        refusal = settings.refusal_of(join.recipe_digest, join.vector_size)
        if refusal is not None:
            logger.warning("join_refused name=%s reason=%s", join.name, refusal)
            return [SendToPeer(node, Refuse(refusal, may_rejoin=False))]
        commands: list[ServerCommand] = []
        for former in run.members.former(node, join.identity):
            if former.identity == join.identity and former.received_id >= join.request_id:
                return []  # a repeated message
            # The slots of its earlier pushes may already contain new gradients.
            commands.append(self._lose(former, "it joined again", now))
        facts = join.name, join.identity, now, join.equipment, join.request_id
        member = run.members.join(node, *facts)
        member.parts = join.parts
        run.metrics.workers_restarted += member.is_restart
        member.pins = run.store.admit(member.worker_id)
        may_share = self._segment is not None and join.segment is not None
        member.shared = may_share and member.pins
        run.metrics.workers_joined += 1
        logger.info(
            "worker_joined worker=%d name=%s shared=%s",
            *(member.worker_id, member.name, member.shared),
        )
        is_local = settings.takes_local_steps
        welcome = Welcome(
            member.worker_id,
            self._incarnation,
            settings.batch_size,
            settings.seed,
            settings.heartbeat_interval_s,
            settings.heartbeat_timeout_s,
            self._segment if member.shared else None,
            join.request_id,
            *((str(settings.optimizer), settings.clip_norm or 0.0) if is_local else ()),
        )
        return [*commands, SendToPeer(node, welcome)]

    def _push(self, member: Member, push: Push, now: float) -> list[ServerCommand]:
        run = self.run
        if not member.shared:
            run.metrics.bytes_received += sum(gradient.nbytes for gradient in push.gradients)
        size = run.settings.vector_size
        if bits := run.packed_bits(member):
            size = packed_size(size, run.settings.buffer_count, bits)
        shapes = [gradient.shape for gradient in push.gradients]
        edges, versions = [push.start, *push.stops], push.base_versions
        is_whole = len(shapes) == len(push.stops) == len(versions) > 0
        if not is_whole or {*shapes} != {(size,)} or edges != sorted({*edges}):
            run.metrics.pushes_rejected += 1
            fault = (
                f"gradients of shapes {shapes} for minibatches between samples {edges}, from "
                f"versions {[*versions]}: expected as many of each, at least one, of shape "
                f"({size},), and ascending samples"
            )
            return self._dismiss(member, fault, now)
        if member.pins:
            # Before the update, which can then write into the buffer used last.
            run.store.unpin_before(member.worker_id, versions[-1])
        if run.members.go_in_step or run.round is not None:
            member.completes(len(push.stops), now)
            minibatches = math.ceil((push.stop - push.start) / run.settings.batch_size)
            member.took_local_steps(minibatches, push.computed_s, now)
        member.speed.computed(push.stop - push.start, now)
        if not run.ledger.is_due(member.worker_id, push.lease_id, push.start, push.stop):
            run.metrics.duplicates_dropped += 1  # usually, a rival's push was first
        elif (
            self.stop_reason is not None
            or not 0 <= min(versions) <= max(versions) <= run.store.version
            # A difference from other weights must not enter the momentum.
            or (run.settings.takes_local_steps and min(versions) != run.store.version)
        ):
            run.metrics.pushes_rejected += 1
        elif max(staleness := run.store.staleness(versions)) > run.members.staleness_limit:
            return self._reject_stale(member, max(staleness), now)
        elif run.round is not None:
            collected = run.collect(member, push, now)
            if collected is None:
                return self._refuse_gradient(member, push, now)
            if collected:
                return [Record(collected), *self._answer(member, now)]
        elif applied := self._apply(member, push, staleness, now):
            return [Record(applied), *self._answer(member, now)]
        else:
            return self._refuse_gradient(member, push, now)
        return self._answer(member, now)

    def _apply(
        self, member: Member, push: Push, staleness: Sequence[int], now: float
    ) -> tuple[Applied, ...]:
        """Apply a push that is due, and return the journal's record of each gradient.

        Return nothing, and change nothing, if the result is not finite.
        """
        ledger, store, settings = self.run.ledger, self.run.store, self.run.settings
        starts = (push.start, *push.stops[:-1])
        before, workers = ledger.applied_samples - push.start, len(self.run.members)
        rates = [settings.learning_rate_after(before + start, workers) for start in starts]
        if not math.isfinite(push.loss_sum) or not store.apply(push.gradients, rates):
            return ()
        epoch = ledger.applied(member.worker_id, push.stop)
        member.pushes += len(push.gradients)
        member.staleness_sum += sum(staleness)
        member.refusals = 0
        self.run.metrics.push_applied(
            push.stop - push.start, push.loss_sum, push.correct, staleness, now
        )
        self.run.metrics.record_if_due(settings, ledger.applied_samples, store.version, rates[-1])
        first = store.version + 1 - len(rates)
        who = push.worker_id, push.lease_id, epoch
        what = zip(starts, push.stops, push.base_versions, rates, strict=True)
        return tuple(
            Applied(version, *who, start, stop, base_version, rate, len(rates))
            for version, (start, stop, base_version, rate) in enumerate(what, first)
        )

    def _reject_stale(self, member: Member, staleness: int, now: float) -> list[ServerCommand]:
        """Return the push's samples to the pool, to be computed again from newer weights."""
        self.run.metrics.pushes_rejected += 1
        logger.warning(
            "push_too_stale worker=%d name=%s staleness=%d limit=%d",
            *(member.worker_id, member.name, staleness, self.run.members.staleness_limit),
        )
        self.run.ledger.release(member.worker_id)
        return self._answer(member, now)

    def _refuse_gradient(self, member: Member, push: Push, now: float) -> list[ServerCommand]:
        self.run.metrics.gradients_refused += 1
        member.refusals += 1
        logger.warning(
            "gradient_refused worker=%d name=%s start=%d stop=%d loss_sum=%s in_a_row=%d",
            *(member.worker_id, member.name, push.start, push.stop, push.loss_sum, member.refusals),
        )
        if member.refusals == REFUSALS_IN_A_ROW:
            return self._dismiss(
                member,
                f"{REFUSALS_IN_A_ROW} gradients in a row that are not finite: the training "
                f"diverges; use a learning rate below {self.run.settings.learning_rate:g}",
                now,
            )
        self.run.ledger.release(member.worker_id)
        return self._answer(member, now)

    def _answer(self, member: Member, now: float) -> list[ServerCommand]:
        """Answer the worker's requests; return nothing if the answer depends on other workers."""
        message = self._work(member, now)
        if not isinstance(message, Work):
            member.speed.waits(now)
        if message is None:
            self._waiting[member.worker_id] = member
            return []
        self._waiting.pop(member.worker_id, None)
        member.answered_id = member.received_id
        return [SendToPeer(member.node, message)]

    def _answer_waiting(self, now: float) -> list[ServerCommand]:
        answers: list[ServerCommand] = []
        if not self._may_one_continue():
            return answers
        for member in list(self._waiting.values()):
            answer = self._answer(member, now)
            if not answer and self.run.round is not None:
                break  # later requests wait for the same event
            answers += answer
        return answers

    def _may_one_continue(self) -> bool:
        """Check whether a waiting worker may get an answer, without trying each of them."""
        if not self._waiting:
            return False
        if not self.run.members.go_in_step or self.state != "training":
            return True
        return not self._is_too_far_ahead(min(self._waiting.values(), key=lambda each: each.clock))

    def _is_too_far_ahead(self, member: Member) -> bool:
        """Check whether the worker must wait for the slowest worker that has a lease.

        Slow workers that were left behind hold up no other worker and need not catch up.
        """
        members, max_ahead = self.run.members, self.run.settings.consistency.max_ahead
        if max_ahead is None or not members.go_in_step:
            return False
        holds_lease = self.run.ledger.holds_lease
        clocks = [
            each.clock
            for each in members.members
            if not each.is_left_behind and holds_lease(each.worker_id)
        ]
        slowest = min(clocks, default=member.clock)
        if member.is_idle or member.is_left_behind:
            member.clock = max(member.clock, slowest)
        return member.clock - slowest > max_ahead

    def _work(self, member: Member, now: float) -> Message | None:
        """Return the answer to a worker; None if it must wait for other workers."""
        run = self.run
        if run.ledger.finished or self.stop_reason is not None:
            member.told_to_stop = True
            if run.ledger.finished:
                return Stop("every epoch is done", finished=True)
            return Stop(self.stop_reason or "", finished=False)
        member.step_began_s = None
        if self._is_too_far_ahead(member):
            return None
        in_rounds = run.round is not None
        lease = run.grant(member, now) if in_rounds else run.ledger.grant(member.worker_id)
        member.is_idle = lease is None
        if lease is None:
            return Wait(member.received_id, RETRY_AFTER_S) if not in_rounds else None
        run.metrics.lease_granted(now)
        member.speed.has_work(now)
        member.step_began_s = now
        if member.pins:
            snapshot, version = run.store.pin(member.worker_id)
            weights = run.store.snapshots[snapshot]
        else:
            snapshot, version, weights = -1, run.store.version, run.store.weights
        sent = None if member.shared else weights
        if run.packed_bits(member):
            sent = run.packed_weights()
        run.metrics.bytes_sent += 0 if sent is None else sent.nbytes
        return Work(
            member.received_id,
            lease.lease_id,
            lease.epoch,
            lease.start,
            lease.stop,
            version,
            *run.members.pipeline,
            run.learning_rate_of(lease) if run.settings.takes_local_steps else 0.0,
            lease.parts,
            member.packed_bits,
            snapshot,
            sent,
        )

    def _heartbeat(self, heartbeat: Heartbeat, now: float) -> Message:
        member = self.run.members.heard(heartbeat.worker_id, heartbeat.identity, now)
        if member is None:
            return _unknown(heartbeat.worker_id)
        if heartbeat.round_trip_s:
            member.round_trips_s.append(heartbeat.round_trip_s)
        return Alive(heartbeat.sent_s, member.received_id, member.answered_id)

    def _leave(self, leave: Leave, now: float) -> list[ServerCommand]:
        member = self.run.members.heard(leave.worker_id, leave.identity, now)
        if member is None:
            return []
        logger.info("worker_left worker=%d name=%s", member.worker_id, member.name)
        return [self._remove(member)]

    def _dismiss(self, member: Member, reason: str, now: float) -> list[ServerCommand]:
        forget = self._lose(member, reason, now)
        refuse = Refuse(f"worker {member.name!r} sent {reason}", may_rejoin=False)
        return [forget, SendToPeer(member.node, refuse)]

    def _lose(self, member: Member, reason: str, now: float) -> Forget:
        if not member.told_to_stop:
            self.run.metrics.workers_lost += 1
            logger.warning(
                "worker_lost worker=%d name=%s silent_s=%.2f reason=%s",
                *(member.worker_id, member.name, now - member.heard_s, reason),
            )
        return self._remove(member)

    def _remove(self, member: Member) -> Forget:
        self._waiting.pop(member.worker_id, None)
        self.run.remove(member)
        return Forget(member.worker_id)

    def _status(self, first_record: int, now: float) -> StatusReport:
        report = {
            "state": self.state,
            "incarnation": self._incarnation,
            "recipe": self.run.settings.recipe,
            "consistency": str(self.run.settings.consistency),
            "checkpoint_version": self.checkpoint_version,
            "checkpoint_error": self._checkpoint_error,
            "versions_since_checkpoint": self.run.store.version - (self.checkpoint_version or 0),
            "journal_lag_records": self.journal_lag.unsynced_bytes // BLOCK_BYTES,
            "journal_lag_bytes": self.journal_lag.unsynced_bytes,
            "journal_lag_s": self.journal_lag.unsynced_s,
            "journal_unwritten_bytes": self.journal_lag.unwritten_bytes,
            "journal_error": self.journal_lag.error,
            **self.run.report(first_record, now),
        }
        return StatusReport(json.dumps(report, ensure_ascii=False))

    def _snapshot(self) -> Snapshot:
        store = self.run.store
        return Snapshot(store.version, self.run.ledger.applied_samples, store.evaluated_weights)

    def _shut_down(self, shutdown: Shutdown, now: float) -> StatusReport:
        self.stop(shutdown.reason)
        return self._status(self.run.metrics.next_record, now)


def _unknown(worker_id: int) -> Refuse:
    return Refuse(
        f"worker {worker_id} is not in this run: it was silent or completed no step for too long, "
        f"or the server was restarted; join again",
        may_rejoin=True,
    )
