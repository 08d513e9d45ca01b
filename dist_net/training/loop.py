"""The training worker's process: a loop that connects its state machine to sockets and memory."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol, Self

import numpy as np

from dist_net.clock import Clock, SystemClock
from dist_net.errors import SegmentError
from dist_net.training.commands import Begin, WorkerCommand, Compute, Ended, Gather, SendToServer
from dist_net.training.inbox import Inbox
from dist_net.training.state import GRADIENT_SLOTS, WorkerState
from dist_net.vector import Vector
from dist_net.wire.heart import Heart
from dist_net.wire.messages import Join, Message, Welcome
from dist_net.wire.security import PeerKeys
from dist_net.wire.segment import Segment, available
from dist_net.wire.transport import ClientSocket
from dist_net.wire.wakefulness import Wakefulness

logger = logging.getLogger(__name__)

POLL_S = 0.2


class MinibatchStep(Protocol):
    """What computes a minibatch; see ``dist_net.training.step.TrainingStep``."""

    def prepare(self, epoch: int, start: int, stop: int) -> None:
        """Gathers the minibatch."""
        ...

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        """Fills ``gradient``; gives the summed loss and the number of right answers."""
        ...


class WorkerLoop:
    """Trains for the server at ``address`` until that says that there is no more to do.

    ``step_of`` makes the computing part for the run's seed. ``recipe_digest`` and
    ``vector_size`` are compared with the server's. With ``shares_memory`` weights and gradient
    stay in shared memory, for a server on this host. ``join_timeout_s`` is how long the server may
    take to answer at first; later its own heartbeat timeout holds. ``is_orphaned`` tells whether
    whoever started this process is gone, and the server with it.
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
        is_orphaned: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
    ) -> None:
        self._step_of = step_of
        self._step: MinibatchStep | None = None
        self._address = address
        self._keys = keys
        self._join_timeout_s = join_timeout_s
        self._is_orphaned = is_orphaned
        self._clock = clock or SystemClock()
        self._socket = ClientSocket(address, keys)
        self._heart: Heart | None = None
        self._stop_requested: str | None = None
        self._vector_size = vector_size
        self._own = (
            Segment.create(GRADIENT_SLOTS, vector_size) if shares_memory and available() else None
        )
        self._inbox = Inbox(self._socket, self._own.note if self._own else None)
        self._wakeful: Wakefulness[Message] = Wakefulness(self._inbox, self._clock)
        self._weights = ReceivedWeights(vector_size)
        self._gradients = [
            self._own.vector(slot) if self._own else np.empty(vector_size, np.float32)
            for slot in range(GRADIENT_SLOTS)
        ]
        self._sends_gradient = True
        self._state = WorkerState(
            Join(
                name,
                recipe_digest,
                vector_size,
                self._own.process_id if self._own else 0,
                self._own.descriptor if self._own else -1,
                self._own.token if self._own else b"",
            ),
            address,
            join_timeout_s,
        )

    def stop(self, reason: str) -> None:
        """Leaves the run as soon as the loop comes round; may be called by a signal handler."""
        self._stop_requested = reason

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the heartbeats and lets go of socket and memory."""
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

        Raises NoAnswerError when it never answered and ServerLostError when it says nothing more,
        JoinRefusedError or WorkerRefusedError when it will not have this worker.
        """
        commands = deque(self._state.start(self._clock.now()))
        while True:
            while commands:
                command = commands.popleft()
                if isinstance(command, Ended):
                    return command
                commands.extendleft(reversed(self._carry_out(command)))
            has_minibatch = self._state.can_compute
            if has_minibatch:
                _let_others_in()
            message = self._inbox.receive(0) if has_minibatch else self._listen()
            if self._stop_requested is not None:
                commands.extend(self._state.leave(self._stop_requested))
            elif message is not None:
                commands.extend(self._take_in(message))
            elif not has_minibatch:
                commands.extend(self._tick())
            if not commands and self._state.can_compute:
                commands.extend(self._state.compute())

    def _take_in(self, message: Message) -> list[WorkerCommand]:
        """Handles the message, and those behind it, whose weights are newer."""
        while True:
            commands = self._state.handle(message, self._clock.now())
            if commands or not self._state.awaits_older_answer:
                return commands
            following = self._inbox.receive(0)
            if following is None:
                return commands
            message = following

    def _listen(self) -> Message | None:
        """The next message; None when none came in time."""
        message = self._wakeful.receive(self._patience_s())
        if message is None and self._state.is_overdue(self._clock.now()):
            # This process may have been stopped for a while, by SIGSTOP or with the whole
            # machine: then the answer has long been sent, and needs a moment to get here.
            message = self._inbox.receive(POLL_S)
        return message

    def _tick(self) -> list[WorkerCommand]:
        now = self._clock.now()
        if self._is_orphaned():
            return self._state.leave("the process that started this one is gone")
        if self._heart is None:
            if self._state.is_overdue(now):
                raise self._socket.no_answer(self._join_timeout_s)
        elif self._heart.answer is not None:
            answered = self._state.heartbeat_answered(*self._heart.answer, now)
            if answered:
                return answered
        return self._state.tick(now)

    def _patience_s(self) -> float:
        """How long to wait for a message: until something is due, but never long."""
        wakes_at_s = self._state.wakes_at_s
        due_s = POLL_S if wakes_at_s is None else wakes_at_s - self._clock.now()
        return min(max(due_s, 0.0), POLL_S)

    def _carry_out(self, command: WorkerCommand) -> list[WorkerCommand]:
        match command:
            case SendToServer(message):
                self._socket.send(message)
                self._wakeful.stay_awake()  # for the answer
            case Gather(epoch, start, stop) if self._step is not None:
                self._step.prepare(epoch, start, stop)
            case Compute() if self._step is not None:
                gradient = self._gradients[command.slot]
                loss_sum, correct = self._step.run(self._weights.of(command), gradient)
                sent = gradient if self._sends_gradient else None
                return self._state.computed(loss_sum, correct, sent, self._clock.now())
            case Begin(welcome):
                self._begin(welcome)
        return []

    def _begin(self, welcome: Welcome) -> None:
        self._inbox.forget()
        self._sends_gradient = welcome.weights_descriptor == -1
        if self._sends_gradient:
            self._socket.lend(self._gradients)
        self._weights.attach(welcome)
        if self._heart is not None:
            self._heart.stop()
        self._heart = Heart(
            self._address,
            self._keys,
            welcome.worker_id,
            welcome.heartbeat_interval_s,
            self._clock,
        )
        self._heart.start()
        self._step = self._step_of(welcome.seed)
        logger.info(
            "joined worker=%d shared_memory=%s", welcome.worker_id, not self._sends_gradient
        )


def _let_others_in() -> None:
    """Lets those run that wait for this core: the server, a socket's thread.

    Between two minibatches they interrupt nothing. Without it they wait until the worker does.
    """
    if hasattr(os, "sched_yield"):
        os.sched_yield()


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
                welcome.process_id,
                welcome.weights_descriptor,
                welcome.segment_token,
                self._size,
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
        """Lets go of the server's memory."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None
