"""What has to hold at every event of a simulated run, whatever goes wrong."""

from pathlib import Path
from typing import Any

import numpy as np

from dist_net.errors import BadInputError
from dist_net.parameter_server.checkpoint import decode_checkpoint
from dist_net.parameter_server.journal import JournalFile, read_journal
from dist_net.parameter_server.run import RunState
from dist_net.parameter_server.settings import RunSettings
from dist_net.simulation.counting import CountingStep, counts
from dist_net.simulation.disk import VirtualDisk
from dist_net.simulation.failures import InvariantBrokenError
from dist_net.simulation.replay import Replay
from dist_net.wire.messages import Message, Stop, Work

CHECKPOINT, JOURNAL = Path("run/checkpoint.safetensors"), Path("run/journal")


class RunChecks:
    """Follows the run of a model that counts, through all the starts of its server."""

    def __init__(self, settings: RunSettings, disk: VirtualDisk) -> None:
        self._settings = settings
        self._disk = disk
        self.run: RunState | None = None
        self._journal: JournalFile | None = None
        self._version = 0
        self._acknowledged = 0
        self._kept = 0

    def begin(self, run: RunState, journal: JournalFile) -> None:
        """A server begins, or goes on from a checkpoint."""
        self.run, self._journal = run, journal
        self._version = self._acknowledged = run.store.version
        if self._version < self._kept:
            raise InvariantBrokenError(
                f"version {self._version} is what a server goes on from, and the checkpoint of "
                f"version {self._kept} was written"
            )
        self._check_counts(run)

    def turned(self) -> None:
        """The server has done something."""
        assert self.run is not None
        version = self.run.store.version
        if version != self._version:
            if version < self._version:
                raise InvariantBrokenError(f"version {version} follows version {self._version}")
            self._version = version
            self._check_counts(self.run)

    def _check_counts(self, run: RunState) -> None:
        """Each sample is in the weights at most once, and as many are as the ledger says."""
        applied = counts(self._settings, run.store.weights)
        if applied.max() > 1 or applied.min() < 0 or applied.sum() != run.ledger.applied_samples:
            again = np.flatnonzero((applied != 0) & (applied != 1))
            raise InvariantBrokenError(
                f"{applied.sum():g} samples are in the weights, and the ledger says "
                f"{run.ledger.applied_samples}; applied how often: "
                f"{ {int(sample): float(applied[sample]) for sample in again} }"
            )

    def sent(self, message: Message) -> None:
        """The server answers: what it has applied by now is acknowledged."""
        if isinstance(message, Work | Stop) and self.run is not None:
            self._acknowledged = self.run.store.version

    @property
    def is_finished(self) -> bool:
        """Whether the server that began last has applied every sample."""
        return self.run is not None and self.run.ledger.finished

    def seen(self, report: dict[str, Any]) -> None:
        """Somebody has seen this report of the server's."""
        self._kept = max(self._kept, report["checkpoint_version"] or 0)

    def host_failed(self) -> None:
        """The server's host is about to be gone, and what was not synced."""
        self._journal = None

    def server_died(self) -> None:
        """Its process is gone, and its host is not: what it had acknowledged is in the journal."""
        if self._journal is None or self._journal.error is not None:
            return  # of what the disk refused it says so
        journal = read_journal(JOURNAL, self._disk)
        if journal.version < self._acknowledged:
            raise InvariantBrokenError(
                f"version {self._acknowledged} was acknowledged, and the journal goes to "
                f"{journal.version}: {journal.fault}"
            )

    def finished(self) -> None:
        """The server is done: checkpoint and journal are whole, and say the same."""
        settings = self._settings
        checkpoint = decode_checkpoint(CHECKPOINT, self._disk.read(CHECKPOINT))
        if checkpoint.ledger["remaining"] or (counts(settings, checkpoint.weights) != 1).any():
            raise InvariantBrokenError("samples are missing in the last checkpoint")
        try:
            journal = read_journal(JOURNAL, self._disk)
            begin = np.zeros(settings.vector_size, np.float32)
            replay = Replay(settings, journal, lambda _: CountingStep(settings), begin)
            result = replay.run()
        except BadInputError as error:
            raise InvariantBrokenError(f"the journal cannot be replayed: {error}") from error
        fault = journal.fault
        if self._journal is not None and self._journal.error is not None:
            fault = None  # the server has said that the disk refused its last record
        if not result.matches or result.version != checkpoint.version or fault is not None:
            raise InvariantBrokenError(
                f"a replay gives other weights than the run, or ends elsewhere: {result}, "
                f"checkpoint of version {checkpoint.version}, journal: {journal.fault}"
            )
