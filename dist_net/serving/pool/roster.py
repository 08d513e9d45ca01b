"""The inference workers as the pool knows them: what each has, what it is doing. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.request_queue import Request
from dist_net.serving.pool.settings import PoolSettings
from dist_net.wire.serving_messages import RunBatch


@dataclass(slots=True, eq=False)
class RunningBatch:
    """Requests that a worker has. ``expected_s``: for how long; 0 if nothing was measured."""

    batch_id: int
    description: ModelDescription
    is_picture: bool
    requests: list[Request]
    rows: int
    sent_s: float
    expected_s: float

    def message(self, *, is_alone: bool) -> RunBatch:
        """As its worker is told; ``is_alone``, if the pool has no other request."""
        description = self.description
        payloads = tuple(request.payload for request in self.requests)
        model, version = description.name, description.version
        return RunBatch(self.batch_id, model, version, self.is_picture, is_alone, payloads)


@dataclass(slots=True, eq=False)
class Worker:
    """One inference worker. Times are on the pool's clock.

    ``holds``: by model, the versions that it can answer for, newest last. ``loading``: the pairs of
    model and version that it was told to load, and when; ``failed``: those that it could not.
    ``running``: its batches, the one that it computes first; ``free_s``: when they are expected to
    be done. ``answered_s``: when it last sent one back. ``batches`` and ``requests`` count those.
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

    def has(self, model: str, version: int) -> bool:
        """Whether it can answer for the version."""
        return version in self.holds.get(model, ())

    def start(self, batch: RunningBatch) -> None:
        """It was sent the batch."""
        self.running[batch.batch_id] = batch
        self.free_s = max(self.free_s, batch.sent_s) + batch.expected_s

    def finish(self, batch: RunningBatch, now: float) -> float:
        """It sent the batch back; returns the seconds that it took, the ways included."""
        del self.running[batch.batch_id]
        took_s = now - max(batch.sent_s, self.answered_s)
        self.batches += 1
        self.requests += len(batch.requests)
        self.answered_s = now
        self.free_s = now + sum(other.expected_s for other in self.running.values())
        return took_s


class Roster:
    """Every worker, by its node, in the order in which they came. An id is never given twice.

    A worker is quiet when nothing was heard of it for half the time after which it is lost: nothing
    is sent to it then, for it may be stopped.
    """

    def __init__(self, settings: PoolSettings, first_worker_id: int = 1) -> None:
        self._settings = settings
        self._quiet_s = settings.heartbeat_timeout_s / 2
        self._judges_from_s = 0.0
        self._workers: dict[bytes, Worker] = {}
        self._next_worker_id = first_worker_id

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def enlist(self, node: bytes, name: str, host: str, process_id: int, now: float) -> Worker:
        """Take a worker in under a new id."""
        worker = Worker(self._next_worker_id, node, name, host, process_id, now)
        self._next_worker_id += 1
        self._workers[node] = worker
        return worker

    def at_node(self, node: bytes) -> Worker | None:
        """The worker there; None: it was given up, or never came."""
        return self._workers.get(node)

    def remove(self, worker: Worker) -> None:
        """Count the worker out."""
        del self._workers[worker.node]

    def is_quiet(self, worker: Worker, now: float) -> bool:
        """Whether the worker may be stopped."""
        return now - worker.heard_s > self._quiet_s

    def stood_still(self, for_s: float, now: float) -> None:
        """This process did nothing for so long, so it heard nobody: that was nobody's silence.

        What workers said meanwhile may still be on its way through the socket's own thread. So
        none is lost before each of them had the time to be heard again.
        """
        for worker in self:
            worker.heard_s = min(worker.heard_s + for_s, now)
        self._judges_from_s = now + self._settings.heartbeat_timeout_s

    def overdue(self, now: float) -> list[tuple[Worker, str]]:
        """The workers that are lost, and why; they stay until they are removed."""
        if now < self._judges_from_s:
            return []
        return [
            (worker, reason)
            for worker in self
            if (reason := self._why_lost(worker, now)) is not None
        ]

    def next_check_s(self, now: float) -> float | None:
        """When one is overdue or quiet that is not, if nothing is heard until then."""
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
                max(batch.sent_s, worker.answered_s) + settings.longest_batch_s,
                f"busy with {batch.rows} rows of {batch.description.name} for longer than "
                f"{settings.longest_batch_s:g} s",
            )
        for (model, version), began_s in worker.loading.items():
            yield (
                began_s + settings.longest_load_s,
                f"loading {model} version {version} for longer than {settings.longest_load_s:g} s",
            )

    def report(self, now: float) -> list[dict[str, Any]]:
        """The workers for people, as the pool's status shows them."""
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
