"""The members of the pool: the inference workers, with their loaded models and running batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import InferenceRequest, PoolSettings, Result, Status
from dist_net.wire.serving_messages import BatchDone, JoinPool, RunBatch

FROM_WORKERS = frozenset((Status.OK, Status.BAD_INPUT, Status.FAILED))
"""The statuses that a worker may report."""

PROBE_S = 5.0
"""The pool sends a probe to a worker without an answer for a model in this time."""
PROBE_PAUSE = 50  # times the duration of a probe, so that probes cost little
PROOF_PAUSES = 3  # without an answer, after which a model is not ready
NO_PROOF = -math.inf, -math.inf


class Children(Protocol):
    """The processes that the gateway started, each with a credential that only it knows."""

    def is_child(self, credential: str) -> bool: ...

    def is_running(self, credential: str) -> bool:
        """Return whether that worker's process runs: it is not stopped, and has not ended."""
        ...


@dataclass(slots=True, eq=False)
class RunningBatch:
    """Requests that a worker computes; the first had the turn.

    ``expected_s``: the time that such requests take (0: unknown). ``is_short``: it is known to end
    soon; ``is_long``: others should not wait for it. A probe is a request of the pool itself,
    without an id.
    """

    batch_id: int
    description: ModelDescription
    is_image: bool
    requests: list[InferenceRequest]
    rows: int
    sent_s: float
    expected_s: float
    is_short: bool = False
    is_long: bool = False

    @property
    def client(self) -> str:
        return self.requests[0].client

    @property
    def is_probe(self) -> bool:
        return not self.requests[0].request_id

    def message(self) -> RunBatch:
        description = self.description
        payloads = tuple(request.payload for request in self.requests)
        model, version = description.name, description.version
        return RunBatch(self.batch_id, model, version, self.is_image, payloads)

    def fault(self, done: BatchDone) -> str | None:
        count = len(self.requests)
        if not len(done.statuses) == len(done.payloads) == count:
            return (
                f"{len(done.statuses)} statuses and {len(done.payloads)} payloads for {count} "
                f"requests"
            )
        if not (0 <= done.prepare_s < math.inf and 0 <= done.compute_s < math.inf):
            return f"times of {done.prepare_s} s and {done.compute_s} s"
        for request, status, payload in self._pairs(done):
            if status not in FROM_WORKERS:
                return f"the status {status}"
            misfit = self.description.misfit(request.rows, len(payload))
            if status == Status.OK and misfit:
                return misfit
        return None

    def results(self, done: BatchDone) -> list[Result]:
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
        """Return the number of computed rows, without bad images, which take no time."""
        return sum(request.rows for request, status, _ in self._pairs(done) if status == Status.OK)

    def _pairs(self, done: BatchDone) -> Iterator[tuple[InferenceRequest, int, bytes | memoryview]]:
        return zip(self.requests, done.statuses, done.payloads, strict=True)


@dataclass(slots=True, eq=False)
class Worker:
    """One inference worker. Times are on the pool's clock.

    ``name``, ``host`` and ``process_id`` are its own labels, for people. ``child``: the credential
    by which it proved to be a process of the gateway; "" for a remote worker, which may leave, lie
    or never answer. ``holds``: by model, the loaded versions, newest last. ``loading``: the (model,
    version) pairs being loaded, each with its start; ``failed``: the pairs that it could not load.
    ``running``: its batches in order. ``runs_s``: when its process was found to run, though silent.
    ``answered_s``: the time of its last answer; ``proofs``: by model, when the next probe is due,
    and until when the model counts as answering. ``batches``, ``requests``: the number answered.
    """

    worker_id: int
    node: bytes
    name: str
    host: str
    process_id: int
    child: str
    heard_s: float
    holds: dict[str, list[int]] = field(default_factory=dict)
    loading: dict[tuple[str, int], float] = field(default_factory=dict)
    failed: set[tuple[str, int]] = field(default_factory=set)
    running: dict[int, RunningBatch] = field(default_factory=dict)
    runs_s: float = -math.inf
    answered_s: float = 0.0
    proofs: dict[str, tuple[float, float]] = field(default_factory=dict)
    batches: int = 0
    requests: int = 0

    @property
    def model(self) -> str | None:
        batch = next(iter(self.running.values()), None)
        return None if batch is None else batch.description.name

    @property
    def busy_since_s(self) -> float:
        """The time at which it began its batch; infinity if it is idle."""
        batch = next(iter(self.running.values()), None)
        return math.inf if batch is None else max(batch.sent_s, self.answered_s)

    @property
    def is_starting(self) -> bool:
        """Whether it loads a model of which it has no version."""
        return any(model not in self.holds for model, _ in self.loading)

    def has(self, model: str, version: int) -> bool:
        return version in self.holds.get(model, ())

    def finish(self, batch: RunningBatch, now: float) -> float:
        """Remove a finished batch; return its seconds, including transport."""
        del self.running[batch.batch_id]
        took_s = now - max(batch.sent_s, self.answered_s)
        self.answered_s = now
        pause_s = max(PROBE_S, PROBE_PAUSE * took_s)
        self.proofs[batch.description.name] = now + pause_s, now + PROOF_PAUSES * pause_s
        if not batch.is_probe:
            self.batches += 1
            self.requests += len(batch.requests)
        return took_s


@dataclass(eq=False, repr=False)
class PoolMembership:
    """Every worker by its node, in the order of joining; ``_ids`` are secrets of the workers.

    A worker is quiet after half of the heartbeat timeout. It may be stopped, so it receives no
    batches. A child may be silent while it loads or computes, as long as its process runs: Python
    code can block heartbeats.
    """

    _settings: PoolSettings
    _ids: Iterator[int]
    _children: Children
    _judges_from_s: float = 0.0
    _workers: dict[bytes, Worker] = field(default_factory=dict)
    most_children: int = 0  # at a time

    @property
    def _quiet_s(self) -> float:
        return self._settings.heartbeat_timeout_s / 2

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def add(self, node: bytes, join: JoinPool, now: float) -> Worker:
        child = join.credential if self._children.is_child(join.credential) else ""
        worker = Worker(next(self._ids), node, join.name, join.host, join.process_id, child, now)
        self._workers[node] = worker
        children = {each.child for each in self if each.child}
        self.most_children = max(self.most_children, len(children))
        return worker

    def at_node(self, node: bytes) -> Worker | None:
        return self._workers.get(node)

    def of_child(self, credential: str) -> Worker | None:
        """Return the worker that last joined from that process; None if there is none."""
        found = [each for each in self if each.child == credential]
        return found[-1] if found else None

    def is_trusted(self, worker: Worker) -> bool:
        """Return whether the pool relies on a worker: a child, or any in a pool without children.

        Of the others, only good answers count.
        """
        return bool(worker.child) or not self.most_children

    def deciding(self, model: str) -> list[Worker]:
        """Return the workers that count for a model: workers with a version of it, or else all.

        If any of them are children of the gateway, only children count: remote workers never delay
        or decide.
        """
        members = [worker for worker in self if model in worker.holds] or [*self]
        return [worker for worker in members if worker.child] or members

    def remove(self, worker: Worker) -> None:
        del self._workers[worker.node]

    def is_quiet(self, worker: Worker, now: float) -> bool:
        return now - worker.heard_s > self._quiet_s

    def live(self, now: float) -> list[Worker]:
        return [worker for worker in self if not self.is_quiet(worker, now)]

    def stood_still(self, for_s: float, now: float) -> None:
        """Ignore the silence while the gateway itself was stopped, or late, for ``for_s``.

        Messages of the workers may still be in the socket's own thread, so after a long stop no
        worker counts as lost until each has had time to be heard again.
        """
        for worker in self:
            worker.heard_s = min(worker.heard_s + for_s, now)
        if for_s > self._quiet_s:
            self._judges_from_s = now + self._settings.heartbeat_timeout_s

    def overdue(self, now: float) -> list[tuple[Worker, str]]:
        """Return the lost workers and the reasons. They stay members until they are removed."""
        if now < self._judges_from_s:
            return []
        for worker in self:
            is_late = now >= self._silent_s(worker) and (worker.running or worker.loading)
            if is_late and worker.child and self._children.is_running(worker.child):
                worker.runs_s = now
        late = [
            (worker, [reason for moment, reason in self._limits(worker) if now >= moment])
            for worker in self
        ]
        return [(worker, reasons[0]) for worker, reasons in late if reasons]

    def hangs(self, worker: Worker, now: float) -> bool:
        """Return whether a child computes its batch for too long: it runs, and is not stopped."""
        is_late = now >= worker.busy_since_s + self._settings.max_batch_s
        return is_late and bool(worker.child) and self._children.is_running(worker.child)

    def next_check_s(self, now: float) -> float | None:
        """Return the time at which the next silent worker becomes quiet or lost."""
        moments = [moment for worker in self for moment, _ in self._limits(worker)]
        moments += [worker.heard_s + self._quiet_s for worker in self]
        moments.append(self._judges_from_s)
        return min((moment for moment in moments if moment > now), default=None)

    def _silent_s(self, worker: Worker) -> float:
        """Return the time at which the silence of a worker must be explained."""
        return max(worker.heard_s, worker.runs_s) + self._settings.heartbeat_timeout_s

    def _limits(self, worker: Worker) -> Iterator[tuple[float, str]]:
        """Return each time at which the worker will be lost, and the reason."""
        settings = self._settings
        yield self._silent_s(worker), f"silent for {settings.heartbeat_timeout_s:g} s"
        for batch in list(worker.running.values())[:1]:
            yield (
                worker.busy_since_s + settings.max_batch_s,
                f"busy with {batch.rows} rows of {batch.description.name} for longer than "
                f"{settings.max_batch_s:g} s",
            )
        for (model, version), began_s in worker.loading.items():
            yield (
                began_s + settings.max_load_s,
                f"loading {model} version {version} for longer than {settings.max_load_s:g} s",
            )

    def report(self, now: float) -> list[dict[str, Any]]:
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
