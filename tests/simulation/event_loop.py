"""A process in virtual time: its threads, its event loop, and a server's socket in the loop.

A process can be stopped and continued by signals, be killed, and have a thread that computes or
waits for a core.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from heapq import heappop, heappush
from itertools import count

from dist_net.wire.messages import Message
from simulation.network import VirtualServerSocket
from simulation.schedule import TracedSchedule

Event = Callable[..., object]

TURN_S = 1e-5  # the duration of a turn of the event loop
HANDOVER_S = 0.05  # the maximum delay of messages that arrived while the process was stopped


class ThreadedProcess:
    """A process; nothing happens in it while it is stopped or after it was killed."""

    def __init__(self, schedule: TracedSchedule) -> None:
        self.schedule = schedule
        self.is_alive = True
        self.stopped_until_s = 0.0
        self._stop_within_s = 0.0

    def kill(self) -> None:
        self.is_alive = False

    def stop(self, seconds: float) -> None:
        """Stop the process for this many seconds."""
        self.stopped_until_s = max(self.stopped_until_s, self.schedule.now_s + seconds)

    def stop_within(self, seconds: float) -> None:
        """Stop the process when one of its threads next reads the clock, within a callback."""
        self._stop_within_s = seconds

    def clock_is_read(self) -> None:
        if self._stop_within_s:
            seconds, self._stop_within_s = self._stop_within_s, 0.0
            self.stop(seconds)


class VirtualThread:
    """A thread of a process, and the clock that it reads: a `dist_net.ground.clock.Clock`."""

    def __init__(self, process: ThreadedProcess) -> None:
        self.process = process
        self._schedule = process.schedule
        self._busy_until_s = 0.0
        self._missed: deque[tuple[Event, tuple[object, ...]]] = deque()

    @property
    def now_s(self) -> float:
        """Return the thread's time, ahead of the schedule's after a stop within a callback."""
        now_s = self._schedule.now_s
        if self._busy_until_s > now_s:  # comparisons, since this is half of all calls of a pool
            now_s = self._busy_until_s
        if self.process.stopped_until_s > now_s:
            now_s = self.process.stopped_until_s
        return now_s

    def now(self) -> float:
        self.process.clock_is_read()
        return self.now_s

    def is_busy_for(self, seconds: float) -> None:
        """Keep the thread busy for this many seconds after its current work."""
        self._busy_until_s = self.now_s + seconds

    def gets_no_core_for(self, seconds: float) -> None:
        self._busy_until_s = max(self._busy_until_s, self._schedule.now_s + seconds)

    def after(self, seconds: float, event: Event, *arguments: object) -> None:
        """Schedule a call on this thread in this many seconds, or when the thread is free."""
        self._schedule.at(self.now_s + seconds, self._happens, event, arguments)

    def _happens(self, event: Event, arguments: tuple[object, ...]) -> None:
        if self._missed or self.now_s > self._schedule.now_s:
            self._missed.append((event, arguments))
            if len(self._missed) == 1:
                self._schedule.at(self.now_s, self._catch_up)
        elif self.process.is_alive:
            event(*arguments)

    def _catch_up(self) -> None:
        while self._missed and self.now_s <= self._schedule.now_s:
            event, arguments = self._missed.popleft()
            if self.process.is_alive:
                event(*arguments)
        if self._missed:
            self._schedule.at(self.now_s, self._catch_up)


class VirtualHandle:
    """A callback of an event loop that may be cancelled."""

    def __init__(self, call: Event, arguments: tuple[object, ...], context: Context | None) -> None:
        self._call = call
        self._arguments = arguments
        self._context = context
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True

    def run(self) -> None:
        if self._is_cancelled:
            return
        if self._context is None:
            self._call(*self._arguments)
        else:
            self._context.run(self._call, *self._arguments)


class VirtualEventLoop:
    """The part of an asyncio event loop that a gateway uses.

    A turn runs the callbacks that were ready before it.
    """

    def __init__(self, thread: VirtualThread) -> None:
        self.thread = thread
        self.turns = 0
        self._ready: deque[VirtualHandle] = deque()
        self._timers: list[tuple[float, int, VirtualHandle]] = []
        self._order = count()
        self._readers: dict[int, Event] = {}
        self._readable: set[int] = set()
        self._turn_s = float("inf")  # when the next turn is planned

    def get_debug(self) -> bool:
        return False

    def call_soon(
        self, call: Event, *arguments: object, context: Context | None = None
    ) -> VirtualHandle:
        handle = VirtualHandle(call, arguments, context)
        self._ready.append(handle)
        self._plan(self.thread.now_s)
        return handle

    def call_later(self, seconds: float, call: Event, *arguments: object) -> VirtualHandle:
        handle = VirtualHandle(call, arguments, None)
        moment_s = self.thread.now_s + seconds
        heappush(self._timers, (moment_s, next(self._order), handle))
        self._plan(moment_s)
        return handle

    def add_reader(self, descriptor: int, call: Event) -> None:
        self._readers[descriptor] = call

    def remove_reader(self, descriptor: int) -> None:
        del self._readers[descriptor]

    def set_readable(self, descriptor: int, is_readable: bool) -> None:
        """Set whether a descriptor is readable; its reader runs each turn while it is."""
        if is_readable:
            self._readable.add(descriptor)
            self._plan(self.thread.now_s)
        else:
            self._readable.discard(descriptor)

    def _plan(self, moment_s: float) -> None:
        if moment_s < self._turn_s:
            self._turn_s = moment_s
            self.thread.after(max(0.0, moment_s - self.thread.now_s), self._turn, moment_s)

    def _turn(self, planned_s: float) -> None:
        if planned_s != self._turn_s:  # an earlier one took its place
            return
        self._turn_s = float("inf")
        self.turns += 1
        while self._timers and self._timers[0][0] <= self.thread.now_s:
            self._ready.append(heappop(self._timers)[2])
        for descriptor in sorted(self._readable & self._readers.keys()):
            self._ready.append(VirtualHandle(self._readers[descriptor], (), None))
        for _ in range(len(self._ready)):
            self._ready.popleft().run()
        self.thread.is_busy_for(TURN_S)
        if self._ready or self._readable & self._readers.keys():
            self._plan(self.thread.now_s)
        elif self._timers:
            self._plan(self._timers[0][0])


class PolledSocket:
    """A server's socket in an event loop, like `dist_net.wire.transport.ServerSocket`.

    Its descriptor reports an arrival once: any use of the socket consumes the report, also a send,
    and also for messages that arrived between the beginning of the turn and that send. While the
    process is stopped, so is its ZeroMQ thread, which then needs some time to deliver messages.
    """

    _descriptors = count(3)

    def __init__(self, socket: VirtualServerSocket, loop: VirtualEventLoop) -> None:
        self._socket = socket
        self._loop = loop
        self._process = loop.thread.process
        self._schedule = self._process.schedule
        self._descriptor = next(self._descriptors)
        self._waiting: deque[tuple[bytes, Message]] = deque()
        self._handed_over_s = 0.0
        self._deaf_until_s = 0.0  # the end of a turn of which the last that was done is a send
        self._leaving: deque[tuple[float, bytes, Message]] = deque()
        socket.on_arrival = self._arrives

    def _arrives(self) -> None:
        received = self._socket.receive()
        assert received is not None
        stopped_until_s = self._process.stopped_until_s
        if self._schedule.now_s < stopped_until_s:
            late_s = HANDOVER_S * self._schedule.random.random()
            self._handed_over_s = max(self._handed_over_s, stopped_until_s + late_s)
        if self._handed_over_s > self._schedule.now_s:
            self._schedule.at(self._handed_over_s, self._is_handed_over, received)
        else:
            self._is_handed_over(received)

    def _is_handed_over(self, received: tuple[bytes, Message]) -> None:
        self._waiting.append(received)
        # The descriptor reports only the first of several waiting messages.
        if len(self._waiting) == 1 and self._schedule.now_s >= self._deaf_until_s:
            self._loop.set_readable(self._descriptor, True)

    def fileno(self) -> int:
        return self._descriptor

    def has_message(self) -> bool:
        self._use_up()
        return bool(self._waiting)

    def waiting(self, most: int) -> Iterator[tuple[bytes, Message]]:
        for _ in range(most):
            self._use_up()
            if not self._waiting:
                return
            yield self._waiting.popleft()

    def _use_up(self) -> None:
        self._loop.set_readable(self._descriptor, False)
        self._deaf_until_s = 0.0

    def send(self, node: bytes, message: Message) -> bool:
        self._use_up()
        self._deaf_until_s = self._loop.thread.now_s + TURN_S
        if not self._socket.has_peer(node):
            return False
        # After a stop in the midst of a turn this is later than elsewhere.
        now_s = self._loop.thread.now_s
        self._leaving.append((now_s, node, message))
        if now_s > self._schedule.now_s:
            self._schedule.at(now_s, self._leave)
        else:
            self._leave()
        return True

    def _leave(self) -> None:
        while self._leaving and self._leaving[0][0] <= self._schedule.now_s:
            _, node, message = self._leaving.popleft()
            self._socket.send(node, message)

    def answer_failure(self, node: bytes, message: Message) -> None:
        """Fail: in a simulation no message may cause an error."""
        raise
