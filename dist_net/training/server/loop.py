"""The parameter server's process: a loop that connects the state machine to sockets and memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random, SystemRandom
from typing import Protocol

from dist_net.clock import Clock, SystemClock
from dist_net.errors import (
    CheckpointWriteError,
    JournalWriteError,
    SegmentError,
    SupersededError,
)
from dist_net.files import HOST_DISK, Disk
from dist_net.nets.checkpoint import Checkpoint, write_checkpoint
from dist_net.training.server.journal import (
    NEVER,
    UNUSABLE,
    Checkpointed,
    JournalFile,
    JournalRecord,
    Started,
    encode_record,
    put_aside,
    read_tail,
    run_identity,
    sha256_of,
    sync_interval_s,
)
from dist_net.training.server.ownership import RunOwnership
from dist_net.training.server.run_state import RunState
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import (
    Forget,
    ParameterServer,
    Record,
    SendToPeer,
    ServerCommand,
)
from dist_net.vector import Vector
from dist_net.wire.messages import (
    PIPELINE,
    Join,
    Message,
    Push,
    RecipeOffer,
    Refuse,
    SegmentAddress,
    Snapshot,
    Welcome,
)
from dist_net.wire.segment import Segment, SharedVectors, available

logger = logging.getLogger(__name__)

TICK_S = 0.1
STOP_GRACE_S = 1.0
POLL_S = 0.01  # while the last checkpoint is written
LAST_TRIES = 3
RETRY_AFTER_S = 1.0
SHARED_READERS = 64

_RANDOM = SystemRandom()

Received = tuple[bytes, Message] | None


class WorkersSocket(Protocol):
    """A server's way to its workers; see `dist_net.wire.transport.ServerSocket`."""

    def receive(self, timeout_s: float) -> Received: ...
    def send(self, node: bytes, message: Message) -> object: ...
    def send_one(self, node: bytes, message: Message) -> bool: ...
    def lend(self, vectors: Iterable[Vector]) -> None: ...
    def answer_failure(self, node: bytes, message: Message) -> None: ...


def _share(vectors: int, size: int) -> SharedVectors | None:
    return Segment.create(vectors, size) if available() else None


@contextmanager
def opened_run(
    settings: RunSettings,
    initial_weights: Callable[[], Vector],
    resumed_from: Checkpoint | None,
    share: Callable[[int, int], SharedVectors | None] = _share,
    random: Random = _RANDOM,
    shared_readers: int = SHARED_READERS,
) -> Iterator[tuple[RunState, SharedVectors | None]]:
    """A context with a new run, or a checkpoint's; its weights are in shared memory if possible.

    The segment, which ``share`` makes, has room for the snapshots that so many local workers need;
    memory is mapped as they join, and used as snapshots differ. Where the system grants none, the
    weights are private, and travel as frames.
    """
    # Ids count up from a random number. Otherwise a resumed server would give a new worker the id
    # of one that is still there from before, and mix up their heartbeats.
    first_worker_id = 1 + random.getrandbits(48)
    with ExitStack() as at_the_end:
        vectors = settings.pipeline.snapshots * shared_readers + 2
        segment = None
        try:
            segment = share(vectors, settings.vector_size)
            if segment is not None:
                at_the_end.callback(segment.close)
                segment.vector(1)  # a run needs two at least
        except SegmentError as error:
            logger.warning("shared_memory_unavailable reason=%s", error)
            segment = None
        if resumed_from is None:
            yield RunState(settings, initial_weights(), segment, first_worker_id), segment
        else:
            yield RunState.resumed(settings, resumed_from, segment, first_worker_id), segment


@contextmanager
def opened_journal(
    path: Path,
    run: RunState,
    threads: int = 1,
    sync: str = NEVER,
    disk: Disk = HOST_DISK,
    random: Random = _RANDOM,
) -> Iterator[JournalFile]:
    """A context with the journal of a run that is new, or that goes on from a checkpoint.

    ``threads`` is how many the workers of this host compute with; ``sync``: see
    ``sync_interval_s``. What was applied after the checkpoint is cut off: its samples are in the
    pool again. A journal that cannot be continued, such as one of another release of dist_net, is
    renamed and a new one begins; ``run.resume_warnings`` says so.

    Raises JournalMismatchError for a journal that cannot be read; JournalWriteError.
    """
    settings, version = run.settings, run.store.version
    limits = settings.clip_norm, settings.average_decay
    started = Started(version, random.randbytes(8).hex(), threads, *limits)
    identity = run_identity(settings.recipe_digest, settings.seed)
    kept_bytes = 0
    if run.is_resumed and disk.exists(path):
        try:
            kept_bytes, samples, last_version = read_tail(path, identity, version, disk)
        except UNUSABLE as error:
            kept = put_aside(path, disk)
            run.resume_warnings.append(
                f"the journal cannot be continued from version {version:,} ({error}): it is kept "
                f"as {kept}, and a new one begins"
            )
        else:
            if last_version > version:
                run.resume_warnings.append(
                    f"{samples:,} samples are done again: they were applied after the checkpoint "
                    f"that the run goes on from, in versions {version + 1:,} to {last_version:,}"
                )
            run.metrics.samples_done_again += samples
        for warning in run.resume_warnings:
            logger.warning("resumed version=%d warning=%s", version, warning)
    journal = JournalFile(path, kept_bytes, identity, started, sync_interval_s(sync), disk=disk)
    try:
        yield journal
    finally:
        journal.close()


class ServerLoop:
    """Serves a run until it is shut down; the checkpoint is written as time passes and at the end.

    ``socket``, ``segment`` and ``journal`` are borrowed. ``turns`` is the loop, up to each of its
    waits, and ``serve`` waits. ``attach`` maps a worker's gradients.
    The last ``keep_checkpoints`` checkpoints are kept: see ``write_checkpoint``.
    """

    def __init__(
        self,
        run: RunState,
        socket: WorkersSocket,
        checkpoint_path: Path,
        checkpoint_every_s: float,
        segment: SharedVectors | None = None,
        journal: JournalFile | None = None,
        clock: Clock | None = None,
        disk: Disk = HOST_DISK,
        attach: Callable[[SegmentAddress, int], SharedVectors] = Segment.attach,
        offer: RecipeOffer | None = None,
        keep_checkpoints: int = 1,
        ownership: RunOwnership | None = None,
    ) -> None:
        self._run = run
        self._socket = socket
        self._checkpoint_path = checkpoint_path
        self._checkpoint_every_s = checkpoint_every_s
        self._keep_checkpoints = keep_checkpoints
        self._ownership = ownership
        self._next_look_s = 0.0  # at whose the run directory is
        self._journal = journal
        self._next_sync_s = 0.0
        self._sync: Future[None] | None = None  # the one that is under way
        self._clock = clock or SystemClock()
        self._disk = disk
        self._attach = attach
        incarnation = journal.incarnation if journal else _RANDOM.randbytes(8).hex()
        address = segment.address if segment else None
        self._server = ParameterServer(run, address, incarnation, offer)
        self._gradients: dict[int, SharedVectors] = {}
        self._lends = False
        self._snapshot: Snapshot | None = None
        self._stop_requested: str | None = None

    def stop(self, reason: str) -> None:
        """Ends the run as soon as the loop comes round; may be called by a signal handler."""
        self._stop_requested = reason

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Return when the run was shut down and its last checkpoint is on disk.

        With ``ownership``, raise SupersededError once another server has the run directory.
        Call ``ready`` once there is a checkpoint to resume: a new run's first, or the one that
        this server resumed. Raise CheckpointWriteError or JournalWriteError if the first or the
        last one could not be written.
        """
        # One thread for checkpoints and one for syncs, so that no checkpoint waits for a sync.
        with ThreadPoolExecutor(2, "writer") as writer, suppress(StopIteration):
            turns, received = self.turns(writer, ready), None
            while True:
                received = self._socket.receive(turns.send(received))

    def turns(
        self, writer: Executor, ready: Callable[[], None] = lambda: None
    ) -> Generator[float, Received, None]:
        """The loop: yields how long to wait for a message, to be sent what came.

        ``writer`` writes a checkpoint and syncs the journal, at the same time if both are due.
        Ends and raises as ``serve`` does.
        """
        self._copy = self._run.checkpoint()
        if self._run.is_resumed:
            self._take_resumed(self._copy)
        else:
            self._is_written(self._write_checkpoint(self._copy))
        ready()
        yield from self._serve_until_stopped(writer)
        try:
            yield from self._serve_until_kept(writer)
        except (CheckpointWriteError, JournalWriteError):
            yield from self._see_workers_off()
            raise
        yield from self._see_workers_off()
        self._gradients.clear()

    def _serve_until_stopped(self, writer: Executor) -> Generator[float, Received, None]:
        written: Future[Checkpointed] | None = None
        next_tick = self._clock.now()
        next_checkpoint = next_tick + self._checkpoint_every_s
        while self._server.stop_reason is None:
            self._take((yield TICK_S))
            now = self._clock.now()
            if now < next_tick:
                continue
            next_tick = now + TICK_S
            yield from self._drain()
            self._carry_out(self._server.tick(now))
            self._look_after_journal(now, writer)
            if self._stop_requested is not None:
                self._server.stop(self._stop_requested)
            if written is not None and written.done():
                self._take_written(written)
                written = None
            if now >= next_checkpoint and written is None:
                next_checkpoint = now + self._checkpoint_every_s
                self._copy = self._run.checkpoint(self._copy)
                written = writer.submit(self._write_checkpoint, self._copy)
        while written is not None and not written.done():
            self._take((yield POLL_S))

    def _serve_until_kept(self, writer: Executor) -> Generator[float, Received, None]:
        """Writes the last checkpoint, and answers meanwhile, so that no worker gives the run up.

        What the journal lacks is tried again too: first, as no checkpoint may be ahead of it.
        """
        last, is_kept = self._run.checkpoint(self._copy), False
        for attempt in range(1, LAST_TRIES + 1):
            self._record()
            if not is_kept:
                written = writer.submit(self._write_checkpoint, last)
                while not written.done():
                    self._take((yield POLL_S))
                is_kept = self._take_written(written)
            if is_kept and self._journal_error is None:
                return
            again_s = self._clock.now() + RETRY_AFTER_S
            while attempt < LAST_TRIES and self._clock.now() < again_s:
                self._take((yield POLL_S))
        written.result()
        logger.error("journal_ends_early error=%s", self._journal_error)

    @property
    def _journal_error(self) -> str | None:
        """Why the journal lacks something; None: it does not, or there is none."""
        return None if self._journal is None else self._journal.error

    def _see_workers_off(self) -> Generator[float, Received, None]:
        """Answers until each worker was told to stop, or a moment has passed."""
        deadline = self._clock.now() + STOP_GRACE_S
        while self._server.worker_count and self._clock.now() < deadline:
            self._take((yield TICK_S))

    def _drain(self) -> Generator[float, Received, None]:
        """Handles what has arrived: a heartbeat may be there of a worker that seems overdue.

        Bounded: under a constant load the queue is never empty.
        """
        for _ in range(1000):
            received = yield 0
            if received is None:
                break
            self._take(received)

    def _take(self, received: Received) -> None:
        if received is None:
            return
        try:
            self._handle(*received)
        except SupersededError:
            raise
        except Exception:
            self._socket.answer_failure(*received)

    def _handle(self, node: bytes, message: Message) -> None:
        theirs = None
        match message:
            case Push(worker_id=worker_id, slots=slots) if slots and worker_id in self._gradients:
                theirs = self._gradients[worker_id]
                if max(slots) < theirs.vectors:
                    message = Push(*message[:-1], tuple(map(theirs.vector, slots)))
            case Join(segment=SegmentAddress() as address):
                theirs = self._attached(message, address)
                if theirs is None:
                    message = message._replace(segment=None)
        self._carry_out(self._server.handle(node, message, self._clock.now()), theirs)

    def _carry_out(
        self, commands: list[ServerCommand], theirs: SharedVectors | None = None
    ) -> None:
        """Does what the state machine says; ``theirs``: the answered worker's segment."""
        for command in commands:
            match command:
                case SendToPeer(node, Snapshot() as snapshot):
                    self._send_snapshot(node, snapshot)
                case SendToPeer(node, message):
                    if isinstance(message, Welcome):
                        self._welcome(message, theirs)
                    self._socket.send(node, message)
                case Record(applied):
                    self._record(*applied)
                case Forget(worker_id):
                    self._gradients.pop(worker_id, None)

    def _send_snapshot(self, node: bytes, snapshot: Snapshot) -> None:
        """All who ask at the same version get the same copy of the weights."""
        if self._snapshot is None or self._snapshot.version != snapshot.version:
            self._snapshot = snapshot._replace(weights=snapshot.weights.copy())
        if not self._socket.send_one(node, self._snapshot):
            # Or it was read, and the thread that learns of that has had no core since.
            reason = "the snapshot asked for before is still on its way: read that first"
            self._socket.send(node, Refuse(reason, may_rejoin=True))

    def _welcome(self, welcome: Welcome, gradients: SharedVectors | None) -> None:
        """Prepares to exchange arrays with a worker: in shared memory, or as frames."""
        if welcome.segment is None:
            self._lends = True
        elif gradients is not None:
            self._gradients[welcome.worker_id] = gradients
        if self._lends:
            self._socket.lend(self._run.store.snapshots)

    def _record(self, *records: JournalRecord) -> None:
        if self._journal is not None:
            content = b"".join(map(encode_record, records))
            now = self._clock.now()
            if now >= self._next_look_s:
                self._require_ownership(now)
            self._journal.append(content, now)

    def _require_ownership(self, now: float = 0.0) -> None:
        """Raise SupersededError if another server has taken over the run directory."""
        self._next_look_s = max(self._next_look_s, now + TICK_S)
        if self._ownership is not None:
            self._ownership.require()

    def _look_after_journal(self, now: float, writer: Executor) -> None:
        """Writes what could not be written before, and has the disk keep what was."""
        journal = self._journal
        if journal is None:
            return
        self._record()
        lag = journal.lag(now)
        if lag.error != self._server.journal_lag.error:
            logger.error("journal_written error=%s", lag.error)
        self._server.journal_lags(lag)
        if journal.is_given_up:
            self._server.stop(f"too much has to be kept in memory: {journal.error}")
        is_syncing = self._sync is not None and not self._sync.done()
        if journal.sync_interval_s and now >= self._next_sync_s and not is_syncing:
            self._next_sync_s = now + journal.sync_interval_s
            self._sync = writer.submit(journal.sync)

    def _write_checkpoint(self, checkpoint: Checkpoint) -> Checkpointed:
        """Writes the checkpoint, in the writer's thread, and gives what the journal says of it."""
        if self._journal is not None:
            self._journal.sync()  # it is never behind the checkpoint
        write_checkpoint(
            self._checkpoint_path,
            checkpoint,
            self._disk,
            self._keep_checkpoints,
            self._server.checkpoint_version,
            self._require_ownership,
        )
        logger.info("checkpoint_written version=%d", checkpoint.version)
        return Checkpointed(checkpoint.version, sha256_of(checkpoint.weights))

    def _take_written(self, written: Future[Checkpointed]) -> bool:
        """Return whether the checkpoint was written; tell the state machine and the journal."""
        if (error := written.exception()) is not None:
            self._server.checkpoint_failed(str(error))
            logger.error("checkpoint_failed error=%s", str(error))
            return False
        self._is_written(written.result())
        return True

    def _take_resumed(self, checkpoint: Checkpoint) -> None:
        """Write no checkpoint, since the disk may be full, but have the disk keep the one there.

        The server before may have been killed between its renaming and its sync.
        """
        checkpointed = Checkpointed(checkpoint.version, sha256_of(checkpoint.weights))
        try:
            self._disk.sync(self._checkpoint_path.parent)
        except OSError as error:
            self._server.checkpoint_failed(f"{self._checkpoint_path}: {error.strerror}")
            self._record(checkpointed)
        else:
            self._is_written(checkpointed)

    def _is_written(self, checkpointed: Checkpointed) -> None:
        self._server.checkpoint_written(checkpointed.version)
        self._record(checkpointed)

    def _attached(self, join: Join, address: SegmentAddress) -> SharedVectors | None:
        """The joining worker's gradients in shared memory; None where they cannot be mapped."""
        try:
            segment = self._attach(address, join.vector_size)
            for slot in range(min(segment.vectors, PIPELINE.gradients)):
                segment.vector(slot)  # mapped now, not at a push
            return segment
        except SegmentError as error:
            logger.warning("arrays_as_frames name=%s reason=%s", join.name, error)
            return None
