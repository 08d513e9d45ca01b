"""The parameter server as a state machine: messages in, commands out. No I/O.

    message            from a member               from others
    Join                                           a new member: Welcome | Refuse
    Pull               Work, or it waits | Stop    Refuse
    Push               collected or applied; Work, or it waits | Stop    Refuse
    Heartbeat          Alive | Stop                Refuse
    Leave              a member no longer          (nothing)
    Follow             from a standby: what it lacks | Stop | Refuse
    StatusRequest, SnapshotRequest, RecipeRequest, Shutdown, ForgetMember: answered at once

A member *waits* while everything is leased and none of it may be shared: until a round is applied,
a lease returns to the pool, or the run ends. Requests are processed once, in the order of their
numbers. A silent member is lost until it is heard again: other members may compute its lease too,
and the first result counts. Without a majority of the run's voters, the server neither grants
leases nor takes in results: see ``Standbys``.

``RunState`` holds the run's state; this module decides which change a message causes, and the
answer.
"""

import json
import logging
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from dist_net.errors import SupersededError
from dist_net.training.server.journal import OnDisk
from dist_net.training.server.journal_records import BLOCK_BYTES, Computing, JournalRecord
from dist_net.training.server.members import Member
from dist_net.training.server.run_report import run_report
from dist_net.training.server.standbys import ALONE, RunPlace, Standbys
from dist_net.training.server.state import REFUSALS_IN_A_ROW, RunState
from dist_net.wire.messages import (
    Alive,
    Follow,
    Followed,
    ForgetMember,
    Heartbeat,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    RecipeOffer,
    RecipeRequest,
    Refuse,
    Shutdown,
    Snapshot,
    SnapshotRequest,
    StatusReport,
    StatusRequest,
    Stop,
    Welcome,
    Work,
)
from dist_net.wire.standbys import MAX_STANDBYS, term_number

logger = logging.getLogger(__name__)

MAX_KERNELS = 32
MAX_READERS = 64
READER_S = 5.0
SLOW_BYTES_PER_S = 1e6
"""A run ends once every pool that follows it has the last version, or has been silent for
``READER_S``, and for as long as the weights travel on a slow link after it has requested them."""

EVENTS_REPORTED = 100
"""The newest events of members that a report contains."""


class SendToPeer(NamedTuple):
    """Send the message to the node; its arrays never change."""

    node: bytes
    message: Message


class SendCopy(NamedTuple):
    """Send a standby what it lacks of the journal and, if it wants one, of a state."""

    node: bytes
    follow: Follow


class Forget(NamedTuple):
    """Release the resources of a worker that is gone, such as its shared memory."""

    worker_id: int


class Record(NamedTuple):
    """Write the records to the journal before any later command is carried out."""

    records: Sequence[JournalRecord]


EventKind = Literal["joined", "lost", "back", "left"]
ServerCommand = SendToPeer | SendCopy | Forget | Record


class ParameterServer:
    """A run's server. Times are seconds on one monotonic clock.

    ``term``, of this start of the server, is above any before. ``offer`` is sent to hosts that
    request the recipe. It ``diverges`` if nothing more can be learnt from its state. Once the run
    has ended, at ``ended_s``, peers are ``awaited`` that copy its last version; standbys only if it
    ``lets_copy``, since it was not interrupted.
    """

    def __init__(
        self,
        run: RunState,
        term: int = 0,
        offer: RecipeOffer | None = None,
        place: RunPlace = ALONE,
        on_disk: OnDisk | None = None,
    ) -> None:
        self.run = run
        self.term = term
        self.standbys = Standbys(run.members, run.settings, place)
        self.on_disk = on_disk or OnDisk()
        self._offer = offer
        self.stop_reason: str | None = None
        self.is_suspended = False
        self.diverges = False
        self.lets_copy = False
        self.ended_s = math.inf
        self._gone: list[str] = []  # standbys without the last version
        self._readers: dict[int, tuple[int, float]] = {}  # version, and until when it is awaited
        self._slow_s = run.store.weights.nbytes / SLOW_BYTES_PER_S
        self._waiting: dict[int, Member] = {}
        self._kernels: set[int] = set()  # in the journal
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_REPORTED)
        self._next_event = 0

    @property
    def state(self) -> str:
        """The run's state: waiting (for a first worker), training, stopping or finished."""
        if self.run.ledger.finished:
            return "finished"
        if self.stop_reason is not None:
            return "stopping"
        return "training" if len(self.run.members) else "waiting"

    def handle(self, node: bytes, message: Message, now: float) -> list[ServerCommand]:
        """Return the commands for a message, whose state is borrowed."""
        commands: list[ServerCommand] = []
        match message:
            case Push() | Pull():
                commands = self._requested(node, message, now)
            case Heartbeat(worker_id, sent_s=sent_s, heard_s=heard_s):
                answer: Message = _unknown(worker_id)
                if (member := self._heard(message, now)) is not None:
                    member.promise.renew(sent_s, heard_s, now)
                    numbers = member.received_id, member.answered_id
                    answer = self._stop() or Alive(sent_s, *numbers, self.standbys.text)
                commands = [SendToPeer(node, answer)]
            case Join():
                commands = self._join(node, message, now)
            case Leave():
                commands = self._leave(message, now)
            case Follow():
                commands = self._follow(node, message, now)
            case StatusRequest(first_record, reader, version):
                self._reads(reader, version, now + READER_S)
                commands = [SendToPeer(node, self._status(first_record, now))]
            case SnapshotRequest(reader, version):
                store, samples = self.run.store, self.run.ledger.applied_samples
                snapshot = Snapshot(store.version, samples, store.evaluated_weights)
                self._reads(reader, version, now + READER_S + self._slow_s)
                commands = [SendToPeer(node, snapshot)]
            case ForgetMember(name):
                refusal = self.standbys.forget(name, now)
                report = self._status(self.run.metrics.next_record, now)
                commands = [SendToPeer(node, Refuse(refusal, False) if refusal else report)]
            case Shutdown(reason):
                self.stop(reason)
                self.lets_copy = True
                commands = [SendToPeer(node, self._status(self.run.metrics.next_record, now))]
            case RecipeRequest():
                none = Refuse("this server offers no recipe", may_rejoin=False)
                commands = [SendToPeer(node, self._offer or none)]
            case _:
                logger.warning("unexpected_message node=%s kind=%s", node.hex(), type(message))
        return commands + self._answer_waiting(now)

    def stop(self, reason: str, *, is_suspended: bool = False) -> None:
        """Apply nothing more, and answer requests with ``Stop``; a suspended run answers none."""
        if self.stop_reason is None:
            logger.info("stopping reason=%s suspended=%s", reason, is_suspended)
            self.stop_reason, self.is_suspended = reason, is_suspended

    def _reads(self, reader: int, version: int, until_s: float) -> None:
        if reader and (reader in self._readers or len(self._readers) < MAX_READERS):
            self._readers[reader] = version, until_s

    def awaited(self, now: float) -> list[str]:
        """Return the standbys and pools that may soon have the last version of an ended run."""
        if now < self.ended_s:
            return []
        pools = [
            "a pool"
            for version, until_s in self._readers.values()
            if version != self.run.store.version and now < until_s
        ]
        pools = pools if now < self.ended_s + 2 * READER_S + self._slow_s else []
        return [*(self.standbys.awaited(now) if self.lets_copy else ()), *pools]

    @property
    def lacking(self) -> list[str]:
        """The hosts of standbys that left without the last version, or never had it."""
        return [*self._gone, *self.standbys.lacking(self.run.store.version)]

    def tick(self, now: float) -> list[ServerCommand]:
        """Look for silent workers, once all heartbeats are handled."""
        run, commands = self.run, []
        if not self.standbys.is_alone:
            self.standbys.tick(now)
        for member in run.members.overdue(now):
            if member.worker_id not in run.members.silent:
                self._event("lost", member, now, f"silent for {now - member.heard_s:.1f} s")
                run.silence(member)
            elif run.ledger.lease_of(member.worker_id) is None:
                commands.append(self._remove(member))
        return [*commands, *self._answer_waiting(now)]

    def _join(self, node: bytes, join: Join, now: float) -> list[ServerCommand]:
        run, settings = self.run, self.run.settings
        refusal = settings.refusal_of(join)
        if refusal is not None:
            logger.warning("join_refused name=%s reason=%s", join.name, refusal)
            return [SendToPeer(node, Refuse(refusal, may_rejoin=False))]
        commands: list[ServerCommand] = []
        formers = run.members.former(node, join.identity)
        for former in formers:
            if former.identity == join.identity and former.received_id >= join.request_id:
                return []  # a repeated message
            commands.append(self._lose(former, "its connection was lost", now))
        kernels, blas = join.equipment.kernels, join.equipment.blas
        if kernels and kernels not in self._kernels and len(self._kernels) < MAX_KERNELS:
            self._kernels.add(kernels)
            run.metrics.kernels[f"{kernels:x}"] = blas
            commands.append(Record([Computing(run.store.version, kernels, blas)]))
        member = run.members.join(node, join, now)
        run.metrics.workers_restarted += member.starts > 1 and not formers
        self._event("back" if formers else "joined", member, now)
        heartbeats = settings.heartbeat_interval_s, settings.heartbeat_timeout_s
        facts = self.term, settings.step_settings, *heartbeats, None, join.request_id
        return [*commands, SendToPeer(node, Welcome(member.worker_id, *facts))]

    def _requested(self, node: bytes, request: Pull | Push, now: float) -> list[ServerCommand]:
        """Process a member's next request; drop others."""
        metrics = self.run.metrics
        member = self._heard(request, now)
        if member is None:
            metrics.pushes_rejected += isinstance(request, Push)
            return [SendToPeer(node, _unknown(request.worker_id))]
        if request.request_id != member.received_id + 1:  # repeated, or premature
            metrics.duplicates_dropped += request.request_id <= member.received_id
            return []
        is_push = isinstance(request, Push)
        if not (self.standbys.may_apply(member, now) if is_push else self.standbys.hold(now)):
            return []  # the worker repeats it until this server has a majority, or another has
        member.received_id, member.node = request.request_id, node
        member.progress_s = now
        if isinstance(request, Push):
            return self._push(member, request, now)
        return self._answer(member, now)

    def _push(self, member: Member, push: Push, now: float) -> list[ServerCommand]:
        run = self.run
        if member.began_s is not None:
            run.metrics.working_s += now - member.began_s
        expected = run.store.state.size if member.shared else run.store.packing.result_size
        if push.state is None or push.state.size != expected:
            run.metrics.pushes_rejected += 1
            found = "no state" if push.state is None else f"a state of {push.state.size} elements"
            return self._dismiss(member, f"{found}: expected {expected} elements", now)
        if not member.shared:
            run.metrics.bytes_received += push.state.nbytes
            member.exchanged_bytes += push.state.nbytes
        if run.ledger.lease_of(member.worker_id, push.lease_id) is None:
            run.metrics.duplicates_dropped += 1  # usually, a rival's push was first
            return self._answer(member, now)
        if self.stop_reason is not None:
            run.metrics.pushes_rejected += 1
            return self._answer(member, now)
        applied = run.accept(member, push, now)
        if isinstance(applied, str):
            return self._refuse_result(member, push, applied, now)
        records: list[ServerCommand] = [Record(applied)] if applied else []
        return [*records, *self._answer(member, now)]

    def _refuse_result(
        self, member: Member, push: Push, fault: str, now: float
    ) -> list[ServerCommand]:
        """Refuse a result; after several in a row, dismiss the worker, or end the run.

        The state is at fault if no worker arrives at a usable result from it. A worker that is
        alone and never sent a usable result may itself be.
        """
        run = self.run
        run.metrics.gradients_refused += 1
        if not member.refusals:
            member.refused_from = run.store.version
        member.refusals += 1
        words = "result_refused worker=%d name=%s lease=%d loss_sum=%s in_a_row=%d reason=%s"
        of_push = push.lease_id, push.loss_sum, member.refusals, fault
        logger.warning(words, member.worker_id, member.name, *of_push)
        if member.refusals >= REFUSALS_IN_A_ROW:
            cause = f"{REFUSALS_IN_A_ROW} results in a row that cannot be applied: {fault}"
            if run.store.version > member.refused_from or run.ledger.collected_samples:
                return self._dismiss(member, f"{cause}; those of other workers can", now)
            if len(run.members) == 1 and not member.pushes:
                rate = f"use a learning rate below {run.settings.learning_rate:g}"
                return self._dismiss(member, f"{cause}; if other workers fail too, {rate}", now)
            if all(each.refusals for each in run.members.members):
                self.diverges = True
                self.stop(
                    f"the training diverges: from version {run.store.version}, no worker arrives "
                    f"at a result that can be applied ({fault}). Use a learning rate below "
                    f"{run.settings.learning_rate:g}: --resume continues from version "
                    f"{self.on_disk.checkpoint_version}, and dist-net replay writes checkpoints of "
                    f"earlier ones"
                )
        return self._answer(member, now)

    def _answer(self, member: Member, now: float) -> list[ServerCommand]:
        """Answer the worker's request; return nothing if the answer depends on other workers."""
        run = self.run
        message: Message | None = self._stop()
        has_ended = message is not None or self.is_suspended
        lease = run.grant(member, now) if not has_ended and self.standbys.hold(now) else None
        if lease is None:
            member.speed.waits(now)
        else:
            run.metrics.lease_granted(now)
            member.speed.has_work(now)
            state = run.store.state if member.shared else run.store.packed_state()
            if not member.shared:
                run.metrics.bytes_sent += state.nbytes
                member.exchanged_bytes += state.nbytes
            numbers = member.worker_id, member.received_id, lease.lease_id
            message = Work(*numbers, lease.steps, state)
        if message is None:
            self._waiting[member.worker_id] = member
            return []
        run.metrics.waiting_s += now - member.progress_s
        self._waiting.pop(member.worker_id, None)
        member.answered_id = member.received_id
        return [SendToPeer(member.node, message)]

    def _answer_waiting(self, now: float) -> list[ServerCommand]:
        answers: list[ServerCommand] = []
        for member in list(self._waiting.values()):
            if member.worker_id in self.run.members.silent and self._stop() is None:
                continue  # otherwise another worker waits for it
            answer = self._answer(member, now)
            if not answer and not self.run.strategy.is_spare(member):
                break  # later requests wait for the same event
            answers += answer
        return answers

    def _stop(self) -> Stop | None:
        """Return the message to every worker once the run has ended.

        If it has standbys, that is after its last evaluation: a standby may take it.
        """
        if self.run.ledger.finished and (self.stop_reason is not None or not self.standbys.text):
            return Stop("every epoch is done", finished=True)
        if self.stop_reason is None or self.is_suspended:
            return None
        return Stop(self.stop_reason, finished=False)

    def _follow(self, node: bytes, follow: Follow, now: float) -> list[ServerCommand]:
        if follow.term > self.term:
            repeated = max(0, self.run.ledger.applied_samples - follow.samples)
            raise SupersededError(
                f"the run continues at {follow.address}, on {follow.host}: this standby took over "
                f"while this server was silent, or without a majority of the votes, from version "
                f"{follow.version:,}. {repeated:,} samples that this server applied after that "
                f"are done again; its directory remains as it is"
            )
        if follow.serves:  # in an earlier term
            known = self.term, follow.sent_s, self.run.store.version, self.standbys.host
            return [SendToPeer(node, Followed(*known, "[]", "", 0, 0, 0, 1.0, ()))]
        if self.is_suspended:
            return []
        if not self.standbys.follows(follow, now):
            many = f"the run has {MAX_STANDBYS} standbys, the maximum: join with workers only"
            return [SendToPeer(node, Refuse(many, may_rejoin=False))]
        if follow.leaves:
            return [SendToPeer(node, Stop("this standby has left the run", finished=False))]
        copy, version = self.standbys.follower(follow).copy, self.run.store.version
        copy.follows(follow, self.term, version, now)
        stop = self._stop()
        may_copy = self.lets_copy or self.stop_reason is None
        if stop is None or (may_copy and copy.is_awaited(now)):
            return [SendCopy(node, follow)]
        self.standbys.follows(follow._replace(leaves=True), now)  # it begins no other term
        has_all, lacks = copy.version == version, f"version {version:,} has not arrived"
        if not has_all:
            self._gone.append(follow.host)
        if self.lets_copy or stop.finished:
            stop = Stop(stop.reason if has_all else lacks, finished=has_all)
        return [SendToPeer(node, stop)]

    def _heard(self, message: Pull | Push | Heartbeat | Leave, now: float) -> Member | None:
        """Return the member that sent the message; a silent one is back."""
        members = self.run.members
        was_silent = message.worker_id in members.silent
        member = members.heard(message.worker_id, message.identity, now)
        if member is not None and was_silent:
            self._event("back", member, now)
        return member

    def _leave(self, leave: Leave, now: float) -> list[ServerCommand]:
        member = self._heard(leave, now)
        if member is None:
            return []
        removed = self._remove(member)
        if not self.standbys.is_alone:
            self.standbys.ends(member.voter_id, now)
        self._event("left", member, now)
        return [removed]

    def _dismiss(self, member: Member, reason: str, now: float) -> list[ServerCommand]:
        forget = self._lose(member, reason, now)
        refuse = Refuse(f"worker {member.name!r} sent {reason}", may_rejoin=False)
        return [forget, SendToPeer(member.node, refuse)]

    def _lose(self, member: Member, reason: str, now: float) -> Forget:
        if member.worker_id not in self.run.members.silent:
            self._event("lost", member, now, reason)
        return self._remove(member)

    def _event(self, what: EventKind, member: Member, now: float, reason: str = "") -> None:
        """Log what happened to a member; count and report it unless the run has ended."""
        words = "worker_%s worker=%d shared=%s name=%s silent_s=%.2f reason=%s"
        who = member.worker_id, member.shared, member.name, now - member.heard_s
        logger.log(logging.WARNING if what == "lost" else logging.INFO, words, what, *who, reason)
        if self._stop() is not None:
            return
        self.run.metrics.workers_joined += what in ("joined", "back")
        self.run.metrics.workers_lost += what == "lost"
        host, processes = member.host or member.name, member.parts
        event = {"number": self._next_event, "what": what, "host": host, "processes": processes}
        self._events.append(event | {"reason": reason, "name": member.name, "at_s": now})
        self._next_event += 1

    def _remove(self, member: Member) -> Forget:
        self._waiting.pop(member.worker_id, None)
        self.run.remove(member)
        return Forget(member.worker_id)

    def _status(self, first_record: int, now: float) -> StatusReport:
        samples = self.run.ledger.applied_samples
        checkpointed, journal = self.on_disk.checkpoint_version, self.on_disk.journal
        report = {
            "state": self.state,
            "term": self.term,
            "term_number": term_number(self.term),
            "standby_list": self.standbys.text,
            "standbys": self.standbys.report(self.run.store.version, samples, now),
            "voters": self.standbys.voters(now),
            "majority_warning": self.standbys.warning(now),
            "copy_warning": self.standbys.copy_warning(now),
            "awaited": self.awaited(now),
            "recipe": self.run.settings.recipe,
            "consistency": str(self.run.settings.consistency),
            "checkpoint_version": checkpointed,
            "checkpoint_error": self.on_disk.checkpoint_error,
            "versions_since_checkpoint": self.run.store.version - (checkpointed or 0),
            "journal_lag_records": journal.lag_bytes // BLOCK_BYTES,
            **{f"journal_{name}": fact for name, fact in journal._asdict().items()},
            "host": self.standbys.host,
            "events": [{**each, "s_ago": now - each["at_s"]} for each in self._events],
            **run_report(self.run, first_record, now),
        }
        return StatusReport(json.dumps(report, ensure_ascii=False))


def _unknown(worker_id: int) -> Refuse:
    return Refuse(
        f"worker {worker_id} is not in this run: it was silent for too long, or the server "
        f"was restarted; join again",
        may_rejoin=True,
    )
