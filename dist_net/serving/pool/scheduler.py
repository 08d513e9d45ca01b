"""Which requests are admitted, and which batch runs next, on which worker.

A request is admitted if its client's queue has room; the times of batches decide turns. The
expected cost of a request, by its size, only decides its worker and its batch.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from dist_net.serving.pool.membership import NO_PROOF, PoolMembership, RunningBatch, Worker
from dist_net.serving.pool.open_requests import (
    ACTIVE_S,
    NEWEST_WEIGHT,
    REMEMBERED_S,
    SHORT_BATCH_S,
    BatchTerms,
    ClientQueue,
    OpenRequests,
    size_of,
)
from dist_net.serving.pool.requests import (
    EndRequest,
    InferenceRequest,
    PoolSettings,
    Result,
    Status,
)
from dist_net.serving.pool.versions import ModelVersions
from dist_net.wire.serving_messages import BatchDone

WORKER_STARTS_S = 1.0
"""The approximate time to replace a lost worker, or to load a first model."""

MIN_CHARGE_S = 1e-4
"""The minimum charge of a request to its client's turn, and of a batch to its model's turn."""

LONG_FACTOR = 8
"""A request that costs this multiple of the usual cost of clients' requests is long."""

SLOW_FACTOR = 16
"""A batch that takes this multiple of the time that was expected of it is slow."""

NOT_SHORT_S = 4 * SHORT_BATCH_S

DISTRUST_FACTOR = 200
"""A client is distrusted for this multiple of the time of its slow or failed batch, so that it
costs other clients less than a hundredth of the time."""

DEADLINE_FACTOR = 1.5  # a batch may take this multiple of its usual time
MAX_TURNS = 1024  # kept, unless more names wait for their turn


class Turns:
    """The order in which models, or the clients of one, are served: each has the same time.

    Start-time fair queueing (Goyal et al. 1996), by the time of batches; idle time is not saved up.
    """

    def __init__(self) -> None:
        self._turns_s: dict[Hashable, float] = {}  # the virtual time of each one's next batch
        self._now_s = 0.0  # the virtual time of the last batch

    def of(self, name: Hashable) -> float:
        """Return the virtual time of the next batch: the lowest is served first."""
        return max(self._turns_s.get(name, 0.0), self._now_s)

    def begin(self, name: Hashable) -> None:
        """Begin the turn of ``name``, and forget names without a debt."""
        self._now_s = self.of(name)
        if len(self._turns_s) > MAX_TURNS:
            later = {each: at_s for each, at_s in self._turns_s.items() if at_s > self._now_s}
            self._turns_s = later

    def charge(self, name: Hashable, seconds: float) -> None:
        self._turns_s[name] = self.of(name) + seconds


@dataclass(eq=False, repr=False)
class Scheduler:
    """Admits requests and takes batches out of the queues of the models' clients.

    Models take turns, and the clients of a model, so that each gets the same time of the workers.
    Each model has an equal share of the workers. While it does not use its share, others leave idle
    workers for it. While several clients are active, each has at most half of the workers, rounded
    up. Neither holds for requests that end within ``SHORT_BATCH_S``. A request that is long for its
    model, or of a distrusted client, runs alone, and leaves a worker without such requests.

    These rules hold among the trusted workers, and again among the others, which are lent requests
    that no trusted worker has begun.

    With ``is_draining`` no requests are admitted.
    """

    _settings: PoolSettings
    _workers: PoolMembership
    _models: Mapping[str, ModelVersions]
    _requests: OpenRequests
    is_draining: bool = False
    _row_s: dict[str, float] = field(default_factory=dict)  # by model, the usual time of a row
    _model_turns: Turns = field(default_factory=Turns)
    _client_turns: dict[str, Turns] = field(default_factory=lambda: defaultdict(Turns))
    _next_batch_id: int = 1

    def refusal(self, request: InferenceRequest, now: float) -> Result | None:
        """Return the result that refuses a request, or None to admit it."""
        model, rows = self._models[request.model], request.rows
        if model.is_unloaded:
            return _not_found(f"{model.name} is not served: {model.reason}")
        if self.is_draining:
            return _unavailable("the service is shutting down and admits no more requests", 0.0)
        if not model.is_ready or model.newest is None:
            reason = model.reason or "all are lost; it is served again when a worker joins"
            return _unavailable(f"no worker serves {model.name}: {reason}", WORKER_STARTS_S)
        description = model.newest.description
        if request.version is not None:
            if not model.may_name(request.version):
                served = ", ".join(map(str, model.served().versions))
                return _not_found(
                    f"{model.name} has no version {request.version}; expected one of {served}"
                )
            description = model.versions[request.version].description
        most = self._settings.max_batch_size if description.is_batched else 1
        if rows > most:
            reason = f"the request has {rows} rows; expected at most {most}, as in a batch"
            return Result(Status.BAD_INPUT, description.version, reason=reason)
        if refusal := self._requests.quarantine.refusal(request, description.version, now):
            return refusal
        settings, queue = self._settings, self._requests.queue_of(model.name, request.client)
        queued = len(queue.requests)
        if queued >= settings.queue_requests:
            reason = "the queue is full"
        elif queue.is_too_slow(settings.max_batch_size * (len(self._workers) + 1), now):
            reason = "the oldest has waited for more than half of its time"
        else:
            return None
        return _unavailable(
            f"{queued} requests of this client for {model.name} are queued: {reason}",
            min(queue.wait_s, settings.allowed_s(request.timeout_s)) or WORKER_STARTS_S,
        )

    def next_batch(self, now: float) -> tuple[Worker, RunningBatch] | EndRequest | None:
        """Start a batch, or end a request that must not run; return None if nothing can run."""
        live = self._workers.live(now)
        for lends in (False, True):  # trusted workers first
            group = [each for each in live if self._workers.is_trusted(each) is not lends]
            free = [
                worker
                for worker in group
                if len(worker.running) < 2 and all(one.is_short for one in worker.running.values())
            ]
            if free and (found := self._next_on(free, group, lends, now)) is not None:
                return found
        return None

    def _next_on(
        self, free: list[Worker], group: list[Worker], lends: bool, now: float
    ) -> tuple[Worker, RunningBatch] | EndRequest | None:
        """Start a batch on a ``free`` worker of a group, if the group's rules allow one."""
        running = [one for worker in group for one in worker.running.values()]
        for one in running:
            if (
                one.is_short and now > one.sent_s + NOT_SHORT_S
            ):  # a client's earlier requests were misleading
                one.is_short = False
                for misled in one.requests:
                    own = self._requests.queue_of(misled.model, misled.client)
                    own.apart_until_s = math.inf
        clients = Counter(one.client for one in running)
        quarantine = self._requests.quarantine
        # The next suspect waits until the worker that died of the last suspect is replaced.
        most = len(group) if lends else max(len(group), self._workers.most_children)
        ready = sum(not worker.is_starting for worker in group)
        may_be_long = ready - sum(one.is_long for one in running) > 1 or most == 1
        for name in sorted(self._requests.waiting, key=self._model_turns.of):
            leaves_shares = self._leaves_shares(name, group)
            queues = self._by_turn(name)
            usual_s = 0.0
            for queue in queues:
                if (request := queue.next(now, lends, may_be_long)) is None:
                    continue
                likely = self._models[name].newest_number
                number = likely if request.version is None else request.version
                request.runs_alone |= quarantine.is_suspect(request, number)
                is_short = self._is_short(request, queue, now)
                is_long = False
                if not is_short:
                    usual_s = usual_s or self._requests.usual_cost_s(name)
                    is_long = self._is_long(request, queue, usual_s, now)
                    has_half = 2 * clients[queue.client] >= len(group) > 1
                    if not leaves_shares or (is_long and not may_be_long):
                        continue
                    if has_half and self._requests.has_other_clients(queue, now - ACTIVE_S):
                        continue
                choice = self._choose(request, is_short, free)
                if choice is None:
                    continue
                worker, version = choice
                if (refusal := quarantine.refusal(request, version, now)) is not None:
                    return self._requests.refuse(request, refusal, now)
                is_batched = self._models[name].versions[version].description.is_batched
                max_rows = self._settings.max_batch_size if is_batched and not is_long else 1
                row_s = DEADLINE_FACTOR * self._row_s.get(name, 0.0)
                terms = BatchTerms(version, max_rows, row_s, lends)
                batch = self._requests.take(request, queues, terms, now)
                return worker, self._run(worker, version, batch, is_long, now)
        return None

    def returned(self, worker: Worker, batch: RunningBatch, done: BatchDone, now: float) -> None:
        """Record a batch that a worker has finished, and charge its time to its clients.

        The time of a remote worker beside children is its own claim, and charged to no client.
        """
        took_s = worker.finish(batch, now)
        name = batch.description.name
        self._models[name].is_answering = True
        if not self._workers.is_trusted(worker):
            return
        is_slow = took_s > max(SHORT_BATCH_S, SLOW_FACTOR * (batch.expected_s or math.inf))
        if batch.computed_rows(done) == batch.rows and not (is_slow or batch.is_long):
            row_s = took_s / batch.rows
            self._row_s[name] = self._row_s.get(name, row_s)
            self._row_s[name] += NEWEST_WEIGHT * (row_s - self._row_s[name])
        each_s = took_s / len(batch.requests)
        if batch.is_probe:
            self._requests.costs[name].learn(batch.requests[0], each_s)
            return
        self._model_turns.charge(name, took_s)
        is_mixed = any(request.client != batch.client for request in batch.requests)
        for request, status in zip(batch.requests, done.statuses, strict=True):
            self._client_turns[name].charge(request.client, took_s * request.rows / batch.rows)
            queue = self._requests.seen(request, now)
            queue.cost_s = queue.cost_s or each_s
            queue.cost_s += NEWEST_WEIGHT * (each_s - queue.cost_s)
            if status == Status.OK:
                queue.costs.learn(request, each_s)
                if not (is_slow or _is_distrusted(queue, now)):
                    self._requests.costs[name].learn(request, each_s)
            if status == Status.FAILED or (is_slow and not is_mixed):
                queue.apart_until_s = now + DISTRUST_FACTOR * took_s
            elif is_slow or queue.apart_until_s == math.inf:
                queue.apart_until_s = math.inf if is_slow else 0.0  # its next answer will tell

    def due_probes(self, now: float) -> Iterator[tuple[Worker, RunningBatch]]:
        """Start a request of the pool itself on each worker without a recent answer for a model."""
        for worker in self._workers.live(now):
            for name in worker.holds:
                number = self._models[name].version_for(worker, None)
                is_running = any(each.description.name == name for each in worker.running.values())
                if number is None or is_running or now < worker.proofs.get(name, NO_PROOF)[0]:
                    continue
                description = self._models[name].versions[number].description
                probe = InferenceRequest(name, description.probe, admitted_s=now)
                probe.size = size_of(probe)
                if self._requests.quarantine.refusal(probe, number, now) is None:
                    yield worker, self._run(worker, number, [probe], False, now)

    def can_answer(self, model: ModelVersions, now: float) -> bool:
        """Return whether a live worker has answered for a model, and would do so again."""
        return any(
            model.version_for(worker, None) is not None
            and now < worker.proofs.get(model.name, NO_PROOF)[1]
            for worker in self._workers.live(now)
        )

    def _by_turn(self, model: str) -> list[ClientQueue]:
        """Return waiting clients: first clients of lost workers, then by turn, then by request."""
        turns = self._client_turns[model]

        def rank(each: ClientQueue) -> tuple[bool, float, float]:
            return not each.oldest.runs_alone, turns.of(each.client), each.oldest.admitted_s

        return sorted(self._requests.waiting[model].values(), key=rank)

    def _choose(
        self, request: InferenceRequest, is_short: bool, free: list[Worker]
    ) -> tuple[Worker, int] | None:
        """Return worker and version: idle first, then not loading, then the newest; None: wait."""
        model = self._models[request.model]
        best, best_rank = None, 99
        for worker in free:
            busy = len(worker.running)
            version = model.version_for(worker, request.version)
            if version is None or (busy and not is_short):
                continue
            rank = 4 * bool(worker.loading) + 2 * busy + (version != model.newest_number)
            if rank < best_rank:
                best, best_rank = (worker, version), rank
                if rank == 0:
                    break
        return best

    def _leaves_shares(self, model: str, live: list[Worker]) -> bool:
        """Return whether a batch on an idle worker leaves the other models their shares."""
        if len(self._models) == 1:
            return True
        used = Counter(worker.model for worker in live)
        served = [name for name, each in self._models.items() if each.is_ready]
        share = max(1, len(live) // max(1, len(served)))
        unused = sum(max(0, share - used[name]) for name in served if name != model)
        return used[model] < share or used[None] > unused

    def _is_short(self, request: InferenceRequest, queue: ClientQueue, now: float) -> bool:
        """Return whether a batch of such requests is known to be short."""
        rows = min(self._settings.max_batch_size, len(queue.requests))
        is_known = now >= queue.apart_until_s and not request.runs_alone
        return is_known and 0 < rows * queue.costs.of(request) < SHORT_BATCH_S

    def _is_long(
        self, request: InferenceRequest, queue: ClientQueue, usual_s: float, now: float
    ) -> bool:
        """Return whether other clients should not wait for a request."""
        is_long = queue.costs.of(request) > max(SHORT_BATCH_S, LONG_FACTOR * usual_s)
        return request.runs_alone or (
            (is_long or _is_distrusted(queue, now))
            and self._requests.has_other_clients(queue, now - REMEMBERED_S)
        )

    def _run(
        self,
        worker: Worker,
        version: int,
        requests: list[InferenceRequest],
        is_long: bool,
        now: float,
    ) -> RunningBatch:
        """Run a batch; the turn of its model and clients begins if it was not only lent."""
        name = requests[0].model
        queues = [self._requests.queue_of(name, request.client) for request in requests]
        costs_s = map(lambda queue, each: queue.costs.of(each), queues, requests)
        batch = RunningBatch(
            self._next_batch_id,
            self._models[name].versions[version].description,
            requests[0].is_image,
            requests,
            sum(request.rows for request in requests),
            now,
            expected_s=sum(costs_s),
            is_long=is_long,
        )
        is_known = all(now >= queue.apart_until_s for queue in queues)
        batch.is_short = is_known and 0 < batch.expected_s < SHORT_BATCH_S
        self._next_batch_id += 1
        worker.running[batch.batch_id] = batch
        if self._workers.is_trusted(worker) and not batch.is_probe:
            self._model_turns.begin(name)
            self._model_turns.charge(name, MIN_CHARGE_S)
            self._client_turns[name].begin(batch.client)
            for request in requests:
                self._client_turns[name].charge(request.client, MIN_CHARGE_S)
        return batch


def _is_distrusted(queue: ClientQueue, now: float) -> bool:
    """Return whether a client's requests lately took far longer than expected, or failed."""
    return now < queue.apart_until_s < math.inf


def _not_found(reason: str) -> Result:
    return Result(Status.NOT_FOUND, reason=reason)


def _unavailable(reason: str, retry_after_s: float) -> Result:
    return Result(Status.UNAVAILABLE, reason=reason, retry_after_s=retry_after_s)
