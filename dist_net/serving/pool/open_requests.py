"""Every request in the pool, from its admission to its end."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from heapq import heapify, heappop, heappush

from dist_net.serving.pool.membership import PoolMembership, RunningBatch, Worker
from dist_net.serving.pool.request_queue import LaneKey, QueuedRequest, RequestQueue
from dist_net.serving.pool.requests import EndRequest, InferenceRequest, Payload, Result, Status
from dist_net.serving.pool.versions import ModelVersions, Version
from dist_net.wire.serving_messages import BatchDone

logger = logging.getLogger(__name__)

CRASHES_ALONE = 2
"""A payload that was alone with a lost worker this often is taken to be the cause."""
MAX_QUARANTINED = 1024  # the oldest are forgotten first
GLIMPSE_BYTES = 4096
STALE_DEADLINES = 64


class Quarantine:
    """Payloads that lost workers computed, as digests by version of a model, with the number of
    losses that each was alone in since a version last answered it.

    The digest of 32 MiB takes some 30 ms, in which the gateway is blocked. So it is computed only
    for payloads with the length and the middle of a quarantined payload.
    """

    def __init__(self) -> None:
        self._losses: OrderedDict[tuple[str, int, bytes], dict[bytes, int]] = OrderedDict()

    def add(self, model: str, version: int, payload: Payload, is_alone: bool) -> None:
        """Count the loss of a worker that computed this payload."""
        alike = self._losses.setdefault((model, version, _glimpse(payload)), {})
        digest = _digest(payload)
        alike[digest] = alike.get(digest, 0) + is_alone
        if len(self._losses) > MAX_QUARANTINED:
            self._losses.popitem(last=False)

    def losses(self, model: str, version: int, payload: Payload) -> int | None:
        """Return the number of workers lost with it alone; None if no worker was lost with it."""
        if not self._losses:
            return None
        alike = self._losses.get((model, version, _glimpse(payload)))
        return None if alike is None else alike.get(_digest(payload))

    def holds(self, model: str, version: int, payload: Payload) -> bool:
        """Return whether it must not run again."""
        return (self.losses(model, version, payload) or 0) >= CRASHES_ALONE

    def clear(self, model: str, version: int, payload: Payload) -> None:
        """Forget a payload that was answered."""
        self._losses.pop((model, version, _glimpse(payload)), None)


class OpenRequests:
    """Requests without an answer, whether queued or running.

    ``unsettled``: models whose versions may advance because the last request that blocked them has
    ended.
    """

    def __init__(
        self,
        queues: Mapping[str, RequestQueue],
        models: Mapping[str, ModelVersions],
        ids: Iterator[int],
    ) -> None:
        self.unsettled: dict[str, None] = {}  # in order, or a simulation could not be repeated
        self.quarantine = Quarantine()
        self._queues = queues
        self._models = models
        self._ids = ids
        self._requests: dict[int, QueuedRequest] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def open(
        self,
        inference: InferenceRequest,
        version: int,
        timeout_s: float,
        batch_rows: int,
        now: float,
    ) -> int:
        """Queue an admitted request for a batch of at most ``batch_rows``; return its id.

        ``version`` counts it until it is answered.
        """
        model = self._models[inference.model]
        request = QueuedRequest(
            next(self._ids),
            LaneKey.from_request(inference),
            inference.payload,
            inference.rows,
            now,
            now + timeout_s,
            version,
            runs_alone=self.quarantine.losses(model.name, version, inference.payload) is not None,
        )
        self._requests[request.request_id] = request
        heappush(self._deadlines, (request.deadline_s, request.request_id))
        # Requests that ended in time leave their deadlines here.
        if len(self._deadlines) > 2 * len(self._requests) + STALE_DEADLINES:
            self._deadlines = [(one.deadline_s, one.request_id) for one in self._requests.values()]
            heapify(self._deadlines)
        model.pending += 1
        model.pending_bytes += len(request.payload)
        model.statistics_of(version).admitted += 1
        if inference.version is not None:
            model.versions[version].bound += 1
        self._queues[model.name].add(request, batch_rows)
        return request.request_id

    def cancel(self, request_id: int) -> None:
        """Remove a request from the queue; if a worker runs it, its answer will be dropped."""
        request = self._requests.get(request_id)
        if request is None or request.is_unwanted:
            return
        self._models[request.key.model].statistics_of(request.counted).cancelled += 1
        if self._queues[request.key.model].remove(request):
            self._close(request)
        else:
            request.is_unwanted = True

    def expire(self, now: float) -> list[EndRequest]:
        """End the expired requests. If a worker runs one, its answer will be dropped."""
        ended = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now:
            request = self._requests[self._deadlines[0][1]]
            allowed_s = deadline_s - request.admitted_s
            if self._queues[request.key.model].remove(request):
                reason = f"no worker was free within the {allowed_s:.3g} s allowed"
                waited_s = now - request.admitted_s
                result = Result(Status.EXPIRED, request.counted, b"", reason, queue_s=waited_s)
                ended.append(self._fail(request, result, now))
                self._close(request)
            else:
                reason = f"a worker took longer than the {allowed_s:.3g} s allowed"
                result = Result(Status.EXPIRED, request.counted, reason=reason)
                ended.append(self._fail(request, result, now))
                request.is_unwanted = True
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
        statistics.ran(batch.rows, done.compute_s, now)
        transit_s = max(now - batch.sent_s - done.prepare_s - done.compute_s, 0.0)
        ended = []
        for request, result in zip(batch.requests, batch.results(done), strict=True):
            self._close(request)
            if request.runs_alone and result.status is Status.OK:
                self.quarantine.clear(model, version, request.payload)
            if not request.is_unwanted:
                statistics.ended(result, now - request.admitted_s, transit_s, now)
                ended.append(EndRequest(request.request_id, result))
        return ended

    def retry(self, worker: Worker, now: float) -> list[EndRequest]:
        """Put the requests of a lost worker back at the head of the queue.

        The requests of the batch that it was computing run alone from now on; a request that was
        alone with two lost workers fails.
        """
        ended = []
        for place, batch in reversed(list(enumerate(worker.running.values()))):
            name, number = batch.description.name, batch.description.version
            for request in reversed(batch.requests):
                if place == 0:
                    request.runs_alone = True
                    is_alone = len(batch.requests) == 1
                    self.quarantine.add(name, number, request.payload, is_alone)
                if request.is_unwanted:
                    self._close(request)
                elif place == 0 and self.quarantine.holds(name, number, request.payload):
                    ended.append(self._quarantined(request, number, now))
                else:
                    self._models[name].statistics_of(request.counted).retried += 1
                    self._queues[name].put_back(request)
        return ended

    def bind(self, model: ModelVersions, version: Version, workers: PoolMembership) -> None:
        """Bind requests for the newest version to this one: newer versions take other inputs."""
        number = version.description.version
        bound = self._queues[model.name].bind(number)
        for worker in workers:
            for batch in worker.running.values():
                for request in batch.requests:
                    if request.key.model == model.name and request.key.version is None:
                        request.key = request.key._replace(version=number)
                        bound += 1
        version.bound += bound

    def _quarantined(self, request: QueuedRequest, version: int, now: float) -> EndRequest:
        name = request.key.model
        logger.error("request_quarantined request=%d model=%s", request.request_id, name)
        reason = f"this input ended {CRASHES_ALONE} workers that computed it alone"
        self._close(request)
        return self._fail(request, Result(Status.FAILED, version, reason=reason), now)

    def _fail(self, request: QueuedRequest, result: Result, now: float) -> EndRequest:
        statistics = self._models[request.key.model].statistics_of(result.version)
        statistics.ended(result, now - request.admitted_s, 0.0, now)
        return EndRequest(request.request_id, result)

    def _close(self, request: QueuedRequest) -> None:
        del self._requests[request.request_id]
        name, number, _ = request.key
        model = self._models[name]
        model.pending -= 1
        model.pending_bytes -= len(request.payload)
        if number is not None:
            version = model.versions[number]
            version.bound -= 1
            if not version.bound:
                self.unsettled[name] = None
        if model.is_unloaded and not model.pending:
            self.unsettled[name] = None


def _glimpse(payload: Payload) -> bytes:
    """Return a quick digest, equal for equal payloads."""
    size = len(payload)
    middle = payload[size // 2 : size // 2 + GLIMPSE_BYTES]
    return size.to_bytes(8, "little") + blake2b(middle, digest_size=8).digest()


def _digest(payload: Payload) -> bytes:
    return blake2b(payload, digest_size=16).digest()
