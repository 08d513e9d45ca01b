"""A standby's process: it keeps a copy of a run, and serves the run once its server is lost.

``docs/decisions/0027-terms.md`` describes when.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, closing, suppress
from typing import Any, Protocol

from dist_net.errors import (
    DistNetError,
    InterruptedRunError,
    JoinRefusedError,
    NoAnswerError,
    ServerLostError,
)
from dist_net.ground.clock import Clock, SystemClock
from dist_net.training.server.copy_pace import MAX_PART_BYTES, CopyWindow
from dist_net.training.server.loop import OtherHosts, Received, ServerLoop, WorkersSocket
from dist_net.training.server.standby_copy import RunCopy
from dist_net.training.server.standbys import Remembered, fingerprint
from dist_net.training.server.succession import VISIT_S, Succession
from dist_net.wire.messages import Follow, Followed, Join, Message, Refuse, StatusRequest, Stop
from dist_net.wire.standbys import Standby, standbys_in, standbys_text

logger = logging.getLogger(__name__)

FOLLOW_EVERY_S = 0.1
COPYING_S = 0.005
"""How often the standby looks for an answer while a state is on its way."""

STATE_EVERY_S = 0.5
"""The shortest time between the first parts of two states."""

ANSWER_WITHIN_S = 1.5
"""After this time a request is repeated, at the next place where the server may be."""

MAX_VISITORS = 4096

OpenedServer = AbstractContextManager[ServerLoop]


class RunKeeper(Protocol):
    """The files of a standby's run, which it copies until a silence of ``rejoin_timeout_s``.

    ``takes`` is called with the facts of each state that is on the disk, and ``remembers`` with the
    run's voters when they have changed. ``opened_server`` resumes the run from the copy, in a term
    after this one.
    """

    rejoin_timeout_s: float

    def takes(self, facts: dict[str, Any]) -> None: ...
    def remembers(self, known: Remembered) -> None: ...
    def opened_server(self, known: Remembered, after: int) -> OpenedServer: ...


class StandbyLoop:
    """Follow a run until it is over, or until this standby has served it to its end.

    ``server`` is its first place. ``socket``, at the own place in ``others``, is borrowed.
    ``turns`` is the loop as a generator, as ``ServerLoop`` has one.
    """

    def __init__(
        self,
        server: Standby,
        others: OtherHosts,
        socket: WorkersSocket,
        copy: RunCopy,
        keeper: RunKeeper,
        clock: Clock | None = None,
    ) -> None:
        self._host, own, known = others.place
        self._connect = others.connect
        self._given = server
        self._socket = socket
        self._copy = copy
        self._address = own.address
        self._keeper = keeper
        # A standby that takes over has looked for visitors before.
        self._rejoin_timeout_s = max(keeper.rejoin_timeout_s, copy.takeover_after_s + VISIT_S)
        self._clock = clock or SystemClock()
        now = self._clock.now()
        self._succession = Succession(own, copy.takeover_after_s, now)
        self._succession.others = self._others = known
        if copy.is_whole:  # else no later term continues without this copy
            copy.term, copy.version = known.term, known.version
            copy.copied_term = known.copied_term or known.term
            copy.arrived = copy.version, copy.copied_term
        self._places = self._succession.places
        places = (Standby(*each[:2]) for each in (*known.former, *known.standbys))
        self._places.learn(standbys_in(standbys_text(places)))  # with a usable address
        self._upstream = others.connect(server)
        self._visitors: dict[bytes, Message] = {}
        self._next_request_s = now + COPYING_S  # after ``heard_s``, or it looks like an answer
        self._newest = 0, 0  # the server's version, and its term
        self._facts_s = self._state_s = -math.inf  # when they were last requested
        self._window = CopyWindow()
        self._writing: Future[dict[str, Any]] | None = None
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
        ``InterruptedRunError`` if the run, or this standby, ends before that, or before the copy is
        of its last version, ``ServerLostError`` after ``rejoin_timeout_s``, ``JoinRefusedError`` if
        the server refuses the standby, and as ``ServerLoop.turns`` does.
        """
        if (yield from self._follow(writer)):
            return
        self.close()
        with (
            self._keeper.opened_server(self._succession.others, self._copy.term) as loop,
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

    def _follow(self, writer: Executor) -> Generator[float, Received, bool]:
        """Keep the copy up to date. Return True if the run is over, False to serve it."""
        while True:
            received = yield COPYING_S if self._window.travelling_bytes else FOLLOW_EVERY_S / 2
            now = self._clock.now()
            if received is not None:
                self._visited(*received, now)
            if self._stop_requested is not None:
                yield from self._leave(now + ANSWER_WITHIN_S)
                raise InterruptedRunError(self._stop_requested)
            while (answer := self._upstream.receive(0.0)) is not None:
                if self._answered(answer, self._clock.now()):
                    return True
            self._write(writer, now)
            is_due = self._succession.is_due(self._copy.copied_term, self._copy.version, now)
            silent_s = now - self._places.heard_s
            if is_due and self._copy.is_whole and self._writing is None:
                logger.warning("server_lost silent_s=%.1f", silent_s)
                return False
            if silent_s > self._rejoin_timeout_s:
                if self._copy.is_finished:
                    return True
                why = "no majority of its hosts" if self._copy.is_whole else "no copy"
                raise ServerLostError(
                    f"the parameter server at {self._place.address} has been silent for "
                    f"{silent_s:.0f} s: the run has ended, or the network is down. This standby "
                    f"cannot go on with the run, of which it has {why}"
                )
            self._request(now)

    def _leave(self, until_s: float) -> Generator[float, Received, None]:
        """Leave the run, for which the server must know it: else it waits for this host.

        From then on this host has no vote, which it must remember first: it may be started again.
        """
        try:
            self._keeper.remembers(self._others._replace(voters=()))
        except (DistNetError, OSError) as error:
            logger.error("not_left error=%s", error)
            return
        self._send(self._clock.now(), leaves=True)
        while self._clock.now() < until_s and not isinstance(self._upstream.receive(0.0), Stop):
            yield COPYING_S

    @property
    def _place(self) -> Standby:
        return self._places.current or self._given

    def _request(self, now: float) -> None:
        """Send the requests that are due; to the next place after a long silence of the server."""
        if now > self._places.silent_since_s + ANSWER_WITHIN_S:
            self._places.turn(now)
            self.close()
            self._upstream = self._connect(self._place)
            self._window.clear()
        while part_bytes := self._part_due(now):
            self._send(now, part_bytes)
            self._window.requested(part_bytes, now)
        if now >= self._next_request_s:
            self._send(now)
            self._next_request_s = now + ANSWER_WITHIN_S / 2

    def _part_due(self, now: float) -> int:
        """Return the size of the part of a state to request now; 0: none."""
        copy, travelling_bytes = self._copy, self._window.travelling_bytes
        if copy.has_begun:
            return self._window.next_part(copy.left_bytes - travelling_bytes, now)
        is_new = self._newest != copy.arrived
        if travelling_bytes or now < (self._state_s if is_new else self._facts_s) + STATE_EVERY_S:
            return 0
        self._facts_s, self._state_s = now, now if is_new else self._state_s
        return self._window.next_part(MAX_PART_BYTES, now)

    def _send(self, now: float, part_bytes: int = 0, *, leaves: bool = False) -> None:
        copy, start = self._copy, self._copy.state_bytes
        if part_bytes:
            start = start + self._window.travelling_bytes if copy.has_begun else 0
        has = copy.term, copy.journal_bytes, copy.copied_term, copy.version, copy.samples
        try:
            who = self._host, self._address
            wants = part_bytes, copy.state_version, start
            # A promise to a server counts once its term is on the disk: see ``_answered``.
            is_stored = self._others.term == self._succession.others.term
            times = now, self._places.heard_s if is_stored else 0.0
            stored = fingerprint(self._others.voters[-1]) if self._others.voters else ""
            self._upstream.send(Follow(*who, *has, *wants, *times, stored, leaves))
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
        # A pause for longer would look like silence.
        self._next_request_s = min(self._next_request_s, now + FOLLOW_EVERY_S)
        self._newest = followed.version, followed.term
        is_due = self._window.is_due(followed.sent_s)
        try:
            self._succession.hears(followed, self._place, now)
            self._remember()
            is_next = self._copy.take_in(followed)
        except (DistNetError, OSError) as error:  # such as a full disk
            logger.error("not_copied error=%s", error)
            self._window.clear()
            self._copy.forget()
            return
        journal, _, part = followed.parts
        if is_next and is_due:
            self._window.arrived(len(part), followed.share, now)
        elif is_due:  # a part was lost, or the server has replaced the state
            self._window.clear()
            if followed.state_at and not part:
                self._copy.forget()
        if len(journal) == MAX_PART_BYTES:
            self._next_request_s = now

    def _remember(self) -> None:
        copy = self._copy
        others = self._succession.others._replace(
            version=copy.version, copied_term=copy.copied_term
        )
        if others != self._others:
            self._keeper.remembers(others)
            self._others = others

    def _write(self, writer: Executor, now: float) -> None:
        """Write a state that has arrived in another thread; take in the result of the last."""
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            try:
                self._copy.written(facts := writing.result())
                self._keeper.takes(facts)
            except (DistNetError, OSError) as error:
                logger.error("not_copied error=%s", error)
                self._copy.written(None)
        if self._copy.is_complete:
            self._writing = writer.submit(self._copy.to_write())

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
