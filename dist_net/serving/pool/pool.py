"""The inference pool as one state machine: events come in, commands for the gateway come out.

A request goes this way:

    admit ─▶ Scheduler ─▶ OpenRequests                        (the gateway's next turn)
    dispatch ─▶ Scheduler: a batch and its worker ─▶ RunBatch
    receive BatchDone ─▶ OpenRequests ─▶ EndRequest

and a version of a model this way: ``Catalogue`` has it read, ``ModelVersions`` has workers load it.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from dist_net.errors import ModelLoadError
from dist_net.serving.pool.catalogue import Catalogue
from dist_net.serving.pool.membership import Children, PoolMembership, Worker
from dist_net.serving.pool.open_requests import OpenRequests
from dist_net.serving.pool.requests import (
    EndRequest,
    EvictWorker,
    InferenceRequest,
    PoolCommand,
    PoolSettings,
    Result,
    SendToNode,
    Status,
)
from dist_net.serving.pool.scheduler import Scheduler
from dist_net.serving.pool.versions import ModelVersions
from dist_net.wire.messages import Alive, Heartbeat, Leave, Message, Refuse, Stop
from dist_net.wire.serving_messages import BatchDone, JoinPool, Loaded, ModelPrepared, PoolWelcome

logger = logging.getLogger(__name__)

PROBE_CHECK_S = 0.1
UNKNOWN_WORKER = Refuse("the gateway has given this worker up", may_rejoin=True)


class Pool:
    """Times are seconds on one monotonic clock; the pool starts at ``now``.

    ``worker_ids`` are secret numbers, so that no worker sends the heartbeats of another one, or of
    a previous pool. ``release``: the release of dist_net that workers must have.

    Call ``dispatch`` after other calls, once for all simultaneous events: it alone sends batches,
    and requests to read models. An admitted request ends with one ``EndRequest`` or a cancellation.
    """

    def __init__(
        self,
        settings: PoolSettings,
        model_names: Sequence[str],
        children: Children,
        worker_ids: Iterator[int],
        now: float = 0.0,
        release: str = "",
    ) -> None:
        self._release = release
        self.catalogue = Catalogue(model_names)
        self._settings = settings
        self.max_batch_size = settings.max_batch_size
        self._started_s = now
        self._models = models = self.catalogue.models
        self._request_ids = count(1)
        self._workers = PoolMembership(settings, worker_ids, children)
        self._requests = OpenRequests(models, self._request_ids)
        self._scheduler = Scheduler(settings, self._workers, models, self._requests)
        self._check_s: float | None = None  # the time of the next check of the workers
        self._probe_s = now  # the time of the next check of their answers

    # Requests from clients

    def admit(self, request: InferenceRequest, now: float) -> int | Result:
        """Admit a request and return its id, or return the result that refuses it."""
        refusal = self._scheduler.refusal(request, now)
        if refusal is not None:
            model = self._models[request.model]
            model.statistics_of(model.newest_number).refused += 1
            return refusal
        if not (request.rows or request.is_image):  # no batch has none
            known = self.catalogue.description(request.model, request.version)
            assert known is not None
            return Result(
                Status.OK, known.version, labels=known.labels, unknown_below=known.unknown_below
            )
        return self._requests.open(request, self._settings.allowed_s(request.timeout_s), now)

    def cancel(self, request_id: int) -> None:
        self._requests.cancel(request_id)

    def reload(self, model: str, share: float = 1.0) -> int:
        request_id = next(self._request_ids)
        self.catalogue.reload(model, request_id, share)
        return request_id

    def end_rollout(self, model: str, outcome: str) -> int:
        """See ``ModelVersions.end_rollout``."""
        self._requests.unsettled[model] = None
        return self._models[model].end_rollout(outcome)

    def unload(self, model: str) -> None:
        if (newest := self._models[model].newest) is not None:
            self._requests.bind(self._models[model], newest, 0.0)
        self.catalogue.unload(model, "it was unloaded on request")
        self._requests.unsettled[model] = None

    # Messages from workers

    def receive(self, node: bytes, message: Message, now: float) -> list[PoolCommand]:
        if isinstance(message, BatchDone | Loaded):
            worker = self._at(node, now)
            if worker is None:
                return [SendToNode(node, UNKNOWN_WORKER)]
            if isinstance(message, Loaded):
                model = self._models.get(message.model)
                if model is None:
                    return []
                commands = model.load_ended(worker, message.version, message.reason)
                return [*commands, *self._advance(model, now)]
            batch = worker.running.get(message.batch_id)
            if batch is None:  # of a former membership
                return []
            if (fault := batch.fault(message)) is not None:
                return self._evict(worker, f"it answered a batch with {fault}", now)
            self._scheduler.returned(worker, batch, message, now)
            if batch.is_probe:
                return []
            is_trusted = self._workers.is_trusted(worker)
            return [*self._requests.complete(batch, message, is_trusted, now)]
        match message:
            case Heartbeat(worker_id, sent_s):  # which arrives from a separate socket
                worker = next((of for of in self._workers if of.worker_id == worker_id), None)
                if worker is None:
                    return [SendToNode(node, UNKNOWN_WORKER)]
                worker.heard_s = now
                # Also to the worker's own node: the reply reveals whether that connection is lost.
                return [SendToNode(to, Alive(sent_s)) for to in (node, worker.node)]
            case JoinPool(release=release) if release != self._release:
                reason = (
                    f"this worker has release {release} of dist_net, and the gateway has "
                    f"{self._release}: install the same release, unchanged, on both hosts"
                )
                return [SendToNode(node, Refuse(reason, may_rejoin=False))]
            case JoinPool():
                return self._join(node, message, now)
            case Leave():
                return self.lost(node, "it left", now)
        reason = f"{type(message).__name__} is not for the workers' address of a gateway"
        return [SendToNode(node, Refuse(reason, may_rejoin=False))]

    def _join(self, node: bytes, message: JoinPool, now: float) -> list[PoolCommand]:
        """Admit a worker; send a member its id again."""
        worker = self._at(node, now)
        if worker is None:
            worker = self._workers.add(node, message, now)
            self._check_by(now)
            kind = "child" if worker.child else "remote"
            logger.info("worker_joined kind=%s name=%s host=%s", kind, worker.name, worker.host)
        settings = self._settings
        welcome = PoolWelcome(
            worker.worker_id, settings.heartbeat_interval_s, settings.heartbeat_timeout_s
        )
        return [SendToNode(node, welcome), *self._advance_all(now)]

    def prepared(self, message: ModelPrepared, now: float) -> list[PoolCommand]:
        model = self._models.get(message.model)
        if model is None:
            return []
        self.catalogue.prepared(message)
        return self._advance(model, now)

    def lost(self, node: bytes, reason: str, now: float) -> list[PoolCommand]:
        """Remove a worker that left or is unreachable: its requests are retried by others."""
        worker = self._at(node, now)
        return [] if worker is None else self._lose(worker, reason, now)

    def child_ended(
        self, child: str, reason: str, by_signal: bool, now: float
    ) -> list[PoolCommand]:
        """Process the exit of a child at once, without waiting for a timeout."""
        worker = self._workers.of_child(child)
        return [] if worker is None else self._failed(worker, reason, by_signal, now)

    # Time

    def stood_still(self, for_s: float, now: float) -> None:
        """Ignore the silence of others while the gateway was stopped, or late, for ``for_s``."""
        self._workers.stood_still(for_s, now)
        self._check_by(now)

    def is_check_due(self, now: float) -> bool:
        """Return whether ``dispatch`` may evict workers: read their messages before."""
        return self._check_s is not None and now >= self._check_s

    def dispatch(self, now: float) -> list[PoolCommand]:
        """Evict overdue processes, end expired requests, and send batches to free workers."""
        commands: list[PoolCommand] = []
        if self.is_check_due(now):
            for worker, reason in self._workers.overdue(now):
                commands += self._evict(worker, reason, now)
            self._check_s = self._workers.next_check_s(now)
        commands += self._requests.expire(now)
        while self._requests.unsettled:
            name, _ = self._requests.unsettled.popitem()
            commands += self._advance(self._models[name], now)
        commands += self.catalogue.advance()
        started = []
        while (found := self._scheduler.next_batch(now)) is not None:
            if isinstance(found, EndRequest):
                commands.append(found)
            else:
                started.append(found)
        if now >= self._probe_s:
            self._probe_s = now + PROBE_CHECK_S
            started += self._scheduler.due_probes(now)
            for model in self._models.values():
                model.is_answering = self._scheduler.can_answer(model, now)
        if started:
            self._check_by(now + self._settings.max_batch_s)
        return commands + [SendToNode(worker.node, batch.message()) for worker, batch in started]

    def next_wakeup(self) -> float | None:
        """Return the time by which ``dispatch`` must be called without an event; 0.0: at once."""
        if self._requests.unsettled:
            return 0.0
        moments = (self._check_s, self._requests.next_deadline_s())
        return min((moment for moment in moments if moment is not None), default=None)

    def drain(self) -> None:
        self._scheduler.is_draining = True

    def retire(self) -> list[SendToNode]:
        stop = Stop("the gateway stopped this worker", finished=True)
        return [SendToNode(worker.node, stop) for worker in self._workers]

    # State

    @property
    def is_drained(self) -> bool:
        return self._scheduler.is_draining and not len(self._requests)

    def is_ready(self, now: float) -> bool:
        """Return whether the pool has models to serve, and a live worker for every model."""
        wanted = self.catalogue.wanted()
        can_answer = all(self._scheduler.can_answer(model, now) for model in wanted)
        return bool(wanted) and can_answer and not self._scheduler.is_draining

    def is_member(self, child: str) -> bool:
        return self._workers.of_child(child) is not None

    def failures(self) -> list[ModelLoadError]:
        return self.catalogue.failures(has_workers=bool(len(self._workers)))

    def status(self, now: float) -> dict[str, Any]:
        settings = self._settings
        return {
            "is_ready": self.is_ready(now),
            "is_draining": self._scheduler.is_draining,
            "uptime_s": now - self._started_s,
            "workers": self._workers.report(now),
            "queue": {
                "requests": self._requests.queued(),
                "request_limit": settings.queue_requests * len(self._models),
            },
            "models": [model.report(now) for model in self._models.values()],
        }

    def _at(self, node: bytes, now: float) -> Worker | None:
        """Return the worker at a node, and record that it was heard."""
        worker = self._workers.at_node(node)
        if worker is not None:
            worker.heard_s = now
        return worker

    def _evict(self, worker: Worker, reason: str, now: float) -> list[PoolCommand]:
        if not worker.child or self._workers.of_child(worker.child) is not worker:
            # It is remote, or the process joined again by another connection, and is healthy.
            return self._lose(worker, reason, now)
        hangs = self._workers.hangs(worker, now)
        return [EvictWorker(worker.child, reason), *self._failed(worker, reason, hangs, now)]

    def _failed(
        self, worker: Worker, reason: str, was_killed_by_input: bool, now: float
    ) -> list[PoolCommand]:
        """Remove a child after its process failed, perhaps while it loaded a bad version."""
        for name, version in worker.loading:
            self._models[name].lost_while_loading(version, reason)
        return self._lose(worker, reason, now, was_killed_by_input)

    def _lose(
        self, worker: Worker, reason: str, now: float, was_killed_by_input: bool = False
    ) -> list[PoolCommand]:
        logger.warning("worker_lost name=%s reason=%s", worker.name, reason)
        self._workers.remove(worker)
        ended = self._requests.retry(worker, was_killed_by_input, now)
        return [*ended, *self._advance_all(now)]

    def _advance_all(self, now: float) -> list[PoolCommand]:
        return [command for model in self._models.values() for command in self._advance(model, now)]

    def _advance(self, model: ModelVersions, now: float) -> list[PoolCommand]:
        self._probe_s = now
        commands: list[PoolCommand] = [*self._refresh(model, now)]
        if advanced := model.advance(self._workers, now):
            self._check_by(now + self._settings.max_load_s)
        self._requests.free_drawn(model)
        return [*commands, *advanced, *self._refresh(model, now)]

    def _refresh(self, model: ModelVersions, now: float) -> list[EndRequest]:
        """Update the served versions; requests for other inputs stay with the former version."""
        before = model.newest
        model.refresh(self._workers)
        after = model.newest
        if before is None or after is None or before is after:
            return []
        self._requests.unsettled[model.name] = None  # the former one may be dropped now
        return self._requests.bind(model, before, now) if before.takes != after.takes else []

    def _check_by(self, moment: float) -> None:
        self._check_s = min(moment, moment if self._check_s is None else self._check_s)
