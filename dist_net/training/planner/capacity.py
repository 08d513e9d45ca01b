"""Predict a cluster's samples per second, waits and bottleneck from measured costs. Pure.

A worker takes the local steps of a lease, as many as the server would choose, and then exchanges
its state for the server's. The workers share the server, its network and, in memory, the cores:

rounds, bsp: all workers exchange after their leases, one after the other, and then begin together.
async: leases and exchanges overlap until one resource is always busy.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from dist_net.errors import SettingError
from dist_net.training.planner.costs import ClusterCosts, ExchangeCost, Network
from dist_net.training.server import round_plan
from dist_net.training.server.consistency import Consistency
from dist_net.wire.packing import BLOCK, StatePacking

MAX_WORKERS = 1000

GOODPUT = 1448 / 1538
"""Share of the line rate left to messages after Ethernet, IP and TCP headers (MTU 1,500 bytes)."""

SATURATED = 1 - 1e-9
"""From this load on, a resource is the bottleneck: 1, but for rounding."""


class PredictedCapacity(NamedTuple):
    """The prediction for one number of workers.

    ``waiting`` is the share of its time that a worker does not compute. ``staleness`` is in
    updates. ``load`` maps each shared resource, ``server``, ``network`` or ``cores``, to the time
    that it needs for a lease and an exchange of every worker, as a share of the time that a lease
    and an exchange take a worker that is alone (asymptotic bounds: Denning and Buzen 1978).
    """

    workers: int
    samples_per_s: float
    local_steps: int
    waiting: float
    staleness: int
    load: dict[str, float]

    @property
    def busiest(self) -> str:
        """The resource with the highest load."""
        return max(self.load, key=self.load.__getitem__)

    @property
    def is_saturated(self) -> bool:
        return self.load[self.busiest] >= SATURATED

    @property
    def bottleneck(self) -> str:
        """The busiest resource if it is saturated: more workers are no or little faster.

        Else ``workers`` if they compute for at least half of the time, or ``exchange``.
        """
        if self.is_saturated:
            return self.busiest
        return "exchange" if self.waiting > 0.5 else "workers"


@dataclass(frozen=True)
class ClusterPlan:
    """A cluster to predict: a server and ``workers``, on hosts of ``cores`` each.

    With shared memory, all processes run on one host. Otherwise the server has its own host, and
    the ``workers_per_host`` of every other host exchange together. ``local_steps``: see
    ``RunSettings``. Raise ``SettingError`` for impossible plans.
    """

    workers: int
    costs: ClusterCosts
    network: Network
    cores: int
    workers_per_host: int = 1
    consistency: Consistency = Consistency.ROUNDS
    local_steps: int | None = None

    def __post_init__(self) -> None:
        if self.workers > MAX_WORKERS:
            raise SettingError(f"workers={self.workers}: expected at most {MAX_WORKERS:,}")
        if self.consistency is Consistency.BSP and self.local_steps not in (None, 1):
            raise SettingError(f"local_steps={self.local_steps}: expected 1 with consistency='bsp'")

    @property
    def shares_memory(self) -> bool:
        return self.network.bytes_per_s is None

    @property
    def _run(self) -> round_plan.PlannedRun:
        facts = self.consistency, self.costs.minibatches, self.costs.batch_size
        return round_plan.PlannedRun(*facts, local_steps=self.local_steps)

    @property
    def _division(self) -> round_plan.Division:
        """The workers that compute, and their share of a minibatch; the others are spares."""
        return round_plan.divided_minibatch(self._run, self.workers)

    @property
    def parts(self) -> int:
        """The workers that exchange together."""
        return 1 if self.shares_memory else min(self.workers_per_host, self._division.workers)

    @property
    def exchanges(self) -> int:
        """The number of exchanges in which all workers take part once."""
        return -(-self._division.workers // self.parts)

    @property
    def state_size(self) -> int:
        """The number of elements of a training state."""
        return self.costs.parameters * self.costs.state_vectors + 1

    @property
    def exchange_bytes(self) -> tuple[int, int]:
        """The bytes that the server receives and sends in an exchange; see ``StatePacking``."""
        n = self.costs.parameters
        received = StatePacking(n, n, self.costs.state_vectors - 1, self.state_size).result_size
        scales, int8, float16 = -(-n // BLOCK), -(-n // 4), -(-n // 2)  # of the weights
        sent = received - scales - int8 + float16
        return (0, 0) if self.shares_memory else (4 * received, 4 * sent)

    @property
    def _is_async(self) -> bool:
        return self.consistency is Consistency.ASYNC

    @property
    def _cost(self) -> ExchangeCost:
        return self.costs.shared_memory if self.shares_memory else self.costs.tcp

    @property
    def _transfers_s(self) -> list[float]:
        """The seconds that an exchange occupies the server's interface, per direction."""
        rate = GOODPUT * (self.network.bytes_per_s or math.inf)
        return [size_bytes / rate for size_bytes in self.exchange_bytes]

    @property
    def _alone_s(self) -> float:
        """The seconds of an exchange while no other worker exchanges."""
        measured_s = self._cost.round_trip_s(self.state_size)
        return measured_s + sum(self._transfers_s) + 2 * self.network.latency_s

    @property
    def _step_s(self) -> float:
        """The seconds of a step, which are proportional to a worker's share of a minibatch."""
        return 1e-3 * self.costs.step_ms * self._division.batch_size / self.costs.batch_size

    def _used_s(self, steps: int) -> dict[str, float]:
        """Return the seconds that a lease and its exchange occupy each shared resource."""
        used_s = {"server": self._cost.server_s(self.state_size)}
        if self.shares_memory:
            computing_s = steps * self.costs.threads * self._step_s
            return used_s | {"cores": (computing_s + self._alone_s) / self.cores}
        # In a round, all results arrive before the first worker is answered.
        return used_s | {"network": (max if self._is_async else sum)(self._transfers_s)}

    def predict(self) -> PredictedCapacity:
        count, alone_s = self.exchanges, self._alone_s
        division, unhindered_s = self._division, self._step_s
        computing = division.workers if self.shares_memory else self.parts
        threads = self.costs.threads * computing
        step_s = unhindered_s * max(1.0, threads / self.cores)
        busiest_s = max(self._used_s(0).values())
        if self._is_async:  # workers lengthen their leases until the queue is empty
            exchange_s = max(alone_s, count * busiest_s / (1 + round_plan.COMPUTING_TO_EXCHANGE))
        else:
            exchange_s = alone_s + (count - 1) * busiest_s
        times = round_plan.LeaseTimes(exchange_s, step_s, self.parts)
        ahead = math.ceil(self.costs.minibatches * self.costs.batch_size / self.costs.epochs)
        planned = round_plan.plan_round(self._run, [times] * count, ahead).steps
        steps = max(1, round(sum(planned) / count))
        used_s = self._used_s(steps)
        if self._is_async:
            cycle_s = max(steps * step_s + alone_s, count * max(used_s.values()))
        else:
            cycle_s = steps * step_s + exchange_s
        worker_s = steps * unhindered_s + alone_s
        return PredictedCapacity(
            self.workers,
            division.workers * steps * division.batch_size / cycle_s,
            steps,
            1 - steps * step_s / cycle_s,
            count - 1 if self._is_async else 0,
            {name: count * each_s / worker_s for name, each_s in used_s.items()},
        )


def saturation(plan: ClusterPlan) -> PredictedCapacity | None:
    """Return the prediction for the fewest workers that saturate a resource.

    If the plan's workers saturate one, all numbers of workers from the result's up to theirs do.
    Otherwise it is the first larger number; None beyond ``MAX_WORKERS``.
    """

    def predicted(workers: int) -> PredictedCapacity:
        return replace(plan, workers=workers).predict()

    workers = plan.workers
    while workers <= MAX_WORKERS and not predicted(workers).is_saturated:
        workers += 1
    while workers > 1 and predicted(workers - 1).is_saturated:
        workers -= 1
    return predicted(workers) if workers <= MAX_WORKERS else None
