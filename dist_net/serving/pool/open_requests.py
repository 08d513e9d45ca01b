"""Every request in the pool, from its admission to its end; queued requests wait by client."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import chain, islice, takewhile

from dist_net.serving.pool.membership import PoolMembership, RunningBatch, Worker
from dist_net.serving.pool.quarantine import Quarantine
from dist_net.serving.pool.requests import EndRequest, InferenceRequest, Result, Status
from dist_net.serving.pool.versions import ModelVersions, Version
from dist_net.wire.serving_messages import BatchDone

STALE_DEADLINES = 64
ACTIVE_S = 1.0
"""A client counts as active until this long after its last request or answer."""
REMEMBERED_S = 60.0  # how long the account of a client without requests is kept
NEWEST_WEIGHT = 0.25
"""The weight of a measurement in the moving means, which adapt within a few batches."""


@dataclass(slots=True, eq=False)
class ClientQueue:
    """The requests of one client to one model: those that wait, oldest first, and their account.

    ``pending``: the number of its unanswered requests. ``batch_s``: the seconds of its last batch
    (0: unknown). ``apart``: the number of its next requests that share no batch with those of
    others: its first one, and more after one that failed or was slow. ``request_s``: the mean time
    between its requests that leave the queue; ``left_s``: when one left, or when the queue began.
    """

    model: str
    client: str
    seen_s: float = 0.0
    requests: OrderedDict[int, InferenceRequest] = field(default_factory=OrderedDict)
    pending: int = 0
    batch_s: float = 0.0
    apart: int = 1
    request_s: float = 0.0
    left_s: float = 0.0

    @property
    def oldest(self) -> InferenceRequest:
        return next(iter(self.requests.values()))

    def next(self, now: float) -> InferenceRequest:
        """Return the oldest; or if that waited half its time, the newest: the queue is too slow."""
        oldest = self.oldest
        if oldest.runs_alone or not _is_late(oldest, now):
            return oldest
        return next(reversed(self.requests.values()))

    def is_too_slow(self, enough: int, now: float) -> bool:
        """Return whether the oldest request is late, but the newest ``enough`` are not."""
        last = next(islice(reversed(self.requests.values()), enough - 1, None), None)
        return last is not None and _is_late(self.oldest, now) and not _is_late(last, now)

    def left(self, count: int, now: float) -> None:
        """Measure the rate of the queue, which this many requests have left for a batch."""
        self.request_s += NEWEST_WEIGHT * ((now - self.left_s) / count - self.request_s)
        self.left_s = now

    @property
    def wait_s(self) -> float:
        """The time until all requests have left the queue, at the measured rate."""
        return len(self.requests) * self.request_s


class OpenRequests:
    """Requests without an answer, whether queued or running.

    ``waiting``: by model, the clients with queued requests; no operation iterates over all
    requests. ``unsettled``: models whose versions may advance, as no request blocks them any more.
    """

    def __init__(self, models: Mapping[str, ModelVersions], ids: Iterator[int]) -> None:
        self.waiting: dict[str, dict[str, ClientQueue]] = {}
        self.unsettled: dict[str, None] = {}  # in order, or a simulation could not be repeated
        self.quarantine = Quarantine()
        self._models = models
        self._ids = ids
        self._requests: dict[int, InferenceRequest] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._queues: OrderedDict[tuple[str, str], ClientQueue] = OrderedDict()  # last seen last

    def __len__(self) -> int:
        return len(self._requests)

    def queued(self) -> int:
        """Return the number of queued requests."""
        return sum(
            len(each.requests) for queues in self.waiting.values() for each in queues.values()
        )

    def queue_of(self, model: str, client: str) -> ClientQueue:
        """Return a client's queue for a model; a new one, if the client was not seen recently."""
        return self._queues.get((model, client)) or ClientQueue(model, client)

    def seen(self, request: InferenceRequest, now: float) -> ClientQueue:
        """Return the queue of a request, and note that its client is active now."""
        queue = self.queue_of(request.model, request.client)
        queue.seen_s = now
        self._queues[request.model, request.client] = queue
        self._queues.move_to_end((request.model, request.client))
        for key, other in [*islice(self._queues.items(), 2)]:
            if not other.pending and other.seen_s < now - REMEMBERED_S:
                del self._queues[key]
        return queue

    def has_other_clients(self, client: str, now: float) -> bool:
        """Return whether a request of another client waits, or one was seen in the last second."""
        recent = takewhile(
            lambda each: each.seen_s > now - ACTIVE_S, reversed(self._queues.values())
        )
        names = chain((each.client for each in recent), *self.waiting.values())
        return any(name != client for name in names)

    def open(self, request: InferenceRequest, timeout_s: float, now: float) -> int:
        """Queue an admitted request; return its id."""
        model = self._models[request.model]
        version = model.newest_number if request.version is None else request.version
        request.request_id, request.counted = next(self._ids), version
        request.admitted_s, request.deadline_s = now, now + timeout_s
        self._requests[request.request_id] = request
        heappush(self._deadlines, (request.deadline_s, request.request_id))
        # Requests that ended in time leave their deadlines here.
        if len(self._deadlines) > 2 * len(self._requests) + STALE_DEADLINES:
            self._deadlines = [(one.deadline_s, one.request_id) for one in self._requests.values()]
            heapify(self._deadlines)
        model.statistics_of(version).admitted += 1
        if request.version is not None:
            model.versions[version].bound += 1
        queue = self.seen(request, now)
        queue.pending += 1
        self._enqueue(request, now)
        return request.request_id

    def take(
        self,
        first: InferenceRequest,
        version: int,
        queues: Iterable[ClientQueue],
        max_rows: int,
        row_s: float,
        now: float,
    ) -> list[InferenceRequest]:
        """Remove and return the next batch: ``first``, and requests that may share it.

        The clients of ``queues`` take turns in this order until no request fits into ``max_rows``,
        or would end in time if a row takes ``row_s``. A suspect input runs alone.
        """
        batch, rows = [first], first.rows
        self._dequeue(first)
        own = self.queue_of(first.model, first.client)
        taken: dict[ClientQueue, int] = {own: 1}
        may_join = [each for each in queues if each is not own and not each.apart]
        may_join = [own] if own.apart else [*may_join, own]
        first.runs_alone = first.runs_alone or self._is_suspect(first, version)
        while may_join and not first.runs_alone:
            for queue in [*may_join]:
                one = queue.next(now) if queue.requests else first
                more = rows + one.rows
                ends_s = now + more * row_s
                fits = more <= max_rows and ends_s <= min(first.deadline_s, one.deadline_s)
                fits = fits and one.kind == first.kind and not one.runs_alone
                if one is first or not fits or self._is_suspect(one, version):
                    may_join.remove(queue)
                    continue
                batch.append(one)
                rows = more
                self._dequeue(one)
                taken[queue] = taken.get(queue, 0) + 1
        for queue, count in taken.items():
            queue.left(count, now)
        return batch

    def refuse(self, request: InferenceRequest, result: Result, now: float) -> EndRequest:
        """End a queued request that must not run."""
        self._abandon(request)
        return self._fail(request, result, now)

    def cancel(self, request_id: int) -> None:
        """Remove a request from the queue; if a worker runs it, its answer will be dropped."""
        request = self._requests.get(request_id)
        if request is None or request.is_unwanted:
            return
        self._models[request.model].statistics_of(request.counted).cancelled += 1
        self._abandon(request)

    def expire(self, now: float) -> list[EndRequest]:
        """End the expired requests. If a worker runs one, its answer will be dropped."""
        ended = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now:
            request = self._requests[self._deadlines[0][1]]
            allowed_s = deadline_s - request.admitted_s
            was_queued = self._abandon(request)
            what = "no worker was free within" if was_queued else "a worker took longer than"
            reason = f"{what} the {allowed_s:.3g} s allowed"
            waited_s = now - request.admitted_s if was_queued else 0.0
            result = Result(Status.EXPIRED, request.counted, reason=reason, queue_s=waited_s)
            ended.append(self._fail(request, result, now))
        return ended

    def next_deadline_s(self) -> float | None:
        """Return the time at which the next request expires."""
        while self._deadlines:
            request = self._requests.get(self._deadlines[0][1])
            if request is not None and not request.is_unwanted:
                return request.deadline_s
            heappop(self._deadlines)
        return None

    def complete(self, batch: RunningBatch, done: BatchDone, now: float) -> list[EndRequest]:
        """End the requests of a finished batch, and count them."""
        model, version = batch.description.name, batch.description.version
        statistics = self._models[model].statistics_of(version)
        if rows := batch.computed_rows(done):
            statistics.ran(rows, done.compute_s, now)
        transit_s = max(now - batch.sent_s - done.prepare_s - done.compute_s, 0.0)
        ended = []
        for request, result in zip(batch.requests, batch.results(done), strict=True):
            self._close(request)
            if request.runs_alone and result.status is Status.OK:
                self.quarantine.clear(model, version, request.payload)
            if not request.is_unwanted:
                latency_s = now - request.admitted_s
                statistics.ended(result, latency_s, transit_s)
                if result.status is Status.OK:
                    self._models[model].recent.add(latency_s, now)
                ended.append(EndRequest(request.request_id, result))
        return ended

    def retry(self, worker: Worker, now: float) -> list[EndRequest]:
        """Put the requests of a lost worker back at the head of their queues.

        The requests of the batch that it was computing run alone from now on, unless they must not
        run again. A probe of the pool has no id, and ends with its worker.
        """
        batches = list(worker.running.values())
        for request in batches[0].requests if batches else ():
            request.runs_alone = True
            of, is_alone = batches[0].description, len(batches[0].requests) == 1
            self.quarantine.add(of.name, of.version, request.payload, is_alone, now)
        ended = []
        for batch in reversed(batches):
            number = batch.description.version
            for request in reversed([one for one in batch.requests if one.request_id]):
                if request.is_unwanted:
                    self._close(request)
                    continue
                self._enqueue(request, now)
                queue = self.queue_of(request.model, request.client)
                queue.requests.move_to_end(request.request_id, last=False)
                refusal = None
                if request.runs_alone:
                    refusal = self.quarantine.refusal(request.model, number, request.payload, now)
                if refusal is not None:
                    ended.append(self.refuse(request, refusal, now))
                else:
                    self._models[request.model].statistics_of(request.counted).retried += 1
        return ended

    def bind(self, model: ModelVersions, version: Version, workers: PoolMembership) -> None:
        """Bind requests without a version to this one: no later version may answer them."""
        waiting = self.waiting.get(model.name, {}).values()
        requests = [one for queue in waiting for one in queue.requests.values()]
        for worker in workers:
            requests += [one for batch in worker.running.values() for one in batch.requests]
        for request in requests:
            if request.request_id and request.model == model.name and request.version is None:
                request.version = version.description.version
                version.bound += 1

    def _is_suspect(self, request: InferenceRequest, version: int) -> bool:
        return self.quarantine.is_suspect(request.model, version, request.payload)

    def _enqueue(self, request: InferenceRequest, now: float) -> None:
        """Append a request to its client's queue."""
        queue = self.queue_of(request.model, request.client)
        if not queue.requests:
            queue.left_s = now
            self.waiting.setdefault(request.model, {})[request.client] = queue
        queue.requests[request.request_id] = request

    def _dequeue(self, request: InferenceRequest) -> bool:
        """Remove a request from its queue; return False if it is not queued."""
        queue = self.queue_of(request.model, request.client)
        if queue.requests.pop(request.request_id, None) is None:
            return False
        if not queue.requests:
            clients = self.waiting[request.model]
            del clients[request.client]
            if not clients:
                del self.waiting[request.model]
        return True

    def _abandon(self, request: InferenceRequest) -> bool:
        """Close a queued request, or have the answer of a running one dropped; return which."""
        was_queued = self._dequeue(request)
        if was_queued:
            self._close(request)
        else:
            request.is_unwanted = True
        return was_queued

    def _fail(self, request: InferenceRequest, result: Result, now: float) -> EndRequest:
        statistics = self._models[request.model].statistics_of(result.version)
        statistics.ended(result, now - request.admitted_s, 0.0)
        return EndRequest(request.request_id, result)

    def _close(self, request: InferenceRequest) -> None:
        del self._requests[request.request_id]
        name, number = request.model, request.version
        model = self._models[name]
        self._queues[name, request.client].pending -= 1
        if number is not None:
            version = model.versions[number]
            version.bound -= 1
            if not version.bound:
                self.unsettled[name] = None


def _is_late(request: InferenceRequest, now: float) -> bool:
    """Return whether half of a request's time has passed."""
    return 2 * (now - request.admitted_s) > request.deadline_s - request.admitted_s
