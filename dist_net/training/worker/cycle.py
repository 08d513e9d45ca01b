"""A training worker's cycle as a state machine: events in, commands out. No I/O.

    phase        event                         next phase    command
    JOINING      Welcome                       REQUESTING    begin, send Pull
    REQUESTING   Work                          COMPUTING     take the lease's local steps
    COMPUTING    the steps are taken           REQUESTING    send Push
    any          Stop                          ENDED         send Leave
    any          Refuse, may rejoin            JOINING       reconnect, send Join
    any          Refuse                        raises        JoinRefusedError, WorkerRefusedError
    any          the server is silent          JOINING       reconnect, send Join
    REQUESTING   Alive: request not received   REQUESTING    send it again
    REQUESTING   Alive: request answered       REQUESTING    send Pull: the answer was lost
    JOINING      Welcome of an earlier term    JOINING       none, as if the server were silent

One request at a time is unanswered. Requests are numbered, so that a heartbeat's answer shows
whether a request or its answer was lost with a connection.

If the server is silent, the worker drops its lease and tries to join again over fresh connections,
by turns at the addresses of the standbys and of the server, until one of them admits it. It never
returns to an earlier term. Times are seconds on one monotonic clock.
"""

import logging
import math
from enum import Enum, auto
from typing import NamedTuple

from dist_net.errors import JoinRefusedError, ProtocolError, ServerLostError, WorkerRefusedError
from dist_net.ground.vector import Vector
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import (
    Alive,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    Stop,
    Welcome,
    Work,
)
from dist_net.wire.standbys import PATIENCE, ServerPlaces, Standby, standbys_in

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

MAX_WAIT_S = 0.2
"""The longest wait for a message; then the worker checks whether it should stop."""


class SendToServer(NamedTuple):
    message: Message


class Reconnect(NamedTuple):
    """Drop the connection with all messages in flight, and stop the heartbeats; then connect again.

    ``standby``: where the server may be; None: at the address that the worker was started with.
    """

    standby: Standby | None = None


class Receive(NamedTuple):
    """Wait for a message, then call ``WorkerCycle.received``."""

    timeout_s: float


class Begin(NamedTuple):
    """The worker has joined: prepare for this welcome, and start to send heartbeats."""

    welcome: Welcome


class Compute(NamedTuple):
    """Take the local steps of ``lease``, then call ``WorkerCycle.computed``.

    They begin from ``state``, which is packed; None: from the state in shared memory.
    """

    lease: LeaseSteps
    state: Vector | None


class Ended(NamedTuple):
    """The worker leaves the run; ``finished`` if every epoch is done."""

    reason: str
    finished: bool


WorkerCommand = SendToServer | Reconnect | Receive | Begin | Compute | Ended


class Phase(Enum):
    JOINING = auto()
    REQUESTING = auto()
    COMPUTING = auto()
    ENDED = auto()


class WorkerCycle:
    """One worker. It sends ``join`` each time it joins.

    ``address`` is only for messages to the user. The worker tries to join for ``join_timeout_s``.
    Afterwards, if the server is silent for ``PATIENCE`` times the heartbeat timeout, the worker
    tries to join again for ``rejoin_timeout_s``. Time in which the worker was stopped, as by
    SIGSTOP, does not count. Answers repeat the numbers of their requests. Each membership has its
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
        self.phase = Phase.JOINING
        self._answer_timeout_s = 0.0
        self._rejoin_timeout_s = rejoin_timeout_s
        self._was_in = False
        self._try_s = MAX_TRY_S  # the server may still be starting
        self._left_s = join_timeout_s
        self._worker_id = 0
        self._last_request_id = 0
        self._request: Join | Pull | Push = join
        self._work: Work | None = None
        self._began_s = 0.0
        self._places = ServerPlaces()
        self._answer_bytes = 0  # the arrays of the last Work
        self._last_bytes_per_s = self._seen_bytes_per_s = PATIENCE * SLOWEST_BYTES_PER_S

    @property
    def overdue_at_s(self) -> float:
        """The time at which a missing answer is overdue; infinity if none is missing."""
        if self.phase not in (Phase.JOINING, Phase.REQUESTING):
            return math.inf
        return self._places.silent_since_s + self._answer_timeout_s

    @property
    def _travelling_bytes(self) -> int:
        """The size of the arrays in the request and its answer."""
        sent = self._request.state if isinstance(self._request, Push) else None
        return self._answer_bytes + (0 if sent is None else sent.nbytes)

    def next_commands(self, now: float) -> list[WorkerCommand]:
        """Return the next command once all are carried out: compute, or receive a message."""
        if self._work is not None:
            return [Compute(self._work.steps, self._work.state)]
        left_s = self.overdue_at_s - now
        # If an answer is overdue, this process may have been stopped, by SIGSTOP or with the whole
        # machine. Then the answer was sent long ago and is about to be received.
        return [Receive(min(left_s, MAX_WAIT_S) if left_s > 0 else MAX_WAIT_S)]

    def received(
        self, message: Message | None, now: float, heartbeat: tuple[Message, float] | None = None
    ) -> list[WorkerCommand]:
        """Process the result of a ``Receive``; None if no message arrived in time.

        ``heartbeat`` is the newest answer to a heartbeat, and the time of that heartbeat. Raise
        ``JoinRefusedError`` or ``WorkerRefusedError`` if the server refuses this worker.
        """
        if message is None:
            commands = [] if heartbeat is None else self.heartbeat_answered(*heartbeat, now)
            return commands or self.tick(now)
        if isinstance(message, (Work, Welcome)) and message.request_id < self._last_request_id:
            logger.debug("late_message kind=%s", type(message).__name__)
            return []
        self._places.heard_s = now
        match self.phase, message:
            case _, Stop():
                return self.leave(message.reason, message.finished)
            case _, Refuse():
                return self._refused(message, now)
            case Phase.JOINING, Welcome():
                return self._welcomed(message, now)
            case Phase.REQUESTING, Work():
                return self._begin_lease(message, now)
        raise ProtocolError(
            f"the parameter server at {self._address} answered with {type(message).__name__}: "
            f"expected an answer to a worker; check that the address is a parameter server's"
        )

    def _welcomed(self, welcome: Welcome, now: float) -> list[WorkerCommand]:
        if welcome.term < self._places.term:  # another server has continued its run, elsewhere
            return []
        self._places.term = welcome.term
        if not self._was_in:
            self._was_in = True
            self._try_s, self._left_s = FIRST_TRY_S, self._rejoin_timeout_s
        self._worker_id = welcome.worker_id
        self._answer_timeout_s = PATIENCE * welcome.heartbeat_timeout_s
        self._answer_bytes = 0 if welcome.segment is not None else 4 * self._join.vector_size
        return [Begin(welcome), self._pull(now)]

    def _begin_lease(self, work: Work, now: float) -> list[WorkerCommand]:
        self._try_s, self._left_s = FIRST_TRY_S, self._rejoin_timeout_s
        travelled_bytes = self._travelling_bytes
        if travelled_bytes and now > self._places.tried_s:
            latest = travelled_bytes / (now - self._places.tried_s)
            # A partition, or a server that was stopped, makes one transfer slow, not the network.
            self._seen_bytes_per_s = max(latest, self._last_bytes_per_s)
            self._last_bytes_per_s = latest
        self._answer_bytes = 0 if work.state is None else work.state.nbytes
        self.phase, self._work, self._began_s = Phase.COMPUTING, work, now
        return []

    def start(self, now: float) -> list[WorkerCommand]:
        self._places.heard_s = now
        return self._try_to_join(now)

    def _try_to_join(self, now: float) -> list[WorkerCommand]:
        self.phase, self._work = Phase.JOINING, None
        self._answer_timeout_s = min(self._try_s, self._left_s)
        self._left_s -= self._answer_timeout_s
        self._try_s = min(2 * self._try_s, MAX_TRY_S)
        self._worker_id = 0
        join = self._join._replace(request_id=self._next_request_id())
        if self._places.current is not None:
            join = join._replace(shares_memory=False)  # a standby is on another host
        return [self._ask(join, now)]

    def computed(
        self, loss_sum: float, correct: int, state: Vector | None, now: float
    ) -> list[WorkerCommand]:
        """Push the result of the last ``Compute``; ``state`` is None in shared memory."""
        work = self._work
        if work is None:
            raise RuntimeError("computed() was called without a Compute command before it")
        self.phase, self._work = Phase.REQUESTING, None
        who = self._worker_id, self._join.identity, self._next_request_id(), work.lease_id
        computed_s = max(0.0, now - self._began_s)
        return [self._ask(Push(*who, loss_sum, correct, computed_s, state), now)]

    def heartbeat_answered(self, answer: Message, sent_s: float, now: float) -> list[WorkerCommand]:
        """Process the answer to a heartbeat that was sent at ``sent_s``.

        The server is alive, but its answer to the last request may take long: frames are slow on
        some networks. A server that does not know this worker refuses the heartbeat.
        """
        self._places.heard_s = max(self._places.heard_s, sent_s)
        if not self._worker_id:
            return []
        match answer:
            case Refuse():
                return self._refused(answer, now)
            case Stop():
                return self.leave(answer.reason, answer.finished)
            case Alive():
                self._places.learn(standbys_in(answer.standbys))
                if self.phase is Phase.REQUESTING:
                    return self._look_for_losses(answer, sent_s, now)
        return []

    def _look_for_losses(self, alive: Alive, sent_s: float, now: float) -> list[WorkerCommand]:
        """Repeat a request that the server has not received; pull again if an answer was lost."""
        request_id = self._request.request_id
        if alive.answered_id < request_id <= alive.received_id:
            # The answer depends on other workers.
            self._places.tried_s = max(self._places.tried_s, sent_s)
            return []
        travel_s = MAX_TRAVEL_S + PATIENCE * self._travelling_bytes / self._seen_bytes_per_s
        if sent_s <= self._places.tried_s + travel_s:
            return []
        logger.warning(
            "message_lost server=%s request=%d received=%d answered=%d",
            self._address,
            request_id,
            alive.received_id,
            alive.answered_id,
        )
        self._seen_bytes_per_s = max(1.0, self._seen_bytes_per_s / 2)  # or the network is slower
        if alive.received_id < request_id:
            return [self._ask(self._request, now)]
        return [self._pull(now)]

    def tick(self, now: float) -> list[WorkerCommand]:
        """Join again after a long silence; raise ``ServerLostError`` after the rejoin timeout."""
        if now >= self.overdue_at_s:
            if self._places.turn(now):
                self._try_s = FIRST_TRY_S
            silent_s = now - self._places.heard_s
            return self._rejoin(f"it has been silent for {silent_s:.1f} s", now)
        return []

    def rejoin_with_frames(self, reason: str, now: float) -> list[WorkerCommand]:
        """Join again without shared memory: arrays are then sent as frames."""
        self._join = self._join._replace(shares_memory=False)
        return self._rejoin(reason, now)

    def _rejoin(self, reason: str, now: float) -> list[WorkerCommand]:
        if self._left_s <= 0:
            raise ServerLostError(
                f"the parameter server at {self._address} is lost: {reason}; it ended, or the "
                f"network is down. Resume it from its checkpoint, then start this worker again"
            )
        if self._was_in and self._try_s == FIRST_TRY_S:
            logger.warning(
                "rejoining server=%s reason=%s timeout_s=%g", self._address, reason, self._left_s
            )
        return [Reconnect(self._places.current), *self._try_to_join(now)]

    def leave(self, reason: str, finished: bool = False) -> list[WorkerCommand]:
        """Leave the run, by the server's command or the worker's decision."""
        self.phase, self._work = Phase.ENDED, None
        done = Ended(reason, finished)
        leave = SendToServer(Leave(self._worker_id, self._join.identity))
        return [leave, done] if self._worker_id else [done]

    def _pull(self, now: float) -> SendToServer:
        self.phase = Phase.REQUESTING
        pull = Pull(self._worker_id, self._join.identity, self._next_request_id())
        return self._ask(pull, now)

    def _ask(self, request: Join | Pull | Push, now: float) -> SendToServer:
        self._request, self._places.tried_s = request, now
        return SendToServer(request)

    def _next_request_id(self) -> int:
        self._last_request_id += 1
        return self._last_request_id

    def _refused(self, refuse: Refuse, now: float) -> list[WorkerCommand]:
        if refuse.may_rejoin:
            return self._rejoin(refuse.reason, now)
        error = WorkerRefusedError if self._worker_id else JoinRefusedError
        raise error(f"the parameter server at {self._address} refused this worker: {refuse.reason}")
