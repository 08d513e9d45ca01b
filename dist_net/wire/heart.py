"""Heartbeats: the thread by which a worker's process says that it is alive."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress

from dist_net.clock import Clock
from dist_net.errors import NoAnswerError, ProtocolError
from dist_net.wire.messages import Heartbeat, Message
from dist_net.wire.security import PeerKeys
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)


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
    ) -> None:
        super().__init__(name=f"heart-{worker_id}-{os.getpid()}", daemon=True)
        self.answer: tuple[Message, float] | None = None
        self._address = address
        self._keys = keys
        self._beat = Heartbeat(worker_id)
        self._interval_s = interval_s
        self._clock = clock
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beats until stopped; a beat that cannot be sent is skipped."""
        with ClientSocket(self._address, self._keys) as socket:
            try:
                while not self._stopped.is_set():
                    sent_s = self._clock.now()
                    with suppress(NoAnswerError):
                        socket.send(self._beat)
                    self._stopped.wait(self._interval_s)
                    while (answer := socket.receive(0)) is not None:
                        self.answer = (answer, sent_s)
            except ProtocolError as error:
                logger.warning("heartbeat_ended reason=%s", error)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
