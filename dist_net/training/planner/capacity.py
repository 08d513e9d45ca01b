"""Predict a cluster's samples per second, staleness, waits and bottleneck.

The simulation runs the shipped state machines of the server and the workers. Their vectors have
one element, but every operation takes the time that it costs with vectors of the real size.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from dist_net.errors import SettingError
from dist_net.training.planner.costs import GOODPUT, Network, TransportCosts
from dist_net.training.planner.shared_resources import (
    EventSchedule,
    RunFor,
    SerialQueue,
    SharedResource,
    Then,
)
from dist_net.training.server.consistency import AUTO, AUTOMATIC_STEPS, Consistency
from dist_net.training.server.members import PIPELINES
from dist_net.training.server.metrics import RunMetrics
from dist_net.training.server.run_state import RunState
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import ParameterServer, SendToPeer
from dist_net.training.worker.state import (
    Compute,
    Receive,
    SendToServer,
    WorkerCommand,
    WorkerState,
)
from dist_net.vector import Vector
from dist_net.wire.codec import MAX_ARRAY_BYTES
from dist_net.wire.messages import Join, Message, Push, Wait, Work
from dist_net.wire.packing import pack_difference, packed_size

FULL = 0.9
"""A resource this busy is the bottleneck."""

STEP_SPREAD = 0.1
"""Step times vary by ±10 %."""

MUCH = 0.5
"""A resource this busy is also saturated if workers wait for at least this share of the time."""

WARM_UP_ROUNDS = 2
ROUNDS = 3
MIN_GRADIENTS = 1000

MOST = {
    "workers": 10_000,
    "step_s": 1_000_000,
    "batch_size": 1_000_000_000,
    "parameters": MAX_ARRAY_BYTES // 4,  # or they could not be sent
    "threads": 1000,
}
"""Upper limits of a plan; a larger value is probably a typing error."""

MAX_THAT_RUN_AHEAD = max(workers for workers, each in PIPELINES.items() if each.depth > 1)
"""With more workers, each waits for newer weights after every push."""


@dataclass(frozen=True)
class ClusterPlan:
    """A cluster to predict: a server and ``workers``, on hosts of ``cores`` each.

    ``step_s`` is the time of a minibatch when each of a worker's ``threads`` has its own core.
    With shared memory, all processes run on one host. Otherwise the server has its own host and
    every other host runs ``workers_per_host``. Raise ``SettingError`` for impossible plans.
    """

    workers: int
    step_s: float
    batch_size: int
    parameters: int
    network: Network
    costs: TransportCosts
    threads: int = 1
    cores: int = 2
    workers_per_host: int = 1
    consistency: Consistency = AUTO

    def __post_init__(self) -> None:
        if self.threads > self.cores:
            raise SettingError(
                f"threads={self.threads}: expected at most {self.cores}, the cores of a host"
            )
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise SettingError(f"{name}={getattr(self, name)}: expected at most {most:,}")
        if self.consistency.local_steps == AUTOMATIC_STEPS:
            raise SettingError(
                "consistency='local:auto': lengths follow measured times; expected local:H"
            )
        if self.beats_share >= 1:
            raise SettingError(
                f"workers={self.workers}: expected fewer than "
                f"{self.workers / self.beats_share:,.0f}: heartbeats alone would saturate the "
                f"server"
            )

    @property
    def shares_memory(self) -> bool:
        return self.network.bytes_per_s is None

    @property
    def beats_share(self) -> float:
        """Share of the server's time spent on heartbeats."""
        return self.workers * 1e-6 * self.costs.server.message_us / RunSettings.heartbeat_interval_s

    @property
    def steps(self) -> int:
        """Minibatches in a push: 1, or the local steps of a lease."""
        return self.consistency.local_steps or 1

    @property
    def processes(self) -> int:
        """The workers of a host that exchange together: with local steps, all of them."""
        is_local = self.consistency.local_steps is not None
        return self.workers_per_host if is_local and not self.shares_memory else 1

    @property
    def samples_in_push(self) -> int:
        return self.steps * self.batch_size * self.processes

    @property
    def push_bytes(self) -> int:
        """Bytes of a gradient or a difference on the network."""
        is_packed = self.consistency.local_steps is not None
        size = packed_size(self.parameters) if is_packed else self.parameters
        return 0 if self.shares_memory else 4 * size

    @property
    def answer_bytes(self) -> int:
        """Bytes of the weights on the network."""
        element_bytes = 4 if self.consistency.local_steps is None else 2
        return 0 if self.shares_memory else element_bytes * self.parameters

    def transfer_s(self, size_bytes: int) -> float:
        """Return the time of so many bytes on the server's network interface."""
        if self.network.bytes_per_s is None:
            return 0.0
        return size_bytes / (GOODPUT * self.network.bytes_per_s)

    @property
    def latency_s(self) -> float:
        return self.network.latency_s + 1e-6 * self.costs.latency_us

    def name_of(self, part: str) -> str:
        """Return the name of the bottleneck when ``part`` is saturated."""
        if part == "server":
            vectors_s = self.costs.server.vectors_s(1, self.parameters)
            others_s = self.costs.server.exchange_s(1, self.parameters) - vectors_s
            return "update" if vectors_s > others_s else "messages"
        return "messages" if part == "transport" else part

    @property
    def pushed(self) -> Vector:
        """What simulated workers push."""
        return ONE_NUMBER if self.consistency.local_steps is None else pack_difference(ONE_NUMBER)

    def first_bound(self) -> tuple[str, float]:
        """Return the resource that saturates first, and at about how many workers.

        Asymptotic bounds (Denning and Buzen 1978): the resource that a gradient occupies longest,
        and the time between a worker's gradients divided by that occupancy.
        """
        costs, exchange = self.costs, (1, self.parameters)
        server_s = costs.server.exchange_s(*exchange)
        transport_s = costs.server_transport.exchange_s(*exchange)
        worker_s = self.steps * self.step_s + costs.worker.exchange_s(*exchange)
        of_worker_s = costs.worker_transport.exchange_s(*exchange)
        network_s = self.transfer_s(max(self.push_bytes, self.answer_bytes))
        needed_s = {"server": server_s, "transport": transport_s, "network": network_s}
        if self.shares_memory:
            threads_s = (self.threads - 1) * self.steps * self.step_s  # besides the first
            all_s = worker_s + threads_s + of_worker_s + server_s + transport_s
            needed_s["cores"] = all_s / self.cores
        most = max(needed_s, key=lambda part: needed_s[part])
        if worker_s <= MAX_THAT_RUN_AHEAD * needed_s[most]:
            return self.name_of(most), self.processes * worker_s / needed_s[most]
        travel_s = self.transfer_s(self.push_bytes + self.answer_bytes) + 2 * self.latency_s
        waits_s = of_worker_s + server_s + transport_s + travel_s
        return self.name_of(most), self.processes * (worker_s + waits_s) / needed_s[most]


class PredictedCapacity(NamedTuple):
    """The prediction for one number of workers.

    ``idle`` is the share of its time that a worker waits for the server. ``busy`` maps each
    shared resource to the share of time that it is busy: the server's ``network`` interface, its
    update thread (``server``), its ``transport`` thread and, with shared memory, the host's
    ``cores``. ``bound_by`` is the bottleneck: ``network``; ``update`` or ``messages``, whichever
    takes more of the server's time; ``cores``; or ``workers`` if no resource is saturated and
    more workers raise the throughput.
    """

    workers: int
    samples_per_s: float
    staleness_mean: float
    staleness_max: int
    idle: float
    bound_by: str
    busy: dict[str, float]


class PlannedWorker:
    """The shipped worker state machine on a simulated host; it waits only for messages."""

    def __init__(self, cluster: "PlannedCluster", index: int, cores: SharedResource) -> None:
        self.node = b"%d" % index
        self._idle_s = 0.0
        self._cluster = cluster
        self._schedule = cluster.schedule
        self._cores = cores
        self.transport = SerialQueue(self._schedule, cores.run)
        # Each direction of a connection keeps its order.
        self.inwards = SerialQueue(self._schedule, cluster.inwards.run)
        self.outwards = SerialQueue(self._schedule, cluster.outwards.run)
        settings = cluster.run.settings
        join = Join(f"worker-{index}", index, "", settings.vector_size)
        self._state = WorkerState(join, "the server")
        self._arrived: deque[Message] = deque()
        self._waits_since_s: float | None = None
        self._cycle = self._train()
        self._schedule.after(cluster.plan.step_s * cluster.schedule.random.random(), self._go_on)

    def arrives(self, message: Message) -> None:
        self._arrived.append(message)
        self._wake()

    @property
    def idle_s(self) -> float:
        """Time spent waiting for messages so far."""
        since_s = self._waits_since_s
        return self._idle_s + (0.0 if since_s is None else self._schedule.now_s - since_s)

    def _go_on(self) -> None:
        """Run the worker until it computes or waits for a message."""
        busy = next(self._cycle)
        if busy is None:
            self._waits_since_s = self._schedule.now_s
        else:
            self._compute(*busy)

    def _compute(self, seconds: float, threads: int) -> None:
        """Keep ``threads`` busy for ``seconds`` each; resume when all are done."""
        running = threads

        def done() -> None:
            nonlocal running
            running -= 1
            if not running:
                self._go_on()

        for _ in range(threads):
            self._cores.run(seconds, done)

    def _wake(self) -> None:
        if self._waits_since_s is not None:
            self._idle_s, self._waits_since_s = self.idle_s, None
            self._go_on()

    def _train(self) -> Iterator[tuple[float, int] | None]:
        """Yield ``(seconds, threads)`` for each computation; None: wait for a message."""
        schedule, state, plan = self._schedule, self._state, self._cluster.plan
        pending: deque[WorkerCommand] = deque(state.start(schedule.now_s))
        while True:
            if not pending:
                pending.extend(state.next_commands(schedule.now_s))
            match pending.popleft():
                case SendToServer(message):
                    gradients = gradients_in(message)
                    parameters = plan.parameters if gradients else 0
                    exchange_s = plan.costs.worker.exchange_s(gradients, parameters)
                    yield exchange_s, 1
                    self._cluster.send(self, message)
                case Receive():
                    if not (self._arrived or state.can_compute):
                        yield None
                    arrived = self._arrived.popleft() if self._arrived else None
                    pending.extend(state.received(arrived, schedule.now_s))
                    if isinstance(arrived, Wait):
                        schedule.after(arrived.retry_after_s, self._wake)
                case Compute(_, start, stop):
                    steps = -(-(stop - start) // (plan.batch_size * plan.processes))
                    spread = STEP_SPREAD * schedule.random.uniform(-1, 1)
                    yield steps * plan.step_s * (1 + spread), plan.threads * plan.processes
                    pending.extend(state.computed(0.0, 0, plan.pushed, schedule.now_s))


ONE_NUMBER = np.zeros(1, np.float32)


def gradients_in(message: Message) -> int:
    return len(message.gradients) if isinstance(message, Push) else 0


class PlannedCluster:
    """The server and the workers of a plan, in virtual time."""

    def __init__(self, plan: ClusterPlan, seed: int = 0) -> None:
        self.plan = plan
        self.schedule = EventSchedule(seed)
        consistency, workers = plan.consistency, -(-plan.workers // plan.processes)
        if consistency.local_steps is not None:  # of equal length: the server's clock stands still
            consistency = replace(consistency, round_leases=workers)
        never_done = RunSettings(
            recipe="",
            recipe_digest="",
            layout=(("weights", (1,)),),
            samples=10**15,
            epochs=1,
            batch_size=plan.batch_size * plan.processes,
            consistency=consistency,
        )
        self.run = RunState(never_done, ONE_NUMBER)
        self._server = ParameterServer(self.run)
        self._host = SharedResource(self.schedule, plan.cores)
        self._thread = SerialQueue(self.schedule, self._between_heartbeats)
        self._transport = SerialQueue(self.schedule, self._host.run)
        self.inwards, self.outwards = (SharedResource(self.schedule) for _ in range(2))
        self._workers: dict[bytes, PlannedWorker] = {}
        cores = self._host
        for index in range(workers):
            if not plan.shares_memory and index * plan.processes % plan.workers_per_host == 0:
                cores = SharedResource(self.schedule, plan.cores)
            worker = PlannedWorker(self, index, cores)
            self._workers[worker.node] = worker

    def _between_heartbeats(self, seconds: float, then: Then) -> None:
        self._host.run(seconds / (1 - self.plan.beats_share), then)

    def predict(self) -> PredictedCapacity:
        """Train through a warm-up, then measure."""
        plan, ledger = self.plan, self.run.ledger
        self._let_apply(WARM_UP_ROUNDS * plan.workers * plan.steps)
        before = ledger.applied_samples
        self.run.metrics = metrics = RunMetrics()
        began_s, busy_s, idle_s = self.schedule.now_s, self._busy_s(), self._idle_s()
        self._let_apply(max(MIN_GRADIENTS, ROUNDS * plan.workers * plan.steps))
        seconds = self.schedule.now_s - began_s
        busy = {
            name: (until_s - busy_s[name]) / seconds for name, until_s in self._busy_s().items()
        }
        idle = (self._idle_s() - idle_s) / seconds / self.plan.workers
        return PredictedCapacity(
            self.plan.workers,
            (ledger.applied_samples - before) / seconds,
            metrics.staleness_sum / metrics.pushes_applied,
            metrics.staleness_max,
            idle,
            self._bound_by(busy, idle),
            busy,
        )

    def _let_apply(self, gradients: int) -> None:
        """Advance time until ``gradients`` more have been applied."""
        until = self.run.ledger.applied_samples + gradients * self.plan.batch_size
        while self.run.ledger.applied_samples < until:
            self.schedule.step()

    def _idle_s(self) -> float:
        return sum(worker.idle_s for worker in self._workers.values())

    def _busy_s(self) -> dict[str, float]:
        """Return the busy time of each shared resource."""
        parts = {"server": self._thread.busy_s, "transport": self._transport.busy_s}
        if self.plan.shares_memory:
            return parts | {"cores": self._host.busy_s / self.plan.cores}
        inwards_s, outwards_s = self.inwards.busy_s, self.outwards.busy_s
        in_step = self.run.members.go_in_step  # in step, only one direction is busy at a time
        return parts | {"network": (sum if in_step else max)((inwards_s, outwards_s))}

    def _bound_by(self, busy: dict[str, float], idle: float) -> str:
        if busy.get("cores", 0.0) >= FULL:
            return "cores"  # a shortage of cores prolongs everything else
        fullest = max(busy, key=lambda name: busy[name])
        # In step, one resource after the other is busy while the rest of the cluster waits.
        busiest = sum(busy.values()) if self.run.members.go_in_step else busy[fullest]
        is_full = busiest >= FULL or min(busiest, idle) >= MUCH
        return self.plan.name_of(fullest) if is_full else "workers"

    def send(self, worker: PlannedWorker, message: Message) -> None:
        """Carry a worker's message to the server's queue."""
        plan, costs, gradients = self.plan, self.plan.costs, gradients_in(message)
        parameters = plan.parameters if gradients else 0
        follow(
            (worker.transport.submit, costs.worker_transport.request_s(gradients, parameters)),
            (worker.inwards.submit, plan.transfer_s(gradients * plan.push_bytes)),
            (self.schedule.after, plan.latency_s),
            (self._transport.submit, costs.server_transport.request_s(gradients, parameters)),
            (self._thread.submit, costs.server.exchange_s(gradients, parameters)),
            then=partial(self._handle, worker, message),
        )

    def _handle(self, worker: PlannedWorker, message: Message) -> None:
        # The server's clock stands still; otherwise it would only ask workers to retry later.
        for command in self._server.handle(worker.node, message, 0.0):
            if isinstance(command, SendToPeer):
                self._answer(self._workers[command.node], command.message)

    def _answer(self, worker: PlannedWorker, message: Message) -> None:
        plan, costs = self.plan, self.plan.costs
        weights = int(isinstance(message, Work))
        parameters = weights * plan.parameters
        follow(
            (self._transport.submit, costs.server_transport.answer_s(parameters)),
            (worker.outwards.submit, plan.transfer_s(weights * plan.answer_bytes)),
            (self.schedule.after, plan.latency_s),
            (worker.transport.submit, costs.worker_transport.answer_s(parameters)),
            then=partial(worker.arrives, message),
        )


def follow(*stages: tuple[RunFor, float], then: Then) -> None:
    """Run the stages in order, each for its seconds, then call ``then``."""
    for place, (run, seconds) in enumerate(stages):
        if seconds > 0:
            run(seconds, partial(follow, *stages[place + 1 :], then=then))
            return
    then()
