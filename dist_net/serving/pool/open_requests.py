"""Every request in the pool, from its admission to its end."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from hashlib import blake2b

from dist_net.serving.pool.request_queue import LaneKey, Request, RequestQueue
from dist_net.serving.pool.requests import EndRequest, Outcome, Payload, Question, Status
from dist_net.serving.pool.roster import Roster, RunningBatch, Worker
from dist_net.serving.pool.versions import ModelVersions, Version
from dist_net.wire.serving_messages import BatchDone

logger = logging.getLogger(__name__)

CRASHES_ALONE = 2
"""A request that was alone with a lost worker this often is taken to be the cause."""
MOST_QUARANTINED = 1024  # the oldest are forgotten first
GLIMPSE_BYTES = 4096


class Quarantine:
    """Payloads that crashed workers and are not tried again, as digests, by version of a model.

    The digest of 32 MiB takes some 30 ms, in which the gateway answers nobody. So it is computed
    only for a payload that is as long as one of these, and like it in the middle.
    """

    def __init__(self) -> None:
        self._glimpses: OrderedDict[tuple[str, int, bytes], bytes] = OrderedDict()

    def add(self, model: str, version: int, payload: Payload) -> None:
        self._glimpses[model, version, _digest(payload)] = _glimpse(payload)
        if len(self._glimpses) > MOST_QUARANTINED:
            self._glimpses.popitem(last=False)

    def holds(self, model: str, version: int, payload: Payload) -> bool:
        """Whether it is remembered."""
        if not self._glimpses or _glimpse(payload) not in self._glimpses.values():
            return False
        return (model, version, _digest(payload)) in self._glimpses


class OpenRequests:
    """Requests without an answer: those in the queue, and those that workers have.

    ``payload_bytes``: of all of them. ``unsettled``: models whose versions may be able to move on,
    because the last request that held them back has ended.
    """

    def __init__(
        self, queue: RequestQueue, models: Mapping[str, ModelVersions], ids: Iterator[int]
    ) -> None:
        self.payload_bytes = 0
        self.unsettled: dict[str, None] = {}  # in order, or a simulation could not be repeated
        self.quarantine = Quarantine()
        self._queue = queue
        self._models = models
        self._ids = ids
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def open(
        self, question: Question, version: int, timeout_s: float, batch_rows: int, now: float
    ) -> int:
        """Queue a question that was admitted, for a batch of at most ``batch_rows``; gives its id.

        ``version`` counts it until it is answered.
        """
        model = self._models[question.model]
        request = Request(
            next(self._ids),
            LaneKey.of(question),
            question.payload,
            question.rows,
            now,
            now + timeout_s,
            version,
        )
        self._requests[request.request_id] = request
        self.payload_bytes += len(request.payload)
        model.pending += 1
        model.statistics_of(version).admitted += 1
        if question.version is not None:
            model.versions[version].bound += 1
        self._queue.add(request, batch_rows)
        return request.request_id

    def cancel(self, request_id: int) -> None:
        """Take a request out of the queue; if a worker has it, its answer will be dropped."""
        request = self._requests.get(request_id)
        if request is None or request.is_cancelled:
            return
        self._models[request.key.model].statistics_of(request.counted).cancelled += 1
        if self._queue.remove(request):
            self._close(request)
        else:
            request.is_cancelled = True

    def expire(self, now: float) -> list[EndRequest]:
        """End all in the queue whose time is up."""
        return [
            self._fail(
                request,
                Outcome(
                    Status.EXPIRED,
                    request.counted,
                    reason=f"no worker was free within the "
                    f"{request.deadline_s - request.admitted_s:.3g} s that were allowed",
                    queue_s=now - request.admitted_s,
                ),
                now,
            )
            for request in self._queue.expired(now)
        ]

    def complete(self, batch: RunningBatch, done: BatchDone, now: float) -> list[EndRequest]:
        """End the requests of a batch that came back, and count them."""
        model, version = batch.description.name, batch.description.version
        statistics = self._models[model].statistics_of(version)
        statistics.ran(batch.rows, done.compute_s, now)
        transit_s = max(now - batch.sent_s - done.prepare_s - done.compute_s, 0.0)
        ended = []
        for request, outcome in zip(batch.requests, batch.outcomes(done), strict=True):
            self._close(request)
            if not request.is_cancelled:
                statistics.ended(outcome, now - request.admitted_s, transit_s, now)
                ended.append(EndRequest(request.request_id, outcome))
        return ended

    def retry(self, worker: Worker, now: float) -> list[EndRequest]:
        """Put the requests of a lost worker back at the head of the queue.

        Those of the batch that it was computing run alone from now on; one that was alone with a
        lost worker twice ends here.
        """
        ended = []
        for place, batch in reversed(list(enumerate(worker.running.values()))):
            for request in reversed(batch.requests):
                if request.is_cancelled:
                    self._close(request)
                    continue
                if place == 0:
                    request.runs_alone = True
                    request.lost_alone += len(batch.requests) == 1
                if request.lost_alone >= CRASHES_ALONE:
                    ended.append(self._put_aside(request, batch, now))
                else:
                    model = self._models[request.key.model]
                    model.statistics_of(request.counted).retried += 1
                    self._queue.put_back(request)
        return ended

    def bind(self, model: ModelVersions, version: Version, workers: Roster) -> None:
        """Bind all that named no version to this one: newer ones take other inputs."""
        number = version.description.version
        bound = self._queue.bind(model.name, number)
        for worker in workers:
            for batch in worker.running.values():
                for request in batch.requests:
                    if request.key.model == model.name and request.key.version is None:
                        request.key = request.key._replace(version=number)
                        bound += 1
        version.bound += bound

    def _put_aside(self, request: Request, batch: RunningBatch, now: float) -> EndRequest:
        name, number = batch.description.name, batch.description.version
        self.quarantine.add(name, number, request.payload)
        logger.error("request_put_aside request=%d model=%s", request.request_id, name)
        reason = f"it has ended {request.lost_alone} workers, alone with each: it is put aside"
        return self._fail(request, Outcome(Status.FAILED, number, reason=reason), now)

    def _fail(self, request: Request, outcome: Outcome, now: float) -> EndRequest:
        statistics = self._models[request.key.model].statistics_of(outcome.version)
        statistics.ended(outcome, now - request.admitted_s, 0.0, now)
        self._close(request)
        return EndRequest(request.request_id, outcome)

    def _close(self, request: Request) -> None:
        del self._requests[request.request_id]
        self.payload_bytes -= len(request.payload)
        name, number, _ = request.key
        model = self._models[name]
        model.pending -= 1
        if number is not None:
            version = model.versions[number]
            version.bound -= 1
            if not version.bound:
                self.unsettled[name] = None
        if model.is_unloaded and not model.pending:
            self.unsettled[name] = None


def _glimpse(payload: Payload) -> bytes:
    """Equal for equal payloads, and soon computed."""
    size = len(payload)
    middle = payload[size // 2 : size // 2 + GLIMPSE_BYTES]
    return size.to_bytes(8, "little") + blake2b(middle, digest_size=8).digest()


def _digest(payload: Payload) -> bytes:
    return blake2b(payload, digest_size=16).digest()
