"""Looking out for a message instead of sleeping until it comes.

A core with nothing to do falls asleep, wakes up some 0.05 ms late each time, and then takes twice
as long for what it does first: for a client that asks one thing after the other, a fifth of its
wait; for a server of one worker, a tenth of all it could do.
"""

import os
from typing import Generic, Protocol, TypeVar

from dist_net.clock import Clock

STAY_AWAKE_S = 0.001
CORE_WANTED_S = 0.0004
"""If others take the core for so long, it does not fall asleep, and each further look costs them.

Whoever is at the other end has it for less, as it answers. And those that give way often are long
passed over by the system when others compute.
"""

Received = TypeVar("Received", covariant=True)


class Socket(Protocol[Received]):
    """What is used of a socket."""

    def has_message(self) -> bool:
        """Whether one can be received without waiting; a third of the price of an attempt."""
        ...

    def receive(self, timeout_s: float) -> Received | None:
        """The next message; None when none came in time."""
        ...


class Wakefulness(Generic[Received]):
    """For a process that waits for a socket's messages.

    It gives way to whoever wants its core before each look, which takes some microseconds.
    """

    def __init__(self, socket: Socket[Received], clock: Clock) -> None:
        self._socket = socket
        self._clock = clock
        self._awake_until_s = 0.0

    def stay_awake(self) -> None:
        """The next message is likely to come soon."""
        if hasattr(os, "sched_yield"):  # without it others would be kept from the core
            self._awake_until_s = self._clock.now() + STAY_AWAKE_S

    def receive(self, timeout_s: float) -> Received | None:
        """The next message; None when none came in time, which runs from when it falls asleep."""
        if timeout_s > 0:
            self._look_out()
        return self._socket.receive(timeout_s)

    def _look_out(self) -> None:
        """Returns when there is a message, or it is time to sleep."""
        now = self._clock.now()
        while now < self._awake_until_s:
            # Before it looks: a socket's thread that has something to send often waits for this.
            os.sched_yield()
            before, now = now, self._clock.now()
            if self._socket.has_message() or now - before > CORE_WANTED_S:
                break
