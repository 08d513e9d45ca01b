"""A whole training run under every fault at once, from one seed."""

import errno
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

from dist_net.errors import (
    DistNetError,
    FileWriteError,
    JoinRefusedError,
    NotFiniteError,
    WorkerRefusedError,
)
from dist_net.optim import SGD, Adam, ConstantRate, Cosine, Momentum, Optimizer
from dist_net.processes.supervisor import RestartBudget
from dist_net.training.server import round_plan
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.settings import RunSettings
from dist_net.wire.messages import Shutdown, StatusReport, StatusRequest
from simulation.counting import MOMENTA, counting_layout, counting_steps
from simulation.disk import VirtualDisk
from simulation.failures import InvariantBrokenError, SimulationFailedError, require
from simulation.invariants import RunChecks
from simulation.memory import VirtualMemory
from simulation.network import NO_FAULTS, Link, NetworkFaults, VirtualNetwork
from simulation.processes import (
    SERVER,
    ServerOptions,
    ServerProcess,
    VirtualProcess,
    WorkerProcess,
)
from simulation.schedule import TracedSchedule

BATCH_SIZES = 10, 32
"""Shares have eight samples, because there are buffers: of ten samples one worker computes, or two
take turns, of 32 four share each minibatch. The others are spares."""

MINIBATCHES = 8
"""Simulated runs are short, so groups take turns in runs of fewer minibatches than in real ones."""

OPTIMIZERS: tuple[Optimizer, ...] = (SGD(), SGD(), SGD(), Momentum(), Adam())
OBSERVE_EVERY_S = 1.0
MAX_STALL_S = 30.0
"""How long nothing may be applied, once nothing goes wrong any more."""

SUPERVISION_POLL_S = 0.1
MAX_SEGMENTS = 2
"""Few, so that sometimes a worker of the server's host gets none."""

CHANGED_SETTINGS = 0.6
"""The share of the resumes after an orderly end with another batch size and learning rate."""

UNMAPPABLE = 0.05
"""The share of a worker's attempts to map a segment that fail."""

REMOTE_SHARE = 0.5
BROKEN_GRADIENTS = 0.05
"""The share of gradients that are not finite, during the faults of every fourth run."""

FAULTS: dict[str, float] = {
    "kill_worker": 4.0,
    "stop_worker": 4.0,
    "kill_server": 5.0,
    "kill_server_at_disk": 8.0,
    "stop_server": 8.0,
    "terminate_server": 12.0,
    "fail_host": 12.0,
    "part_network": 5.0,
    "break_disk": 2.5,
    "join": 8.0,
    "leave": 8.0,
    "break_connection": 4.0,
}
"""The faults of a run, with the mean interval of each in seconds."""


class TrainingRun:
    """The run of one seed."""

    def __init__(self, seed: int, trace_length: int | None = 40) -> None:
        self.seed = seed
        self.schedule = TracedSchedule(seed, trace_length)
        random = self.random = self.schedule.random
        consistency = Consistency.parse(str(random.choice(list(Consistency))))
        batch_size = int(random.choice(BATCH_SIZES))
        samples, epochs = 12 * int(random.integers(3, 5)), int(random.integers(1, 4))
        local_steps = int(random.integers(0, 7)) or None
        self.settings = RunSettings(
            recipe="counting",
            recipe_digest="counting",
            layout=counting_layout(epochs, samples),
            samples=samples,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=OPTIMIZERS[int(random.integers(len(OPTIMIZERS)))],
            learning_rate=1.0,
            schedule=Cosine(final=0.5) if random.random() < 0.5 else ConstantRate(),
            momenta=MOMENTA,
            average_decay=0.9 if random.random() < 0.3 else 0.0,
            consistency=consistency,
            local_steps=None if consistency is Consistency.BSP else local_steps,
        )
        self.options = ServerOptions(
            sync=str(random.choice(["always", "never", "0.5"])),
            checkpoint_every_s=float(random.uniform(0.3, 3.0)),
            service_s=float(random.choice([0.0, 0.0, 0.001, 0.02])),
        )
        self.network = VirtualNetwork(self.schedule, self._network_faults())
        self.network.set_link(SERVER, Link(float(random.choice([1e-5, 1e-3]))))
        self.disk = VirtualDisk(random)
        self.memory = VirtualMemory(MAX_SEGMENTS, lambda: random.random() < UNMAPPABLE)
        self.checks = RunChecks(self.settings, self.disk, self.memory)
        self.workers: dict[str, WorkerProcess] = {}
        self.faults_until_s = float(random.uniform(2.0, 12.0))
        self._process_ids = iter(range(1, 10**9))
        self._budgets: defaultdict[str, RestartBudget] = defaultdict(
            lambda: RestartBudget(math.inf)
        )
        self.checks.breaks_gradients = self._breaks_gradients = random.random() < 0.25
        self._is_done = False
        self._start_server()
        for _ in range(int(random.integers(1, 6))):
            self._join()
        for fault, seconds_apart in FAULTS.items():
            self.schedule.repeat(seconds_apart, self.faults_until_s, getattr(self, f"_{fault}"))
        self.schedule.at(self.faults_until_s, self._end_faults)
        self.schedule.after(0.0, self._observe)

    def _network_faults(self) -> NetworkFaults:
        names = "delayed", "overtaken", "lost", "doubled", "vanishing"
        most = (0.05, 0.05, 0.02, 0.2, 0.03)
        are_there = self.random.random(5) < 0.6
        shares = self.random.uniform(0, most) * are_there
        return NetworkFaults(
            **dict(zip(names, map(float, shares), strict=True)),
            delay_s=float(self.random.uniform(0.0, 2.0)),
        )

    def run(self) -> None:
        """Run to the end; raises SimulationFailedError."""
        try:
            with mock.patch.object(round_plan, "MINIBATCHES", MINIBATCHES):
                while not self._is_done:
                    begun_s = max(self.faults_until_s, self.checks.progress_s)
                    if self.schedule.now_s > begun_s + MAX_STALL_S:
                        raise InvariantBrokenError("the run makes no progress")
                    self.schedule.step()
            self.checks.finished()
        except Exception as error:
            raise SimulationFailedError(
                self.seed,
                error,
                f"{self.settings.consistency}, {self.settings.optimizer}, {self.options}, "
                f"{self.network.faults}\n"
                f"{self.schedule.trace()}",
            ) from error

    def _start_server(self) -> None:
        self.server = ServerProcess(
            next(self._process_ids),
            *(self.network, self.memory, self.disk),
            *(self.settings, self.options, self.checks),
        )
        self.server.ended = self._server_ended

    def _server_ended(self, error: DistNetError | None) -> None:
        server = self.server
        if server.was_killed or isinstance(error, NotFiniteError):
            require(server.was_killed or self.checks.breaks_gradients, f"the server ends: {error}")
            self.checks.server_died()
        elif error is not None and not isinstance(error, FileWriteError):
            raise InvariantBrokenError(f"the server ended: {type(error).__name__}: {error}")
        elif error is None:
            self.checks.ended_in_order()
            self._is_done = self.checks.is_finished
            self._change_settings()
        if not self._is_done:
            self.schedule.after(self._pause_s(server), self._start_server)

    def _change_settings(self) -> None:
        """Resume with other settings, which a user may change."""
        if self.random.random() < CHANGED_SETTINGS:
            batch_size = int(self.random.integers(1, max(BATCH_SIZES) + 2))
            learning_rate = float(self.random.choice([0.5, 1.0]))
            changed: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate}
            self.settings = replace(self.settings, **changed)
            self.schedule.note("user", "resumes with %s", changed)

    def _join(self) -> None:
        """Start a worker, on the server's host or on its own host."""
        name = f"worker-{len(self.workers) + 1}"
        is_remote = self.random.random() < REMOTE_SHARE
        if is_remote:
            latency_s = float(self.random.choice([1e-4, 1e-2, 0.2]))
            bytes_per_s = float(self.random.choice([math.inf, 1e5, 1e3]))
            self.network.set_link(name, Link(latency_s, bytes_per_s))
        self._start_worker(name, None if is_remote else self.memory, self._speed())

    def _speed(self) -> Callable[[], float]:
        """Return a function for a worker's step times: some workers are slow, all are sometimes."""
        random = self.random
        usual_s = float(random.choice([0.001, 0.02, 0.1, 0.4]))

        def seconds_of_step() -> float:
            slowness = 20.0 if random.random() < 0.03 else 1.0
            return usual_s * slowness * (0.5 + random.random())

        return seconds_of_step

    def _start_worker(
        self, name: str, memory: VirtualMemory | None, seconds_of_step: Callable[[], float]
    ) -> None:
        worker = WorkerProcess(
            *(name, next(self._process_ids), self.network, memory, self.settings),
            partial(counting_steps, self.settings, is_broken=self._is_broken),
            seconds_of_step,
            parts=1 + int(name[-1]) % 3,
            holds_lock=int(name[-1]) % 4 == 2,
        )
        self.workers[name] = worker

        def ended(error: DistNetError | None) -> None:
            is_refused = isinstance(error, JoinRefusedError | WorkerRefusedError)
            if is_refused and "not finite" not in str(error):
                raise InvariantBrokenError(f"{name} is refused: {error}")
            if not worker.leaves:
                again = self._start_worker, name, memory, seconds_of_step
                self.schedule.after(self._pause_s(worker), *again)

        worker.ended = ended
        worker.start()

    def _is_broken(self) -> bool:
        """Return whether a gradient is not finite; then its lease is computed again."""
        return self._breaks_gradients and self.random.random() < BROKEN_GRADIENTS

    def _pause_s(self, ended: VirtualProcess) -> float:
        """Return the seconds until a restart: by the supervisor after a kill, else by a user."""
        if not ended.was_killed:
            return float(self.random.uniform(0.1, 1.5))
        pause_s = self._budgets[ended.name].pause_s(self.schedule.now_s - ended.started_s)
        assert pause_s is not None
        return pause_s + float(self.random.uniform(0.0, SUPERVISION_POLL_S))

    def _end_faults(self) -> None:
        self.schedule.note("everybody", "has no more trouble from now on")
        self.network.faults = NO_FAULTS
        self.network.join()
        self.disk.failure = None
        self._breaks_gradients = False
        self.checks.calm_since_s = self.schedule.now_s

    def _some_worker(self) -> WorkerProcess | None:
        alive = [worker for worker in self.workers.values() if worker.is_alive]
        return alive[int(self.random.integers(len(alive)))] if alive else None

    def _kill_worker(self) -> None:
        if (worker := self._some_worker()) is not None:
            worker.kill()

    def _stop_worker(self) -> None:
        if (worker := self._some_worker()) is not None:
            worker.stop(self._seconds())

    def _seconds(self) -> float:
        """Return a random duration: mostly short, rarely long."""
        return float(min(self.random.lognormal(-0.5, 1.3), 15.0))

    def _kill_server(self) -> None:
        self.server.kill()

    def _kill_server_at_disk(self) -> None:
        if self.server.is_alive:
            self.disk.kill_after = int(self.random.integers(12))

    def _stop_server(self) -> None:
        self.server.stop(self._seconds())

    def _terminate_server(self) -> None:
        self.server.terminate()

    def _fail_host(self) -> None:
        """Cut the power of the server's host: its processes and unsynced content are lost."""
        self.schedule.note("host", "fails")
        self.checks.host_failed()
        for process in (self.server, *self.workers.values()):
            if process.host == SERVER:
                process.kill()
        self.disk.crash()

    def _part_network(self) -> None:
        hosts = [name for name in (SERVER, *self.workers) if self.random.random() < 0.4]
        self.schedule.note("network", "parts %s from the others", hosts)
        self.network.part(hosts)
        self.schedule.after(self._seconds(), self.network.join)

    def _break_disk(self) -> None:
        self.disk.failure = int(self.random.choice([errno.ENOSPC, errno.EROFS, errno.EIO]))
        self.schedule.note("disk", "fails: %s", os.strerror(self.disk.failure))
        self.schedule.after(self._seconds(), self._mend_disk)

    def _mend_disk(self) -> None:
        self.disk.failure = None
        if self.random.random() < 0.4:  # before all that was refused is written
            self.schedule.after(0.1 * self.random.random(), self._kill_server)

    def _leave(self) -> None:
        worker = self._some_worker()
        staying = [each for each in self.workers.values() if not each.leaves]
        if worker is not None and not worker.leaves and len(staying) > 1:
            self.schedule.note(worker.name, "is to leave")
            worker.leave()

    def _break_connection(self) -> None:
        if (worker := self._some_worker()) is not None:
            self.schedule.note(worker.name, "loses its connection")
            worker.lose_connection()

    def _observe(self) -> None:
        """Check the run from time to time, and end it when it is done, as its starter does."""
        self._next_record = 0
        observer = self._observer = self.network.connect(SERVER, SERVER, "observer")
        observer.on_arrival = self._observed
        self._ask()

    def _ask(self) -> None:
        if not self._is_done:
            self._ends = False
            self._observer.send(StatusRequest(self._next_record))
            for worker in self.workers.values():
                self.checks.unanswered(worker.name, worker.unanswered_s(), self.schedule.now_s)
            self.schedule.after(OBSERVE_EVERY_S, self._ask)

    def _observed(self) -> None:
        message = self._observer.receive()
        if isinstance(message, StatusReport):
            report = json.loads(message.report)
            self._next_record = report["next_record"]
            self.checks.seen(report)
            if report["state"] == "finished" and not self._ends:
                self._ends = True
                self._observer.send(Shutdown("every epoch is done"))
