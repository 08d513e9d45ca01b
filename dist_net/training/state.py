"""A training worker's cycle as a state machine: what happened comes in, what to do comes out.

    Join ─▶ Welcome ─▶ Pull ─▶ Work ─▶ compute ─▶ Push ─▶ Work ─▶ compute ─▶ ... ─▶ Stop ─▶ Leave

One request is outstanding at a time. While a push is acknowledged, the next minibatch of the
lease is prepared. No I/O; times are seconds on one clock that never goes backwards.
"""

import logging
import math
from typing import NamedTuple

from dist_net.errors import (
    JoinRefusedError,
    ProtocolError,
    ServerLostError,
    WorkerRefusedError,
)
from dist_net.wire.messages import (
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    Stop,
    Vector,
    Wait,
    Welcome,
    Work,
)

logger = logging.getLogger(__name__)

LONGEST_ANSWER_S = 60.0  # with which even a server that is alive has lost the request

# A server that is busy answers late, and then all its workers would leave it at once: it is given
# more time than it gives them.
PATIENCE = 3


class Send(NamedTuple):
    """Send the message to the server."""

    message: Message


class Begin(NamedTuple):
    """The worker is in (again): set up for this welcome, and send heartbeats from now on."""

    welcome: Welcome


class Prepare(NamedTuple):
    """Gather samples ``start`` to ``stop`` of the shuffled order of ``epoch``."""

    epoch: int
    start: int
    stop: int


class Compute(NamedTuple):
    """Compute the gradient of these samples, prepared last, then call ``WorkerState.computed``.

    The weights are buffer ``snapshot`` of the server's segment; -1: ``weights`` holds them.
    """

    epoch: int
    start: int
    stop: int
    snapshot: int
    weights: Vector | None


class Done(NamedTuple):
    """The worker has no more to do: ``finished``, every epoch is done."""

    reason: str
    finished: bool


Command = Send | Begin | Prepare | Compute | Done


class WorkerState:
    """One worker. ``join`` is what it introduces itself with, each time that it joins.

    ``address`` is only for messages to people. ``join_timeout_s`` is how long the server may take
    to answer at first; once the worker is in, ``PATIENCE`` times the heartbeat timeout.

    Answers come in the order of the requests. Those that a request brings twice, because the
    network delivered it twice, are told from the one that is awaited, and dropped.
    """

    def __init__(self, join: Join, address: str, join_timeout_s: float = 10.0) -> None:
        self._join = join
        self._address = address
        self._answer_timeout_s = join_timeout_s
        self._worker_id = 0
        self._batch_size = 0
        self._work: Work | None = None
        self._prepared: Prepare | None = None
        self._computing: Compute | None = None
        self._pushed: Push | None = None
        self._asked_s: float | None = None
        self._heard_s = -math.inf
        self._pull_at_s: float | None = None

    @property
    def wakes_at_s(self) -> float | None:
        """When ``tick`` next has something to do, if no message comes before; None: never."""
        if self._asked_s is None:
            return self._pull_at_s
        silent_since_s = max(self._asked_s, self._heard_s)
        return min(silent_since_s + self._answer_timeout_s, self._asked_s + LONGEST_ANSWER_S)

    def start(self, now: float) -> list[Command]:
        """Ask to take part."""
        self._worker_id = 0
        self._work = self._pushed = None
        return [self._ask(self._join, now)]

    def handle(self, message: Message, now: float) -> list[Command]:
        """Take in the server's answer.

        Raises ``JoinRefusedError`` or ``WorkerRefusedError`` when the server will not have it.
        """
        if self._asked_s is None or not self._is_awaited(message):
            logger.debug("repeated_message kind=%s", type(message).__name__)
            return []
        self._asked_s = None
        match message:
            case Work():
                return self._begin_work(message)
            case Wait():
                self._pull_at_s = now + message.retry_after_s
                return []
            case Welcome():
                self._worker_id = message.worker_id
                self._batch_size = message.batch_size
                self._answer_timeout_s = PATIENCE * message.heartbeat_timeout_s
                return [Begin(message), self._ask(Pull(self._worker_id), now)]
            case Stop():
                return self.leave(message.reason, message.finished)
            case Refuse():
                return self._refused(message, now)
        raise ProtocolError(
            f"the parameter server at {self._address} answered with {type(message).__name__}: "
            f"expected an answer to a worker; check that the address is a parameter server's"
        )

    def computed(
        self, loss_sum: float, correct: int, gradient: Vector | None, now: float
    ) -> list[Command]:
        """Push the gradient of the last ``Compute``; None: it is in shared memory.

        The next minibatch of the lease is prepared while the push is on its way.
        """
        work, minibatch = self._work, self._computing
        if work is None or minibatch is None:
            raise RuntimeError("computed() was called without a Compute command before it")
        self._computing = None
        self._pushed = Push(
            self._worker_id,
            work.lease_id,
            minibatch.start,
            minibatch.stop,
            work.version,
            loss_sum,
            correct,
            gradient,
        )
        commands: list[Command] = [self._ask(self._pushed, now)]
        if minibatch.stop < work.stop:
            commands.append(self._prepare(work, minibatch.stop))
        return commands

    def heartbeat_answered(self, answer: Message, sent_s: float, now: float) -> list[Command]:
        """Take in the answer to a heartbeat that was sent at ``sent_s``.

        The server is alive, though its answer to the last request may take long: arrays as frames
        are slow on some networks. A server that does not know this worker will not answer that.
        """
        self._heard_s = max(self._heard_s, sent_s)
        if isinstance(answer, Refuse) and self._worker_id and self._asked_s is not None:
            return self._refused(answer, now)
        return []

    def is_overdue(self, now: float) -> bool:
        """Whether an answer is awaited, and the server has been silent for too long."""
        wakes_at_s = self.wakes_at_s
        return self._asked_s is not None and wakes_at_s is not None and now > wakes_at_s

    def tick(self, now: float) -> list[Command]:
        """Do what is due at ``now``; raises ``ServerLostError`` when the answer is overdue."""
        if self._asked_s is not None and self.is_overdue(now):
            silent_s = now - max(self._asked_s, self._heard_s)
            raise server_lost(self._address, silent_s, joined=self._worker_id != 0)
        if self._pull_at_s is not None and now >= self._pull_at_s:
            self._pull_at_s = None
            return [self._ask(Pull(self._worker_id), now)]
        return []

    def leave(self, reason: str, finished: bool = False) -> list[Command]:
        """Go away, on the server's word or of one's own accord."""
        self._asked_s = self._pull_at_s = self._computing = None
        done = Done(reason, finished)
        return [Send(Leave(self._worker_id)), done] if self._worker_id else [done]

    def _ask(self, message: Message, now: float) -> Send:
        self._asked_s = now
        return Send(message)

    def _is_awaited(self, message: Message) -> bool:
        match message:
            case Welcome():
                return self._worker_id == 0
            case Work():
                # One that leads back to samples that are pushed answers an earlier request.
                pushed = self._pushed
                return self._worker_id != 0 and (
                    pushed is None
                    or message.lease_id != pushed.lease_id
                    or message.start >= pushed.stop
                )
            case Wait():
                return self._worker_id != 0
        return True

    def _begin_work(self, work: Work) -> list[Command]:
        self._work = work
        ready, minibatch = self._prepared, self._prepare(work, work.start)
        self._computing = Compute(*minibatch, work.snapshot, work.weights)
        return [self._computing] if ready == minibatch else [minibatch, self._computing]

    def _prepare(self, work: Work, start: int) -> Prepare:
        stop = min(start + self._batch_size, work.stop)
        self._prepared = Prepare(work.epoch, start, stop)
        return self._prepared

    def _refused(self, refuse: Refuse, now: float) -> list[Command]:
        if refuse.may_rejoin:
            logger.warning("rejoining reason=%s", refuse.reason)
            return self.start(now)
        error = WorkerRefusedError if self._worker_id else JoinRefusedError
        raise error(f"the parameter server at {self._address} refused this worker: {refuse.reason}")


def server_lost(address: str, silent_s: float, *, joined: bool) -> ServerLostError:
    """Return the error for a server that did not answer for so long, to a member or at a join."""
    if joined:
        return ServerLostError(
            f"the parameter server at {address} has been silent for {silent_s:.1f} s: it ended, or "
            f"the network is cut; expected an answer by now: resume it from its checkpoint, then "
            f"start this worker again"
        )
    return ServerLostError(
        f"no parameter server answered at {address} within {silent_s:.1f} s; expected one to "
        f"listen there: check the address, and its keys, and that it was started"
    )
