"""The files of a server's run: its owner, its checkpoint, its journal, and its standbys.

The owner of a run directory is the server that was started last, on any host. Each start of a
server begins a *term*; terms only grow. On a network file system, a disconnected host loses its
locks without noticing. So each server writes its claim to a small file, and reads it again before
it writes to the run directory, but at most ten times a second.
"""

import json
import logging
import math
import os
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom

from dist_net.errors import FileWriteError, SupersededError
from dist_net.ground.checkpoint import Checkpoint, write_checkpoint
from dist_net.ground.clock import Clock, SystemClock
from dist_net.ground.files import HOST_DISK, Disk, replacing
from dist_net.training.server.journal import (
    NEVER,
    UNUSABLE,
    JournalFile,
    OnDisk,
    put_aside,
    read_tail,
    sync_interval_s,
)
from dist_net.training.server.journal_records import (
    CHANGEABLE,
    Checkpointed,
    JournalRecord,
    Started,
    WorkersCounted,
    encode_record,
    run_identity,
    sha256_of,
)
from dist_net.training.server.standbys import NOTHING, Remembered
from dist_net.training.server.state import RunState
from dist_net.wire.standbys import RANDOM_BITS, STARTS_BITS

NOTICED_WITHIN_S = 0.5
"""A running server reads the claim several times a second, and so notices a newer one."""

RANDOM = SystemRandom()


def next_term(term: int, random: Random = RANDOM, *, takes_over: bool = False) -> int:
    """Return a term after ``term`` that no other server draws.

    A takeover outweighs any number of starts in place, which a cut-off server may repeat.
    """
    starts = (term >> RANDOM_BITS) + (1 << STARTS_BITS if takes_over else 1)
    return starts << RANDOM_BITS | random.getrandbits(RANDOM_BITS)


class RunOwnership:
    """Claim a run directory for a server on ``host``, in the file ``path``, with a new ``term``.

    The term follows the term of the last claim and, in a takeover, ``after``. If the run
    ``was_elsewhere``, wait ``NOTICED_WITHIN_S`` before reading the directory: another server may
    run. If the claim cannot be written, log a warning and check nothing.
    """

    def __init__(
        self, path: Path, host: str, disk: Disk = HOST_DISK, after: int = 0, random: Random = RANDOM
    ) -> None:
        self._path = path
        self._disk = disk
        former = _claim_in(path, disk)
        self.term = next_term(max(after, _term_in(former)), random, takes_over=after > 0)
        self._own = f"{self.term:016x} process {os.getpid()} on {host}"
        try:
            with replacing(path, disk) as partial:  # no later start may draw an earlier term
                disk.write(partial, self._own.encode())
        except OSError as error:
            logger.warning("run_not_claimed path=%s error=%s", path, error)
            self._own = former
        self.was_elsewhere = former != "" and not former.endswith(f" on {host}")

    def require(self) -> None:
        """Raise ``SupersededError`` if another server has claimed the run directory since."""
        last = _claim_in(self._path, self._disk)
        if last not in ("", self._own):
            raise SupersededError(
                f"another parameter server has taken over {self._path.parent} "
                f"({last.partition(' ')[2]}), so this one ends. To continue here instead, stop "
                f"the other server, then resume the run"
            )


def last_term(path: Path) -> int:
    """Return the term of the last claim in the file ``path``; 0 without a claim."""
    return _term_in(_claim_in(path))


def remembered_in(path: Path) -> Remembered:
    """Return the other hosts and the standbys of a run, from the file ``path``, if it exists."""
    return Remembered.from_json(path.read_bytes()) if path.exists() else NOTHING


def _claim_in(path: Path, disk: Disk = HOST_DISK) -> str:
    """Return the last claim; "" if it does not exist or is unreadable."""
    try:
        return disk.read(path, 0, 1000).decode(errors="replace")
    except OSError:
        return ""


def _term_in(claim: str) -> int:
    """Return the term of a claim; 0 if it has none."""
    try:
        return int(claim.partition(" ")[0], 16) & (2**63 - 1)
    except ValueError:
        return 0


logger = logging.getLogger(__name__)

CLAIM_CHECKED_EVERY_S = 0.1


@dataclass(frozen=True)
class ServerFiles:
    """The files that a server writes, and how: see ``write_checkpoint``, ``sync_interval_s``.

    ``standbys`` is the record of them for a restarted server; None: none may follow. ``ownership``
    is the claim on the run directory; None: the server has the first term. ``threads``: of each
    worker on this host, for the journal.
    """

    checkpoint: Path
    journal: Path
    checkpoint_every_s: float
    keep_checkpoints: int = 1
    sync: str = NEVER
    standbys: Path | None = None
    ownership: RunOwnership | None = None
    threads: int = 1


class OpenServerFiles:
    """The open files of a new or resumed run; ``on_disk`` is for reports.

    No checkpoint is replaced after ``writes_until_s``: another server may serve the run. Raise
    ``FileWriteError`` if the journal cannot be written.
    """

    def __init__(
        self,
        paths: ServerFiles,
        run: RunState,
        remembered: Remembered = NOTHING,
        clock: Clock | None = None,
        disk: Disk = HOST_DISK,
    ) -> None:
        self.paths = paths
        self._run = run
        self._remembered = remembered
        self._clock = clock or SystemClock()
        self.disk = disk
        self.on_disk = OnDisk()
        self.writes_until_s = math.inf
        self.journal = self._open_journal()
        self._next_claim_check_s = 0.0
        self._next_sync_s = 0.0
        self._sync: Future[None] | None = None  # the last one
        self._counted = self._workers_counted()

    def _open_journal(self) -> JournalFile:
        """Open the journal without the records after the checkpoint: their samples are done again.

        A journal that cannot be continued, such as one of another release, is renamed, and a new
        one begins. ``run.resume_warnings`` reports both.
        """
        run, paths, ownership = self._run, self.paths, self.paths.ownership
        version, kept_bytes = run.store.version, 0
        term = next_term(0) if ownership is None else ownership.term
        changeable = (getattr(run.settings, name) for name in CHANGEABLE)
        started = Started(version, term, paths.threads, *changeable)
        identity = run_identity(run.settings.recipe_digest, run.settings.seed)
        if run.is_resumed and self.disk.exists(paths.journal):
            kept_bytes = self._kept_bytes(identity, version)
        for warning in run.resume_warnings:
            logger.warning("resumed version=%d warning=%s", version, warning)
        content, interval_s = (kept_bytes, identity, started), sync_interval_s(paths.sync)
        now = self._clock.now()
        return JournalFile(paths.journal, *content, interval_s, now=now, disk=self.disk)

    def _kept_bytes(self, identity: bytes, version: int) -> int:
        run, path = self._run, self.paths.journal
        try:
            tail = read_tail(path, identity, version, self.disk)
        except UNUSABLE as error:
            kept = put_aside(path, self.disk)
            run.resume_warnings.append(
                f"the journal cannot be continued from version {version:,} ({error}); it was "
                f"renamed to {kept}, and a new journal begins"
            )
            return 0
        if tail.last_version > version:
            run.resume_warnings.append(
                f"{tail.samples:,} samples are done again: they were applied after the resumed "
                f"checkpoint, in versions {version + 1:,} to {tail.last_version:,}"
            )
        run.metrics.samples_done_again += tail.samples
        if (counted := tail.counted) is not None:  # it may be newer than the checkpoint
            run.metrics.workers_joined = max(run.metrics.workers_joined, counted.joined)
            run.metrics.workers_lost = max(run.metrics.workers_lost, counted.lost)
        return tail.kept_bytes

    def record(self, *records: JournalRecord) -> None:
        """Append records to the journal; raise SupersededError if another server owns the run."""
        now = self._clock.now()
        if now >= self._next_claim_check_s:
            self._require_ownership(now)
        self.journal.append(b"".join(map(encode_record, records)), now)

    def _require_ownership(self, now: float) -> None:
        self._next_claim_check_s = max(self._next_claim_check_s, now + CLAIM_CHECKED_EVERY_S)
        if self.paths.ownership is not None:
            self.paths.ownership.require()

    def look_after_journal(self, now: float, writer: Executor) -> None:
        """Retry unwritten records, measure the lag, and sync the journal if a sync is due."""
        journal, counted = self.journal, self._workers_counted()
        is_new = counted[1:] != self._counted[1:] and now < self.writes_until_s
        self.record(*([counted] if is_new else []))
        self._counted = counted if is_new else self._counted
        lag, former = journal.lag(now), self.on_disk.journal
        if lag.error != former.error:
            logger.error("journal_error_changed error=%s", lag.error)
            self._run.metrics.journal_failures += former.error is None
        self.on_disk.journal = lag
        is_syncing = self._sync is not None and not self._sync.done()
        if journal.sync_interval_s and now >= self._next_sync_s and not is_syncing:
            self._next_sync_s = now + journal.sync_interval_s
            self._sync = writer.submit(journal.sync)

    def _workers_counted(self) -> WorkersCounted:
        metrics = self._run.metrics
        return WorkersCounted(self._run.store.version, metrics.workers_joined, metrics.workers_lost)

    def write_first_checkpoint(self) -> None:
        """Write a new run's checkpoint. Of a resumed run, which has one, only sync the directory.

        A killed server may not have synced it; and the disk may be full.
        """
        if not self._run.is_resumed:
            self._is_written(self.write_checkpoint(self._run.checkpoint()))
            return
        version, path = self._run.store.version, self.paths.checkpoint
        try:
            self.disk.sync(path.parent)
            self.on_disk.checkpoint_version = version
        except OSError as error:
            self._failed(f"{path}: {error.strerror}")
        self.record(Checkpointed(version, sha256_of(self._run.store.weights)))

    def write_checkpoint(self, checkpoint: Checkpoint) -> Checkpointed:
        """Write the checkpoint, in the writer's thread, and return its record for the journal."""
        self.journal.sync()  # the journal must never be behind the checkpoint
        write_checkpoint(
            self.paths.checkpoint,
            checkpoint,
            self.disk,
            self.paths.keep_checkpoints,
            self.on_disk.checkpoint_version,
            self._require_only_server,
        )
        logger.info("checkpoint_written version=%d", checkpoint.version)
        return Checkpointed(checkpoint.version, sha256_of(checkpoint.weights))

    def _require_only_server(self) -> None:
        """Raise SupersededError or FileWriteError if another server may serve the run."""
        now = self._clock.now()
        self._require_ownership(now)
        if now >= self.writes_until_s:
            raise FileWriteError(
                f"the checkpoint {self.paths.checkpoint} was not replaced: this server was "
                f"stopped or cut off meanwhile, and a standby may continue the run"
            )

    def take_written(self, written: Future[Checkpointed]) -> bool:
        """Record a finished write, or its failure; return whether the checkpoint was written."""
        if (error := written.exception()) is not None:
            self._failed(str(error))
            return False
        self._is_written(written.result())
        return True

    def _is_written(self, checkpointed: Checkpointed) -> None:
        self.on_disk.checkpoint_version = checkpointed.version
        self.on_disk.checkpoint_error = None
        self.record(checkpointed)

    def _failed(self, error: str) -> None:
        logger.error("checkpoint_failed error=%s", error)
        self.on_disk.checkpoint_error = error
        self._run.metrics.checkpoints_failed += 1

    def remember(self, known: Remembered) -> None:
        """Write the voters and standbys to the disk, for the next start of the server."""
        path = self.paths.standbys
        has_standbys = known.standbys or self._remembered.standbys
        if known != self._remembered and has_standbys and path is not None:
            with replacing(path, self.disk) as partial:
                self.disk.write(partial, json.dumps(known).encode())
            self._remembered = known
