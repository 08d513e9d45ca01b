"""Every request in the pool, from its admission to its end; queued requests wait in lanes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from itertools import takewhile

from dist_net.serving.pool.membership import PoolMembership, RunningBatch, Worker
from dist_net.serving.pool.requests import (
    NO_BATCH,
    EndRequest,
    InferenceRequest,
    LaneKey,
    Payload,
    PlannedBatch,
    Result,
    Status,
)
from dist_net.serving.pool.versions import ModelVersions, Version
from dist_net.wire.serving_messages import BatchDone

logger = logging.getLogger(__name__)

CRASHES_ALONE = 2
"""A payload that was alone with a lost worker this often is taken to be the cause."""
MAX_QUARANTINED = 1024  # the oldest are forgotten first
STALE_DEADLINES = 64


@dataclass(slots=True, eq=False)
class Lane:
    """Requests that may share batches, oldest first. Never empty.

    They have ``rows`` rows in ``batches`` batches; further requests may join the ``last``.
    """

    key: LaneKey
    requests: OrderedDict[int, InferenceRequest] = field(default_factory=OrderedDict)
    rows: int = 0
    batches: int = 0
    last: PlannedBatch = NO_BATCH

    @property
    def oldest(self) -> InferenceRequest:
        """The next request."""
        return next(iter(self.requests.values()))

    @property
    def is_full(self) -> bool:
        """Whether no request can join the next batch."""
        first = self.oldest.planned
        return first is not self.last or first.rows >= first.max_rows

    def joins(self, rows: int, max_rows: int) -> bool:
        """Return whether ``rows`` fit into the last batch, within ``max_rows`` in total."""
        last = self.last
        return 0 < last.rows <= min(last.max_rows, max_rows) - rows

    def place(self, request: InferenceRequest) -> None:
        """Append a request, which is in a planned batch."""
        self.requests[request.request_id] = request
        self.rows += request.rows
        self.batches += not request.planned.rows
        request.planned.rows += request.rows


class Quarantine:
    """Payloads that lost workers computed, as digests by version of a model, with the number of
    losses that each was alone in since a version last answered it.
    """

    def __init__(self) -> None:
        self._losses: OrderedDict[tuple[str, int, bytes], int] = OrderedDict()

    def add(self, model: str, version: int, payload: Payload, is_alone: bool) -> None:
        """Count the loss of a worker that computed this payload."""
        key = model, version, _digest(payload)
        self._losses[key] = self._losses.get(key, 0) + is_alone
        if len(self._losses) > MAX_QUARANTINED:
            self._losses.popitem(last=False)

    def losses(self, model: str, version: int, payload: Payload) -> int | None:
        """Return the number of workers lost with it alone; None if no worker was lost with it."""
        if not self._losses:  # a digest of 32 MiB takes some 30 ms
            return None
        return self._losses.get((model, version, _digest(payload)))

    def holds(self, model: str, version: int, payload: Payload) -> bool:
        """Return whether it must not run again."""
        return (self.losses(model, version, payload) or 0) >= CRASHES_ALONE

    def clear(self, model: str, version: int, payload: Payload) -> None:
        """Forget a payload that was answered."""
        self._losses.pop((model, version, _digest(payload)), None)


class OpenRequests:
    """Requests without an answer, whether queued or running.

    ``lanes``: the queued requests, one lane for each kind of batch; no lane is empty, and no
    operation iterates over all requests. ``unsettled``: models whose versions may advance because
    the last request that blocked them has ended.
    """

    def __init__(self, models: Mapping[str, ModelVersions], ids: Iterator[int]) -> None:
        self.lanes: dict[LaneKey, Lane] = {}
        self.unsettled: dict[str, None] = {}  # in order, or a simulation could not be repeated
        self.quarantine = Quarantine()
        self._models = models
        self._ids = ids
        self._requests: dict[int, InferenceRequest] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def queued(self, model: str | None = None) -> int:
        """Return the number of queued requests, of one model or of all."""
        lanes = self.lanes.values()
        return sum(len(lane.requests) for lane in lanes if model in (None, lane.key.model))

    def open(self, request: InferenceRequest, timeout_s: float, batch_rows: int, now: float) -> int:
        """Queue an admitted request for a batch of at most ``batch_rows``; return its id."""
        model = self._models[request.model]
        version = model.newest_number if request.version is None else request.version
        request.request_id, request.counted = next(self._ids), version
        request.admitted_s, request.deadline_s = now, now + timeout_s
        losses = self.quarantine.losses(model.name, version, request.payload)
        request.runs_alone = losses is not None
        self._requests[request.request_id] = request
        heappush(self._deadlines, (request.deadline_s, request.request_id))
        # Requests that ended in time leave their deadlines here.
        if len(self._deadlines) > 2 * len(self._requests) + STALE_DEADLINES:
            self._deadlines = [(one.deadline_s, one.request_id) for one in self._requests.values()]
            heapify(self._deadlines)
        model.pending += 1
        model.pending_bytes += len(request.payload)
        model.statistics_of(version).admitted += 1
        if request.version is not None:
            model.versions[version].bound += 1
        self._enqueue(request, request.rows if request.runs_alone else batch_rows)
        return request.request_id

    def take(self, lane: Lane) -> list[InferenceRequest]:
        """Remove and return the lane's next batch."""
        planned = lane.oldest.planned
        batch = list(takewhile(lambda one: one.planned is planned, lane.requests.values()))
        for request in batch:
            self._dequeue(request)
        return batch

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
                    self._put_back(request)
        return ended

    def bind(self, model: ModelVersions, version: Version, workers: PoolMembership) -> None:
        """Bind requests without a version to this one: no later version may answer them."""
        number = version.description.version
        for lane in [*self.lanes.values()]:
            if lane.key.model == model.name and lane.key.version is None:
                for request in [*lane.requests.values()]:
                    self._dequeue(request)
                    request.version = number
                    self._enqueue(request, request.planned.max_rows)
                    version.bound += 1
        for worker in workers:
            for batch in worker.running.values():
                for request in batch.requests:
                    if request.model == model.name and request.version is None:
                        request.version = number
                        version.bound += 1

    def _enqueue(self, request: InferenceRequest, max_rows: int) -> None:
        """Append a request to its lane, in a batch of at most ``max_rows``."""
        lane = self._lane(request.key)
        if lane.joins(request.rows, max_rows):
            lane.last.max_rows = min(lane.last.max_rows, max_rows)
        else:
            lane.last = PlannedBatch(max_rows)
        request.planned = lane.last
        lane.place(request)

    def _put_back(self, request: InferenceRequest) -> None:
        """Put a request back at the head of its lane, into its former batch."""
        lane = self._lane(request.key)
        if request.runs_alone:
            request.planned = PlannedBatch(request.rows)
        lane.place(request)
        lane.requests.move_to_end(request.request_id, last=False)

    def _dequeue(self, request: InferenceRequest) -> bool:
        """Remove a request from its lane; return False if it is not queued."""
        lane = self.lanes.get(request.key)
        if lane is None or lane.requests.pop(request.request_id, None) is None:
            return False
        lane.rows -= request.rows
        request.planned.rows -= request.rows
        lane.batches -= not request.planned.rows
        if not lane.requests:
            del self.lanes[request.key]
        return True

    def _lane(self, key: LaneKey) -> Lane:
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key)
        return lane

    def _abandon(self, request: InferenceRequest) -> bool:
        """Close a queued request, or have the answer of a running one dropped; return which."""
        was_queued = self._dequeue(request)
        if was_queued:
            self._close(request)
        else:
            request.is_unwanted = True
        return was_queued

    def _quarantined(self, request: InferenceRequest, version: int, now: float) -> EndRequest:
        name = request.model
        logger.error("request_quarantined request=%d model=%s", request.request_id, name)
        reason = f"this input ended {CRASHES_ALONE} workers that computed it alone"
        self._close(request)
        return self._fail(request, Result(Status.FAILED, version, reason=reason), now)

    def _fail(self, request: InferenceRequest, result: Result, now: float) -> EndRequest:
        statistics = self._models[request.model].statistics_of(result.version)
        statistics.ended(result, now - request.admitted_s, 0.0, now)
        return EndRequest(request.request_id, result)

    def _close(self, request: InferenceRequest) -> None:
        del self._requests[request.request_id]
        name, number = request.model, request.version
        model = self._models[name]
        model.pending -= 1
        model.pending_bytes -= len(request.payload)
        if number is not None:
            version = model.versions[number]
            version.bound -= 1
            if not version.bound:
                self.unsettled[name] = None


def _digest(payload: Payload) -> bytes:
    return blake2b(payload, digest_size=16).digest()
