"""Inference pools with every fault, drawn from a seed."""

import random
from collections import Counter
from collections.abc import Callable

from dist_net.serving.pool.requests import PoolSettings
from dist_net.serving.pool.versions import CONFIRMED
from simulation.failures import SimulationFailedError, require
from simulation.network import NO_FAULTS, NetworkFaults
from simulation.pool_cluster import PoolCluster
from simulation.pool_processes import VirtualInferenceWorker

TROUBLE_S = 3.0  # the time with faults
REST_S = 8.0  # the pool must have recovered after this time without faults
SETTINGS = PoolSettings(max_batch_size=4, queue_requests=80, max_batch_s=1.0, max_load_s=2.0)
MAX_WORKERS, MAX_HOSTILE = 5, 3
MAX_STOP_S = 3.0
WITH_ROLLOUTS = 0.3  # of the seeds
NAMES = 20  # of requests that are repeated
IN_ROW, AT_ONCE, PATIENT_S = 3, 18, 60.0
ANSWERED_S = 0.1
NETWORK = NetworkFaults(delayed=0.02, delay_s=0.05)


class TroubledPool:
    """A pool of two or three workers with a few kinds of faults, which depend on the seed.

    ``happened`` counts the faults.
    """

    def __init__(self, seed: int, trace_length: int | None = 40) -> None:
        self.seed = seed
        names = ("net", "other")[: 1 + seed % 2]
        faults = NETWORK if seed % 3 == 0 else NO_FAULTS
        self.cluster = PoolCluster(seed, SETTINGS, names, 2, faults, trace_length)
        self.schedule = self.cluster.schedule
        self.happened: Counter[str] = Counter()
        self._random = self.cluster.random
        # Of their own, so that pools without rollouts draw what they did before there were any.
        self._rollout_random = random.Random(f"rollout {seed}")

    def run(self) -> None:
        """Run with all faults and check the end; raises SimulationFailedError."""
        try:
            self._run()
        except Exception as error:
            raise SimulationFailedError(
                self.seed, error, self.schedule.trace(), " --pool"
            ) from error

    def _run(self) -> None:
        cluster, random = self.cluster, self._random
        for share in ("reading_fails", "loading_fails", "loading_ends", "changes_shape"):
            setattr(cluster, share, 0.3 if random.random() < 0.25 else 0.0)
        kinds = random.permutation(len(TROUBLES))[: random.integers(2, 9)]
        for kind in kinds:
            self._every(float(random.choice([0.2, 0.6, 2.0])), TROUBLES[kind])
        self._every(float(random.choice([0.01, 0.03, 0.1])), TroubledPool.ask)
        if self._rollout_random.random() < WITH_ROLLOUTS:
            for event, pause_s in ROLLOUT_EVENTS.items():
                self._every(pause_s, event, lambda: self._rollout_random.expovariate(1.0))
        cluster.schedule.run(TROUBLE_S)
        self._heal()
        cluster.schedule.run(TROUBLE_S + MAX_STOP_S)
        for name in cluster.names:  # reload unloaded models
            self._reload(name)
        cluster.schedule.run(TROUBLE_S + REST_S)
        self._require_prompt_answers()
        cluster.require_rest()

    def _require_prompt_answers(self) -> None:
        """Check that every model answers at once, even more requests than one turn admits."""
        cluster = self.cluster
        already = self._answered()
        for model in cluster.names:
            for _ in range(IN_ROW):
                cluster.ask(model, PATIENT_S)
                cluster.schedule.run(cluster.schedule.now_s + ANSWERED_S)
            for _ in range(AT_ONCE):
                cluster.ask(model, PATIENT_S)
            cluster.schedule.run(cluster.schedule.now_s + AT_ONCE * ANSWERED_S)
        asked = len(cluster.names) * (IN_ROW + AT_ONCE)
        missed = asked - (self._answered() - already)
        require(not missed, f"{missed} of {asked} requests are not answered at once")

    def _answered(self) -> int:
        return self.cluster.answers["OK"]

    def _every(
        self, pause_s: float, event: "Trouble", draw: Callable[[], float] | None = None
    ) -> None:
        """Repeat a fault at random intervals with this mean."""
        cluster, draw = self.cluster, draw or self._random.exponential

        def happens() -> None:
            if cluster.schedule.now_s < TROUBLE_S:
                self.happened[event.__name__] += 1
                event(self)
                cluster.schedule.after(pause_s * draw(), happens)

        cluster.schedule.after(pause_s * draw(), happens)

    def _heal(self) -> None:
        self.cluster.schedule.note("", "nothing goes wrong any more")
        self.cluster.is_healed = True
        self.cluster.network.join()
        for worker in self.cluster.workers.values():
            worker.slowness = 1.0

    def _worker(self) -> VirtualInferenceWorker | None:
        workers = list(self.cluster.workers.values())
        return workers[self._random.integers(len(workers))] if workers else None

    def _name(self) -> str:
        return self.cluster.names[self._random.integers(len(self.cluster.names))]

    def _seconds(self, least: float, most: float) -> float:
        """Return a random number of seconds, short ones as likely as long ones."""
        return float(least * (most / least) ** self._random.random())

    # What is asked.

    def ask(self) -> None:
        random, name = self._random, self._name()
        timeout_s = float(random.choice([0.05, 0.5, 5.0]))
        rows, names_version = int(random.integers(1, 4)), random.random() < 0.3
        gone_s = self._seconds(0.001, 0.5) if random.random() < 0.1 else None
        visitor = f"visitor {random.integers(3)}"
        self.cluster.ask(
            name, timeout_s, rows, names_version, cancelled_after_s=gone_s, client=visitor
        )

    def ask_much_at_once(self) -> None:
        for _ in range(self._random.integers(20, 60)):
            self.ask()

    def ask_what_ends_workers(self) -> None:
        self.cluster.ask(self._name(), 5.0, is_poison=True)

    def reload(self) -> None:
        for _ in range(self._random.integers(1, 4)):
            self._reload(self._name())

    def _reload(self, name: str) -> None:
        self.cluster.schedule.note(name, "is to be read again")
        self.cluster.in_gateway(lambda: self.cluster.gateway.reload(name))

    def roll_out(self) -> None:
        name = self._rollout_random.choice(self.cluster.names)
        share = self._rollout_random.uniform(0.05, 0.95)
        self.cluster.schedule.note(name, f"is to be tried on {share:.2f} of the requests")
        self.cluster.in_gateway(lambda: self.cluster.gateway.reload(name, share))

    def end_rollout(self) -> None:
        name = self._rollout_random.choice(self.cluster.names)
        outcome = self._rollout_random.choice((CONFIRMED, "rolled back"))
        self.cluster.schedule.note(name, f"its rollout is to be {outcome}")
        self.cluster.in_gateway(lambda: self.cluster.gateway.end_rollout(name, outcome))

    def repeat(self) -> None:
        name = self._rollout_random.choice(self.cluster.names)
        self.cluster.ask(name, 5.0, repeat_id=f"name {self._rollout_random.randrange(NAMES)}")

    def unload(self) -> None:
        name = self._name()
        self.cluster.schedule.note(name, "is to be unloaded")
        self.cluster.in_gateway(lambda: self.cluster.gateway.unload(name))

    # Faults of workers, model readers and network.

    def kill_worker(self) -> None:
        if (worker := self._worker()) is not None:
            worker.kill()

    def stop_worker(self) -> None:
        if (worker := self._worker()) is not None:
            worker.stop(self._seconds(0.05, MAX_STOP_S))

    def slow_worker_down(self) -> None:
        if (worker := self._worker()) is not None:
            worker.slowness = self._seconds(1.0, 300.0)
            worker.is_disturbed(TROUBLE_S)

    def let_worker_join(self) -> None:
        if len(self.cluster.workers) < MAX_WORKERS:
            self.cluster.add_worker(is_child=False)

    def let_hostile_worker_join(self) -> None:
        if len(self.cluster.hostile) < MAX_HOSTILE:
            self.cluster.add_hostile_worker()

    def let_worker_leave(self) -> None:
        if (worker := self._worker()) is not None:
            worker.worker.stop("SIGTERM")

    def cut_connection(self) -> None:
        if (worker := self._worker()) is not None:
            worker.lose_connection()

    def cut_host_off(self) -> None:
        worker = self._worker()
        if worker is not None and not worker.is_child:
            seconds = self._seconds(0.1, MAX_STOP_S)
            self.cluster.schedule.note(worker.name, "is cut off for %.2f s", seconds)
            self.cluster.network.part([worker.host])
            worker.is_disturbed(seconds)
            self.cluster.schedule.after(seconds, self.cluster.network.join)

    def kill_readers(self) -> None:
        self.cluster.readers.kill()

    # What happens to the gateway.

    def stall_gateway(self) -> None:
        self.cluster.gateway_stands_still(self._seconds(0.02, 2.0), "gets no core")

    def stop_gateway(self) -> None:
        self.cluster.gateway_stands_still(self._seconds(0.02, 2.0), "is stopped")

    def stop_gateway_in_a_turn(self) -> None:
        self.cluster.gateway_stands_still(self._seconds(0.02, 2.0), "is stopped within a turn")


Trouble = Callable[[TroubledPool], None]
TROUBLES: tuple[Trouble, ...] = (
    TroubledPool.ask_much_at_once,
    TroubledPool.ask_what_ends_workers,
    TroubledPool.reload,
    TroubledPool.unload,
    TroubledPool.kill_worker,
    TroubledPool.stop_worker,
    TroubledPool.slow_worker_down,
    TroubledPool.let_worker_join,
    TroubledPool.let_hostile_worker_join,
    TroubledPool.let_worker_leave,
    TroubledPool.cut_connection,
    TroubledPool.cut_host_off,
    TroubledPool.kill_readers,
    TroubledPool.stall_gateway,
    TroubledPool.stop_gateway,
    TroubledPool.stop_gateway_in_a_turn,
)
ROLLOUT_EVENTS: dict[Trouble, float] = {
    TroubledPool.roll_out: 0.6,
    TroubledPool.end_rollout: 0.6,
    TroubledPool.repeat: 0.03,
}
"""In some pools, at intervals of these seconds on average."""
