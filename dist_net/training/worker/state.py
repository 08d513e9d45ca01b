"""A training worker's cycle as a state machine: events in, commands out. No I/O.

    Join ─▶ Welcome ─▶ Pull ─▶ Work ─▶ compute ─▶ Push ─▶ Work ─▶ compute ─▶ ... ─▶ Stop ─▶ Leave

While a push is in flight, the worker computes the next minibatch of its lease from the newest
weights it has, so it waits neither for the network nor for the server. One push contains as many
quickly computed gradients as the server permits: this causes fewer wake-ups, and the server applies
them in one pass over the weights. The price is additional staleness, by one or two of the worker's
gradients.

Requests are numbered. If the answer to a heartbeat shows that a request or its answer was lost with
a connection, the worker repeats the request, or pulls again.

If the server is silent, the worker drops its lease and tries to join again over fresh connections
until the server, or a restarted server, admits it. Times are seconds on one monotonic clock.
"""

import logging
import math
from collections import deque
from typing import NamedTuple

from dist_net.errors import (
    JoinRefusedError,
    ProtocolError,
    ServerLostError,
    WorkerRefusedError,
)
from dist_net.training.worker.local_steps import LeaseSteps
from dist_net.vector import Vector
from dist_net.wire.messages import (
    PIPELINE,
    Alive,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    Stop,
    Wait,
    Welcome,
    Work,
)

logger = logging.getLogger(__name__)

MAX_TRAVEL_S = 1.0
"""The time for a request and its answer, without the transfer of arrays."""

FIRST_TRY_S = 1.0
MAX_TRY_S = 5.0
"""The time to wait for an answer after rejoining, doubled for each try. ZeroMQ reconnects ten times
a second meanwhile; a fresh connection helps where TCP waits longer."""

REJOIN_TIMEOUT_S = 300.0

SLOWEST_BYTES_PER_S = 16_000.0
"""The assumed speed of a network before the first transfer."""

# A busy server answers late, and all its workers would leave at once. Therefore the worker waits
# for a multiple of the server's own timeout.
PATIENCE = 3

QUICK_STEP_S = 0.002
"""A gradient waits for the next if pushes are at most this far apart: a message costs 0.1 ms."""

MAX_WAIT_S = 0.2
"""The longest wait for a message; then the worker checks whether it should stop."""


class SendToServer(NamedTuple):
    """Send the message to the server."""

    message: Message


class Reconnect(NamedTuple):
    """Drop the connection with all messages in flight, connect again, and stop the heartbeats."""


class Receive(NamedTuple):
    """Wait for a message (0: do not wait), then call ``WorkerState.received``."""

    timeout_s: float


class Begin(NamedTuple):
    """The worker has joined: prepare for this welcome, and start to send heartbeats."""

    welcome: Welcome


class Gather(NamedTuple):
    """Gather samples ``start`` to ``stop`` of the shuffled order of ``epoch``."""

    epoch: int
    start: int
    stop: int


class Compute(NamedTuple):
    """Compute the gradient of the gathered samples, then call ``WorkerState.computed``.

    The weights are in buffer ``snapshot`` of the server's segment, or in ``weights`` if it is -1.
    With ``local``, take these local steps, of all of the lease, and compute the difference.
    """

    epoch: int
    start: int
    stop: int
    snapshot: int
    weights: Vector | None
    slot: int
    local: LeaseSteps | None = None


class Ended(NamedTuple):
    """The worker leaves the run; ``finished`` if every epoch is done."""

    reason: str
    finished: bool


WorkerCommand = SendToServer | Reconnect | Receive | Begin | Gather | Compute | Ended


class WorkerState:
    """One worker. It sends ``join`` each time it joins.

    ``address`` is only for messages to the user. The worker tries to join for ``join_timeout_s``.
    Afterwards, if the server is silent for ``PATIENCE`` times the heartbeat timeout, the worker
    tries to join again for ``rejoin_timeout_s``. Time in which the worker was stopped, as by
    SIGSTOP, does not count.

    Answers arrive in the order of the requests and repeat their numbers. Each membership has its
    connection, so no answer to a former one arrives.
    """

    def __init__(
        self,
        join: Join,
        address: str,
        join_timeout_s: float = 10.0,
        rejoin_timeout_s: float = REJOIN_TIMEOUT_S,
    ) -> None:
        self._join = join
        self._address = address
        self._answer_timeout_s = 0.0
        self._rejoin_timeout_s = rejoin_timeout_s
        self._was_in = False
        self._try_s = MAX_TRY_S  # the server may still be starting
        self._left_s = join_timeout_s
        self._worker_id = 0
        self._last_request_id = 0
        self._batch_size = 0
        self._takes_local_steps = False
        self._steps_began_s = 0.0
        self._work: Work | None = None
        self._next_sample = 0
        self._unpushed: Push | None = None
        self._pushed_s = -math.inf
        self._looks_first = False
        self._gathered: Gather | None = None
        self._computing: Compute | None = None
        self._unanswered: deque[tuple[Join | Pull | Push, float]] = deque()
        self._heard_s = -math.inf
        self._pull_at_s: float | None = None
        self._weights_bytes = 0  # sent with an answer
        self._seen_bytes_per_s = PATIENCE * SLOWEST_BYTES_PER_S

    @property
    def wakes_at_s(self) -> float | None:
        """The time for the next ``tick`` if no message arrives before; None for never."""
        return self._overdue_at_s if self._unanswered else self._pull_at_s

    @property
    def _overdue_at_s(self) -> float:
        """The time at which a missing answer is overdue."""
        return max(self._unanswered[0][1], self._heard_s) + self._answer_timeout_s

    def _bytes_of(self, request: Join | Pull | Push) -> int:
        """Return the size of the arrays in a request and its answer."""
        gradients = request.gradients if isinstance(request, Push) else ()
        return self._weights_bytes + sum(gradient.nbytes for gradient in gradients)

    @property
    def can_compute(self) -> bool:
        """Whether ``compute`` may be called; if so, the worker does not wait for messages."""
        work = self._work
        return (
            work is not None
            and self._next_sample < work.stop
            and len(self._taken_slots()) < min(work.depth * work.together, PIPELINE.gradients)
        )

    def _taken_slots(self) -> set[int]:
        """Return the slots of gradients that the server may still have to read."""
        pushes = [request for request, _ in self._unanswered if isinstance(request, Push)]
        if self._unpushed is not None:
            pushes.append(self._unpushed)
        return {slot for push in pushes for slot in push.slots}

    def next_commands(self, now: float) -> list[WorkerCommand]:
        """Return the next commands once all are carried out: compute, or receive a message."""
        work = self._work
        if work is None or not self.can_compute:
            if self._unpushed is None:
                return [Receive(self._patience_s(now))]
            return [self._push(self._unpushed, now)]  # the lease or the pipeline was shortened
        if self._looks_first:
            return [Receive(0)]
        taken = self._taken_slots()  # use the first free slot, so that few slots are used
        slot = next(slot for slot in range(PIPELINE.gradients) if slot not in taken)
        place = work.snapshot, work.weights, slot
        self._looks_first = True
        if self._takes_local_steps:
            samples = work.epoch, work.start, work.stop
            local = LeaseSteps(*samples, work.learning_rate, work.parts, work.bits)
            self._computing = Compute(*samples, *place, local)
            self._next_sample = work.stop
            return [self._computing]
        ready, minibatch = self._gathered, self._gather(work)
        self._computing = Compute(*minibatch, *place)
        self._next_sample = minibatch.stop
        return [self._computing] if ready == minibatch else [minibatch, self._computing]

    def _patience_s(self, now: float) -> float:
        """Return the time to wait for a message, at most ``MAX_WAIT_S``."""
        wakes_at_s = self.wakes_at_s
        if wakes_at_s is None or self.is_overdue(now):
            # If an answer is overdue, this process may have been stopped, by SIGSTOP or with the
            # whole machine. Then the answer was sent long ago and is about to be received.
            return MAX_WAIT_S
        return min(max(wakes_at_s - now, 0.0), MAX_WAIT_S)

    def received(
        self, message: Message | None, now: float, heartbeat: tuple[Message, float] | None = None
    ) -> list[WorkerCommand]:
        """Process the result of a ``Receive``; None if no message arrived in time.

        ``heartbeat`` is the newest answer to a heartbeat, and the time of that heartbeat. Raise
        ``JoinRefusedError`` or ``WorkerRefusedError`` if the server refuses this worker.
        """
        self._looks_first = False
        if message is None:
            return [] if self.can_compute else self._nothing_received(now, heartbeat)
        if isinstance(message, (Work, Wait, Welcome)) and (
            not self._unanswered or message.request_id < self._unanswered[0][0].request_id
        ):
            logger.debug("late_message kind=%s", type(message).__name__)
            self._looks_first = len(self._unanswered) > 1
            return []
        self._heard_s = now
        match message:
            case Work() | Wait():
                self._try_s, self._left_s = FIRST_TRY_S, self._rejoin_timeout_s
                if isinstance(message, Work):
                    self._take_in(message, now)
                    # Unless this answers the last request, newer weights may have arrived.
                    self._looks_first = len(self._unanswered) > 1
                else:
                    self._drop_lease()
                    self._pull_at_s = now + message.retry_after_s
                return []
            case Welcome():
                if not self._was_in:
                    self._was_in = True
                    self._try_s, self._left_s = FIRST_TRY_S, self._rejoin_timeout_s
                self._unanswered.clear()
                self._gathered = None  # the seed may differ
                self._worker_id = message.worker_id
                self._batch_size = message.batch_size
                self._takes_local_steps = message.optimizer != ""
                self._answer_timeout_s = PATIENCE * message.heartbeat_timeout_s
                has_frames = message.segment is None
                self._weights_bytes = 4 * self._join.vector_size if has_frames else 0
                return [Begin(message), self._pull(now)]
            case Stop():
                return self.leave(message.reason, message.finished)
            case Refuse():
                return self._refused(message, now)
        raise ProtocolError(
            f"the parameter server at {self._address} answered with {type(message).__name__}: "
            f"expected an answer to a worker; check that the address is a parameter server's"
        )

    def _nothing_received(
        self, now: float, heartbeat: tuple[Message, float] | None
    ) -> list[WorkerCommand]:
        commands = [] if heartbeat is None else self.heartbeat_answered(*heartbeat, now)
        return commands or self.tick(now)

    def start(self, now: float) -> list[WorkerCommand]:
        self._heard_s = now
        return self._try_to_join(now)

    def _try_to_join(self, now: float, join: Join | None = None) -> list[WorkerCommand]:
        self._answer_timeout_s = min(self._try_s, self._left_s)
        self._left_s -= self._answer_timeout_s
        self._try_s = min(2 * self._try_s, MAX_TRY_S)
        self._worker_id = 0
        self._pull_at_s = None
        self._drop_lease()
        return [self._ask((join or self._join)._replace(request_id=self._next_request_id()), now)]

    def computed(
        self, loss_sum: float, correct: int, gradient: Vector | None, now: float
    ) -> list[WorkerCommand]:
        """Push the result of the last ``Compute``, or keep it for one push with the next.

        ``gradient`` is None in shared memory. Gather the lease's next minibatch meanwhile.
        """
        work, minibatch = self._work, self._computing
        if work is None or minibatch is None:
            raise RuntimeError("computed() was called without a Compute command before it")
        self._computing = None
        _, start, stop, _, _, slot, local = minibatch
        computed_s = 0.0 if local is None else max(0.0, now - self._steps_began_s)
        sender = self._worker_id, self._join.identity, 0, work.lease_id
        push = self._unpushed or Push(*sender, start, (), (), 0.0, 0, 0.0, (), ())
        push = push._replace(
            stops=(*push.stops, stop),
            base_versions=(*push.base_versions, work.version),
            loss_sum=push.loss_sum + loss_sum,
            correct=push.correct + correct,
            computed_s=push.computed_s + computed_s,
            slots=(*push.slots, slot),
            gradients=push.gradients if gradient is None else (*push.gradients, gradient),
        )
        self._unpushed = push
        commands: list[WorkerCommand] = []
        next_is_soon = self.can_compute and now - self._pushed_s < QUICK_STEP_S
        if not next_is_soon or len(push.slots) >= work.together:
            commands.append(self._push(push, now))
        if self._next_sample < work.stop:
            commands.append(self._gather(work))
        return commands

    def _push(self, push: Push, now: float) -> SendToServer:
        self._unpushed, self._pushed_s = None, now
        return self._ask(push._replace(request_id=self._next_request_id()), now)

    def heartbeat_answered(self, answer: Message, sent_s: float, now: float) -> list[WorkerCommand]:
        """Process the answer to a heartbeat that was sent at ``sent_s``.

        The server is alive, but its answer to the last request may take long: frames are slow on
        some networks. A server that does not know this worker refuses the heartbeat.
        """
        self._heard_s = max(self._heard_s, sent_s)
        if self._worker_id and self._unanswered:
            if isinstance(answer, Refuse):
                return self._refused(answer, now)
            if isinstance(answer, Alive):
                return self._look_for_losses(answer, sent_s, now)
        return []

    def _look_for_losses(self, alive: Alive, sent_s: float, now: float) -> list[WorkerCommand]:
        """Repeat the requests that the server has not received; pull again if answers were lost."""
        last, asked_s = self._unanswered[-1]
        if alive.answered_id < last.request_id <= alive.received_id:
            # The answer depends on other workers.
            self._unanswered[-1] = last, max(asked_s, sent_s)
            return []
        travelling_bytes = sum(self._bytes_of(request) for request, _ in self._unanswered)
        travel_s = MAX_TRAVEL_S + PATIENCE * travelling_bytes / self._seen_bytes_per_s
        if sent_s <= asked_s + travel_s:
            return []
        logger.warning(
            "message_lost server=%s request=%d received=%d answered=%d",
            *(self._address, last.request_id, alive.received_id, alive.answered_id),
        )
        self._seen_bytes_per_s = max(1.0, self._seen_bytes_per_s / 2)  # or the network is slower
        lost = [each for each, _ in self._unanswered if each.request_id > alive.received_id]
        if not lost:
            self._drop_lease()
            return [self._pull(now)]
        for _ in lost:
            self._unanswered.pop()
        return [self._ask(each, now) for each in lost]

    def is_overdue(self, now: float) -> bool:
        """Check whether an answer is missing and the server has been silent for too long."""
        return bool(self._unanswered) and now >= self._overdue_at_s

    def tick(self, now: float) -> list[WorkerCommand]:
        """Return the commands due at ``now``: join again after a long silence, or pull.

        Raise ``ServerLostError`` after the rejoin timeout.
        """
        if self.is_overdue(now):
            return self._rejoin(f"it has been silent for {now - self._heard_s:.1f} s", now)
        if self._pull_at_s is not None and now >= self._pull_at_s:
            self._pull_at_s = None
            return [self._pull(now)]
        return []

    def rejoin_with_frames(self, reason: str, now: float) -> list[WorkerCommand]:
        """Join again without shared memory: arrays are then sent as frames."""
        return self._rejoin(reason, now, self._join._replace(segment=None))

    def _rejoin(self, reason: str, now: float, join: Join | None = None) -> list[WorkerCommand]:
        """Try to join as a new worker over a fresh connection."""
        if self._left_s <= 0:
            raise ServerLostError(
                f"the parameter server at {self._address} is lost: {reason}; it ended, or the "
                f"network is down. Resume it from its checkpoint, then start this worker again"
            )
        if self._was_in and self._try_s == FIRST_TRY_S:
            logger.warning(
                "rejoining server=%s reason=%s timeout_s=%g",
                *(self._address, reason, self._left_s),
            )
        return [Reconnect(), *self._try_to_join(now, join)]

    def leave(self, reason: str, finished: bool = False) -> list[WorkerCommand]:
        """Leave the run, by the server's command or the worker's decision."""
        self._pull_at_s = self._computing = None
        self._drop_lease()
        done = Ended(reason, finished)
        leave = SendToServer(Leave(self._worker_id, self._join.identity))
        return [leave, done] if self._worker_id else [done]

    def _drop_lease(self) -> None:
        self._work = None
        self._unpushed = None
        self._unanswered.clear()

    def _pull(self, now: float) -> SendToServer:
        pull = Pull(self._worker_id, self._join.identity, self._next_request_id())
        return self._ask(pull, now)

    def _ask(self, request: Join | Pull | Push, now: float) -> SendToServer:
        self._unanswered.append((request, now))
        return SendToServer(request)

    def _next_request_id(self) -> int:
        self._last_request_id += 1
        return self._last_request_id

    def _take_in(self, work: Work, now: float) -> None:
        """Continue with the weights, and with the lease if it is new."""
        while self._unanswered and self._unanswered[0][0].request_id <= work.request_id:
            request, asked_s = self._unanswered.popleft()
            travelled_bytes = self._bytes_of(request)
            if travelled_bytes and now > asked_s:
                self._seen_bytes_per_s = travelled_bytes / (now - asked_s)
        if self._work is None or work.lease_id != self._work.lease_id:
            self._next_sample = work.start
            self._steps_began_s = now
            self._unpushed = None  # of a lease that ended early
        self._work = work

    def _gather(self, work: Work) -> Gather:
        stop = min(self._next_sample + self._batch_size, work.stop)
        self._gathered = Gather(work.epoch, self._next_sample, stop)
        return self._gathered

    def _refused(self, refuse: Refuse, now: float) -> list[WorkerCommand]:
        if refuse.may_rejoin:
            return self._rejoin(refuse.reason, now)
        error = WorkerRefusedError if self._worker_id else JoinRefusedError
        raise error(f"the parameter server at {self._address} refused this worker: {refuse.reason}")
