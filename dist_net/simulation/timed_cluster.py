"""Workers of given speeds and a server, in virtual time."""

from collections import deque
from collections.abc import Callable, Sequence

from dist_net.parameter_server.run import RunState
from dist_net.parameter_server.state import ParameterServer, SendToPeer, ServerCommand
from dist_net.simulation.network import Link, VirtualNetwork
from dist_net.simulation.schedule import EventSchedule
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
from dist_net.wire.messages import NO_SEGMENT, Alive, Heartbeat, Join

SERVER = "server"
TICK_S = 0.1

ComputeGradient = Callable[[Compute, Vector], tuple[float, int, Vector]]
"""Loss sum, number of correct answers and gradient of a minibatch at these weights."""


class TimedWorker:
    """A worker that needs ``step_s`` for a gradient."""

    def __init__(self, cluster: "TimedCluster", name: str, step_s: float, link: Link) -> None:
        self.cluster = cluster
        self.name = name
        self.step_s = step_s
        cluster.network.set_link(name, link)
        self.socket = cluster.network.connect(name, SERVER)
        self.socket.on_arrival = self.wake
        settings = cluster.run.settings
        join = Join(
            name,
            len(cluster.workers),
            settings.recipe_digest,
            settings.vector_size,
            *NO_SEGMENT,
        )
        self.state = WorkerState(join, SERVER)
        self.computing: Compute | None = None
        self.is_waiting = False
        self.worker_id = 0
        self.ended: Ended | None = None
        self.go_on(self.state.start(cluster.schedule.now_s))

    def go_on(self, commands: Sequence[WorkerCommand]) -> None:
        """Carry out commands as the loop does, until it computes, waits, or has ended."""
        schedule, pending = self.cluster.schedule, deque(commands)
        while not (self.ended or self.computing or self.is_waiting):
            if not pending:
                pending.extend(self.state.next_commands(schedule.now_s))
            match command := pending.popleft():
                case SendToServer(message):
                    self.socket.send(message)
                case Receive():
                    self.is_waiting = not (len(self.socket) or self.state.can_compute)
                    if not self.is_waiting:
                        received = self.socket.receive()
                        pending.extend(self.state.received(received, schedule.now_s))
                    elif self.state.wakes_at_s is not None:
                        schedule.at(self.state.wakes_at_s, self.wake)
                case Compute():
                    self.computing = command
                    schedule.after(self.step_s, self.computed, command)
                case Begin(welcome):
                    self.worker_id = welcome.worker_id
                case Ended():
                    self.ended = command
                case Reconnect():
                    self.socket.vanish()
                case Gather():
                    pass

    def wake(self) -> None:
        if self.is_waiting and self.ended is None:
            self.is_waiting = False
            message, now = self.socket.receive(), self.cluster.schedule.now_s
            self.go_on(self.state.received(message, now, (Alive(), now)))

    def computed(self, compute: Compute) -> None:
        if self.ended is None:
            assert compute.weights is not None
            result = self.cluster.compute_gradient(compute, compute.weights)
            self.computing = None
            self.go_on(self.state.computed(*result, self.cluster.schedule.now_s))


class TimedCluster:
    """A run's server and its workers, one for each of ``steps_s``, without faults.

    ``links`` are theirs; the server's own is the default one, unless ``network`` has another.
    """

    def __init__(
        self,
        run: RunState,
        steps_s: Sequence[float],
        compute_gradient: ComputeGradient,
        links: Sequence[Link] = (),
        network: VirtualNetwork | None = None,
    ) -> None:
        self.run = run
        self.server = ParameterServer(run)
        self.compute_gradient = compute_gradient
        self.network = network or VirtualNetwork(EventSchedule())
        self.schedule = self.network.schedule
        self.workers: dict[str, TimedWorker] = {}
        self._socket = self.network.listen(SERVER)
        self._socket.on_arrival = self._serve
        for index, times in enumerate(zip(steps_s, links or [Link()] * len(steps_s), strict=True)):
            self.add_worker(f"worker-{index}", *times)
        self.schedule.after(TICK_S, self._tick)

    def add_worker(self, name: str, step_s: float, link: Link | None = None) -> TimedWorker:
        worker = self.workers[name] = TimedWorker(self, name, step_s, link or Link())
        return worker

    @property
    def now(self) -> float:
        return self.schedule.now_s

    def until_finished(self, at_most_s: float = 1e6) -> float:
        """Let time pass until every sample is applied; the seconds that it took."""
        while not self.run.ledger.finished and self.now < at_most_s:
            self.step()
        assert self.run.ledger.finished, self.server.state
        return self.now

    def step(self) -> None:
        """Let the next thing happen."""
        self.schedule.step()

    def kill(self, worker: TimedWorker) -> None:
        del self.workers[worker.name]
        worker.ended = Ended("killed", finished=False)
        worker.socket.close()

    def _serve(self) -> None:
        received = self._socket.receive()
        assert received is not None
        self._carry_out(self.server.handle(*received, self.now))

    def _tick(self) -> None:
        for worker in self.workers.values():
            if worker.worker_id:
                beat = Heartbeat(worker.worker_id)
                self._carry_out(self.server.handle(b"heart", beat, self.now))
        self._carry_out(self.server.tick(self.now))
        self.schedule.after(TICK_S, self._tick)

    def _carry_out(self, commands: Sequence[ServerCommand]) -> None:
        for command in commands:
            if isinstance(command, SendToPeer):
                self._socket.send(*command)
