"""A standby's process: it keeps a copy of a run, and serves the run once its server is lost.

``docs/decisions/0027-terms.md`` describes when.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing, suppress
from typing import Any

from dist_net.clock import Clock, SystemClock
from dist_net.errors import DistNetError, InterruptedRunError, JoinRefusedError, NoAnswerError
from dist_net.training.server.loop import Connect, Received, ServerLoop, WorkersSocket
from dist_net.training.server.standby_copy import RunCopy
from dist_net.training.server.standbys import NOTHING, Remembered, fingerprint
from dist_net.training.server.succession import Succession
from dist_net.wire.messages import Follow, Followed, Join, Message, Refuse, StatusRequest, Stop
from dist_net.wire.standbys import ServerRoute, Standby, standbys_text

logger = logging.getLogger(__name__)

FOLLOW_EVERY_S = 0.1
COPYING_S = 0.005
"""The shortest wait while a state is on its way."""

STATE_EVERY_S = 0.5
LINK_SHARE = 5
"""A copy takes at most a fifth of the link: after each part, the standby waits for four times as
long as the part took."""

ANSWER_WITHIN_S = 1.5
"""After this time a request is repeated, at the next place where the server may be."""

MAX_VISITORS = 4096

OpenServer = Callable[[Remembered, int], AbstractContextManager[ServerLoop]]
"""Return the server that resumes the run from the copy, in a term after this one."""


class StandbyLoop:
    """Follow a run until it is over, or until this standby has served it to its end.

    ``server`` is its first place. ``socket``, at ``own``, is borrowed. ``takes`` is called with
    the facts of each state that is on the disk, and ``remembers`` with the run's voters when they
    have changed; ``others`` were those before this process. ``turns`` is the loop as a generator,
    as ``ServerLoop`` has one.
    """

    def __init__(
        self,
        connect: Connect,
        server: Standby,
        socket: WorkersSocket,
        copy: RunCopy,
        host: str,
        own: Standby,
        takeover_after_s: float,
        open_server: OpenServer,
        takes: Callable[[dict[str, Any]], None] = lambda _: None,
        others: Remembered = NOTHING,
        remembers: Callable[[Remembered], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self._connect = connect
        self._given = server
        self._socket = socket
        self._copy = copy
        self._host = host
        self._address = own.address
        self._open_server = open_server
        self._takes = takes
        self._clock = clock or SystemClock()
        now = self._clock.now()
        self._succession = Succession(own, takeover_after_s, now)
        self._succession.others = self._others = others
        if copy.is_whole:  # else no later term continues without this copy
            copy.term, copy.version = others.term, others.version
        self._remembers = remembers
        self._route = ServerRoute(own.address)
        places = (*others.former, *others.standbys)
        self._route.learn(standbys_text(Standby(*each[:2]) for each in places))
        self._upstream = connect(server)
        self._visitors: dict[bytes, Message] = {}
        self._asked_s = -math.inf
        self._turned_s = now
        self._next_request_s = now + COPYING_S  # after ``heard_s``, or it looks like an answer
        self._next_state_s = now
        self._is_answered = True
        self._stop_requested: str | None = None
        self._loop: ServerLoop | None = None

    def stop(self, reason: str) -> None:
        """Leave the run, or end it if this process serves it; may be called by a signal handler."""
        self._stop_requested = reason
        if self._loop is not None:
            self._loop.stop(reason)

    def close(self) -> None:
        self._upstream.abandon()

    def serve(self, writer: Executor, ready: Callable[[], None]) -> None:
        """Follow, then serve; see ``turns``."""
        turns, received = self.turns(writer, ready), None
        with suppress(StopIteration):
            while True:
                received = self._socket.receive(turns.send(received))

    def turns(
        self, writer: Executor, ready: Callable[[], None] = lambda: None
    ) -> Generator[float, Received, None]:
        """Yield the timeout of each wait in seconds, to be sent the received message or None.

        Call ``ready`` once this process serves the run. Return when every epoch is done. Raise
        ``InterruptedRunError`` if the run, or this standby, ends before that,
        ``JoinRefusedError`` if the server refuses the standby, and as ``ServerLoop.turns`` does.
        """
        if (yield from self._follow()):
            return
        self.close()
        with (
            self._open_server(self._succession.others, self._copy.term) as loop,
            closing(loop.turns(writer, ready)) as turns,
        ):
            self._loop, received = loop, None
            if self._stop_requested is not None:
                loop.stop(self._stop_requested)
            visitors = deque(self._visitors.items())
            while True:
                try:
                    timeout_s = turns.send(received)
                except StopIteration:
                    return
                received = visitors.popleft() if visitors else (yield timeout_s)

    def _follow(self) -> Generator[float, Received, bool]:
        """Keep the copy up to date. Return True if the run is over, False to serve it."""
        while True:
            received = yield self._pause_s()
            now = self._clock.now()
            if received is not None:
                self._visited(*received, now)
            if self._stop_requested is not None:
                yield from self._leave(now + ANSWER_WITHIN_S)
                raise InterruptedRunError(self._stop_requested)
            while (answer := self._upstream.receive(0.0)) is not None:
                if self._answered(answer, self._clock.now()):
                    return True
            is_due = self._succession.is_due(self._copy.term, self._copy.version, now)
            if is_due and self._copy.is_whole:
                logger.warning("server_lost silent_s=%.1f", now - self._succession.heard_s)
                return False
            if now >= self._next_request_s:
                self._request(now)

    def _leave(self, until_s: float) -> Generator[float, Received, None]:
        """Leave the run, for which the server must know it: else it waits for this host.

        From then on this host has no vote, which it must remember first: it may be started again.
        """
        try:
            self._remembers(self._others._replace(voters=()))
        except (DistNetError, OSError) as error:
            logger.error("not_left error=%s", error)
            return
        self._send(self._clock.now(), leaves=True)
        while self._clock.now() < until_s and not isinstance(self._upstream.receive(0.0), Stop):
            yield COPYING_S

    def _pause_s(self) -> float:
        is_copying = self._is_answered and self._clock.now() >= self._next_state_s
        return COPYING_S if is_copying or not self._is_answered else FOLLOW_EVERY_S / 2

    def _request(self, now: float) -> None:
        """Send a request; to the next place if the server has been silent for long."""
        if now > max(self._succession.heard_s, self._turned_s) + ANSWER_WITHIN_S:
            self._route.turn()
            self.close()
            self._upstream = self._connect(self._route.current or self._given)
            self._turned_s = now
        self._send(now)
        self._asked_s, self._is_answered = now, False
        self._next_request_s = now + ANSWER_WITHIN_S / 2

    def _send(self, now: float, *, leaves: bool = False) -> None:
        copy, wants_state = self._copy, now >= self._next_state_s
        has = copy.term, copy.journal_bytes, copy.version, copy.samples
        try:
            who = self._host, self._address
            lacks = copy.state_version, copy.state_bytes
            # A promise to a server counts once its term is on the disk: see ``_answered``.
            is_stored = self._others.term == self._succession.others.term
            times = now, self._succession.heard_s if is_stored else 0.0
            stored = fingerprint(self._others.voters[-1]) if self._others.voters else ""
            self._upstream.send(Follow(*who, *has, wants_state, *lacks, *times, stored, leaves))
        except NoAnswerError as error:
            logger.debug("not_sent reason=%s", error)

    def _answered(self, answer: Message, now: float) -> bool:
        """Take in a message of the server; return True if every epoch is done."""
        match answer:
            case Followed(term=term) if term >= max(self._copy.term, self._others.term):
                self._take_in(answer, now)
            case Stop(reason, finished):
                if not finished:
                    raise InterruptedRunError(f"the run was ended: {reason}")
                return True
            case Refuse(reason, may_rejoin=False):
                raise JoinRefusedError(f"the parameter server refused this standby: {reason}")
        return False

    def _take_in(self, followed: Followed, now: float) -> None:
        self._is_answered = True
        self._route.learn(followed.standbys)
        took_s = min(now - self._asked_s, ANSWER_WITHIN_S)  # longer if this process was stopped
        try:
            self._succession.hears(followed, self._route.current or self._given, now)
            others = self._succession.others._replace(version=self._copy.version)
            if others != self._others:
                self._remembers(others)
                self._others = others
            if (facts := self._copy.take_in(followed)) is not None:
                self._takes(facts)
                self._next_state_s = now + STATE_EVERY_S
        except (DistNetError, OSError) as error:  # such as a full disk
            logger.error("not_copied error=%s", error)
            self._next_state_s = now + STATE_EVERY_S
            return
        if self._copy.state_bytes > 0 and len(followed.parts[2]):
            self._next_state_s = now + (LINK_SHARE - 1) * took_s
        self._next_request_s = now + FOLLOW_EVERY_S  # a pause for longer would look like silence
        if self._next_state_s > now:
            self._next_request_s = min(self._next_request_s, self._next_state_s)

    def _visited(self, node: bytes, message: Message, now: float) -> None:
        """Record a visit; a worker's request is answered once this process serves the run."""
        match message:
            case Join(identity=identity, public_key=public_key):
                self._succession.visits((public_key, identity), now)
                if len(self._visitors) < MAX_VISITORS:
                    self._visitors[node] = message
            case Follow(serves=False):
                self._succession.follows(message, now)
            case StatusRequest():
                why = "this is a standby, and the server is elsewhere"
                self._socket.send(node, Refuse(why, may_rejoin=False))
