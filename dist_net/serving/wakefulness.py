"""Looking out for a message instead of sleeping until it comes.

A core with nothing to do falls asleep, and wakes up some 0.05 ms late each time: for a client that
asks one thing after the other, a fifth of its wait.
"""

import os

from dist_net.clock import Clock
from dist_net.wire.messages import Message
from dist_net.wire.transport import ClientSocket

STAY_AWAKE_S = 0.001
CORE_WANTED_S = 0.0001  # if others take the core for so long, it does not fall asleep


class Wakefulness:
    """For the process at ``socket``, which it borrows; it keeps the core from nobody."""

    def __init__(self, socket: ClientSocket, clock: Clock) -> None:
        self._socket = socket
        self._clock = clock
        self._awake_until_s = 0.0

    def stay_awake(self) -> None:
        """The next message is likely to come soon."""
        if hasattr(os, "sched_yield"):  # without it others would be kept from the core
            self._awake_until_s = self._clock.now() + STAY_AWAKE_S

    def receive_soon(self) -> Message | None:
        """The next message, if it comes while this process stays awake; None: wait for it."""
        now = self._clock.now()
        while now < self._awake_until_s:
            message = self._socket.receive(0)
            if message is not None:
                return message
            os.sched_yield()
            before, now = now, self._clock.now()
            if now - before > CORE_WANTED_S:
                break
        return None
