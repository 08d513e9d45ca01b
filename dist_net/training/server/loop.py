"""The parameter server's process: a loop that connects the state machine to sockets and memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Protocol

import numpy as np

from dist_net.errors import (
    DistNetError,
    FileWriteError,
    NotFiniteError,
    SegmentError,
    SupersededError,
)
from dist_net.ground.checkpoint import Checkpoint
from dist_net.ground.clock import Clock, SystemClock
from dist_net.ground.files import HOST_DISK, Disk
from dist_net.ground.vector import Vector
from dist_net.training.server.copy_desk import CopyDesk, MoreFacts
from dist_net.training.server.journal_records import Checkpointed
from dist_net.training.server.protocol import (
    Forget,
    ParameterServer,
    Record,
    SendCopy,
    SendToPeer,
    ServerCommand,
)
from dist_net.training.server.server_files import OpenServerFiles, ServerFiles
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.standbys import ALONE, RunPlace
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
from dist_net.wire.segment import BASE, RESULT, Segment, SharedVectors, available
from dist_net.wire.standbys import ServerPlaces, Standby
from dist_net.wire.transport import ClientSocket, ServerConnection

logger = logging.getLogger(__name__)

TICK_S = 0.1
STOP_GRACE_S = 1.0
"""How long a server answers once the run is over and no peer is awaited."""

POLL_S = 0.01  # while the last checkpoint is written
LAST_TRIES = 3
RETRY_AFTER_S = 1.0
NOTIFY_EVERY_S = 1.5
LOOKED_FOR_S = 3.0
"""How long a server without a majority looks for another server before it ends."""

Connect = Callable[[Standby], ServerConnection]
Received = tuple[bytes, Message] | None


class WorkersSocket(Protocol):
    """A server's connection to its workers; see ``dist_net.wire.transport.ServerSocket``."""

    def receive(self, timeout_s: float) -> Received: ...
    def send(self, node: bytes, message: Message) -> object: ...
    def send_one(self, node: bytes, message: Message) -> bool: ...
    def has_unread(self, node: bytes) -> bool: ...
    def answer_failure(self, node: bytes, message: Message) -> None: ...


@dataclass
class OtherServers:
    """The servers from which this one may have been cut off; ``notice`` shows them its term."""

    connect: Connect
    notice: Follow
    _places: ServerPlaces = field(default_factory=lambda: ServerPlaces(()))
    _upstream: ServerConnection | None = None

    def notify(self, elsewhere: Sequence[Standby], now: float) -> None:
        """Notify the next place, if it is time. Raise SupersededError if a later term answers."""
        answer = None
        with suppress(DistNetError):  # such as a host that does not admit this one
            if elsewhere and now >= self._places.silent_since_s + NOTIFY_EVERY_S:
                self.close()
                self._places.learn(elsewhere)
                self._places.turn(now)
                if (place := self._places.current) is not None:
                    self._upstream = self.connect(place)
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


@dataclass(frozen=True)
class Machine:
    """The clock, disk and memory of a server, real or simulated."""

    clock: Clock = field(default_factory=SystemClock)
    disk: Disk = HOST_DISK
    create_memory: CreateMemory = create_memory
    random: Random = field(default_factory=SystemRandom)


@dataclass(frozen=True)
class OtherHosts:
    """The server's part in a run of several hosts; ``offer`` is the run's recipe.

    ``may_follow`` returns whether a public key is a standby's; ``connect`` reaches other servers.
    """

    place: RunPlace = ALONE
    offer: RecipeOffer | None = None
    more_facts: MoreFacts = lambda _: {}
    may_follow: Callable[[str], bool] = lambda _: True
    connect: Connect = lambda place: ClientSocket(place.address)


NO_OTHERS = OtherHosts()
THIS_MACHINE = Machine()


@contextmanager
def opened_server(
    socket: WorkersSocket,
    settings: RunSettings,
    begin: Vector | Checkpoint,
    files: ServerFiles,
    others: OtherHosts = NO_OTHERS,
    machine: Machine = THIS_MACHINE,
) -> Iterator[ServerLoop]:
    """Yield the loop of a server that begins a run from its weights, or resumes a checkpoint."""
    run = RunState.begun(settings, begin, machine.random)
    opened = OpenServerFiles(files, run, others.place.remembered, machine.clock, machine.disk)
    with closing(opened.journal):
        yield ServerLoop(run, socket, opened, others, machine)


class ServerLoop:
    """Serve a run until it is shut down; write checkpoints at intervals and at the end.

    ``turns`` is the loop as a generator that yields before each wait; ``serve`` drives it.
    """

    def __init__(
        self,
        run: RunState,
        socket: WorkersSocket,
        files: OpenServerFiles,
        others: OtherHosts,
        machine: Machine,
    ) -> None:
        self.run = run
        self.files = files
        self._socket = socket
        self._clock = machine.clock
        self._create_memory = machine.create_memory
        place, term = others.place, files.journal.term
        self.server = ParameterServer(run, term, others.offer, place, files.on_disk)
        self._desk = CopyDesk(self.server, files, others.more_facts)
        self._may_follow = others.may_follow
        self._shared: dict[int, SharedVectors] = {}
        self._snapshot: Snapshot | None = None
        self._stop_requested: str | None = None
        self._is_suspended = False
        began = term, 0, term, self.version, run.ledger.applied_samples
        notice = Follow(place.host, place.own.address, *began, 0, 0, 0, 0.0, 0.0, serves=True)
        self._others = OtherServers(others.connect, notice)

    @property
    def version(self) -> int:
        return self.run.store.version

    @property
    def term(self) -> int:
        return self.server.term

    def stop(self, reason: str) -> None:
        """End the run in the loop's next turn; may be called by a signal handler."""
        self._stop_requested = reason

    def suspend(self, reason: str) -> None:
        """As ``stop``, but notify no worker: they wait for a server that resumes the run."""
        self._is_suspended = True
        self.stop(reason)

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Return when the run was shut down and its last checkpoint is on disk.

        Call ``ready`` once the first, or the resumed, checkpoint is on disk. Raise
        ``SupersededError`` once another server continues the run, ``FileWriteError`` if the first
        or last checkpoint could not be written, and ``NotFiniteError`` if the run diverges.
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
        self.files.write_first_checkpoint()
        ready()
        try:
            yield from self._serve_until_stopped(writer)
            try:
                if self.server.diverges:
                    raise NotFiniteError(self.server.stop_reason)
                yield from self._require_no_other_server()
                yield from self._serve_until_kept(writer)
            except (FileWriteError, NotFiniteError):
                yield from self._see_workers_off()
                raise
            yield from self._see_workers_off()
        except SupersededError:
            self.files.writes_until_s = -math.inf  # a checkpoint may be on its way to the disk
            raise
        finally:
            for worker_id in tuple(self._shared):
                self._shared.pop(worker_id).close()
            self._others.close()

    def _serve_until_stopped(self, writer: Executor) -> Generator[float, Received, None]:
        written: Future[Checkpointed] | None = None
        next_tick = self._clock.now()
        next_checkpoint = next_tick + self.files.paths.checkpoint_every_s
        while self.server.stop_reason is None:
            self._handle((yield TICK_S))
            now = self._clock.now()
            if now < next_tick:
                continue
            next_tick = now + TICK_S
            for _ in range(1000):  # one may be the heartbeat of a worker that seems overdue
                if (received := (yield 0)) is None:
                    break
                self._handle(received)
            if is_alone := self.server.standbys.is_alone:
                self.files.writes_until_s = math.inf
            else:
                self._look_for_others(now)
            self._carry_out(self.server.tick(now))
            with suppress(OSError):
                if not is_alone:
                    self.files.remember(self.server.standbys.remembered)
            self.files.look_after_journal(now, writer)
            if self.files.journal.is_given_up:
                error = self.files.journal.error
                self.server.stop(f"too many unwritten journal records in memory: {error}")
            if self._stop_requested is not None:
                self.server.stop(self._stop_requested, is_suspended=self._is_suspended)
            if written is not None and written.done():
                self.files.take_written(written)
                written = None
            if next_checkpoint <= now < self.files.writes_until_s and written is None:
                next_checkpoint = now + self.files.paths.checkpoint_every_s
                written = writer.submit(self.files.write_checkpoint, self.run.checkpoint())
        while written is not None and not written.done():
            self._handle((yield POLL_S))

    def _look_for_others(self, now: float) -> None:
        """Raise SupersededError if another server answers that it continues the run."""
        standbys = self.server.standbys
        standbys.keep(self._may_follow, now)
        self._others.notify(standbys.elsewhere(now), now)
        self.files.writes_until_s = standbys.majority_until_s()

    def _require_no_other_server(self) -> Generator[float, Received, None]:
        """Without a majority, look for other servers for a moment before the last checkpoint."""
        until_s = self._clock.now() + LOOKED_FOR_S
        while (now := self._clock.now()) < until_s:
            self._look_for_others(now)
            if now < self.files.writes_until_s:
                break
            self._handle((yield TICK_S))
        self.files.writes_until_s = math.inf

    def _serve_until_kept(self, writer: Executor) -> Generator[float, Received, None]:
        """Write the last checkpoint; answer meanwhile, so that no worker considers the run lost.

        First retry the journal's unwritten records: no checkpoint may be ahead of the journal.
        """
        last, is_kept = self.run.checkpoint(), False
        for attempt in range(1, LAST_TRIES + 1):
            self.files.record()
            if not is_kept:
                written = writer.submit(self.files.write_checkpoint, last)
                while not written.done():
                    self._handle((yield POLL_S))
                is_kept = self.files.take_written(written)
            if is_kept and self.files.journal.error is None:
                return
            again_s = self._clock.now() + RETRY_AFTER_S
            while attempt < LAST_TRIES and self._clock.now() < again_s:
                self._handle((yield POLL_S))
        written.result()
        logger.error("journal_ends_early error=%s", self.files.journal.error)

    def _see_workers_off(self) -> Generator[float, Received, None]:
        """Answer until all peers know that the run is over, and have its last state."""
        server, requested = self.server, self._stop_requested
        now = server.ended_s = self._clock.now()
        until_s = now + STOP_GRACE_S
        while not server.is_suspended:
            if self._stop_requested is not requested:  # for the second time
                server.lets_copy, server.ended_s = False, math.inf
            if server.awaited(now):
                until_s = now + STOP_GRACE_S
            elif now >= until_s or not (len(self.run.members) or server.standbys.text):
                break
            self._handle((yield TICK_S))
            now = self._clock.now()

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
            commands = self.server.handle(node, message, self._clock.now())
            if isinstance(message, Follow):
                # Before the answer: the standby may begin another term.
                self.files.remember(self.server.standbys.remembered)
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
                    remote = [each.node for each in self.run.members.members if not each.shared]
                    is_busy = any(map(self._socket.has_unread, remote))
                    answer = self._desk.answer(follow, self._clock.now(), is_link_busy=is_busy)
                    self._socket.send(node, answer)
                case Record(records):
                    self.files.record(*records)
                case Forget(worker_id):
                    if (shared := self._shared.pop(worker_id, None)) is not None:
                        shared.close()
        if joining is not None:  # the worker was refused
            joining.close()

    def _send_snapshot(self, node: bytes, snapshot: Snapshot) -> None:
        """Send the same array for every request at this version."""
        if self._snapshot is None or self._snapshot.version != snapshot.version:
            self._snapshot = snapshot
        if not self._socket.send_one(node, self._snapshot):
            # Or it was read, and the thread that is notified has not run since.
            reason = "the snapshot requested before is still being sent: receive it first"
            self._socket.send(node, Refuse(reason, may_rejoin=True))

    def _shared_with(self, join: Join) -> SharedVectors | None:
        """Create memory to share with a joining worker; return None if that is impossible."""
        try:
            return self._create_memory(2, self.run.store.state.size)
        except SegmentError as error:
            logger.warning("shared_memory_unavailable name=%s reason=%s", join.name, error)
            return None
