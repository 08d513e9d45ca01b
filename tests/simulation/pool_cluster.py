"""An inference pool in virtual time: gateway, workers and model readers.

The gateway and the workers are the shipped ones.
"""

from collections import Counter
from collections.abc import Callable
from itertools import count
from math import pi, sin
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from described import described
from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import EvictWorker, InferenceRequest, PoolSettings
from dist_net.serving.pool.statistics import ENDS
from dist_net.wire.serving_messages import ModelPrepared
from simulation.event_loop import (
    HANDOVER_S,
    PolledSocket,
    ThreadedProcess,
    VirtualEventLoop,
    VirtualThread,
)
from simulation.failures import require
from simulation.network import NO_FAULTS, NetworkFaults, VirtualNetwork
from simulation.pool_processes import (
    HABITS,
    WORKERS,
    HostileWorker,
    VirtualInferenceWorker,
    VirtualModelReaders,
)
from simulation.pool_watch import WatchedPool, number_in
from simulation.schedule import TracedSchedule

KILLED = "it was killed"
STARTS_S = 0.3  # from a process's start to its first message
DRIFT_S = 11.0


class EndedChild(NamedTuple):
    """What the gateway learns by the handle of a child that has ended."""

    host: str
    exit_code: int
    last_words: str
    is_lost: bool = False


class PoolCluster:
    """A pool of the models ``names``, whose gateway has ``children`` as workers.

    A batch of ``rows`` takes ``base_s + row_s * rows``, varied at random by a share of ``spread``,
    and slowly, within seconds, by a share of ``drift``, as on a machine with other load.
    """

    def __init__(
        self,
        seed: int,
        settings: PoolSettings,
        names: tuple[str, ...] = ("net",),
        children: int = 2,
        faults: NetworkFaults = NO_FAULTS,
        trace_length: int | None = 40,
        base_s: float = 0.004,
        row_s: float = 0.002,
        spread: float = 0.3,
        drift: float = 0.0,
    ) -> None:
        self.schedule = TracedSchedule(seed, trace_length)
        self.random = self.schedule.random
        self.network = VirtualNetwork(self.schedule, faults)
        self.names = names
        self.settings = settings
        self.workers: dict[int, VirtualInferenceWorker] = {}
        self.hostile: list[HostileWorker] = []
        self.stood_still_s = 0.0
        self.answers: Counter[str] = Counter()
        self.is_healed = False  # nothing ends any more for no reason
        self.poison: set[int] = set()  # numbers of requests that end the worker that computes them
        self.costs_s: dict[int, float] = {}  # by number, what some requests take besides
        self.reading_fails = self.loading_fails = self.loading_ends = self.changes_shape = 0.0
        self._times = base_s, row_s, spread, drift
        self._process_ids, self._numbers = count(1), count(1)
        self._begin_gateway()
        for _ in range(children):
            self.add_worker(is_child=True)

    def _begin_gateway(self) -> None:
        self.process = ThreadedProcess(self.schedule)
        self.thread = VirtualThread(self.process)
        self.loop = VirtualEventLoop(self.thread)
        self.pool = WatchedPool(
            Pool(self.settings, self.names, self, count(1)),
            self.settings,
            lambda: self.stood_still_s,
            self._is_given_up,
        )
        workers = cast(Any, PolledSocket(self.network.listen(WORKERS), self.loop))
        ledger = ClientLedger(1 << 30)
        self.readers = VirtualModelReaders(
            self.schedule, lambda: self.random.uniform(0.02, 0.3), self._read, self._has_read
        )
        processes: Any = SimpleNamespace(kill=self._kill, read=self.readers.execute)
        self.gateway = Gateway(cast(Pool, self.pool), workers, processes, self.thread, ledger)
        self.gateway.start(cast(Any, self.loop))

    # The processes around the gateway.

    def add_worker(self, is_child: bool) -> VirtualInferenceWorker:
        """Start another worker; unless it is a child of the gateway, it has its own host."""
        process_id = next(self._process_ids)
        worker = self.workers[process_id] = VirtualInferenceWorker(
            f"worker {process_id}",
            process_id,
            is_child,
            self.network,
            self._batch_s,
            lambda: self.random.uniform(0.02, 0.2),
            lambda numbers: not (self.is_healed or self.poison.isdisjoint(numbers)),
            self._why_not_loaded,
            self._worker_ended,
        )
        self.schedule.note(worker.name, "begins%s", "" if is_child else " on another host")
        return worker

    def add_hostile_worker(self) -> None:
        """Let a remote worker with a random bad habit join, for good."""
        name, habit = f"hostile {len(self.hostile)}", HABITS[self.random.integers(len(HABITS))]

        def victim() -> tuple[str, int]:
            return WORKERS, next(iter(self.workers), 0)

        self.schedule.note(name, "joins, and %s", habit)
        self.hostile.append(HostileWorker(name, habit, self.network, victim))

    def _batch_s(self, numbers: list[int]) -> float:
        base_s, row_s, spread, drift = self._times
        took_s = (base_s + row_s * len(numbers)) * self.random.uniform(1 - spread, 1 + spread)
        took_s *= 1 + drift * sin(2 * pi * self.schedule.now_s / DRIFT_S)
        return float(took_s) + sum(self.costs_s.get(number, 0.0) for number in numbers)

    def _why_not_loaded(self, worker: VirtualInferenceWorker, version: ModelDescription) -> str:
        if self._happens(self.loading_ends):
            worker.kill()
        return "there is no memory for it" if self._happens(self.loading_fails) else ""

    def _happens(self, share: float) -> bool:
        return not self.is_healed and self.random.random() < share

    def _worker_ended(self, worker: VirtualInferenceWorker, reason: str) -> None:
        del self.workers[worker.process_id]
        if worker.is_child:
            child = cast(Any, EndedChild(worker.host, -9 if reason == KILLED else 1, reason))
            ended = self.gateway.child_ended, worker.credential, child
            self.thread.after(0.001, self.loop.call_soon, *ended)
        if worker.is_child or not worker.worker.was_stopped:
            self.schedule.after(STARTS_S, self.add_worker, worker.is_child)

    def _with(self, credential: str) -> VirtualInferenceWorker | None:
        children = (each for each in self.workers.values() if each.is_child)
        return next((each for each in children if each.credential == credential), None)

    def is_child(self, credential: str) -> bool:
        return self._with(credential) is not None

    def is_running(self, credential: str) -> bool:
        worker = self._with(credential)
        return worker is not None and worker.process.stopped_until_s <= self.schedule.now_s

    def _kill(self, credential: str, reason: str) -> None:
        if (worker := self._with(credential)) is not None:
            self.schedule.after(0.0, worker.kill)

    def _is_given_up(self, command: EvictWorker, now: float) -> None:
        worker = self._with(command.child)
        if worker is not None:
            self.schedule.note(worker.name, "is given up: %s", command.reason)
            quiet_s = now - max(worker.disturbed_s, worker.process.stopped_until_s)
            settings = self.settings
            # Messages from and to the worker may have been lost with its connection.
            max_s = max(settings.max_batch_s, settings.max_load_s)
            is_sound = quiet_s > max_s + settings.heartbeat_timeout_s
            require(not is_sound, f"{worker.name} is given up, and nothing ails it")

    def _has_read(self, prepared: ModelPrepared) -> None:
        self.thread.after(0.0, self.loop.call_soon, self.gateway.prepared, prepared)

    def _read(self, model: str, version: int) -> ModelPrepared:
        if self._happens(self.reading_fails):
            return ModelPrepared(model, version, "", "its file is damaged", version)
        shape = (2,) if self._happens(self.changes_shape) else (1,)
        description = described(model, version, input_shape=shape, classes=2)
        return ModelPrepared(model, version, description.to_json(), "", version)

    # What is asked of it.

    def ask(
        self,
        model: str,
        timeout_s: float,
        rows: int = 1,
        names_version: bool = False,
        is_poison: bool = False,
        cancelled_after_s: float | None = None,
        client: str = "",
        repeat_id: str = "",
    ) -> None:
        """Submit a request in the gateway's process, as the HTTP server does."""
        call = (
            model,
            timeout_s,
            rows,
            names_version,
            is_poison,
            cancelled_after_s,
            client,
            repeat_id,
        )
        self.thread.after(0.0, self._ask, *call)

    def _ask(
        self,
        model: str,
        timeout_s: float,
        rows: int,
        names_version: bool,
        is_poison: bool,
        cancelled_after_s: float | None,
        client: str,
        repeat_id: str,
    ) -> None:
        request = self.request(model, timeout_s, rows, names_version)
        request.client, request.repeat_id = client, repeat_id
        if is_poison:
            self.poison.add(number_in(request.payload))
        future = self.gateway.infer(request)
        future.add_done_callback(self._is_answered)
        if cancelled_after_s is not None:
            self.thread.after(cancelled_after_s, future.cancel)

    def _is_answered(self, future: Any) -> None:
        self.answers["cancelled" if future.cancelled() else future.result().status.name] += 1

    def request(
        self, model: str, timeout_s: float, rows: int = 1, names_version: bool = False
    ) -> InferenceRequest:
        """Return a request with a unique number that fits the current model."""
        number, version = next(self._numbers), None
        described = self.gateway.description(model)
        versions = list(self.gateway.models()[model].versions) if names_version else []
        if versions:
            version = versions[int(self.random.integers(len(versions)))]
            described = self.gateway.description(model, version)
        row_bytes = described.row_bytes if described else 4
        payload = number.to_bytes(4, "little") + bytes(row_bytes - 4)
        return InferenceRequest(model, payload * rows, rows, False, version, timeout_s)

    def in_gateway(self, call: Callable[[], object]) -> None:
        """Call a function in the gateway's process."""
        self.thread.after(0.0, call)

    def gateway_stands_still(self, seconds: float, how: str) -> None:
        """Let the gateway's process get no core, be stopped, or be stopped within a turn."""
        self.schedule.note(WORKERS, "%s for %.2f s", how, seconds)
        self.stood_still_s += seconds + HANDOVER_S
        if how == "is stopped":
            self.process.stop(seconds)
        elif how == "is stopped within a turn":
            self.process.stop_within(seconds)
        else:
            self.thread.gets_no_core_for(seconds)

    # Checks at the end.

    def require_rest(self) -> None:
        """Check that every request is answered and that nothing is left over."""
        now = self.schedule.now_s
        waiting = self.pool.open_requests
        require(not waiting, f"{waiting} requests were never answered")
        status = self.pool.status(now)
        left = status["queue"]["requests"], self.pool.pending
        require(left == (0, 0), f"{left} queued and pending requests are left of none")
        futures = len(self.gateway._futures)
        require(not futures, f"{futures} futures are left of what was asked")
        names = {each["name"] for each in status["workers"]}
        missing = {each.name for each in self.workers.values()} - names
        require(not missing, f"{missing} are not in the pool")
        for model in status["models"]:
            ends = sum(model[end] for end in ENDS if end not in ("admitted", "refused"))
            require(model["admitted"] == ends, f"{model['admitted']} were admitted, {ends} ended")
        for name, model in self.pool.catalogue.models.items():
            is_served = not model.is_unloaded and bool(model.versions)
            require(model.is_ready == is_served, f"{name} cannot be answered: {model.reason}")
        holds = self.pool.holds()
        for worker in self.workers.values():
            has, known = set(worker.models._networks), holds[worker.name]
            require(has == known, f"{worker.name} has {has}, and the pool knows of {known}")
