"""The invariants of a simulated training run, checked at every event."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from dist_net.errors import BadInputError
from dist_net.nets.checkpoint import Checkpoint
from dist_net.optim import SGD
from dist_net.training.run.replayed_run import Replay
from dist_net.training.server.journal import JournalFile, read_journal
from dist_net.training.server.loop import ServerLoop
from dist_net.training.server.run_state import RunState
from dist_net.training.server.settings import RunSettings
from dist_net.wire.messages import Message, Stop, Work
from simulation.counting import CountingStep, counts
from simulation.disk import VirtualDisk, checkpoint_on
from simulation.failures import InvariantBrokenError, require

MAX_WAIT_IN_STEP_S = 7.0
CHECKPOINT, JOURNAL = Path("run/checkpoint.safetensors"), Path("run/journal")


class RunChecks:
    """Checks the run of a counting model through all starts of its server."""

    def __init__(self, settings: RunSettings, disk: VirtualDisk) -> None:
        self._settings = settings
        self._disk = disk
        self.run: RunState | None = None
        self._journal: JournalFile | None = None
        self._version = 0
        self._acknowledged = 0
        self._kept = 0
        self._staleness_limit = self._stalest = 0
        # Rounds of different sizes count each sample by different shares.
        is_counted = str(settings.consistency) not in ("local:3", "local:5:3", "local:auto")
        self._counts_samples = isinstance(settings.optimizer, SGD) and is_counted
        self.progress_s = 0.0  # when something was last applied
        self.calm_since_s = math.inf  # when the last fault was over

    def begin(self, run: RunState, journal: JournalFile, checkpoint: Checkpoint | None) -> None:
        """Check a server that begins the run or resumes from a checkpoint."""
        state = {} if checkpoint is None else checkpoint.optimizer_state
        for name, vector in state.items():
            is_same = np.array_equal(run.store.state[name], vector)
            require(is_same, f"the optimizer's {name} is not that of the checkpoint")
        self._staleness_limit, self._stalest = 0, run.metrics.staleness_max
        self.run, self._journal = run, journal
        self._version = self._acknowledged = run.store.version
        if self._version < self._kept:
            raise InvariantBrokenError(
                f"version {self._version} is what a server goes on from, and the checkpoint of "
                f"version {self._kept} was written"
            )
        self._check_counts(run)

    def turned(self, loop: ServerLoop, now: float) -> None:
        """Check the server's state after each of its steps."""
        run = self.run
        assert run is not None
        self._check_leaks(run, loop)
        self._check_lead(run)
        self._check_wait(run, loop, now)
        limit = max(self._staleness_limit, run.members.staleness_limit)
        self._staleness_limit = run.members.staleness_limit
        version = run.store.version
        if version != self._version:
            require(version > self._version, f"version {version} follows {self._version}")
            stalest = run.metrics.staleness_max
            is_bounded = stalest <= max(limit, self._stalest)
            require(is_bounded, f"a gradient was {stalest} versions old: the limit is {limit}")
            self._stalest = stalest
            self._version, self.progress_s = version, now
            self._check_counts(run)

    def _check_leaks(self, run: RunState, loop: ServerLoop) -> None:
        """Check that the server holds nothing for workers that have left the run."""
        members = {member.worker_id for member in run.members.members}
        held: dict[str, Collection[int]] = {
            "pins": run.store._pins,
            "leases": run.ledger._leases,
            "memory": loop._gradients,
            "answers": loop._server._waiting,
        }
        for what, of in held.items():
            require(members >= {*of}, f"{what} of workers that are gone: {({*of}) - members}")
        pins = sum(map(len, run.store._pins.values()))
        require(pins == sum(run.store._pinned), "a snapshot is pinned that no worker has pinned")

    def _check_lead(self, run: RunState) -> None:
        """Check that with ``ssp:N`` no computing worker is more than N steps ahead of another."""
        consistency = self._settings.consistency
        if consistency.max_ahead is None or consistency.is_automatic:
            return
        members = [each for each in run.members.members if run.ledger.holds_lease(each.worker_id)]
        clocks = [each.clock for each in members]
        computing = [
            each.clock
            for each in members
            if each.step_began_s is not None and not each.told_to_stop
        ]
        lead = max(computing, default=0) - min(clocks, default=0)
        require(lead <= consistency.max_ahead, f"a worker is {lead} steps ahead")

    def _check_wait(self, run: RunState, loop: ServerLoop, now: float) -> None:
        """Check that with ``auto`` workers in step do not wait for a much slower worker."""
        if self._settings.consistency.is_automatic and run.members.go_in_step:
            waited_s = now - max(self.progress_s, self.calm_since_s)
            is_patient = loop._server._waiting and waited_s > MAX_WAIT_IN_STEP_S
            require(not is_patient, f"workers wait for a slow one for {waited_s:.1f} s")

    def _check_counts(self, run: RunState) -> None:
        """Check that each sample is applied at most once, as often as the ledger records."""
        # Other optimizers and lower rates count differently; a replay shows what they apply.
        share = self._settings.consistency.max_rate_share(
            len(run.members), self._settings.optimizer.full_rate_staleness
        )
        self._counts_samples &= share == 1.0
        if not self._counts_samples:
            return
        applied = counts(self._settings, run.store.weights)
        if applied.max() > 1 or applied.min() < 0 or applied.sum() != run.ledger.applied_samples:
            again = np.flatnonzero((applied != 0) & (applied != 1))
            raise InvariantBrokenError(
                f"{applied.sum():g} samples are in the weights, and the ledger says "
                f"{run.ledger.applied_samples}; applied how often: "
                f"{ {int(sample): float(applied[sample]) for sample in again} }"
            )

    def sent(self, message: Message) -> None:
        """Note that the server answers, which acknowledges all updates so far."""
        if isinstance(message, Work | Stop) and self.run is not None:
            self._acknowledged = self.run.store.version

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
                f"version {self._acknowledged} was acknowledged, and the journal goes to "
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
        uncounted = self._counts_samples and (counts(settings, checkpoint.weights) != 1).any()
        if checkpoint.ledger["remaining"] or uncounted:
            raise InvariantBrokenError("samples are missing in the last checkpoint")
        try:
            journal = read_journal(JOURNAL, self._disk)
            begin = np.zeros(settings.vector_size, np.float32)
            replay = Replay(settings, journal, lambda _: CountingStep(settings), begin)
            result = replay.run()
            is_complete = replay._run.ledger.finished  # it refuses a sample's second time
        except BadInputError as error:
            raise InvariantBrokenError(f"the journal cannot be replayed: {error}") from error
        fault = journal.fault
        if self._journal is not None and self._journal.error is not None:
            fault = None  # the server reported that the disk refused its last record
        if not result.matches or result.version != checkpoint.version or fault is not None:
            raise InvariantBrokenError(
                f"a replay gives other weights than the run, or ends elsewhere: {result}, "
                f"checkpoint of version {checkpoint.version}, journal: {journal.fault}"
            )
        require(is_complete, "samples are missing in the journal")
