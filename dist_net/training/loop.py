"""The training worker's process: a loop that connects its state machine to sockets and memory."""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable
from typing import Protocol, Self

import numpy as np

from dist_net.clock import Clock, SystemClock
from dist_net.errors import SegmentError, ServerLostError
from dist_net.training.state import (
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
from dist_net.wire.heart import Heart
from dist_net.wire.messages import NO_SEGMENT, PIPELINE, UNKNOWN_EQUIPMENT, Equipment, Join, Welcome
from dist_net.wire.security import PeerKeys
from dist_net.wire.segment import Segment, available
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)


class MinibatchStep(Protocol):
    """What computes a minibatch; see ``dist_net.training.step.TrainingStep``."""

    def gather(self, epoch: int, start: int, stop: int) -> None:
        """Gathers the minibatch."""
        ...

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        """Fills ``gradient``; gives the summed loss and the number of right answers."""
        ...

    def unbind(self) -> None:
        """Lets go of every vector that it was given."""
        ...


class WorkerLoop:
    """Trains for the server at ``address`` until there is no more to do.

    ``step_of`` makes what computes, for the run's seed. ``recipe_digest`` and ``vector_size`` must
    be the server's. With ``shares_memory`` weights and gradients stay in shared memory, for a
    server on this host. ``join_timeout_s`` is how long the server may take to answer the first
    message; later its heartbeat timeout holds, and then the worker tries for ``rejoin_timeout_s``
    to join again. ``equipment`` is what the server's status shows.
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
        clock: Clock | None = None,
        equipment: Equipment = UNKNOWN_EQUIPMENT,
    ) -> None:
        self._step_of = step_of
        self._step: MinibatchStep | None = None
        self._seed: int | None = None
        self._address = address
        self._keys = keys
        self._join_timeout_s = join_timeout_s
        self._clock = clock or SystemClock()
        self._socket = ClientSocket(address, keys)
        self._heart: Heart | None = None
        self._stop_requested: str | None = None
        self._own = (
            Segment.create(PIPELINE.gradients, vector_size)
            if shares_memory and available()
            else None
        )
        self._weights = ReceivedWeights(vector_size)
        self._gradients = [
            self._own.vector(slot) if self._own else np.empty(vector_size, np.float32)
            for slot in range(PIPELINE.gradients)
        ]
        self._sends_gradient = True
        own_address = self._own.address if self._own else NO_SEGMENT
        join = Join(name, secrets.randbits(63), recipe_digest, vector_size, *own_address)
        join = join._replace(**equipment._asdict())
        self._state = WorkerState(join, address, join_timeout_s, rejoin_timeout_s)

    def stop(self, reason: str) -> None:
        """Leaves the run as soon as the loop comes round; may be called by a signal handler."""
        self._stop_requested = reason

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._heart is not None:
            self._heart.stop()
        self._socket.close()
        self._step = None  # its plans are bound to the memory
        self._weights.detach()
        if self._own is not None:
            self._gradients.clear()
            self._own.close()

    def train(self) -> Ended:
        """Returns what the server said last.

        Raises NoAnswerError when it never answered, ServerLostError when it has said nothing for as
        long as the worker tries to join again, and
        JoinRefusedError or WorkerRefusedError when it will not have this worker.
        """
        commands = deque(self._state.start(self._clock.now()))
        while True:
            if not commands:
                commands.extend(self._state.next_commands(self._clock.now()))
            command = commands.popleft()
            if isinstance(command, Ended):
                return command
            commands.extend(self._carry_out(command))

    def _carry_out(self, command: WorkerCommand) -> list[WorkerCommand]:
        match command:
            case SendToServer(message):
                self._socket.send(message)
            case Reconnect():
                self._reconnect()
            case Receive(timeout_s):
                return self._receive(timeout_s)
            case Gather(epoch, start, stop) if self._step is not None:
                self._step.gather(epoch, start, stop)
            case Compute() if self._step is not None:
                gradient = self._gradients[command.slot]
                loss_sum, correct = self._step.run(self._weights.of(command), gradient)
                sent = gradient if self._sends_gradient else None
                return self._state.computed(loss_sum, correct, sent, self._clock.now())
            case Begin(welcome):
                self._begin(welcome)
        return []

    def _receive(self, timeout_s: float) -> list[WorkerCommand]:
        message = self._socket.receive(timeout_s)
        now = self._clock.now()
        if self._stop_requested is not None:
            return self._state.leave(self._stop_requested)
        if self._heart is not None:
            return self._state.received(message, now, self._heart.answer)
        try:
            return self._state.received(message, now)
        except ServerLostError as error:
            raise self._socket.no_answer(self._join_timeout_s) from error

    def _reconnect(self) -> None:
        if self._heart is not None:
            self._heart.stop()
        self._socket.abandon()
        self._socket = ClientSocket(self._address, self._keys)

    def _begin(self, welcome: Welcome) -> None:
        self._sends_gradient = welcome.weights_descriptor == -1
        if self._sends_gradient:
            self._socket.lend(self._gradients)
        self._weights.attach(welcome)
        if self._heart is not None:
            self._heart.stop()
        interval_s = welcome.heartbeat_interval_s
        self._heart = Heart(self._address, self._keys, welcome.worker_id, interval_s, self._clock)
        self._heart.start()
        if self._step is None or welcome.seed != self._seed:
            self._step, self._seed = self._step_of(welcome.seed), welcome.seed
        self._step.unbind()  # its vectors may be those of a server that is gone
        logger.info(
            "joined worker=%d incarnation=%s shared_memory=%s",
            *(welcome.worker_id, welcome.incarnation, not self._sends_gradient),
        )


class ReceivedWeights:
    """Where a worker reads weights: the server's snapshots, or a vector that frames fill."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._segment: Segment | None = None
        self._received = np.empty(0, np.float32)

    def attach(self, welcome: Welcome) -> None:
        """Maps the server's snapshots, if this worker was given them."""
        self.detach()
        if welcome.weights_descriptor != -1:
            self._segment = Segment.attach(
                welcome.process_id, welcome.weights_descriptor, welcome.segment_token, self._size
            )
        else:
            self._received = np.empty(self._size, np.float32)

    def of(self, work: Compute) -> Vector:
        """The weights of this piece of work; raises SegmentError if they are nowhere."""
        if work.weights is not None:
            # Copied, so that plans are bound once and not to every frame.
            np.copyto(self._received, work.weights)
            return self._received
        if self._segment is None:
            raise SegmentError(f"the server sent snapshot {work.snapshot}, expected weights")
        return self._segment.vector(work.snapshot)

    def detach(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None
