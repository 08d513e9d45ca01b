"""Workers of given speeds and a server, in virtual time."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count

import numpy as np

from dist_net.ground.checkpoint import Checkpoint
from dist_net.training.server.loop import TICK_S, Machine, opened_server
from dist_net.training.server.server_files import ServerFiles
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.local_steps import GradientFunction, LocalSteps
from simulation.disk import VirtualDisk
from simulation.invariants import CHECKPOINT, JOURNAL
from simulation.memory import VirtualMemory
from simulation.network import Link, VirtualNetwork
from simulation.processes import SERVER, WorkerProcess
from simulation.schedule import TracedSchedule


class TimedCluster:
    """A run's server and one worker per entry of ``steps_s``, without faults.

    ``links`` are the workers' links; without any, all workers are on the server's host and share
    its memory. The server has the default link, or its link in ``network``.
    """

    def __init__(
        self,
        settings: RunSettings,
        steps_s: Sequence[float],
        gradient_at: GradientFunction,
        links: Sequence[Link] = (),
        network: VirtualNetwork | None = None,
        resumed_from: Checkpoint | None = None,
    ) -> None:
        self.gradient_at = gradient_at
        self.network = network or VirtualNetwork(TracedSchedule())
        self.schedule = self.network.schedule
        self.workers: dict[str, WorkerProcess] = {}
        self._memory = VirtualMemory()
        self._process_ids = count(1)
        self._socket = self.network.listen(SERVER)
        self._socket.on_arrival = self._serve
        share = partial(self._memory.share, next(self._process_ids))
        disk = VirtualDisk(np.random.default_rng(0))
        self._context = ExitStack()
        files = ServerFiles(CHECKPOINT, JOURNAL, math.inf)
        begin = resumed_from or np.zeros(settings.vector_size, np.float32)
        machine = Machine(self.schedule, disk, share)
        opened = opened_server(self._socket, settings, begin, files, machine=machine)
        self._loop = self._context.enter_context(opened)
        self.run = self._loop.run
        self.server = self._loop.server
        own: Sequence[Link | None] = links or [None] * len(steps_s)
        for index, (step_s, link) in enumerate(zip(steps_s, own, strict=True)):
            self.add_worker(f"worker-{index}", step_s, link)
        self.schedule.after(TICK_S, self._tick)

    def add_worker(
        self, name: str, step_s: float, link: Link | None = None, parts: int = 1
    ) -> WorkerProcess:
        """Add a worker that needs ``step_s`` for a local step, with ``link`` on its own host.

        With ``parts`` it takes the parts of a lease at the same time.
        """
        if link is not None:
            self.network.set_link(name, link)
        settings = self.run.settings
        rule, rate_at = settings.start_rule(), settings.learning_rate_at
        local = LocalSteps(self.gradient_at, rule, settings.batch_size, rate_at)
        memory = self._memory if link is None else None
        worker = self.workers[name] = WorkerProcess(
            *(name, next(self._process_ids), self.network, memory, settings),
            *(lambda _: local, lambda: step_s / parts, parts),
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
        self._loop._handle(self._socket.receive())

    def _tick(self) -> None:
        self._loop._carry_out(self.server.tick(self.now))
        self.schedule.after(TICK_S, self._tick)
