"""The parameter server's process: a loop that connects the state machine to sockets and memory."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, NamedTuple, Protocol

import numpy as np

from dist_net.errors import (
    DistNetError,
    FileWriteError,
    NotFiniteError,
    SegmentError,
    SupersededError,
)
from dist_net.ground.checkpoint import Checkpoint, read_resumable_checkpoint, write_checkpoint
from dist_net.ground.clock import Clock, SystemClock
from dist_net.ground.files import HOST_DISK, Disk, replacing
from dist_net.ground.vector import Vector
from dist_net.training.server.copy_pace import BUSY_SHARE, MAX_PART_BYTES
from dist_net.training.server.journal import (
    NEVER,
    UNUSABLE,
    JournalFile,
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
from dist_net.training.server.ownership import RunOwnership, next_term
from dist_net.training.server.protocol import (
    Forget,
    ParameterServer,
    Record,
    SendCopy,
    SendToPeer,
    ServerCommand,
)
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.standby_copy import SentState
from dist_net.training.server.standbys import NOTHING, Remembered
from dist_net.training.server.state import RunState
from dist_net.wire.messages import (
    Follow,
    Followed,
    Join,
    Message,
    Push,
    RecipeOffer,
    Refuse,
    Snapshot,
    Welcome,
    Work,
)
from dist_net.wire.security import ServerKeys
from dist_net.wire.segment import Segment, SharedVectors, available
from dist_net.wire.standbys import NOWHERE, Standby
from dist_net.wire.transport import ClientSocket, ServerConnection, ServerSocket

logger = logging.getLogger(__name__)

TICK_S = 0.1
STOP_GRACE_S = 1.0
"""How long a server answers once the run is over and nobody is awaited."""

BASE, RESULT = 0, 1
"""The states in a worker's shared memory: to begin from, and after its local steps."""

POLL_S = 0.01  # while the last checkpoint is written
LAST_TRIES = 3
RETRY_AFTER_S = 1.0

_RANDOM = SystemRandom()

Received = tuple[bytes, Message] | None


class WorkersSocket(Protocol):
    """A server's connection to its workers; see ``dist_net.wire.transport.ServerSocket``."""

    def receive(self, timeout_s: float) -> Received: ...
    def send(self, node: bytes, message: Message) -> object: ...
    def send_one(self, node: bytes, message: Message) -> bool: ...
    def has_unread(self, node: bytes) -> bool: ...
    def answer_failure(self, node: bytes, message: Message) -> None: ...


NOTIFY_EVERY_S = 1.5

Connect = Callable[[Standby], ServerConnection]


@dataclass
class OtherServers:
    """The servers from which this one may have been cut off; ``notice`` shows them its term."""

    connect: Connect
    notice: Follow
    _upstream: ServerConnection | None = None
    _next_s: float = 0.0
    _notified: int = 0

    def notify(self, places: Sequence[Standby], now: float) -> None:
        """Notify the next place, if it is time. Raise SupersededError if a later term answers."""
        answer = None
        with suppress(DistNetError):  # such as a host that does not admit this one
            if places and now >= self._next_s:
                self.close()
                self._next_s, self._notified = now + NOTIFY_EVERY_S, self._notified + 1
                self._upstream = self.connect(places[self._notified % len(places)])
                self._upstream.send(self.notice)
            answer = self._upstream and self._upstream.receive(0.0)
        if isinstance(answer, Followed) and answer.term > self.notice.term:
            raise SupersededError(f"the run continues on {answer.host}, in a later term")

    def close(self) -> None:
        if self._upstream is not None:
            self._upstream.abandon()
            self._upstream = None


CreateMemory = Callable[[int, int], SharedVectors | None]
"""Create vectors of a size in shared memory; return None, or raise ``SegmentError``, without."""


def create_memory(vectors: int, size: int) -> SharedVectors | None:
    return Segment.create(vectors, size) if available() else None


def new_run(
    settings: RunSettings,
    initial_weights: Callable[[], Vector],
    resumed_from: Checkpoint | None,
    random: Random = _RANDOM,
) -> RunState:
    """Return a new or resumed run."""
    # Ids count up from a random number. Otherwise a resumed server could assign a new worker the
    # id of a surviving one, and mix up their heartbeats.
    first_worker_id = 1 + random.getrandbits(48)
    if resumed_from is None:
        return RunState(settings, initial_weights(), first_worker_id)
    return RunState.resumed(settings, resumed_from, first_worker_id)


@contextmanager
def opened_journal(
    path: Path,
    run: RunState,
    *,
    term: int | None = None,
    threads: int = 1,
    sync: str = NEVER,
    disk: Disk = HOST_DISK,
    clock: Clock | None = None,
) -> Iterator[JournalFile]:
    """Yield the open journal of a new or resumed run, and close it at the end.

    ``term``: of the claim on the run directory; None: without one, the first. ``threads`` is the
    thread count of each worker on this host; ``sync``: see ``sync_interval_s``. Records after the
    checkpoint are removed: their samples are in the pool again. A journal that cannot be continued,
    such as one of another release of dist_net, is renamed, and a new one begins;
    ``run.resume_warnings`` reports both. Raise ``FileWriteError`` if the journal cannot be written.
    """
    settings, version = run.settings, run.store.version
    changeable = (getattr(settings, name) for name in CHANGEABLE)
    started = Started(version, next_term(0) if term is None else term, threads, *changeable)
    identity = run_identity(settings.recipe_digest, settings.seed)
    kept_bytes = 0
    if run.is_resumed and disk.exists(path):
        try:
            tail = read_tail(path, identity, version, disk)
        except UNUSABLE as error:
            kept = put_aside(path, disk)
            run.resume_warnings.append(
                f"the journal cannot be continued from version {version:,} ({error}); it was "
                f"renamed to {kept}, and a new journal begins"
            )
        else:
            kept_bytes = tail.kept_bytes
            if tail.last_version > version:
                run.resume_warnings.append(
                    f"{tail.samples:,} samples are done again: they were applied after the resumed "
                    f"checkpoint, in versions {version + 1:,} to {tail.last_version:,}"
                )
            run.metrics.samples_done_again += tail.samples
            if tail.counted is not None:
                run.metrics.continue_counting(tail.counted.joined, tail.counted.lost)
        for warning in run.resume_warnings:
            logger.warning("resumed version=%d warning=%s", version, warning)
    now = (clock or SystemClock()).now()
    journal = JournalFile(
        path, kept_bytes, identity, started, sync_interval_s(sync), now=now, disk=disk
    )
    try:
        yield journal
    finally:
        journal.close()


class ServerFiles(NamedTuple):
    """The files that a server writes, and how often; ``sync``: see ``sync_interval_s``.

    The last ``keep_checkpoints`` checkpoints are kept: see ``write_checkpoint``. ``standbys`` holds
    the record of them for a restarted server; None: none may follow.
    """

    checkpoint: Path
    journal: Path
    checkpoint_every_s: float
    keep_checkpoints: int = 1
    sync: str = NEVER
    standbys: Path | None = None


@contextmanager
def opened_server(
    settings: RunSettings,
    initial_weights: Callable[[], Vector],
    files: ServerFiles,
    listen: Sequence[str],
    keys: ServerKeys | None = None,
    *,
    resumes: bool = False,
) -> Iterator[tuple[ServerLoop, Sequence[str]]]:
    """Yield a server's loop, and its addresses; see ``ServerSocket`` and ``opened_server_at``."""
    longest = 4 * settings.packing.result_size
    with (
        ServerSocket(listen, keys, longest) as socket,
        opened_server_at(socket, settings, initial_weights, files, resumes=resumes) as loop,
    ):
        yield loop, socket.contact_addresses


@contextmanager
def opened_server_at(
    socket: ServerSocket,
    settings: RunSettings,
    initial_weights: Callable[[], Vector],
    files: ServerFiles,
    *,
    resumes: bool,
    threads: int = 1,
    ownership: RunOwnership | None = None,
    **of_loop: Any,
) -> Iterator[ServerLoop]:
    """Yield the loop of a server at this socket; see ``opened_journal`` and ``ServerLoop``."""
    checkpoint = read_resumable_checkpoint(files.checkpoint) if resumes else None
    run = new_run(settings, initial_weights, checkpoint)
    term = None if ownership is None else ownership.term
    with opened_journal(files.journal, run, term=term, threads=threads, sync=files.sync) as journal:
        yield ServerLoop(run, socket, files, journal, ownership=ownership, **of_loop)


class ServerLoop:
    """Serve a run until it is shut down; write checkpoints at intervals and at the end.

    ``socket`` and ``journal`` are borrowed. ``turns`` is the loop as a generator that yields before
    each wait; ``serve`` drives it and waits. ``create_memory`` creates the memory that a worker
    of this host shares with the server. ``host``, ``own`` and ``remembered``: see ``Standbys``;
    ``more_facts`` returns what a standby must know besides the state, as JSON; it is passed whether
    the state is the standby's first. ``may_follow`` returns whether a public key is a standby's.
    ``connect`` reaches other servers of the run, to which this one shows its term.
    """

    def __init__(
        self,
        run: RunState,
        socket: WorkersSocket,
        files: ServerFiles,
        journal: JournalFile,
        clock: Clock | None = None,
        disk: Disk = HOST_DISK,
        create_memory: CreateMemory = create_memory,
        offer: RecipeOffer | None = None,
        ownership: RunOwnership | None = None,
        host: str = "",
        own: Standby = NOWHERE,
        remembered: Remembered = NOTHING,
        more_facts: Callable[[bool], dict[str, Any]] = lambda _: {},
        may_follow: Callable[[str], bool] = lambda _: True,
        connect: Connect = lambda place: ClientSocket(place.address),
    ) -> None:
        self._run = run
        self._socket = socket
        self._files = files
        self._ownership = ownership
        self._next_claim_check_s = 0.0
        self._journal = journal
        self._next_sync_s = 0.0
        self._sync: Future[None] | None = None  # the last one
        self._clock = clock or SystemClock()
        self._disk = disk
        self._create_memory = create_memory
        self._server = ParameterServer(run, journal.term, offer, host, own, remembered)
        self._more_facts = more_facts
        self._may_follow = may_follow
        self._remembered = remembered
        self._shared: dict[int, SharedVectors] = {}
        self._snapshot: Snapshot | None = None
        self._stop_requested: str | None = None
        self._is_suspended = False
        self._counted = run.metrics.workers_joined, run.metrics.workers_lost
        began = self.term, 0, self.term, self.version, run.ledger.applied_samples
        notice = Follow(host, own.address, *began, 0, 0, 0, 0.0, 0.0, serves=True)
        self._others = OtherServers(connect, notice)

    @property
    def version(self) -> int:
        """The version of the weights."""
        return self._run.store.version

    @property
    def term(self) -> int:
        return self._server.term

    @property
    def lacking(self) -> list[str]:
        """The hosts of standbys that left without the last version, or never had it."""
        return self._server.lacking

    def stop(self, reason: str) -> None:
        """End the run in the next turn of the loop; may be called by a signal handler."""
        self._stop_requested = reason

    def suspend(self, reason: str) -> None:
        """As ``stop``, but notify no worker: they wait for a server that resumes the run."""
        self._is_suspended = True
        self.stop(reason)

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Return when the run was shut down and its last checkpoint is on disk.

        Call ``ready`` once the first, or the resumed, checkpoint is on disk. With ``ownership``,
        raise ``SupersededError`` once another server has taken over the run directory. Raise
        ``FileWriteError`` if the first or last checkpoint could not be written, and
        ``NotFiniteError``, without a last checkpoint, if no result can be applied any more.
        """
        # One thread for checkpoints and one for syncs, so that no checkpoint waits for a sync.
        with ThreadPoolExecutor(2, "writer") as writer, suppress(StopIteration):
            turns, received = self.turns(writer, ready), None
            while True:
                received = self._socket.receive(turns.send(received))

    def turns(
        self, writer: Executor, ready: Callable[[], None] = lambda: None
    ) -> Generator[float, Received, None]:
        """Yield the timeout of each wait in seconds, to be sent the received message or None.

        ``writer`` writes checkpoints and, in parallel, syncs the journal. See ``serve``.
        """
        if self._run.is_resumed:
            self._take_resumed(self._run.checkpoint())
        else:
            self._is_written(self._write_checkpoint(self._run.checkpoint()))
        ready()
        try:
            yield from self._serve_until_stopped(writer)
            try:
                if self._server.diverges:
                    raise NotFiniteError(self._server.stop_reason)
                yield from self._serve_until_kept(writer)
            except (FileWriteError, NotFiniteError):
                yield from self._see_workers_off()
                raise
            yield from self._see_workers_off()
        finally:
            for worker_id in tuple(self._shared):
                self._shared.pop(worker_id).close()
            self._others.close()

    def _serve_until_stopped(self, writer: Executor) -> Generator[float, Received, None]:
        written: Future[Checkpointed] | None = None
        next_tick = self._clock.now()
        next_checkpoint = next_tick + self._files.checkpoint_every_s
        while self._server.stop_reason is None:
            self._handle((yield TICK_S))
            now = self._clock.now()
            if now < next_tick:
                continue
            next_tick = now + TICK_S
            yield from self._drain()
            self._server.standbys.keep(self._may_follow, now)
            self._others.notify(self._server.standbys.elsewhere(now), now)
            with suppress(OSError):
                self._remember()
            self._carry_out(self._server.tick(now))
            self._look_after_journal(now, writer)
            if self._stop_requested is not None:
                self._server.stop(self._stop_requested, is_suspended=self._is_suspended)
            if written is not None and written.done():
                self._take_written(written)
                written = None
            if now >= next_checkpoint and written is None:
                next_checkpoint = now + self._files.checkpoint_every_s
                written = writer.submit(self._write_checkpoint, self._run.checkpoint())
        while written is not None and not written.done():
            self._handle((yield POLL_S))

    def _serve_until_kept(self, writer: Executor) -> Generator[float, Received, None]:
        """Write the last checkpoint; answer meanwhile, so that no worker considers the run lost.

        First retry the journal's unwritten records: no checkpoint may be ahead of the journal.
        """
        last, is_kept = self._run.checkpoint(), False
        for attempt in range(1, LAST_TRIES + 1):
            self._record()
            if not is_kept:
                written = writer.submit(self._write_checkpoint, last)
                while not written.done():
                    self._handle((yield POLL_S))
                is_kept = self._take_written(written)
            if is_kept and self._journal.error is None:
                return
            again_s = self._clock.now() + RETRY_AFTER_S
            while attempt < LAST_TRIES and self._clock.now() < again_s:
                self._handle((yield POLL_S))
        written.result()
        logger.error("journal_ends_early error=%s", self._journal.error)

    def _see_workers_off(self) -> Generator[float, Received, None]:
        """Answer until all peers know that the run is over, and have its last state."""
        server, requested = self._server, self._stop_requested
        now = server.ended_s = self._clock.now()
        until_s = now + STOP_GRACE_S
        while not server.is_suspended:
            if self._stop_requested is not requested:  # for the second time
                server.lets_copy, server.ended_s = False, math.inf
            if server.awaited(now):
                until_s = now + STOP_GRACE_S
            elif now >= until_s or not (len(self._run.members) or server.standbys.text):
                break
            self._handle((yield TICK_S))
            now = self._clock.now()

    def _drain(self) -> Generator[float, Received, None]:
        """Handle queued messages: one may be the heartbeat of a worker that seems overdue."""
        for _ in range(1000):  # under constant load the queue is never empty
            received = yield 0
            if received is None:
                break
            self._handle(received)

    def _handle(self, received: Received) -> None:
        if received is None:
            return
        node, message = received
        joining: SharedVectors | None = None
        try:
            match message:
                case Push(worker_id, state=None) if worker_id in self._shared:
                    message = message._replace(state=self._shared[worker_id].vector(RESULT))
                case Join(shares_memory=True):
                    joining = self._shared_with(message)
                    message = message._replace(shares_memory=joining is not None)
            commands = self._server.handle(node, message, self._clock.now())
            if isinstance(message, Follow):
                self._remember()  # before the answer: it may begin another term
            self._carry_out(commands, joining)
        except SupersededError:
            raise
        except Exception:
            self._socket.answer_failure(*received)

    def _carry_out(
        self, commands: list[ServerCommand], joining: SharedVectors | None = None
    ) -> None:
        """Carry out the state machine's commands; ``joining`` is for the worker that joins."""
        for command in commands:
            match command:
                case SendToPeer(node, Snapshot() as snapshot):
                    self._send_snapshot(node, snapshot)
                case SendToPeer(node, Welcome() as welcome) if joining is not None:
                    self._shared[welcome.worker_id] = joining
                    self._socket.send(node, welcome._replace(segment=joining.address))
                    joining = None
                case SendToPeer(node, Work() as work) if work.worker_id in self._shared:
                    assert work.state is not None
                    np.copyto(self._shared[work.worker_id].vector(BASE), work.state)
                    self._socket.send(node, work._replace(state=None))
                case SendToPeer(node, message):
                    self._socket.send(node, message)
                case SendCopy(node, follow):
                    self._send_copy(node, follow)
                case Record(records):
                    self._record(*records)
                case Forget(worker_id):
                    if (shared := self._shared.pop(worker_id, None)) is not None:
                        shared.close()
        if joining is not None:  # the worker was refused
            joining.close()

    def _send_snapshot(self, node: bytes, snapshot: Snapshot) -> None:
        """Send the weights, as the same array for every request at this version."""
        if self._snapshot is None or self._snapshot.version != snapshot.version:
            self._snapshot = snapshot
        if not self._socket.send_one(node, self._snapshot):
            # Or it was read, and the thread that is notified has not run since.
            reason = "the snapshot requested before is still being sent: receive it first"
            self._socket.send(node, Refuse(reason, may_rejoin=True))

    def _send_copy(self, node: bytes, follow: Follow) -> None:
        """Answer a standby: with a part of a state if it requests one, else of the journal."""
        standbys, start = self._server.standbys, follow.state_bytes
        journal_at, version, journal, facts, part = 0, 0, b"", b"", memoryview(b"")
        follower, size = standbys.follower(follow), min(follow.part_bytes, MAX_PART_BYTES)
        copy = follower.copy
        # A standby receives a vote first, unless the votes cannot change at present, or matter.
        has_ended = self._server.stop_reason is not None
        has_vote = has_ended or math.isfinite(follower.promise.since_s)
        if not size:
            journal_at = follow.journal_bytes if follow.term == self.term else 0
            journal = self._disk.read(self._files.journal, journal_at, MAX_PART_BYTES)
        elif not start and has_vote and self._journal.error is None:
            more_facts = self._more_facts(copy.version is None)
            state = SentState(self._run, self._disk.size(self._files.journal), more_facts)
            facts = state.facts
            if state.version != copy.version:
                copy.sends(state, self._clock.now())
                part = state.part(0, size)
            version = state.version
        elif copy.sent is not None and self._continues(copy.sent, follow):
            part, version = copy.sent.part(start, size), follow.state_version
        others = json.dumps(standbys.remembered, ensure_ascii=False)
        run = self.term, follow.sent_s, self.version, standbys.host, others, standbys.text
        share = BUSY_SHARE if self._sends_states else 1.0
        parts = journal, facts, part
        self._socket.send(node, Followed(*run, journal_at, version, start, share, parts))

    def _continues(self, state: SentState, follow: Follow) -> bool:
        """Return whether this is the state requested, and no newer one is the run's last."""
        is_last = state.version == self.version or self._server.stop_reason is None
        return is_last and state.version == follow.state_version

    @property
    def _sends_states(self) -> bool:
        """Whether states are on their way to workers of other hosts."""
        remote = [each.node for each in self._run.members.members if not each.shared]
        return any(map(self._socket.has_unread, remote))

    def _remember(self) -> None:
        """Write down who may begin another term, for the next start of the server."""
        known = self._server.standbys.remembered
        has_standbys = known.standbys or self._remembered.standbys
        if known != self._remembered and has_standbys and self._files.standbys is not None:
            with replacing(self._files.standbys, self._disk) as partial:
                self._disk.write(partial, json.dumps(known).encode())
            self._remembered = known

    def _shared_with(self, join: Join) -> SharedVectors | None:
        """Create memory to share with a joining worker; return None if that is impossible."""
        try:
            return self._create_memory(2, self._run.store.state.size)
        except SegmentError as error:
            logger.warning("shared_memory_unavailable name=%s reason=%s", join.name, error)
            return None

    def _record(self, *records: JournalRecord) -> None:
        now = self._clock.now()
        if now >= self._next_claim_check_s:
            self._require_ownership(now)
        self._journal.append(b"".join(map(encode_record, records)), now)

    def _require_ownership(self, now: float = 0.0) -> None:
        """Raise SupersededError if another server has taken over the run directory."""
        self._next_claim_check_s = max(self._next_claim_check_s, now + TICK_S)
        if self._ownership is not None:
            self._ownership.require()

    def _look_after_journal(self, now: float, writer: Executor) -> None:
        """Retry unwritten records, report the lag, and sync the journal if a sync is due."""
        journal, metrics = self._journal, self._run.metrics
        counted = metrics.workers_joined, metrics.workers_lost
        changed = [] if counted == self._counted else [WorkersCounted(self.version, *counted)]
        self._record(*changed)
        self._counted = counted
        lag = journal.lag(now)
        if lag.error != self._server.journal_lag.error:
            logger.error("journal_error_changed error=%s", lag.error)
        self._server.journal_lags(lag)
        if journal.is_given_up:
            self._server.stop(f"too many unwritten journal records in memory: {journal.error}")
        is_syncing = self._sync is not None and not self._sync.done()
        if journal.sync_interval_s and now >= self._next_sync_s and not is_syncing:
            self._next_sync_s = now + journal.sync_interval_s
            self._sync = writer.submit(journal.sync)

    def _write_checkpoint(self, checkpoint: Checkpoint) -> Checkpointed:
        """Write the checkpoint, in the writer's thread, and return its record for the journal."""
        self._journal.sync()  # the journal must never be behind the checkpoint
        write_checkpoint(
            self._files.checkpoint,
            checkpoint,
            self._disk,
            self._files.keep_checkpoints,
            self._server.checkpoint_version,
            self._require_ownership,
        )
        logger.info("checkpoint_written version=%d", checkpoint.version)
        return Checkpointed(checkpoint.version, sha256_of(checkpoint.weights))

    def _take_written(self, written: Future[Checkpointed]) -> bool:
        """Record a finished write, or its failure; return whether the checkpoint was written."""
        if (error := written.exception()) is not None:
            self._server.checkpoint_failed(str(error))
            logger.error("checkpoint_failed error=%s", str(error))
            return False
        self._is_written(written.result())
        return True

    def _take_resumed(self, checkpoint: Checkpoint) -> None:
        """Sync the directory: a killed server may not have. Write nothing: the disk may be full."""
        checkpointed = Checkpointed(checkpoint.version, sha256_of(checkpoint.weights))
        try:
            self._disk.sync(self._files.checkpoint.parent)
        except OSError as error:
            self._server.checkpoint_failed(f"{self._files.checkpoint}: {error.strerror}")
            self._record(checkpointed)
        else:
            self._is_written(checkpointed)

    def _is_written(self, checkpointed: Checkpointed) -> None:
        self._server.checkpoint_written(checkpointed.version)
        self._record(checkpointed)
