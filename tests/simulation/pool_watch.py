"""The invariants of an inference pool, checked at every event between the pool and its gateway."""

import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import (
    EndRequest,
    EvictWorker,
    InferenceRequest,
    Payload,
    PoolCommand,
    PoolSettings,
    Result,
    SendToNode,
    Status,
)
from dist_net.wire.messages import Message
from dist_net.wire.serving_messages import ModelPrepared, RunBatch
from simulation.failures import require

ROW = struct.Struct("<2f")
PAUSED = "is paused"
GONE = "any more; ask for the next"
LATE_S = (
    0.15  # after its deadline a request may still be open: a gateway's turns may be 0.1 s apart
)
MAX_VERSIONS = 4
"""Versions of a model: the served version, its replacement, and versions named in requests."""


def number_in(payload: Payload) -> int:
    """Return the number of the request with this payload."""
    return int.from_bytes(payload[:4], "little")


@dataclass(frozen=True)
class _Admitted:
    """A pending request. No version before ``oldest`` may answer it."""

    request: InferenceRequest
    deadline_s: float
    oldest: int


class WatchedPool:
    """A pool in place of the gateway's own, which it checks.

    ``stood_still_s`` returns how long the gateway has been stopped in total; ``evicted`` is called
    with each worker that the pool gives up.
    """

    def __init__(
        self,
        pool: Pool,
        settings: PoolSettings,
        stood_still_s: Callable[[], float],
        evicted: Callable[[EvictWorker, float], None],
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._stood_still_s = stood_still_s
        self._evicted = evicted
        self._open: dict[int, _Admitted] = {}
        self._reloads: dict[int, str] = {}
        self._limits: list[tuple[float, int]] = []
        self._had_alone: dict[int, set[bytes]] = defaultdict(set)
        self.ended: dict[Status, int] = defaultdict(int)
        self._rolled_out: dict[str, int] = defaultdict(int)
        self._drawn: dict[tuple[str, int, str], bool] = {}
        self._withdrawn: set[tuple[str, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    @property
    def open_requests(self) -> int:
        return len(self._open) + len(self._reloads)

    def holds(self) -> dict[str, set[tuple[str, int]]]:
        """Return the versions that the pool believes each worker to have, by name."""
        return {
            worker.name: {(model, one) for model, all in worker.holds.items() for one in all}
            for worker in self._pool._workers
        }

    def admit(self, request: InferenceRequest, now: float) -> int | Result:
        admitted = self._pool.admit(request, now)
        if isinstance(admitted, int):
            timeout_s = request.timeout_s or self._settings.default_timeout_s
            oldest = self._rolled_out[request.model]
            self._open[admitted] = _Admitted(replace(request), now + timeout_s, oldest)
            heappush(self._limits, (now + timeout_s + self._stood_still_s(), admitted))
            self._require_room()
            self._require_same_draw(request)
        elif admitted.status is Status.UNAVAILABLE:
            self._require_cause(request, admitted)
        return admitted

    def cancel(self, request_id: int) -> None:
        self._pool.cancel(request_id)
        self._open.pop(request_id, None)

    def reload(self, model: str, share: float = 1.0) -> int | Result:
        request = self._pool.reload(model, share)
        if isinstance(request, int):
            self._reloads[request] = model
        return request

    def receive(self, node: bytes, message: Message, now: float) -> list[PoolCommand]:
        return self._checked(self._pool.receive(node, message, now), now)

    def prepared(self, message: ModelPrepared, now: float) -> list[PoolCommand]:
        return self._checked(self._pool.prepared(message, now), now)

    def lost(self, node: bytes, reason: str, now: float) -> list[PoolCommand]:
        commands = self._checked(self._pool.lost(node, reason, now), now)
        self._require_known_places()
        return commands

    def child_ended(
        self, child: str, reason: str, by_signal: bool, now: float
    ) -> list[PoolCommand]:
        commands = self._checked(self._pool.child_ended(child, reason, by_signal, now), now)
        self._require_known_places()
        return commands

    def _require_known_places(self) -> None:
        """Check that each open request is queued, or with a worker: else it could only expire."""
        requests, workers = self._pool._requests, [*self._pool._workers]
        places = {
            *(
                one
                for all in requests.waiting.values()
                for queue in all.values()
                for one in queue.requests
            ),
            *(
                one.request_id
                for worker in workers
                for batch in worker.running.values()
                for one in batch.requests
            ),
        }
        missing = len(requests._requests.keys() - places)
        require(not missing, f"{missing} requests are neither queued nor computed")

    def dispatch(self, now: float) -> list[PoolCommand]:
        commands = self._checked(self._pool.dispatch(now), now)
        limit_s = now - LATE_S
        while self._limits and self._limits[0][0] < limit_s - self._stood_still_s():
            _, request_id = heappop(self._limits)
            is_open = request_id in self._open
            require(not is_open, f"request {request_id} waits long after its deadline")
        return commands

    def _checked(self, commands: list[PoolCommand], now: float) -> list[PoolCommand]:
        for command in commands:
            match command:
                case EndRequest(request_id, result):
                    self._end(request_id, result, now)
                case EvictWorker():
                    self._evicted(command, now)
                case SendToNode(node, RunBatch() as batch):
                    self._sent(node, batch.payloads)
                    self._require_not_withdrawn(batch)
        self._require_bounds()
        return commands

    def _sent(self, node: bytes, payloads: Sequence[Payload]) -> None:
        worker = self._pool._workers.at_node(node)
        if len(payloads) == 1 and worker is not None and worker.child:
            self._had_alone[number_in(payloads[0])].add(node)

    def _require_same_draw(self, request: InferenceRequest) -> None:
        model = self._pool.catalogue.models[request.model]
        trial = model.trial
        if trial is None or not request.repeat_id or not model.may_name(trial.number):
            return
        key = request.model, trial.number, request.repeat_id
        is_same = self._drawn.setdefault(key, request.is_drawn) == request.is_drawn
        require(is_same, f"a repeat of {request.repeat_id} goes to another version")

    def _require_not_withdrawn(self, batch: RunBatch) -> None:
        """Check that only requests that named a version run with it after it was withdrawn."""
        if (batch.model, batch.version) not in self._withdrawn:
            return
        requests = (each.request for each in self._open.values())
        named = {number_in(one.payload) for one in requests if one.version and not one.is_drawn}
        others = {number_in(payload) for payload in batch.payloads} - named
        require(not others, f"{others} run with version {batch.version}, which was withdrawn")

    def _end(self, request_id: int, result: Result, now: float) -> None:
        if request_id in self._reloads:
            self._reload_ends(self._reloads.pop(request_id), result)
            return
        admitted = self._open.pop(request_id, None)
        require(admitted is not None, f"request {request_id} ends twice, or was cancelled")
        assert admitted is not None
        request, number = admitted.request, number_in(admitted.request.payload)
        self.ended[result.status] += 1
        match result.status:
            case Status.OK:
                self._require_right(admitted, result)
            case Status.EXPIRED:
                require(now >= admitted.deadline_s, f"request {number} expires too early")
            case Status.FAILED:
                alone = len(self._had_alone[number])
                require(alone >= 2, f"request {number} is put aside after {alone} children")
            case Status.UNAVAILABLE if PAUSED in result.reason or GONE in result.reason:
                pass
            case _:
                require(False, f"request {number} to {request.model} ends by {result}")

    def _reload_ends(self, model: str, result: Result) -> None:
        workers = list(self._pool._workers)
        everybody_has_it = all(worker.has(model, result.version) for worker in workers)
        is_newest = self._pool.catalogue.models[model].newest_number == result.version
        if result.status is Status.OK and workers and everybody_has_it and is_newest:
            self._rolled_out[model] = result.version

    def _require_right(self, admitted: _Admitted, result: Result) -> None:
        request, number = admitted.request, number_in(admitted.request.payload)
        trial = self._pool.catalogue.models[request.model].trial
        is_tried = trial is not None and result.version == trial.number and not request.version
        require(not is_tried, f"request {number} is answered by a version that did not draw it")
        rows = list(ROW.iter_unpack(result.payload))
        right = [(result.version, number)] * request.rows
        require(rows == right, f"request {number} is answered by {rows}, not {right}")
        if request.version is not None and not request.is_drawn:
            require(
                result.version == request.version,
                f"request {number} to version {request.version} is answered by {result.version}",
            )
        else:
            require(
                result.version >= admitted.oldest,
                f"request {number} is answered by version {result.version}, though "
                f"{admitted.oldest} had taken its place",
            )

    def _require_room(self) -> None:
        for name, queues in self._pool._requests.waiting.items():
            for queue in queues.values():
                queued = len(queue.requests)
                is_bounded = 0 < queued <= self._settings.queue_requests
                require(is_bounded, f"{queued} requests of {queue.client} for {name} wait")

    @property
    def pending(self) -> int:
        """The number of requests that count as unanswered in their clients' accounts."""
        return sum(queue.pending for queue in self._pool._requests._queues.values())

    def _require_cause(self, request: InferenceRequest, refusal: Result) -> None:
        """Whoever is refused has a queue already, or nobody could answer: no other client's
        requests, and none that were slow before, are a reason."""
        model, settings = self._pool.catalogue.models[request.model], self._settings
        if self._pool._scheduler.is_draining or not model.is_ready or PAUSED in refusal.reason:
            return
        queue = self._pool._requests.queue_of(request.model, request.client)
        a_batch_each = settings.max_batch_size * (len(self._pool._workers) + 1)
        is_long = len(queue.requests) >= min(a_batch_each, settings.queue_requests)
        require(is_long, f"a request for {model.name} is refused: {refusal}")

    def _require_bounds(self) -> None:
        for model in self._pool.catalogue.models.values():
            last = model.rollout
            if last is not None and last.outcome.startswith(("rolled back", "withdrawn")):
                self._withdrawn.add((model.name, last.number))
            names = list(model.versions)
            require(len(names) <= MAX_VERSIONS, f"{model.name} has versions {names}")
            # A version on trial answers only the requests that it drew.
            may_be_named = any(model.versions[n].share == 1 for n in model.served().versions)
            require(model.is_ready == may_be_named, f"{model.name} is ready, and has no version")
