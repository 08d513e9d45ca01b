"""Looking out for a message instead of sleeping until it comes.

A core with nothing to do falls asleep, wakes up some 0.05 ms late each time, and then takes twice
as long for what it does first: for a client that asks one thing after the other, a fifth of its
wait; for a server of one worker, a tenth of all it could do.
"""

import os
from collections.abc import Callable
from typing import Generic, TypeVar

from dist_net.clock import Clock

STAY_AWAKE_S = 0.001
CORE_WANTED_S = 0.0001  # if others take the core for so long, it does not fall asleep

Received = TypeVar("Received")


class Wakefulness(Generic[Received]):
    """For a process that waits with ``receive``, a socket's; it keeps the core from nobody."""

    def __init__(self, receive: Callable[[float], Received | None], clock: Clock) -> None:
        self._receive = receive
        self._clock = clock
        self._awake_until_s = 0.0

    def stay_awake(self) -> None:
        """The next message is likely to come soon."""
        if hasattr(os, "sched_yield"):  # without it others would be kept from the core
            self._awake_until_s = self._clock.now() + STAY_AWAKE_S

    def receive_soon(self) -> Received | None:
        """The next message, if it comes while this process stays awake; None: wait for it."""
        now = self._clock.now()
        while now < self._awake_until_s:
            message = self._receive(0)
            if message is not None:
                return message
            os.sched_yield()
            before, now = now, self._clock.now()
            if now - before > CORE_WANTED_S:
                break
        return None
