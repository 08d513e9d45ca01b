"""Workers of given speeds and a server, on a clock that is a number."""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from dist_net.parameter_server.run import RunState
from dist_net.parameter_server.state import ParameterServer, SendToPeer
from dist_net.training.state import (
    Begin,
    Compute,
    Ended,
    Gather,
    Receive,
    Reconnect,
    SendToServer,
    WorkerCommand,
    WorkerState,
)
from dist_net.vector import Vector
from dist_net.wire.messages import Alive, Heartbeat, Join, Message, Work

TICK_S = 0.1
LATENCY_S = 1e-4

ComputeGradient = Callable[[Compute, Vector], tuple[float, int, Vector]]
"""Loss sum, number of correct answers and gradient of a minibatch at these weights."""


class TimedWorker:
    """A worker that needs ``step_s`` for a gradient, and ``latency_s`` for a message each way."""

    def __init__(self, cluster: "TimedCluster", name: str, step_s: float, latency_s: float) -> None:
        self.cluster = cluster
        self.node = name.encode()
        self.step_s = step_s
        self.latency_s = latency_s
        join = Join(
            name=name,
            identity=next(cluster.identities),
            recipe_digest=cluster.run.settings.recipe_digest,
            vector_size=cluster.run.settings.vector_size,
            process_id=1,
            gradient_descriptor=-1,
            segment_token=b"",
        )
        self.state = WorkerState(join, "server")
        self.arrived: deque[Message] = deque()
        self.computing: Compute | None = None
        self.is_waiting = False
        self.worker_id = 0
        self.ended: Ended | None = None
        self.go_on(self.state.start(cluster.now))

    def go_on(self, commands: Sequence[WorkerCommand]) -> None:
        """Carry out commands as the loop does, until it computes, waits, or has ended."""
        pending = deque(commands)
        while not (self.ended or self.computing or self.is_waiting):
            if not pending:
                pending.extend(self.state.next_commands(self.cluster.now))
            match command := pending.popleft():
                case SendToServer(message):
                    self.cluster.after(self.latency_s, self.cluster.serve, self, message)
                case Receive():
                    self.is_waiting = not (self.arrived or self.state.can_compute)
                    if not self.is_waiting:
                        message = self.arrived.popleft() if self.arrived else None
                        pending.extend(self.state.received(message, self.cluster.now))
                    elif self.state.wakes_at_s is not None:
                        wait_s = max(0.0, self.state.wakes_at_s - self.cluster.now)
                        self.cluster.after(wait_s, self.wake)
                case Compute():
                    self.computing = command
                    self.cluster.after(self.step_s, self.computed, command)
                case Begin(welcome):
                    self.worker_id = welcome.worker_id
                case Ended():
                    self.ended = command
                case Reconnect():
                    self.arrived.clear()
                case Gather():
                    pass

    def arrives(self, message: Message) -> None:
        self.arrived.append(message)
        self.wake()

    def wake(self) -> None:
        if self.is_waiting:
            self.is_waiting = False
            message = self.arrived.popleft() if self.arrived else None
            now = self.cluster.now
            self.go_on(self.state.received(message, now, (Alive(), now)))

    def computed(self, compute: Compute) -> None:
        assert compute.weights is not None
        result = self.cluster.compute_gradient(compute, compute.weights)
        self.computing = None
        self.go_on(self.state.computed(*result, self.cluster.now))


class TimedCluster:
    """A run's server and its workers, one for each of ``steps_s``."""

    def __init__(
        self,
        run: RunState,
        steps_s: Sequence[float],
        compute_gradient: ComputeGradient,
        latencies_s: Sequence[float] = (),
    ) -> None:
        self.run = run
        self.server = ParameterServer(run)
        self.compute_gradient = compute_gradient
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()
        self.identities = count()
        self.workers: dict[bytes, TimedWorker] = {}
        latencies_s = latencies_s or [LATENCY_S] * len(steps_s)
        for index, times in enumerate(zip(steps_s, latencies_s, strict=True)):
            self.add_worker(f"worker-{index}", *times)
        self.after(TICK_S, self._tick)

    def add_worker(self, name: str, step_s: float, latency_s: float = LATENCY_S) -> TimedWorker:
        worker = TimedWorker(self, name, step_s, latency_s)
        self.workers[worker.node] = worker
        return worker

    def after(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), call, arguments))

    def until_finished(self, at_most_s: float = 1e6) -> float:
        """Let time pass until every sample is applied; the seconds that it took."""
        while not self.run.ledger.finished and self.now < at_most_s:
            self.step()
        assert self.run.ledger.finished, self.server.state
        return self.now

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, call, arguments = heapq.heappop(self._events)
        call(*arguments)

    def kill(self, worker: TimedWorker) -> None:
        del self.workers[worker.node]
        worker.ended = Ended("killed", finished=False)

    def serve(self, worker: TimedWorker, message: Message) -> None:
        if worker.node in self.workers:
            self._carry_out(self.server.handle(worker.node, message, self.now))

    def _tick(self) -> None:
        for worker in self.workers.values():
            if worker.worker_id:
                beat = Heartbeat(worker.worker_id)
                commands = self.server.handle(b"beat of " + worker.node, beat, self.now)
                self._carry_out([each for each in commands if each[0] in self.workers])
        self._carry_out(self.server.tick(self.now))
        self.after(TICK_S, self._tick)

    def _carry_out(self, commands: Sequence[object]) -> None:
        for command in commands:
            if isinstance(command, SendToPeer) and command.node in self.workers:
                worker, message = self.workers[command.node], command.message
                if isinstance(message, Work) and message.weights is not None:
                    message = message._replace(weights=message.weights.copy())
                self.after(worker.latency_s, worker.arrives, message)
