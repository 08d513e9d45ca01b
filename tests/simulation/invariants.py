"""The invariants of a simulated training run, checked at every event."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import BadInputError
from dist_net.ground.checkpoint import Checkpoint
from dist_net.ground.vector import Vector
from dist_net.optim import SGD
from dist_net.training.run.replayed_run import Replay
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.journal import JournalFile, read_journal
from dist_net.training.server.journal_records import Applied
from dist_net.training.server.loop import ServerLoop
from dist_net.training.server.members import Member
from dist_net.training.server.round_plan import PlannedRun, divided_minibatch
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.lateness import FIRST_LEASE_S, LATE_S, late_after_s
from dist_net.wire.lease_steps import minibatches_in
from dist_net.wire.messages import Alive, Message, Push, Stop, Work
from simulation.counting import CountingStep
from simulation.disk import VirtualDisk, checkpoint_on
from simulation.failures import InvariantBrokenError, require
from simulation.memory import VirtualMemory

CHECKPOINT, JOURNAL = Path("run/checkpoint.safetensors"), Path("run/journal")
OWNER = Path("run/owner")
MAX_WAIT_S = 1.0
"""The longest wait for a late lease that another worker may share, after it has become late."""

MAX_UNANSWERED_S = 12.0
"""The longest time to notice that a request or its answer was lost, on the slowest link."""

MAX_PARTS = 100
"""More than all workers take at the same time."""

ROUNDING = 0.1
"""The largest error of a sample's change, as a share of it: differences travel as int8."""


class KnownVersion(NamedTuple):
    """The training state and the outer momentum of a version, and which samples are in it."""

    state: Vector
    momentum: Vector
    applied: NDArray[np.bool_]


class RunChecks:
    """Checks the run of a counting model through all starts of its server."""

    def __init__(self, settings: RunSettings, disk: VirtualDisk, memory: VirtualMemory) -> None:
        self._settings = settings
        self._disk = disk
        self._memory = memory
        self.run: RunState | None = None
        self._journal: JournalFile | None = None
        self.versions: dict[int, KnownVersion] = {}
        self.term = 0
        self._acknowledged = 0
        self._kept = 0
        self._turned_s = 0.0
        self._longest_round_s = FIRST_LEASE_S
        self.progress_s = 0.0  # when something was last applied
        self.calm_since_s = math.inf  # when the last fault was over
        self.breaks_gradients = False

    @property
    def _version(self) -> int:
        """The version that the checks have seen last."""
        return max(self.versions)

    def begin(self, run: RunState, journal: JournalFile) -> None:
        """Check a server that begins the run or resumes from a checkpoint."""
        self.term = journal.term
        store, version = run.store, run.store.version
        if not self.versions:
            applied = np.zeros(self._settings.samples_total, np.bool_)
            self.versions[0] = KnownVersion(store.state, store.outer_momentum, applied)
        require(version <= self._version, f"version {version} was never reached")
        require(
            version >= self._kept,
            f"version {version} is what a server continues from, and the checkpoint of version "
            f"{self._kept} was written",
        )
        self.versions = {each: of for each, of in self.versions.items() if each <= version}
        known = self.versions[version]
        require(np.array_equal(store.state, known.state), "the training state is not restored")
        is_same = np.array_equal(store.outer_momentum, known.momentum)
        require(is_same, "the momentum of the outer steps is not restored")
        self.run, self._journal, self._settings = run, journal, run.settings
        self._acknowledged = version
        self._longest_round_s = FIRST_LEASE_S
        self._check_ledger(run)

    def accept(self, member: Member, push: Push, now: float) -> tuple[Applied, ...] | str:
        """Call ``RunState.accept`` of the run, and check what it applies."""
        run = self.run
        assert run is not None
        records = RunState.accept(run, member, push, now)
        self._longest_round_s = max(self._longest_round_s, run.strategy.last_round_s)
        if isinstance(records, str):
            require(self.breaks_gradients, f"a result is refused: {records}")
        elif records:
            self._check_applied(run, records)
            self.progress_s = now
        return records

    def _check_applied(self, run: RunState, records: Sequence[Applied]) -> None:
        """Check the next version: what the journal records is what the state contains."""
        version = self._version + 1
        before, store = self.versions[version - 1], run.store
        require(store.version == version, f"version {store.version} follows {version - 1}")
        applied = before.applied.copy()
        for record in records:
            self._check_record(record, version, len(records))
            first = record.steps.epoch * self._settings.samples
            samples = slice(first + record.steps.start, first + record.steps.stop)
            if applied[samples].any():
                raise InvariantBrokenError(f"samples are applied a second time: {record}")
            applied[samples] = True
        sizes = {record.steps.batch_size for record in records}
        require(len(sizes) == 1, f"a round has minibatches of different sizes: {sizes}")
        self._check_steps(before.state, store.state, records)
        if isinstance(self._settings.optimizer, SGD):
            self._check_change(before, store.state, records)
        self.versions[version] = KnownVersion(store.state, store.outer_momentum, applied)
        self._check_ledger(run)

    def _check_record(self, record: Applied, version: int, together: int) -> None:
        consistency = self._settings.consistency
        is_async, is_bsp = consistency is Consistency.ASYNC, consistency is Consistency.BSP
        progress = int(self.versions[record.base_version].applied.sum())
        settings = self._settings
        facts = consistency, settings.minibatches, settings.batch_size, bool(settings.momenta)
        divisions = [divided_minibatch(PlannedRun(*facts), n) for n in range(1, MAX_PARTS)]
        shares = {each.batch_size for each in divisions}
        steps = minibatches_in(record.steps.samples, record.steps.batch_size)
        pace = record.steps.batch_size  # of each part
        broken = {
            f"not one of {together} of version {version}": (
                (record.version, record.together) != (version, together)
            ),
            f"{progress} samples were applied before": record.steps.progress != progress,
            f"not the share of a minibatch, {shares}": record.steps.batch_size not in shares,
            f"pace {record.steps.pace}": record.steps.pace < pace * record.steps.parts,
            "more than one step": is_bsp and steps > record.steps.parts,
            "a result of another round": not is_async and record.base_version != version - 1,
            "more than the result is applied": is_async and not 0 < record.outer.rate <= 1,
        }
        if reasons := [reason for reason, is_broken in broken.items() if is_broken]:
            raise InvariantBrokenError(f"{reasons}: {record}")

    def _check_steps(self, before: Vector, state: Vector, records: Sequence[Applied]) -> None:
        """Check that the count of steps is the mean of the workers', as the optimizer's vectors."""
        parts = sum(each.steps.parts for each in records)
        mean = 0.0
        for record in records:
            steps = minibatches_in(record.steps.samples, record.steps.batch_size)
            base = self.versions[record.base_version].state[-1]
            mean += (base * record.steps.parts + steps) / parts
        expected = before[-1] + records[0].outer.rate_of_others * (mean - before[-1])
        is_mean = abs(state[-1] - expected) < 1e-3 * (1 + expected)
        require(is_mean, f"the state has {state[-1]} steps, expected {expected}")

    def _check_change(
        self, before: KnownVersion, state: Vector, records: Sequence[Applied]
    ) -> None:
        """Check that each recorded sample, and no other, has changed its parameter by its rate."""
        settings, (rate, momentum, _) = self._settings, records[0].outer
        counted = settings.samples_total
        parts = sum(each.steps.parts for each in records)
        change = np.zeros(counted)
        for record in records:
            for part in record.steps.split():
                first = part.epoch * settings.samples
                for number, (start, stop) in enumerate(pairwise(part.edges)):
                    samples = slice(first + start, first + stop)
                    learning_rate = settings.learning_rate_at(part.progress + number * part.pace)
                    change[samples] = -learning_rate / parts
        followed = momentum * before.momentum[:counted] + change
        expected = before.state[:counted] - rate * (change + momentum * followed)
        off = np.abs(state[:counted] - expected) / (rate * (1 + momentum) / parts)
        wrong = np.flatnonzero(~(off < ROUNDING))
        if wrong.size:
            details = {int(each): float(off[each]) for each in wrong[:12]}
            raise InvariantBrokenError(f"samples are not in the weights once, but off by {details}")

    def _check_ledger(self, run: RunState) -> None:
        """Check that each sample is in the ledger once, or else applied."""
        settings, ledger = self._settings, run.ledger
        found = np.zeros(settings.samples_total, np.int64)
        found[ledger._next_epoch * settings.samples :] += 1
        held = {lease.range for lease in ledger._leases.values()}
        for epoch, start, stop in (*held, *ledger._pool, *ledger._collected):
            found[epoch * settings.samples + start : epoch * settings.samples + stop] += 1
        applied = self.versions[run.store.version].applied
        wrong = np.flatnonzero(found + applied != 1)
        require(not wrong.size, f"samples that are not in one place: {wrong[:12]}")
        is_counted = ledger.applied_samples == applied.sum()
        require(is_counted, f"{ledger.applied_samples} of {applied.sum()} samples are counted")

    def turned(self, loop: ServerLoop, process_id: int, now: float) -> None:
        """Check the server's state after each of its steps."""
        run = self.run
        assert run is not None
        require(run.store.version == self._version, f"version {run.store.version} appeared")
        self.check_leaks(run, loop, process_id)
        self._check_waits(run, loop, now)
        is_over = self.is_finished and loop.server._waiting
        require(not is_over, "workers that wait do not learn that the run is finished")

    def check_leaks(self, run: RunState, loop: ServerLoop, process_id: int) -> None:
        """Check that the server holds nothing for workers that have left the run."""
        members = {member.worker_id for member in run.members.members} | run.members.silent
        held: dict[str, dict[int, Any]] = {
            "leases": run.ledger._leases,
            "memory": loop._shared,
            "answers": loop.server._waiting,
        }
        for what, of in held.items():
            if gone := of.keys() - members:
                raise InvariantBrokenError(f"{what} of workers that are gone: {gone}")
        segments = len(self._memory.segments_of(process_id))
        is_used = segments == len(loop._shared)
        require(is_used, f"{segments} segments for {len(loop._shared)} workers")

    def _check_waits(self, run: RunState, loop: ServerLoop, now: float) -> None:
        """Check that no worker waits for a late lease that has no rival."""
        if now - self._turned_s > LATE_S:  # the server was stopped
            self.calm_since_s = max(self.calm_since_s, now)
        self._turned_s = now
        waiting = loop.server._waiting.values()
        if not any(lease.rival is None for lease in run.ledger._leases.values()):
            return
        late_s = late_after_s(self._longest_round_s) + MAX_WAIT_S
        for member in waiting:
            began_s = max(member.progress_s, self.progress_s, self.calm_since_s)
            require(now - began_s < late_s, f"{member.name} waits for {now - began_s:.1f} s")

    def sent(self, message: Message) -> None:
        """Note that the server answers, which acknowledges all updates so far."""
        if self.is_finished and isinstance(message, Work | Alive):
            kind = type(message).__name__
            raise InvariantBrokenError(f"the run is finished, and the server sends {kind}")
        if isinstance(message, Work | Stop) and self.run is not None:
            self._acknowledged = self.run.store.version

    def unanswered(self, name: str, unanswered_s: float, now: float) -> None:
        """Check that a worker notices the loss of a request or its answer."""
        is_noticed = min(unanswered_s, now - self.calm_since_s) < MAX_UNANSWERED_S
        require(is_noticed, f"{name} waits for the answer to a message that was lost")

    @property
    def is_finished(self) -> bool:
        """Return whether the current server has applied every sample."""
        return self.run is not None and self.run.ledger.finished

    def seen(self, report: dict[str, Any]) -> None:
        """Note a report of the server that a process has read."""
        self._kept = max(self._kept, report["checkpoint_version"] or 0)

    def host_failed(self) -> None:
        """Note that the server's host is about to fail, with all unsynced content."""
        self._journal = None

    def server_died(self) -> None:
        """Check that the journal has all acknowledged updates after the server's process died."""
        if self._journal is None or self._journal.error is not None:
            return  # the journal reports records that the disk refused
        journal = read_journal(JOURNAL, self._disk)
        if journal.version < self._acknowledged:
            raise InvariantBrokenError(
                f"version {self._acknowledged} was acknowledged, and the journal ends at "
                f"{journal.version}: {journal.fault}"
            )

    def ended_in_order(self) -> None:
        """Check that the server's last checkpoint has all acknowledged updates."""
        checkpoint = checkpoint_on(self._disk, CHECKPOINT)
        require(
            checkpoint.version == self._version,
            f"version {self._version} was the last, and the checkpoint has {checkpoint.version}",
        )

    def finished(self) -> None:
        """Check that checkpoint and journal of a finished run are complete and agree."""
        settings = self._settings
        checkpoint = checkpoint_on(self._disk, CHECKPOINT)
        require(not checkpoint.ledger["remaining"], "samples are missing in the last checkpoint")
        try:
            journal = read_journal(JOURNAL, self._disk)
            begin = np.zeros(settings.vector_size, np.float32)
            replay = Replay(settings, journal, lambda _: CountingStep(settings), begin)
            result = replay.run()
        except BadInputError as error:
            raise InvariantBrokenError(f"the journal cannot be replayed: {error}") from error
        fault = journal.fault
        if self._journal is not None and self._journal.error is not None:
            fault = None  # the server reported that the disk refused its last record
        replayed = replay.checkpoint()
        is_same = replayed.version == checkpoint.version and _are_equal(replayed, checkpoint)
        if not result.matches or not is_same or fault is not None:
            raise InvariantBrokenError(
                f"a replay returns other weights than the run, or ends elsewhere: {result}, "
                f"checkpoint of version {checkpoint.version}, journal: {journal.fault}"
            )
        require(replay._run.ledger.finished, "samples are missing in the journal")


def _are_equal(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether the checkpoints have the same training state."""
    states = one.optimizer_state, other.optimizer_state
    names = states[0].keys() | states[1].keys()
    return np.array_equal(one.weights, other.weights) and all(
        np.array_equal(states[0][name], states[1][name]) for name in names
    )
