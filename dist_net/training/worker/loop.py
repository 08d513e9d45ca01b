"""The training worker's process: a loop that connects its state machine to sockets and memory.

``WorkerLoop.turns`` is the loop as a generator that yields before each wait; ``WorkerLoop.train``
drives it and waits. The ``Environment`` is this process's or a simulation's.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from random import Random, SystemRandom
from typing import Protocol, Self

import numpy as np

from dist_net.clock import Clock, SystemClock
from dist_net.errors import NoAnswerError, ProtocolError, SegmentError, ServerLostError
from dist_net.optim import UpdateRule
from dist_net.training.worker.local_steps import LeaseSteps, LocalSteps, MinibatchStep
from dist_net.training.worker.part_processes import PartProcesses
from dist_net.training.worker.state import (
    REJOIN_TIMEOUT_S,
    Begin,
    Compute,
    Ended,
    Gather,
    Receive,
    Reconnect,
    SendToServer,
    WorkerCommand,
    WorkerState,
)
from dist_net.vector import Vector
from dist_net.wire.heartbeat import HeartbeatSender
from dist_net.wire.local_channel import LocalChannel
from dist_net.wire.messages import (
    PIPELINE,
    UNKNOWN_EQUIPMENT,
    Equipment,
    Join,
    Message,
    SegmentAddress,
    Welcome,
)
from dist_net.wire.packing import BLOCKS, pack_difference, unpack_weights
from dist_net.wire.security import PeerKeys
from dist_net.wire.segment import Segment, SharedVectors, available
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)

# The server may be waiting for this worker's core. Yielding between two minibatches interrupts
# nothing; otherwise the server waits for the end of a time slice, and the pipeline runs empty.
let_others_run = getattr(os, "sched_yield", lambda: None)


class ServerConnection(Protocol):
    """A worker's connection to its server; see ``dist_net.wire.transport.ClientSocket``."""

    def send(self, message: Message) -> None: ...
    def lend(self, vectors: Iterable[Vector]) -> None: ...
    def receive(self, timeout_s: float) -> Message | None: ...
    def abandon(self) -> None: ...
    def close(self) -> None: ...
    def no_answer(self, waited_s: float) -> NoAnswerError: ...


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
    def connect(self) -> ServerConnection: ...

    def open_channel(self) -> ServerConnection | None:
        """Connect directly to a server on this host; return None if impossible."""
        ...

    def start_heartbeats(self, worker_id: int, identity: int, interval_s: float) -> Heartbeats: ...

    def share(self, vectors: int, size: int) -> SharedVectors | None:
        """Create vectors in shared memory; return None if memory is not shared."""
        ...

    def attach(self, address: SegmentAddress, size: int) -> SharedVectors:
        """Map the server's vectors. Raise ``SegmentError`` if they cannot be mapped."""
        ...


class ProcessEnvironment:
    """The environment of a real process; its server is at ``address``."""

    def __init__(self, address: str, keys: PeerKeys | None, shares_memory: bool) -> None:
        self._address = address
        self._keys = keys
        self._shares_memory = shares_memory
        self.clock: Clock = SystemClock()
        self.random: Random = SystemRandom()

    def connect(self) -> ServerConnection:
        return ClientSocket(self._address, self._keys)

    def open_channel(self) -> ServerConnection | None:
        try:
            return LocalChannel(self._address)
        except OSError as error:
            logger.info("no_channel address=%s reason=%s", self._address, error)
            return None

    def start_heartbeats(self, worker_id: int, identity: int, interval_s: float) -> Heartbeats:
        sender = HeartbeatSender(
            self._address, self._keys, worker_id, interval_s, self.clock, identity
        )
        sender.start()
        return sender

    def share(self, vectors: int, size: int) -> SharedVectors | None:
        if not (self._shares_memory and available()):
            return None
        try:
            return Segment.create(vectors, size)
        except SegmentError as error:
            logger.warning("shared_memory_unavailable reason=%s", error)
            return None

    def attach(self, address: SegmentAddress, size: int) -> SharedVectors:
        return Segment.attach(address, size)


class WorkerLoop:
    """Train for the server at ``address`` until the run is over.

    ``step_of`` returns the ``MinibatchStep`` for the run's seed. ``recipe_digest`` and
    ``vector_size`` must equal the server's. With ``shares_memory``, weights and gradients stay in
    shared memory, for a server on this host. The server must answer the first message within
    ``join_timeout_s``. Later, if it is silent for longer than its heartbeat timeout, the worker
    tries to rejoin for ``rejoin_timeout_s``. The server's status shows ``equipment``.
    ``rule_of`` returns the rule of local steps for the text of an optimizer and a ``clip_norm``.
    Leases of local steps have ``parts`` parts at the most, which ``processes`` take if given.
    """

    def __init__(
        self,
        step_of: Callable[[int], MinibatchStep],
        address: str,
        name: str,
        recipe_digest: str,
        vector_size: int,
        keys: PeerKeys | None = None,
        shares_memory: bool = False,
        join_timeout_s: float = 10.0,
        rejoin_timeout_s: float = REJOIN_TIMEOUT_S,
        equipment: Equipment = UNKNOWN_EQUIPMENT,
        rule_of: Callable[[str, float | None], UpdateRule] | None = None,
        parts: int = 1,
        processes: PartProcesses | None = None,
        environment: Environment | None = None,
    ) -> None:
        around = environment or ProcessEnvironment(address, keys, shares_memory)
        self._around = around
        self._clock = around.clock
        self._step_of = step_of
        self._rule_of = rule_of
        self._processes = processes
        self._local: LocalSteps | None = None
        self._step: MinibatchStep | None = None
        self._seed: int | None = None
        self._join_timeout_s = join_timeout_s
        self._socket = around.connect()
        self._heartbeats: Heartbeats | None = None
        self._stop_requested: str | None = None
        self._own = around.share(PIPELINE.gradients, vector_size)
        self._weights = ReceivedWeights(vector_size, around.attach)
        self._gradients = [
            self._own.vector(slot) if self._own else np.empty(vector_size, np.float32)
            for slot in range(PIPELINE.gradients)
        ]
        self._sends_gradient = True
        own_address = self._own.address if self._own else None
        self._identity = around.random.getrandbits(63)
        facts = recipe_digest, vector_size, own_address
        join = Join(name, self._identity, *facts, equipment=equipment, parts=parts)
        self._state = WorkerState(join, address, join_timeout_s, rejoin_timeout_s)

    def stop(self, reason: str) -> None:
        """Leave the run in the next turn of the loop; may be called by a signal handler."""
        self._stop_requested = reason

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.stop()
        self._socket.close()
        self._step = self._local = None  # its plans are bound to the memory
        self._weights.detach()
        if self._own is not None:
            self._gradients.clear()
            self._own.close()

    def train(self) -> Ended:
        """Train until the run is over; return its end.

        Raise ``NoAnswerError`` if the server never answers, ``ServerLostError`` if it stays silent
        until the rejoin timeout, and ``JoinRefusedError`` or ``WorkerRefusedError`` if it refuses
        this worker.
        """
        turns, message = self.turns(), None
        try:
            while True:
                command = turns.send(message)
                message = None
                if isinstance(command, Receive):
                    message = self._socket.receive(command.timeout_s)
                else:
                    let_others_run()
        except StopIteration as end:
            ended: Ended = end.value
            return ended

    def turns(self) -> Generator[Receive | Compute, Message | None, Ended]:
        """Yield before each wait, to be sent the message or None, and before each computation.

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
                    case Compute(local=LeaseSteps() as lease):
                        commands.extend((yield from self._take_local_steps(command, lease)))
                    case Compute(slot=slot) if self._step is not None:
                        yield command
                        gradient = self._gradients[slot]
                        result = self._step.run(self._weights.read(command), gradient)
                        kept = gradient if self._sends_gradient else None
                        commands.extend(self._state.computed(*result, kept, self._clock.now()))
                    case SendToServer(message):
                        self._socket.send(message)
                    case Gather(epoch, start, stop) if self._step is not None:
                        self._step.gather(epoch, start, stop)
                    case Reconnect():
                        self._reconnect()
                    case Begin(welcome):
                        self._begin(welcome)
                    case Ended():
                        return command
            except SegmentError as error:  # such as too little address space (ulimit -v)
                now = self._clock.now()
                commands = deque(self._state.rejoin_with_frames(str(error), now))

    def _take_local_steps(
        self, command: Compute, lease: LeaseSteps
    ) -> Generator[Compute, None, list[WorkerCommand]]:
        """Take the local steps of a lease; yield before each, and leave if this is requested."""
        local, difference = self._local, self._gradients[command.slot]
        if local is None:
            raise ProtocolError("the server requests local steps, but this worker has no rule_of")
        if lease.bits not in BLOCKS:
            raise ProtocolError(
                f"the server requests elements of {lease.bits} bits; expected 8 or 4"
            )
        steps = self._processes or local
        for _ in steps.take(self._weights.read(command), lease, out=difference):
            yield command
            if self._stop_requested is not None:
                return self._state.leave(self._stop_requested)
        kept = None
        if self._sends_gradient:
            kept = pack_difference(difference, local.buffers, lease.bits)
        return self._state.computed(steps.loss_sum, steps.correct, kept, self._clock.now())

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

    def _reconnect(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.stop()
        self._socket.abandon()
        self._socket = self._around.connect()

    def _begin(self, welcome: Welcome) -> None:
        self._weights.attach(welcome)
        self._sends_gradient = welcome.segment is None
        if self._sends_gradient:
            self._socket.lend(self._gradients)
        elif (channel := self._around.open_channel()) is not None:
            self._socket.close()
            self._socket = channel
        if self._heartbeats is not None:
            self._heartbeats.stop()
        pulse = welcome.worker_id, self._identity, welcome.heartbeat_interval_s
        self._heartbeats = self._around.start_heartbeats(*pulse)
        if self._step is None or welcome.seed != self._seed:
            self._step, self._seed = self._step_of(welcome.seed), welcome.seed
        self._step.unbind()  # its vectors may belong to a former server
        self._local = None
        if welcome.optimizer and self._rule_of is not None:
            rule = self._rule_of(welcome.optimizer, welcome.clip_norm or None)
            self._local = LocalSteps(self._step, rule, welcome.batch_size)
        if self._processes is not None:
            self._processes.begin(welcome)
        logger.info(
            "joined worker=%d incarnation=%s shared_memory=%s",
            *(welcome.worker_id, welcome.incarnation, not self._sends_gradient),
        )


class ReceivedWeights:
    """The weights for a worker's steps: the server's snapshots, or a copy of received frames."""

    def __init__(self, size: int, attach: Callable[[SegmentAddress, int], SharedVectors]) -> None:
        self._size = size
        self._attach = attach
        self._segment: SharedVectors | None = None
        self._received = np.empty(0, np.float32)

    def attach(self, welcome: Welcome) -> None:
        """Map the server's snapshots, or allocate a vector for frames."""
        self.detach()
        if welcome.segment is not None:
            self._segment = self._attach(welcome.segment, self._size)
        else:
            self._received = np.empty(self._size, np.float32)

    def read(self, work: Compute) -> Vector:
        """Return the weights for a computation. Raise ``SegmentError`` if they cannot be mapped."""
        if work.weights is not None:
            # Copied, so that plans are bound to one vector and not to every frame.
            unpack_weights(work.weights, out=self._received)
            return self._received
        if self._segment is None:
            raise ProtocolError(f"the server sent snapshot {work.snapshot}, expected weights")
        return self._segment.vector(work.snapshot)

    def detach(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None
