"""The requests in the pool, from admission to their end, and what is counted of them. Pure."""

from __future__ import annotations

import logging

from dist_net.serving.pool.commands import EndRequest
from dist_net.serving.pool.completion import count_failure
from dist_net.serving.pool.quarantine import Quarantine
from dist_net.serving.pool.request_queue import LaneKey, Request, RequestQueue
from dist_net.serving.pool.requests import Outcome, Question, Status
from dist_net.serving.pool.roster import Roster, RunningBatch, Worker
from dist_net.serving.pool.versions import ModelVersions, Version

logger = logging.getLogger(__name__)

LOSSES_ALONE = 2
"""A request that was alone with a lost worker so often is taken to be the cause."""


class OpenRequests:
    """Requests that have no answer yet: those in the queue, and those that workers have.

    ``held_bytes``: of their payloads. ``unsettled``: names of models for which the last request of
    some kind has ended, so that their versions may go on.
    """

    def __init__(
        self, queue: RequestQueue, models: dict[str, ModelVersions], quarantine: Quarantine
    ) -> None:
        self.held_bytes = 0
        self.unsettled: set[str] = set()
        self._queue = queue
        self._models = models
        self._quarantine = quarantine
        self._requests: dict[int, Request] = {}
        self._next_request_id = 1

    def __len__(self) -> int:
        return len(self._requests)

    def open(
        self, question: Question, version: int, timeout_s: float, batch_rows: int, now: float
    ) -> Request:
        """Queue a question that was let in; ``version`` counts it until it is answered.

        ``batch_rows``: how many its batch may have.
        """
        model = self._models[question.model]
        request = Request(
            self._next_request_id,
            LaneKey.of(question),
            question.payload,
            question.rows,
            now,
            now + timeout_s,
            version,
        )
        self._next_request_id += 1
        self._requests[request.request_id] = request
        self.held_bytes += len(request.payload)
        model.pending += 1
        model.statistics_of(version).admitted += 1
        if question.version is not None:
            model.versions[version].bound += 1
        self._queue.add(request, batch_rows)
        return request

    def close(self, request: Request) -> None:
        """It has ended, and is here no longer."""
        del self._requests[request.request_id]
        self.held_bytes -= len(request.payload)
        name, number, _ = request.key
        model = self._models[name]
        model.pending -= 1
        if number is not None:
            version = model.versions[number]
            version.bound -= 1
            if not version.bound:
                self.unsettled.add(name)
        if model.is_unloaded and not model.pending:
            self.unsettled.add(name)

    def cancel(self, request_id: int) -> None:
        """Nobody wants the answer: it is not run any more, or its answer is dropped."""
        request = self._requests.get(request_id)
        if request is None or request.is_cancelled:
            return
        self._models[request.key.model].statistics_of(request.counted).cancelled += 1
        if self._queue.remove(request):
            self.close(request)
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

    def retry(self, worker: Worker, now: float) -> list[EndRequest]:
        """Queue all that a lost worker had again, before the others; alone, if it had begun.

        What was alone with it, and not for the first time, ends here.
        """
        finished = []
        for place, batch in reversed(list(enumerate(worker.running.values()))):
            for request in reversed(batch.requests):
                if request.is_cancelled:
                    self.close(request)
                    continue
                if place == 0:
                    request.runs_alone = True
                    request.lost_alone += len(batch.requests) == 1
                if request.lost_alone >= LOSSES_ALONE:
                    finished.append(self._put_aside(request, batch, now))
                else:
                    model = self._models[request.key.model]
                    model.statistics_of(request.counted).retried += 1
                    self._queue.put_back(request)
        return finished

    def bind(self, model: ModelVersions, version: Version, workers: Roster) -> None:
        """Let all that named no version be answered by this one: newer ones take other inputs."""
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
        self._quarantine.add(name, number, request.payload)
        logger.error("request_put_aside request=%d model=%s", request.request_id, name)
        reason = f"it has ended {request.lost_alone} workers, alone with each: it is put aside"
        return self._fail(request, Outcome(Status.FAILED, number, reason=reason), now)

    def _fail(self, request: Request, outcome: Outcome, now: float) -> EndRequest:
        statistics = self._models[request.key.model].statistics_of(outcome.version)
        count_failure(statistics, outcome.status, now - request.admitted_s)
        self.close(request)
        return EndRequest(request.request_id, outcome)
