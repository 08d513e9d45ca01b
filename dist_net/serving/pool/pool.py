"""The inference pool as one state machine: events come in, what to do comes out. No I/O.

It puts the parts together: `admission` lets requests in, `open_requests` keeps them, `batcher`
makes batches, `routing` finds a worker for each, `versions` says what workers shall have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dist_net.errors import ProtocolError
from dist_net.serving.pool import completion
from dist_net.serving.pool.admission import Admission
from dist_net.serving.pool.batcher import Batcher
from dist_net.serving.pool.commands import EndRequest, EvictWorker, PoolCommand, SendToNode
from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.open_requests import OpenRequests
from dist_net.serving.pool.quarantine import Quarantine
from dist_net.serving.pool.report import model_report
from dist_net.serving.pool.request_queue import RequestQueue
from dist_net.serving.pool.requests import Outcome, Question
from dist_net.serving.pool.roster import Roster, Worker
from dist_net.serving.pool.routing import Router
from dist_net.serving.pool.settings import PoolSettings
from dist_net.serving.pool.statistics import ModelStatistics
from dist_net.serving.pool.versions import ModelVersions, Version
from dist_net.wire.serving_messages import BatchDone, Enlisted, Loaded, ModelPrepared

logger = logging.getLogger(__name__)


class Pool:
    """Times are seconds on one clock that never goes backwards; ``now`` is when it starts.

    ``first_worker_id`` should be another one after a restart, so that a worker that the one before
    counted in is not taken for one of its own.

    After whatever happened `dispatch` is to be called, once for all that came together: nothing
    else sends batches. Each request that was admitted ends with one Finish, or was cancelled.
    """

    def __init__(
        self,
        settings: PoolSettings,
        model_names: Sequence[str],
        now: float = 0.0,
        first_worker_id: int = 1,
    ) -> None:
        self._settings = settings
        self._started_s = self._now = now
        self._models = {name: ModelVersions(name) for name in model_names}
        self._workers = Roster(settings, first_worker_id)
        self._queue = RequestQueue()
        self._router = Router(settings, self._workers, self._queue, self._models)
        quarantine = Quarantine()
        self._requests = OpenRequests(self._queue, self._models, quarantine)
        self._admission = Admission(settings, self._models, self._router, quarantine)
        self._batcher = Batcher(settings, self._queue, self._models, self._router)
        self._is_draining = False
        self._check_s: float | None = None  # when to look at the workers again

    # Requests

    def admit(self, question: Question, now: float) -> int | Outcome:
        """Let a question in under a new id; or the refusal."""
        self._now = now
        admitted = self._admission.decide(
            question, len(self._queue), self._requests.held_bytes, now
        )
        model = self._models.get(question.model)
        if isinstance(admitted, Outcome):
            if model is not None:
                model.statistics_of(model.newest_number).refused += 1
            return admitted
        assert model is not None
        version = model.newest_number if question.version is None else question.version
        timeout_s = question.timeout_s or self._settings.default_timeout_s
        return self._requests.open(question, version, timeout_s, admitted, now).request_id

    def cancel(self, request_id: int, now: float) -> None:
        """Nobody wants the answer: it is not run any more, or its answer is dropped."""
        self._now = now
        self._requests.cancel(request_id)

    # Workers

    def enlist(
        self, node: bytes, name: str, host: str, process_id: int, now: float
    ) -> list[PoolCommand]:
        """A worker offers itself; one that did so before is told its id again."""
        worker = self._at(node, now)
        if worker is None:
            worker = self._workers.enlist(node, name, host, process_id, now)
            self._check_by(now)
            logger.info("worker_enlisted worker=%d name=%s host=%s", worker.worker_id, name, host)
        settings = self._settings
        enlisted = Enlisted(
            worker.worker_id, settings.heartbeat_interval_s, settings.heartbeat_timeout_s
        )
        return [SendToNode(node, enlisted), *self._advance_all(now)]

    def heard(self, node: bytes, now: float) -> bool:
        """A sign of life of a worker; False: there is none at this node."""
        return self._at(node, now) is not None

    def loaded(self, node: bytes, message: Loaded, now: float) -> list[PoolCommand]:
        """A worker has loaded a version, or could not."""
        worker = self._at(node, now)
        model = self._models.get(message.model)
        if worker is None or model is None:
            return []
        return [*model.loaded(worker, message.version, message.reason), *self._advance(model, now)]

    def done(self, node: bytes, message: BatchDone, now: float) -> list[PoolCommand]:
        """A worker sends a batch back. One that it was not given, or not any more, is dropped."""
        worker = self._at(node, now)
        batch = worker.running.get(message.batch_id) if worker else None
        if worker is None or batch is None:
            return []
        fault = completion.fault(batch, message)
        if fault is not None:
            return self._evict(worker, f"it answered a batch with {fault}", now)
        name, version = batch.description.name, batch.description.version
        took_s = worker.finish(batch, now)
        ended = completion.outcomes(batch, message)
        if rows := completion.computed_rows(batch, ended):
            self._router.time_of(name, batch.is_picture).observe(rows, took_s, now)
        statistics = self._models[name].statistics_of(version)
        completion.count_batch(statistics, batch, message, ended, now)
        commands: list[PoolCommand] = []
        for request, outcome in zip(batch.requests, ended, strict=True):
            self._requests.close(request)
            if not request.is_cancelled:
                commands.append(EndRequest(request.request_id, outcome))
        return commands

    def lost(self, node: bytes, reason: str, now: float) -> list[PoolCommand]:
        """A worker's process has ended, or it left: its requests go to others."""
        worker = self._at(node, now)
        return [] if worker is None else self._lose(worker, reason, now)

    # Versions

    def prepared(self, message: ModelPrepared, now: float) -> list[PoolCommand]:
        """A version can be loaded; or ``reason`` says why it cannot."""
        self._now = now
        model = self._models.get(message.model)
        if model is None:
            return []
        reason = message.reason
        if not reason:
            try:
                description = ModelDescription.from_json(message.description)
                model.prepared(Version(description, message.description))
            except ProtocolError as error:
                reason = str(error)
        if reason:
            logger.warning("prepare_failed model=%s reason=%s", model.name, reason)
            model.reason = reason
        return self._advance(model, now)

    def unload(self, model: str, reason: str, now: float) -> list[PoolCommand]:
        """Serve a model no longer, until a version is prepared again; what came in is answered."""
        self._now = now
        self._models[model].unload(reason)
        return self._advance(self._models[model], now)

    def versions_came(self, model: str) -> int:
        """How many versions of a model have come."""
        return self._models[model].came

    def versions_done(self, model: str) -> int:
        """With how many of them, in the order in which they came, nothing is left to be done.

        Every worker has them, or could not load them (the model's ``reason`` says why), or a newer
        one has taken their place.
        """
        return self._models[model].done

    # Time

    def stood_still(self, for_s: float, now: float) -> None:
        """The gateway's process did nothing for so long: no worker's silence counts meanwhile."""
        self._now = now
        self._workers.stood_still(for_s, now)
        self._check_by(now)

    def is_check_due(self, now: float) -> bool:
        """Whether `dispatch` may give workers up now, so all that they sent must be heard first."""
        return self._check_s is not None and now >= self._check_s

    def dispatch(self, now: float) -> list[PoolCommand]:
        """Give up what is overdue, and give idle workers something to do."""
        self._now = now
        commands: list[PoolCommand] = []
        if self.is_check_due(now):
            for worker, reason in self._workers.overdue(now):
                commands += self._evict(worker, reason, now)
            self._check_s = self._workers.next_check_s(now)
        commands += self._requests.expire(now)
        while self._requests.unsettled:
            commands += self._advance(self._models[self._requests.unsettled.pop()], now)
        while (made := self._batcher.next_batch(now)) is not None:
            worker, batch = made
            self._check_by(now + self._settings.longest_batch_s)
            commands.append(
                SendToNode(worker.node, batch.message(is_alone=len(self._requests) == 1))
            )
        return commands

    def next_wakeup(self) -> float | None:
        """When `dispatch` must be called though nothing happens; the past means now."""
        if self._requests.unsettled:
            return self._now
        moments = (self._check_s, self._batcher.held_until_s, self._queue.next_deadline_s())
        return min((moment for moment in moments if moment is not None), default=None)

    def drain(self, now: float) -> None:
        """Let nothing more in; what is in will be answered."""
        self._now = now
        self._is_draining = self._admission.is_draining = True

    # What is there now

    @property
    def is_drained(self) -> bool:
        """Whether it drains, and everything was answered."""
        return self._is_draining and not len(self._requests)

    @property
    def is_ready(self) -> bool:
        """Whether each model that is not unloaded has a worker that shows signs of life."""
        return not self._is_draining and all(
            self._router.can_answer(model, self._now)
            for model in self._models.values()
            if not model.is_unloaded
        )

    def models(self) -> Mapping[str, ServedModel]:
        """Every model by name."""
        return {name: model.served() for name, model in self._models.items()}

    def description(self, model: str, version: int | None) -> ModelDescription | None:
        """What would answer a request for that version, or for none; None: nothing would."""
        found = self._models.get(model)
        if found is None or found.is_unloaded:
            return None
        one = found.newest if version is None else found.versions.get(version)
        return None if one is None else one.description

    def statistics(self, model: str) -> Mapping[int, ModelStatistics]:
        """What was asked of a model, by version; and under NO_VERSION, see ModelStatistics."""
        return self._models[model].statistics

    def status(self, now: float) -> dict[str, Any]:
        """The pool for people; plain values that JSON knows."""
        self._now = now
        settings = self._settings
        return {
            "is_ready": self.is_ready,
            "is_draining": self._is_draining,
            "uptime_s": now - self._started_s,
            "workers": self._workers.report(now),
            "queue": {
                "requests": len(self._queue),
                "bytes": self._requests.held_bytes,
                "request_limit": settings.queue_requests,
                "byte_limit": settings.queue_bytes,
            },
            "models": [model_report(model, now) for model in self._models.values()],
        }

    def _at(self, node: bytes, now: float) -> Worker | None:
        """The worker at a node, of which something was heard just now."""
        self._now = now
        worker = self._workers.at_node(node)
        if worker is not None:
            worker.heard_s = now
        return worker

    def _evict(self, worker: Worker, reason: str, now: float) -> list[PoolCommand]:
        evict = EvictWorker(worker.node, worker.process_id, worker.host, reason)
        return [evict, *self._lose(worker, reason, now)]

    def _lose(self, worker: Worker, reason: str, now: float) -> list[PoolCommand]:
        logger.warning("worker_lost name=%s reason=%s", worker.name, reason)
        self._workers.remove(worker)
        return [*self._requests.retry(worker, now), *self._advance_all(now)]

    def _advance_all(self, now: float) -> list[PoolCommand]:
        return [command for model in self._models.values() for command in self._advance(model, now)]

    def _advance(self, model: ModelVersions, now: float) -> list[PoolCommand]:
        """Take a model's versions as far as they can go now."""
        before = model.newest
        model.refresh(self._workers)
        after = model.newest
        if before is not None and after is not None and before.takes != after.takes:
            self._requests.bind(model, before, self._workers)
        commands = model.advance(self._workers, now)
        if commands:
            self._check_by(now + self._settings.longest_load_s)
        return list(commands)

    def _check_by(self, moment: float) -> None:
        self._check_s = min(moment, moment if self._check_s is None else self._check_s)
