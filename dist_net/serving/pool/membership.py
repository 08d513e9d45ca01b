"""The inference workers as the pool knows them: what each has loaded and what it is computing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.request_queue import QueuedRequest
from dist_net.serving.pool.requests import Result, Status
from dist_net.serving.pool.settings import PoolSettings
from dist_net.wire.serving_messages import BatchDone, RunBatch

FLOAT_BYTES = 4
FROM_WORKERS = frozenset((Status.OK, Status.BAD_INPUT, Status.FAILED))
"""How a worker may say that a request ended."""


@dataclass(slots=True, eq=False)
class RunningBatch:
    """Requests that a worker computes, in ``expected_s``; that is 0 if nothing was measured."""

    batch_id: int
    description: ModelDescription
    is_image: bool
    requests: list[QueuedRequest]
    rows: int
    sent_s: float
    expected_s: float

    def message(self) -> RunBatch:
        description = self.description
        payloads = tuple(request.payload for request in self.requests)
        model, version = description.name, description.version
        return RunBatch(self.batch_id, model, version, self.is_image, payloads)

    def fault(self, done: BatchDone) -> str | None:
        """Why this cannot be an answer to the batch; None if it can."""
        count = len(self.requests)
        if not len(done.statuses) == len(done.payloads) == count:
            return (
                f"{len(done.statuses)} statuses and {len(done.payloads)} payloads for {count} "
                f"requests"
            )
        if not (0 <= done.prepare_s < math.inf and 0 <= done.compute_s < math.inf):
            return f"times of {done.prepare_s} s and {done.compute_s} s"
        row_bytes = FLOAT_BYTES * self.description.classes
        for request, status, payload in self._pairs(done):
            if status not in FROM_WORKERS:
                return f"the status {status}"
            if status == Status.OK and len(payload) != request.rows * row_bytes:
                return f"{len(payload)} bytes for {request.rows} rows of {row_bytes} bytes"
        return None

    def results(self, done: BatchDone) -> list[Result]:
        """How each request ended, in order."""
        return [
            Result(
                Status(status),
                self.description.version,
                payload if status == Status.OK else b"",
                "" if status == Status.OK else bytes(payload).decode(errors="replace"),
                0.0,
                self.sent_s - request.admitted_s,
                done.prepare_s,
                done.compute_s,
                self.rows,
                self.description.labels,
                self.description.unknown_below,
            )
            for request, status, payload in self._pairs(done)
        ]

    def computed_rows(self, done: BatchDone) -> int:
        """The rows that the network computed; a bad image says nothing of its speed."""
        return sum(request.rows for request, status, _ in self._pairs(done) if status == Status.OK)

    def _pairs(self, done: BatchDone) -> Iterator[tuple[QueuedRequest, int, bytes | memoryview]]:
        return zip(self.requests, done.statuses, done.payloads, strict=True)


@dataclass(slots=True, eq=False)
class Worker:
    """One inference worker. Times are on the pool's clock.

    ``holds``: by model, the versions that it can answer for, newest last. ``loading``: the (model,
    version) pairs that it was told to load, and when; ``failed``: those that it could not load.
    ``running``: its batches, the one that it computes first; ``free_s``: when they should be done.
    ``answered_s``: when it last sent one back. ``batches``, ``requests``: how many it has answered.
    """

    worker_id: int
    node: bytes
    name: str
    host: str
    process_id: int
    heard_s: float
    holds: dict[str, list[int]] = field(default_factory=dict)
    loading: dict[tuple[str, int], float] = field(default_factory=dict)
    failed: set[tuple[str, int]] = field(default_factory=set)
    running: dict[int, RunningBatch] = field(default_factory=dict)
    free_s: float = 0.0
    answered_s: float = 0.0
    batches: int = 0
    requests: int = 0

    @property
    def model(self) -> str | None:
        """The model that it computes; None: it is idle."""
        batch = next(iter(self.running.values()), None)
        return None if batch is None else batch.description.name

    def has(self, model: str, version: int) -> bool:
        return version in self.holds.get(model, ())

    def start(self, batch: RunningBatch) -> None:
        self.running[batch.batch_id] = batch
        self.free_s = max(self.free_s, batch.sent_s) + batch.expected_s

    def finish(self, batch: RunningBatch, now: float) -> float:
        """It has sent the batch back; returns how long that took, transport included."""
        del self.running[batch.batch_id]
        took_s = now - max(batch.sent_s, self.answered_s)
        self.batches += 1
        self.requests += len(batch.requests)
        self.answered_s = now
        self.free_s = now + sum(other.expected_s for other in self.running.values())
        return took_s


class PoolMembership:
    """Every worker, by its node, in the order in which they came. No id is given twice.

    A worker is quiet when it was not heard for half the time after which it counts as lost: it may
    be stopped, so it is sent nothing then.
    """

    def __init__(self, settings: PoolSettings, first_worker_id: int = 1) -> None:
        self._settings = settings
        self._quiet_s = settings.heartbeat_timeout_s / 2
        self._judges_from_s = 0.0
        self._workers: dict[bytes, Worker] = {}
        self._by_id: dict[int, Worker] = {}
        self._next_worker_id = first_worker_id

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def add(self, node: bytes, name: str, host: str, process_id: int, now: float) -> Worker:
        worker = Worker(self._next_worker_id, node, name, host, process_id, now)
        self._next_worker_id += 1
        self._workers[node] = self._by_id[worker.worker_id] = worker
        return worker

    def at_node(self, node: bytes) -> Worker | None:
        """The worker there; None if it was given up, or never came."""
        return self._workers.get(node)

    def with_id(self, worker_id: int) -> Worker | None:
        """The worker of that id; None if it was given up, or never came."""
        return self._by_id.get(worker_id)

    def of_process(self, host: str, process_id: int) -> Worker | None:
        """The worker that last enlisted from that process; None if there is none."""
        return next(
            (
                each
                for each in reversed(self._workers.values())
                if (each.host, each.process_id) == (host, process_id)
            ),
            None,
        )

    def remove(self, worker: Worker) -> None:
        del self._workers[worker.node], self._by_id[worker.worker_id]

    def is_quiet(self, worker: Worker, now: float) -> bool:
        """Whether it may be stopped."""
        return now - worker.heard_s > self._quiet_s

    def stood_still(self, for_s: float, now: float) -> None:
        """This process did nothing for so long and heard nobody, which is no worker's fault.

        What workers sent meanwhile may still be on its way through the socket's own thread. So
        none counts as lost before each had time to be heard again.
        """
        for worker in self:
            worker.heard_s = min(worker.heard_s + for_s, now)
        self._judges_from_s = now + self._settings.heartbeat_timeout_s

    def overdue(self, now: float) -> list[tuple[Worker, str]]:
        """The workers that are lost, and why. They stay until they are removed."""
        if now < self._judges_from_s:
            return []
        return [
            (worker, reason)
            for worker in self
            if (reason := self._why_lost(worker, now)) is not None
        ]

    def next_check_s(self, now: float) -> float | None:
        """When the next worker will be quiet or lost, if nothing is heard until then."""
        moments = [moment for worker in self for moment, _ in self._limits(worker)]
        moments += [worker.heard_s + self._quiet_s for worker in self]
        moments.append(self._judges_from_s)
        return min((moment for moment in moments if moment > now), default=None)

    def _why_lost(self, worker: Worker, now: float) -> str | None:
        return next((reason for moment, reason in self._limits(worker) if now >= moment), None)

    def _limits(self, worker: Worker) -> Iterator[tuple[float, str]]:
        """Each moment at which the worker would be lost, and why."""
        settings = self._settings
        silent_s = settings.heartbeat_timeout_s
        yield worker.heard_s + silent_s, f"silent for {silent_s:g} s"
        for batch in list(worker.running.values())[:1]:
            yield (
                max(batch.sent_s, worker.answered_s) + settings.max_batch_s,
                f"busy with {batch.rows} rows of {batch.description.name} for longer than "
                f"{settings.max_batch_s:g} s",
            )
        for (model, version), began_s in worker.loading.items():
            yield (
                began_s + settings.max_load_s,
                f"loading {model} version {version} for longer than {settings.max_load_s:g} s",
            )

    def report(self, now: float) -> list[dict[str, Any]]:
        """The workers as the pool's status shows them."""
        return [
            {
                "name": worker.name,
                "host": worker.host,
                "process_id": worker.process_id,
                "state": self._state(worker, now),
                "batches": worker.batches,
                "requests": worker.requests,
                "heard_s_ago": now - worker.heard_s,
            }
            for worker in self
        ]

    def _state(self, worker: Worker, now: float) -> str:
        if self.is_quiet(worker, now):
            return "silent"
        if worker.loading:
            return "loading"
        return "busy" if worker.running else "idle"
