"""Heartbeats: the thread by which a worker's process says that it is alive."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress

from dist_net.clock import Clock
from dist_net.errors import NoAnswerError, ProtocolError
from dist_net.wire.messages import Alive, Heartbeat, Message
from dist_net.wire.security import PeerKeys
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)

MAX_ROUND_TRIP_S = 3600.0
LOOK_S = 0.1
"""The longest wait for an answer at a time, so that it can be stopped."""


class Heart(threading.Thread):
    """Says that this process is alive, from a thread and a socket of its own.

    The worker's loop is busy during a long computation. NumPy computes without the interpreter's
    lock, so this thread still runs. ``answer`` is the server's last answer, and when its heartbeat
    was sent; None: there has been none.
    """

    def __init__(
        self,
        address: str,
        keys: PeerKeys | None,
        worker_id: int,
        interval_s: float,
        clock: Clock,
        identity: int = 0,
    ) -> None:
        super().__init__(name=f"heart-{worker_id}-{os.getpid()}", daemon=True)
        self.answer: tuple[Message, float] | None = None
        self._address = address
        self._keys = keys
        self._worker_id = worker_id
        self._identity = identity
        self._interval_s = interval_s
        self._clock = clock
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beats until stopped; a beat that cannot be sent is skipped."""
        round_trip_s = 0.0
        with ClientSocket(self._address, self._keys) as socket:
            try:
                while not self._stopped.is_set():
                    sent_s = self._clock.now()
                    with suppress(NoAnswerError):
                        beat = Heartbeat(self._worker_id, sent_s, round_trip_s, self._identity)
                        socket.send(beat)
                    round_trip_s = self._listen(socket, sent_s) or round_trip_s
            except ProtocolError as error:
                logger.warning("heartbeat_ended reason=%s", error)

    def _listen(self, socket: ClientSocket, sent_s: float) -> float:
        """Takes in answers until it is time for the next beat; returns how long the last took.

        0 if there was none. It may be the answer to an earlier beat, so it says which.
        """
        round_trip_s = 0.0
        next_beat_s = sent_s + self._interval_s
        while not self._stopped.is_set() and (now := self._clock.now()) < next_beat_s:
            answer = socket.receive(min(LOOK_S, next_beat_s - now))
            now = self._clock.now()
            if isinstance(answer, Alive):
                self.answer = answer, min(answer.sent_s, now)
                round_trip_s = min(now - self.answer[1], MAX_ROUND_TRIP_S)
                if answer.sent_s >= sent_s:  # there is no more to hear
                    self._stopped.wait(next_beat_s - now)
            elif answer is not None:
                self.answer = answer, sent_s
        return round_trip_s

    def stop(self) -> None:
        self._stopped.set()
        self.join()
