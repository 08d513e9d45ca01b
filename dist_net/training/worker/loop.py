"""The training worker's process: a loop that connects its state machine to sockets and memory.

``WorkerLoop.turns`` is the loop as a generator that yields before each wait; ``WorkerLoop.train``
drives it and waits. The ``Environment`` is this process's or a simulation's.
"""

import logging
import math
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from random import Random, SystemRandom
from typing import Protocol

import numpy as np

from dist_net.errors import ProtocolError, SegmentError, ServerLostError
from dist_net.ground.clock import Clock, SystemClock
from dist_net.ground.vector import Vector
from dist_net.training.worker.cycle import (
    REJOIN_TIMEOUT_S,
    Begin,
    Compute,
    Ended,
    Receive,
    Reconnect,
    SendToServer,
    WorkerCommand,
    WorkerCycle,
)
from dist_net.training.worker.local_steps import LocalSteps, LocalStepsOf, Minibatch
from dist_net.wire.address import contact_address
from dist_net.wire.connections import SETTLED_S
from dist_net.wire.heartbeat import HeartbeatSender
from dist_net.wire.messages import Join, Message, SegmentAddress, StepSettings, Welcome
from dist_net.wire.packing import StatePacking
from dist_net.wire.segment import BASE, RESULT, Segment, SharedVectors, available
from dist_net.wire.standbys import Standby
from dist_net.wire.transport import ClientSocket, ServerAccess, ServerConnection, access_to

logger = logging.getLogger(__name__)


class Heartbeats(Protocol):
    """A background sender; see ``dist_net.wire.heartbeat.HeartbeatSender``."""

    answer: tuple[Message, float] | None

    def stop(self) -> None: ...


class Environment(Protocol):
    """A worker loop's clock, random numbers, network and shared memory."""

    @property
    def clock(self) -> Clock: ...
    @property
    def random(self) -> Random: ...
    def connect(self, standby: Standby | None = None) -> ServerConnection: ...
    def start_heartbeats(self, worker_id: int, identity: int, interval_s: float) -> Heartbeats: ...
    @property
    def shares_memory(self) -> bool: ...

    def attach(self, address: SegmentAddress, size: int) -> SharedVectors:
        """Map vectors of the server. Raise ``SegmentError`` if they cannot be mapped."""
        ...


class ProcessEnvironment:
    def __init__(self, server: ServerAccess, shares_memory: bool) -> None:
        self._given = self._server = server
        self._hang_ups_s = SETTLED_S
        is_near = contact_address(server.address).stays_on_this_host
        self.shares_memory = shares_memory and is_near and available()
        self.clock: Clock = SystemClock()
        self.random: Random = SystemRandom()

    def connect(self, standby: Standby | None = None) -> ServerConnection:
        """Connect; only the first time, hang-ups mean other keys: later, a proxy without server."""
        hang_ups_s, self._hang_ups_s = self._hang_ups_s, math.inf
        self._server = access_to(standby, self._given)
        return ClientSocket(*self._server, hang_ups_s=hang_ups_s)

    def start_heartbeats(self, worker_id: int, identity: int, interval_s: float) -> Heartbeats:
        sender = HeartbeatSender(*self._server, worker_id, interval_s, self.clock, identity)
        sender.start()
        return sender

    def attach(self, address: SegmentAddress, size: int) -> SharedVectors:
        return Segment.attach(address, size)


class WorkerLoop(AbstractContextManager["WorkerLoop"]):
    """Train for ``server`` until the run is over.

    ``local_of`` returns the local steps for a run's settings. ``join`` is the request to join; this
    object draws its identity, and states stay in shared memory only for a server on this host. The
    server must answer the first message within ``join_timeout_s``. Later, if it is silent for
    longer than its heartbeat timeout, the worker tries to rejoin for ``rejoin_timeout_s``.
    """

    def __init__(
        self,
        local_of: LocalStepsOf,
        server: ServerAccess,
        join: Join,
        *,
        join_timeout_s: float = 10.0,
        rejoin_timeout_s: float = REJOIN_TIMEOUT_S,
        environment: Environment | None = None,
    ) -> None:
        around = environment or ProcessEnvironment(server, join.shares_memory)
        self._around = around
        self._clock = around.clock
        self._local_of = local_of
        self._local: tuple[StepSettings, LocalSteps, StatePacking] | None = None
        self._join_timeout_s = join_timeout_s
        self._socket = around.connect()
        self._heartbeats: Heartbeats | None = None
        self._stop_requested: str | None = None
        self._shared: SharedVectors | None = None
        self._identity = around.random.getrandbits(63)
        join = join._replace(identity=self._identity, shares_memory=around.shares_memory)
        self._state = WorkerCycle(join, server.address, join_timeout_s, rejoin_timeout_s)

    def stop(self, reason: str) -> None:
        """Leave the run in the next turn of the loop; may be called by a signal handler."""
        self._stop_requested = reason

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._end_membership()
        self._socket.close()

    def train(self) -> Ended:
        """Train until the run is over; return its end.

        Raise ``NoAnswerError`` if the server never answers, ``ServerLostError`` if it stays silent
        until the rejoin timeout, and ``JoinRefusedError`` or ``WorkerRefusedError``.
        """
        for _ in self.steps():
            pass
        return self.ended

    def steps(self) -> Iterator[tuple[Vector, Minibatch]]:
        """Yield the weights and the minibatch before each local step, and wait for messages.

        Set ``ended`` at the end, and raise as ``train`` does.
        """
        turns, message = self.turns(), None
        try:
            while True:
                command = turns.send(message)
                message = None
                if isinstance(command, Receive):
                    message = self._socket.receive(command.timeout_s)
                elif self._local is not None:
                    yield self._local[1].due
        except StopIteration as end:
            self.ended: Ended = end.value

    def turns(self) -> Generator[Receive | Compute, Message | None, Ended]:
        """Yield before each wait, to be sent the message or None, and before each local step.

        Return and raise as ``train`` does.
        """
        commands = deque(self._state.start(self._clock.now()))
        while True:
            if not commands:
                commands.extend(self._state.next_commands(self._clock.now()))
            try:
                match command := commands.popleft():
                    case Receive():
                        commands.extend(self._received((yield command)))
                    case Compute():
                        commands.extend((yield from self._compute(command)))
                    case SendToServer(message):
                        self._socket.send(message)
                    case Reconnect(standby):
                        self._end_membership()
                        self._socket.abandon()
                        self._socket = self._around.connect(standby)
                    case Begin(welcome):
                        self._begin(welcome)
                    case Ended():
                        return command
            except SegmentError as error:  # such as too little address space (ulimit -v)
                now = self._clock.now()
                commands = deque(self._state.rejoin_with_frames(str(error), now))

    def _compute(self, command: Compute) -> Generator[Compute, None, list[WorkerCommand]]:
        """Take the local steps of a lease; yield before each, and stop early on request."""
        assert self._local is not None
        _, local, packing = self._local
        if self._shared is not None:
            base = self._shared.vector(BASE)
        elif command.state is not None:
            base = np.empty(local.rule.state_size, np.float32)
            packing.unpack_base(command.state, out=base)
        else:
            raise ProtocolError("the server sent no state; expected one with each lease")
        seen = None
        for _ in local.take(base, command.lease):
            yield command
            if self._stop_requested is not None:
                return self._state.leave(self._stop_requested)
            if self._heartbeats is not None and self._heartbeats.answer is not seen:
                seen = self._heartbeats.answer
                if seen and (ended := self._state.heartbeat_answered(*seen, self._clock.now())):
                    return ended
        if self._shared is None:
            sent = packing.pack_result(base, local.state)
        else:
            sent = None
            np.copyto(self._shared.vector(RESULT), local.state)
        return self._state.computed(local.loss_sum, local.correct, sent, self._clock.now())

    def _received(self, message: Message | None) -> list[WorkerCommand]:
        now = self._clock.now()
        if self._stop_requested is not None:
            return self._state.leave(self._stop_requested)
        if self._heartbeats is not None:
            return self._state.received(message, now, self._heartbeats.answer)
        try:
            return self._state.received(message, now)
        except ServerLostError as error:
            raise self._socket.no_answer(self._join_timeout_s) from error

    def _begin(self, welcome: Welcome) -> None:
        pulse = welcome.worker_id, self._identity, welcome.heartbeat_interval_s
        self._heartbeats = self._around.start_heartbeats(*pulse)  # compiling may take seconds
        if self._local is None or self._local[0] != welcome.steps:
            local = self._local_of(welcome.steps)
            self._local = welcome.steps, local, StatePacking(*local.rule.sizes)
        _, local, _ = self._local
        if welcome.segment is not None:
            self._shared = self._around.attach(welcome.segment, local.rule.state_size)
        logger.info(
            "joined worker=%d term=%x shared_memory=%s",
            welcome.worker_id,
            welcome.term,
            self._shared is not None,
        )

    def _end_membership(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.stop()
        if self._shared is not None:
            self._shared.close()
            self._shared = None
