"""The processes of a training cluster: the shipped loops on virtual hosts."""

import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from dist_net.errors import DistNetError, SegmentError
from dist_net.ground.vector import Vector
from dist_net.training.server.loop import Machine, Received, ServerLoop, opened_server
from dist_net.training.server.server_files import RunOwnership, ServerFiles, next_term
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.cycle import REJOIN_TIMEOUT_S, Compute, Phase
from dist_net.training.worker.local_steps import LocalStepsOf
from dist_net.training.worker.loop import WorkerLoop
from dist_net.wire.messages import Alive, Equipment, Heartbeat, Join, Message, SegmentAddress
from dist_net.wire.security import WORKER
from dist_net.wire.segment import BASE, RESULT
from dist_net.wire.standbys import Standby
from dist_net.wire.transport import ServerAccess
from simulation.disk import ProcessKilledError, VirtualDisk, checkpoint_on
from simulation.failures import require
from simulation.invariants import CHECKPOINT, JOURNAL, RunChecks
from simulation.memory import VirtualMemory, VirtualSegment
from simulation.network import VirtualClientSocket, VirtualNetwork, VirtualServerSocket
from simulation.schedule import HostClock, TracedSchedule

SERVER = "server"
WRITING_S = 0.15
GARBAGE = 1000.0
"""What a worker leaves in shared memory until its result is there."""


def host_in(address: str) -> str:
    """Return the host in an address such as ``tcp://HOST:1``."""
    return address.removeprefix("tcp://").partition(":")[0]


class VirtualProcess:
    """A process that may be killed, or be stopped for a while as by SIGSTOP.

    ``ended`` is called with the error that ended the process; None: it was killed, or has finished.
    """

    def __init__(
        self,
        name: str,
        host: str,
        process_id: int,
        schedule: TracedSchedule,
        clock: HostClock | None = None,
    ) -> None:
        self.name = name
        self.host = host
        self.process_id = process_id
        self.schedule = schedule
        self.clock = clock or schedule
        self.random = Random(int(schedule.random.integers(2**32)))
        self.started_s = schedule.now_s
        self.is_alive = True
        self.was_killed = False
        self.ended: Callable[[DistNetError | None], None] = lambda _: None
        self._stopped_until_s = 0.0
        self._missed: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()

    def after(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Call a function at this time, if the process lives, and once it is not stopped."""
        self.schedule.after(seconds / self.clock.rate, self.do, call, *arguments)

    def do(self, call: Callable[..., object], *arguments: object) -> None:
        """Call a function now, or once the process is not stopped."""
        if not self.is_alive:
            return
        if self.schedule.now_s < self._stopped_until_s or self._missed:
            self._missed.append((call, arguments))
            return
        self._do(call, *arguments)

    def _do(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except ProcessKilledError:
            self.kill()
        except DistNetError as error:
            self.end(error)

    def stop(self, seconds: float) -> None:
        """Stop the process for a while."""
        self.schedule.note(self.name, "is stopped for %.2f s", seconds)
        self._stand_still(seconds)

    def _stand_still(self, seconds: float) -> None:
        self._stopped_until_s = max(self._stopped_until_s, self.schedule.now_s + seconds)
        self.schedule.after(seconds, self._go_on)

    def _go_on(self) -> None:
        while self._missed and self.is_alive and self.schedule.now_s >= self._stopped_until_s:
            call, arguments = self._missed.popleft()
            self._do(call, *arguments)

    def kill(self) -> None:
        """Kill the process at once."""
        if self.is_alive:
            self.was_killed = True
            self.schedule.note(self.name, "is killed")
            self._release()
            self.ended(None)

    def end(self, error: DistNetError | None) -> None:
        """End the process by itself."""
        self.schedule.note(self.name, "ends: %s", error or "it is done")
        self._release()
        self.ended(error)

    def _release(self) -> None:
        self.is_alive = False


class VirtualHeartbeats:
    """Heartbeats of a worker, sent like those of `dist_net.wire.heartbeat.HeartbeatSender`."""

    def __init__(
        self,
        process: VirtualProcess,
        socket: VirtualClientSocket,
        worker_id: int,
        identity: int,
        interval_s: float,
    ) -> None:
        self.answer: tuple[Message, float] | None = None
        self._process = process
        self._socket = socket
        self._worker_id = worker_id
        self._identity = identity
        self._interval_s = interval_s
        self._is_stopped = False
        self._heard_s = process.clock.now()
        self._beat()

    def _beat(self) -> None:
        if self._is_stopped:
            return
        now = self._process.clock.now()
        while (answer := self._socket.receive()) is not None:
            self.answer = answer, answer.sent_s if isinstance(answer, Alive) else now
            if isinstance(answer, Alive):
                self._heard_s = answer.sent_s
        self._socket.send(Heartbeat(self._worker_id, now, self._identity, self._heard_s))
        self._process.after(self._interval_s, self._beat)

    def stop(self) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            self._socket.close()


class WorkerProcess(VirtualProcess):
    """A worker, and the `dist_net.training.worker.loop.Environment` of its loop.

    ``server`` is the first host where it looks for its server. ``key`` is that of its connections
    to other hosts; it claims to be on the host ``label``, by default its own. ``memory``: the
    shared memory of this host; None: the worker is on ``host``, by default alone.
    ``seconds_of_step`` returns the duration of each local step; ``local_of`` and ``parts``: see
    ``WorkerLoop``. With ``holds_lock``, no other thread runs during a local step, and so no
    heartbeat is sent.
    """

    def __init__(
        self,
        name: str,
        process_id: int,
        network: VirtualNetwork,
        memory: VirtualMemory | None,
        settings: RunSettings,
        local_of: LocalStepsOf,
        seconds_of_step: Callable[[], float],
        parts: int = 1,
        holds_lock: bool = False,
        host: str = "",
        clock: HostClock | None = None,
        server: str = SERVER,
        key: str = "",
        label: str = "",
    ) -> None:
        own_host = server if memory is not None else host or name
        super().__init__(name, own_host, process_id, network.schedule, clock)
        self.leaves = False
        self.seen_term = 0
        self.server = self._given = server
        self.key = key
        self._network = network
        self._memory = memory
        self._seconds_of_step = seconds_of_step
        self._holds_lock = holds_lock
        self._sockets: list[VirtualClientSocket] = []
        self._segment: VirtualSegment | None = None
        self._base: Vector | None = None
        self._waits = 0
        self._is_waiting = False
        digest, size = settings.recipe_digest, settings.vector_size
        # Where train supervises its own workers, they wait for their server as long as it does.
        timeout_s = REJOIN_TIMEOUT_S if memory is None else math.inf
        self.loop = WorkerLoop(
            local_of,
            ServerAccess(server, None),
            Join(name, 0, digest, size, equipment=Equipment(label or own_host), parts=parts),
            join_timeout_s=timeout_s,
            rejoin_timeout_s=timeout_s,
            environment=self,
        )
        self._turns = self.loop.turns()

    def start(self) -> None:
        """Start the process."""
        self.schedule.note(self.name, "starts")
        self.do(self._resume, None)

    def leave(self) -> None:
        """Make the worker leave the run at its loop's next turn, as SIGTERM does."""
        self.leaves = True
        self.loop.stop("it is to leave")

    def unanswered_s(self) -> float:
        """Return the age of the worker's unanswered request; 0 without one, and while stopped."""
        state = self.loop._state
        if not self.is_alive or state.phase is not Phase.REQUESTING:
            return 0.0
        return self.schedule.now_s - max(state._places.tried_s, self._stopped_until_s)

    def lose_connection(self) -> None:
        """Lose a connection, and reconnect."""
        open_ones = [each for each in self._sockets if not each.is_closed]
        self.random.choice(open_ones).vanish()

    def connect(self, standby: Standby | None = None) -> VirtualClientSocket:
        self.server = self._given if standby is None else host_in(standby.address)
        self._server_key = "" if standby is None else standby.public_key
        socket = self._socket = self._connect()
        socket.on_arrival = lambda: self.do(self._look)
        return socket

    def _connect(self) -> VirtualClientSocket:
        self._sockets = [each for each in self._sockets if not each.is_closed]
        key = "" if self.server == self.host else self.key  # a Unix socket needs none
        names = self.host, self.server, self.name, WORKER, key, self._server_key
        self._sockets.append(self._network.connect(*names))
        return self._sockets[-1]

    def start_heartbeats(
        self, worker_id: int, identity: int, interval_s: float
    ) -> VirtualHeartbeats:
        self.schedule.note(self.name, "is worker %d", worker_id)
        self.seen_term = max(self.seen_term, self.loop._state._places.term)
        return VirtualHeartbeats(self, self._connect(), worker_id, identity, interval_s)

    @property
    def shares_memory(self) -> bool:
        return self._memory is not None

    def attach(self, address: SegmentAddress, size: int) -> VirtualSegment:
        assert self._memory is not None
        is_free = self._segment is None or not self._segment.vectors
        require(is_free, f"{self.name} still has the memory of a server before")
        try:
            self._segment = self._memory.attach(address, size)
        except SegmentError as error:
            self.schedule.note(self.name, "maps nothing: %s", error)
            raise
        self.schedule.note(self.name, "shares memory with the server")
        return self._segment

    def _resume(self, message: Message | None) -> None:
        """Run the loop up to its next wait."""
        self._is_waiting = False
        try:
            while True:
                command = self._turns.send(message)
                message = None
                if isinstance(command, Compute):
                    self._compute()
                    return
                self._base = None
                message = self._socket.receive()
                if message is None and command.timeout_s > 0:
                    self._wait(command.timeout_s)
                    return
        except StopIteration:
            self._socket.close()
            self.end(None)

    def _compute(self) -> None:
        """Take a local step; check that the server writes nothing before the lease is done."""
        segment = self._segment
        if segment is not None and segment.vectors:
            if self._base is None:
                self._base = segment.vector(BASE).copy()
                segment.vector(RESULT).fill(GARBAGE)
            is_torn = not np.array_equal(segment.vector(BASE), self._base)
            require(not is_torn, f"the state changes from which {self.name} computes")
        seconds = self._seconds_of_step()
        self.after(seconds, self._resume, None)
        if self._holds_lock:
            self._stand_still(seconds)

    def _wait(self, timeout_s: float) -> None:
        self._waits += 1
        self._is_waiting = True
        self.after(timeout_s, self._time_out, self._waits)

    def _time_out(self, wait: int) -> None:
        if self._is_waiting and wait == self._waits:
            self._resume(self._socket.receive())

    def _look(self) -> None:
        if self._is_waiting and len(self._socket):
            self._resume(self._socket.receive())

    def _release(self) -> None:
        super()._release()
        for socket in self._sockets:
            socket.abandon()
        if self._memory is not None:
            self._memory.process_ended(self.process_id)


@dataclass(frozen=True)
class ServerOptions:
    """The options of a server; it needs ``service_s`` per message."""

    sync: str = "never"
    checkpoint_every_s: float = 1.0
    service_s: float = 0.0


class LoopProcess(VirtualProcess):
    """A process with the loop of a server, or of a standby; ``service_s`` is for each message."""

    def __init__(
        self,
        name: str,
        host: str,
        process_id: int,
        network: VirtualNetwork,
        service_s: float,
        clock: HostClock | None = None,
    ) -> None:
        super().__init__(name, host, process_id, network.schedule, clock)
        self._network = network
        self._service_s = service_s
        self._context = ExitStack()
        self._socket: VirtualServerSocket | None = None
        self._waits = 0
        self._is_waiting = False
        self.loop: ServerLoop | None = None
        self.after(0.0, self._start)

    def _start(self) -> None:
        raise NotImplementedError

    def _turned(self, loop: ServerLoop) -> None:
        """Check the server's loop after each of its turns."""

    def _listen(self, key: str = "") -> VirtualServerSocket:
        socket = self._socket = self._network.listen(self.host, key)
        socket.on_arrival = lambda: self.do(self._look)
        return socket

    def _drive(self, turns: Generator[float, Received, None]) -> None:
        self._turns = turns
        self._resume(None)

    def _resume(self, received: Received) -> None:
        """Run the loop up to its next wait."""
        self._is_waiting = False
        try:
            timeout_s = self._turns.send(received)
        except StopIteration:
            self.end(None)
            return
        if self.loop is not None:
            self._turned(self.loop)
        if received is not None and self._service_s:
            self.after(self._service_s, self._next, timeout_s)
        else:
            self._next(timeout_s)

    def _next(self, timeout_s: float) -> None:
        assert self._socket is not None
        received = self._socket.receive()
        if received is None and timeout_s > 0:
            self._waits += 1
            self._is_waiting = True
            self.after(timeout_s, self._time_out, self._waits)
        else:
            self._resume(received)

    def _time_out(self, wait: int) -> None:
        if self._is_waiting and wait == self._waits:
            self._look()

    def _look(self) -> None:
        if self._is_waiting and self._socket is not None:
            self._resume(self._socket.receive())

    def _release(self) -> None:
        super()._release()
        if self._socket is not None:
            self._socket.close()
        self._context.close()


class UnclaimedTerm(RunOwnership):
    """The term of the only server of a run directory."""

    def __init__(self, term: int) -> None:
        self.term = term

    def require(self) -> None:
        """Nobody else claims the directory."""


class ServerProcess(LoopProcess):
    """A server that begins the run, or resumes from its host's disk."""

    def __init__(
        self,
        process_id: int,
        network: VirtualNetwork,
        memory: VirtualMemory,
        disk: VirtualDisk,
        settings: RunSettings,
        options: ServerOptions,
        checks: RunChecks,
    ) -> None:
        super().__init__(SERVER, SERVER, process_id, network, options.service_s)
        self._memory = memory
        self._disk = disk
        self._settings = settings
        self._options = options
        self._checks = checks

    def _start(self) -> None:
        disk, checkpoint = self._disk, None
        if disk.exists(CHECKPOINT):
            checkpoint = checkpoint_on(disk, CHECKPOINT)
        weights = np.zeros(self._settings.vector_size, np.float32)
        begin = weights if checkpoint is None else checkpoint
        socket = self._listen()
        socket.on_send = self._checks.sent
        term = UnclaimedTerm(next_term(self._checks.term, self.random))
        every_s, sync = self._options.checkpoint_every_s, self._options.sync
        files = ServerFiles(CHECKPOINT, JOURNAL, every_s, 2, sync, ownership=term)
        machine = Machine(self.clock, disk, self._share, self.random)
        opened = opened_server(socket, self._settings, begin, files, machine=machine)
        loop = self.loop = self._context.enter_context(opened)
        vars(loop.run)["accept"] = self._checks.accept
        self._checks.begin(loop.run, loop.files.journal)
        self.schedule.note(self.name, "continues from version %d", loop.version)
        self._drive(loop.turns(VirtualWriter(self)))

    def _share(self, vectors: int, size: int) -> VirtualSegment:
        try:
            return self._memory.share(self.process_id, vectors, size)
        except SegmentError as error:
            self.schedule.note(self.name, "shares nothing: %s", error)
            raise

    def terminate(self) -> None:
        """Make the server write a checkpoint and end at its loop's next turn, as SIGTERM does."""
        if self.loop is not None:
            self.schedule.note(self.name, "is terminated")
            self.loop.stop("it is to end")

    def _turned(self, loop: ServerLoop) -> None:
        self._checks.turned(loop, self.process_id, self.schedule.now_s)

    def _release(self) -> None:
        super()._release()
        self._memory.process_ended(self.process_id)
        self._disk.kill_after = None


class VirtualWriter(Executor):
    """The threads that write checkpoints and sync the journal, each within ``WRITING_S``."""

    def __init__(self, process: VirtualProcess) -> None:
        self._process = process

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        future: Future[Any] = Future()

        def write() -> None:
            try:
                future.set_result(call(*arguments, **options))
            except DistNetError as error:
                future.set_exception(error)

        self._process.after(WRITING_S * self._process.random.random(), write)
        return future
