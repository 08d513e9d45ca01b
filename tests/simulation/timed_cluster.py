"""Workers of given speeds and a server, in virtual time."""

from collections.abc import Callable, Sequence
from itertools import count

from dist_net.training.server.run_state import RunState
from dist_net.training.server.state import ParameterServer, SendToPeer, ServerCommand
from dist_net.training.worker.state import Compute
from dist_net.vector import Vector
from simulation.network import Link, VirtualNetwork
from simulation.processes import SERVER, WorkerProcess
from simulation.schedule import TracedSchedule

TICK_S = 0.1

ComputeGradient = Callable[[Compute, Vector], tuple[float, int, Vector]]
"""Loss sum, number of correct answers and gradient of a minibatch at these weights."""


class TimedStep:
    """A step of a worker's loop that calls ``compute_gradient``."""

    def __init__(self, compute_gradient: ComputeGradient) -> None:
        self.weights_are_torn = False
        self._compute_gradient = compute_gradient
        self._minibatch = 0, 0, 0

    def gather(self, epoch: int, start: int, stop: int) -> None:
        self._minibatch = epoch, start, stop

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        compute = Compute(*self._minibatch, snapshot=-1, weights=weights, slot=0)
        loss_sum, correct, gradient[:] = self._compute_gradient(compute, weights)
        return loss_sum, correct

    def unbind(self) -> None:
        """Do nothing: the step holds no resources."""


class TimedCluster:
    """A run's server and one worker per entry of ``steps_s``, without faults.

    ``links`` are the workers' links; the server has the default link, or its link in ``network``.
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
        self.network = network or VirtualNetwork(TracedSchedule())
        self.schedule = self.network.schedule
        self.workers: dict[str, WorkerProcess] = {}
        self._process_ids = count(1)
        self._socket = self.network.listen(SERVER)
        self._socket.on_arrival = self._serve
        for index, times in enumerate(zip(steps_s, links or [Link()] * len(steps_s), strict=True)):
            self.add_worker(f"worker-{index}", *times)
        self.schedule.after(TICK_S, self._tick)

    def add_worker(
        self, name: str, step_s: float, link: Link | None = None, parts: int = 1
    ) -> WorkerProcess:
        """Add a worker on its own host, which needs ``step_s`` for a gradient.

        With ``parts`` it takes the parts of a lease at the same time.
        """
        self.network.set_link(name, link or Link())
        worker = self.workers[name] = WorkerProcess(
            *(name, next(self._process_ids), self.network, None, self.run.settings),
            *(TimedStep(self.compute_gradient), lambda: step_s / parts, parts),
        )
        worker.start()
        return worker

    @property
    def now(self) -> float:
        return self.schedule.now_s

    def until_finished(self, at_most_s: float = 1e6) -> float:
        """Advance time until every sample is applied, and return the time."""
        while not self.run.ledger.finished and self.now < at_most_s:
            self.step()
        assert self.run.ledger.finished, self.server.state
        return self.now

    def step(self) -> None:
        """Run the next event."""
        self.schedule.step()

    def kill(self, worker: WorkerProcess) -> None:
        del self.workers[worker.name]
        worker.kill()

    def _serve(self) -> None:
        received = self._socket.receive()
        assert received is not None
        self._carry_out(self.server.handle(*received, self.now))

    def _tick(self) -> None:
        self._carry_out(self.server.tick(self.now))
        self.schedule.after(TICK_S, self._tick)

    def _carry_out(self, commands: Sequence[ServerCommand]) -> None:
        for command in commands:
            if isinstance(command, SendToPeer):
                self._socket.send(*command)
