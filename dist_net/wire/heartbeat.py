"""Heartbeats of a worker's process, sent by a separate thread."""

import logging
import math
import os
import threading
from contextlib import suppress

from dist_net.errors import AccessRefusedError, NoAnswerError, ProtocolError
from dist_net.ground.clock import Clock
from dist_net.wire.messages import Alive, Heartbeat, Message
from dist_net.wire.security import PeerKeys
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)

POLL_S = 0.1
"""The longest wait for a reply at a time, so that ``HeartbeatSender.stop`` takes effect."""


class HeartbeatSender(threading.Thread):
    """Send heartbeats from a thread with its own socket.

    The thread also runs during a long computation of the worker's loop, unless that holds the
    interpreter's lock, as NumPy does not. ``answer`` is the server's last reply with the time at
    which its heartbeat was sent, or None.
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
        super().__init__(name=f"heartbeat-{worker_id}-{os.getpid()}", daemon=True)
        self.answer: tuple[Message, float] | None = None
        self._address = address
        self._keys = keys
        self._worker_id = worker_id
        self._identity = identity
        self._interval_s = interval_s
        self._clock = clock
        self._heard_s = -math.inf
        self._stopped = threading.Event()

    def run(self) -> None:
        """Send heartbeats until stopped; skip a heartbeat that cannot be sent."""
        with ClientSocket(self._address, self._keys, hang_ups_s=math.inf) as socket:
            try:
                self._heard_s = self._clock.now()  # the server has just admitted the worker
                while not self._stopped.is_set():
                    sent_s = self._clock.now()
                    with suppress(NoAnswerError):
                        times = sent_s, self._identity, self._heard_s
                        socket.send(Heartbeat(self._worker_id, *times))
                    self._listen(socket, sent_s)
            except (AccessRefusedError, ProtocolError) as error:
                logger.warning("heartbeat_ended reason=%s", error)

    def _listen(self, socket: ClientSocket, sent_s: float) -> None:
        """Receive replies until the next heartbeat; each contains the time of its heartbeat."""
        next_beat_s = sent_s + self._interval_s
        while not self._stopped.is_set() and (now := self._clock.now()) < next_beat_s:
            answer = socket.receive(min(POLL_S, next_beat_s - now))
            now = self._clock.now()
            if isinstance(answer, Alive):
                self._heard_s = min(answer.sent_s, now)
                self.answer = answer, self._heard_s
                if answer.sent_s >= sent_s:  # no other reply is due
                    self._stopped.wait(next_beat_s - now)
            elif answer is not None:
                self.answer = answer, sent_s

    def stop(self) -> None:
        self._stopped.set()
        self.join()
