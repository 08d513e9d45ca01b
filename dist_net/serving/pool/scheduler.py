"""Which requests are admitted, and which batch runs next, on which worker, for how long."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.membership import PoolMembership, RunningBatch, Worker
from dist_net.serving.pool.open_requests import Lane, OpenRequests
from dist_net.serving.pool.requests import InferenceRequest, LaneKey, PoolSettings, Result, Status
from dist_net.serving.pool.versions import ModelVersions
from dist_net.spelling import suggestion
from dist_net.wire.serving_messages import BatchDone

WORKER_STARTS_S = 1.0
"""The approximate time to replace a lost worker, or to load a first model."""

SHORT_BATCH_S = 0.005
"""A worker receives its next batch before it finishes a batch that is shorter than this: waiting
for the message would cost more than the computation."""

MIN_CHARGE_S = 1e-4
"""The minimum that a batch costs its model's turn, since its time may be unknown."""

MODELLING_ERROR = 1.5
"""The work ahead may take this multiple of its mean: other processes use the cores too.

In the tests' simulation of machines whose speed varies by a fifth within seconds, up to 6 % of the
answers are late with 1.25 and none with 1.5; workers are as busy with either.
"""

NEWEST_WEIGHT = 0.15
"""The weight of a measurement in the moving means, which adapt within about ten batches."""
NO_ROWS_WEIGHT = 0.1
FIRST_FEW = 3
FIRST_DEVIATION = 0.2
LARGEST_STEP = 4.0
FRESH_FOR_S = 5.0


class Scheduler:
    """Admits requests and takes batches out of the queues of the models.

    Models take turns, so that each gets the same time of the workers (start-time fair queueing,
    Goyal et al. 1996); within a model the oldest request is first. Each model has an equal share of
    the workers. While it does not use its share, others leave idle workers for it, except for
    batches shorter than ``SHORT_BATCH_S``.

    ``held_until_s`` is the time at which a batch that waits for more requests runs; None if no
    batch waits. With ``is_draining`` no requests are admitted.
    """

    def __init__(
        self,
        settings: PoolSettings,
        workers: PoolMembership,
        models: Mapping[str, ModelVersions],
        requests: OpenRequests,
    ) -> None:
        self.held_until_s: float | None = None
        self.is_draining = False
        self._settings = settings
        self._workers = workers
        self._models = models
        self._requests = requests
        self._times: dict[tuple[str, bool], ServiceTime] = {}
        self._turns_s = dict.fromkeys(models, 0.0)  # by model, the virtual time of its next batch
        self._turn_s = 0.0  # the virtual time of the last batch
        self._next_batch_id = 1

    def decide(self, request: InferenceRequest, now: float) -> int | Result:
        """Return the maximum rows of the request's batch, or the result that refuses it."""
        model = self._models.get(request.model)
        if model is None:
            return no_such_model(request.model, self._models)
        if model.is_unloaded:
            return _not_found(f"{model.name} is not served: {model.reason}")
        if self.is_draining:
            return _unavailable("the service is shutting down and admits no more requests", 0.0)
        if not model.is_ready or model.newest is None:
            reason = model.reason or "all are lost; it is served again when a worker joins"
            return _unavailable(f"no worker serves {model.name}: {reason}", WORKER_STARTS_S)
        description = model.newest.description
        if request.version is not None:
            if not model.may_name(request.version):
                served = ", ".join(map(str, model.served().versions))
                return _not_found(
                    f"{model.name} has no version {request.version}; expected one of {served}"
                )
            description = model.versions[request.version].description
        wrong = _mismatch(request, description, self._settings.max_batch_size)
        if wrong is not None:
            return Result(Status.BAD_INPUT, description.version, reason=wrong)
        if self._requests.quarantine.holds(model.name, description.version, request.payload):
            reason = "this input ended two workers, so it is not tried again"
            return Result(Status.FAILED, description.version, reason=reason)
        return self._in_time(request, model, description, now)

    def next_batch(self, now: float) -> tuple[Worker, RunningBatch] | None:
        """Start the next batch on a worker; return None if no batch can run now."""
        self.held_until_s = None
        for lane in self._by_turn():
            choice = self._choose(lane.key, lane.oldest.planned.rows, now)
            if choice is not None and not self._waits(lane, choice[0], now):
                return choice[0], self._start(lane, *choice, now)
        return None

    def returned(self, worker: Worker, batch: RunningBatch, done: BatchDone, now: float) -> None:
        """Record a batch that a worker has finished, and its time."""
        took_s = worker.finish(batch, now)
        name = batch.description.name
        self._turns_s[name] += took_s - batch.expected_s
        if rows := batch.computed_rows(done):
            self._time_of(name, batch.is_image).observe(rows, took_s, now)

    def can_answer(self, model: ModelVersions, now: float) -> bool:
        """Return whether a live worker would run a request that names no version."""
        return any(
            model.version_for(worker, None) is not None
            for worker in self._workers
            if not self._workers.is_quiet(worker, now)
        )

    def _by_turn(self) -> list[Lane]:
        """Return the lanes in the order of their models' turns, then of their oldest requests."""
        lanes = list(self._requests.lanes.values())
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: (self._turn_of(lane.key.model), lane.oldest.admitted_s))
        return lanes

    def _turn_of(self, model: str) -> float:
        """Return the virtual time of the model's next batch: an idle model saves up no time."""
        return max(self._turns_s[model], self._turn_s)

    def _leaves_shares(self, key: LaneKey, rows: int, now: float) -> bool:
        """Return whether a batch on an idle worker leaves the other models their shares."""
        if len(self._models) == 1 or self._is_short(key, rows):
            return True
        served = [name for name, model in self._models.items() if model.is_ready]
        live = [worker for worker in self._workers if not self._workers.is_quiet(worker, now)]
        share = _share(len(live), len(served))
        used = Counter(worker.model for worker in live)
        if used[key.model] < share:
            return True
        unused = sum(max(0, share - used[name]) for name in served if name != key.model)
        return used[None] > unused

    def _choose(self, key: LaneKey, rows: int, now: float) -> tuple[Worker, int] | None:
        """Return the worker for a batch and the version that answers; None if all are busy.

        Prefer idle workers, then workers that are not loading, then those with the newest version.
        """
        if not self._leaves_shares(key, rows, now):
            return None
        model = self._models[key.model]
        best, best_rank = None, 99
        for worker in self._workers:
            busy = len(worker.running)
            if busy > 1 or self._workers.is_quiet(worker, now):
                continue
            version = model.version_for(worker, key.version)
            if version is None or (busy and not self._are_short(worker, key, rows)):
                continue
            rank = 4 * bool(worker.loading) + 2 * busy + (version != model.newest_number)
            if rank < best_rank:
                best, best_rank = (worker, version), rank
                if rank == 0:
                    break
        return best

    def _are_short(self, worker: Worker, key: LaneKey, rows: int) -> bool:
        """Return whether the worker's batches and its next batch are short."""
        return self._is_short(key, rows) and all(
            0 < batch.expected_s < SHORT_BATCH_S for batch in worker.running.values()
        )

    def _is_short(self, key: LaneKey, rows: int) -> bool:
        expected_s = self._time_of(key.model, key.is_image).expected_s(rows)
        return expected_s is not None and expected_s < SHORT_BATCH_S

    def _waits(self, lane: Lane, worker: Worker, now: float) -> bool:
        """Return whether the batch waits for more requests; never if the worker would be idle."""
        timeout_s = self._settings.batch_timeout_s
        if not timeout_s or lane.is_full:
            return False
        if not worker.running and len(self._requests.lanes) == 1:
            return False
        until_s = lane.oldest.admitted_s + timeout_s
        if now >= until_s:
            return False
        self.held_until_s = min(until_s, self.held_until_s or until_s)
        return True

    def _start(self, lane: Lane, worker: Worker, version: int, now: float) -> RunningBatch:
        name, _, is_image = lane.key
        requests = self._requests.take(lane)
        rows = sum(request.rows for request in requests)
        expected_s = self._time_of(name, is_image).expected_s(rows) or 0.0
        self._turn_s = self._turn_of(name)
        self._turns_s[name] = self._turn_s + max(expected_s, MIN_CHARGE_S)
        batch = RunningBatch(
            self._next_batch_id,
            self._models[name].versions[version].description,
            is_image,
            requests,
            rows,
            now,
            expected_s,
        )
        self._next_batch_id += 1
        worker.start(batch)
        return batch

    def _in_time(
        self,
        request: InferenceRequest,
        model: ModelVersions,
        description: ModelDescription,
        now: float,
    ) -> int | Result:
        """Refuse a request without room in its model's queue, or without time."""
        settings = self._settings
        queued, held_bytes = self._requests.queued(model.name), model.pending_bytes
        payload_bytes, max_bytes = len(request.payload), settings.queue_bytes // len(self._models)
        key = request.key
        timeout_s = settings.allowed_s(request.timeout_s)
        batch_rows = self._batch_rows(key, timeout_s) if description.is_batched else 1
        wait_s, answered_s = self._seconds_until_answered(key, request.rows, batch_rows, now)
        if queued >= settings.queue_requests:
            return _unavailable(f"{queued} requests for {model.name} are queued already", wait_s)
        if held_bytes and held_bytes + payload_bytes > max_bytes:
            return _unavailable(
                f"unanswered requests for {model.name} have {held_bytes} bytes already; "
                f"{payload_bytes} more would exceed the limit of {max_bytes}",
                wait_s,
            )
        if answered_s <= timeout_s:
            return batch_rows
        return _unavailable(
            f"the answer would take about {answered_s:.3g} s, and {timeout_s:g} s are allowed",
            # Each second shortens the wait by a second, which counts this many times.
            (answered_s - timeout_s) / MODELLING_ERROR,
        )

    def _seconds_until_answered(
        self, key: LaneKey, rows: int, batch_rows: int, now: float
    ) -> tuple[float, float]:
        """Return the expected wait of a new request, and a cautious time until its answer.

        Any worker that is free computes the model's next batch, so the last of them begins before
        all workers together have done the model's work ahead (Graham, 1966). Zeros: no batch was
        measured, or none recently while a worker is idle.
        """
        time = self._time_of(key.model, key.is_image)
        live, busy_s, others_s, is_idle = self._load(key, now)
        queued = self._requests.queued(key.model)
        if is_idle and not queued and self._leaves_shares(key, rows, now):
            own_s = time.cautious_s(rows)
            return (0.0, own_s) if own_s is not None and time.is_fresh(now) else (0.0, 0.0)
        own_s = time.cautious_s(max(rows, batch_rows))
        if own_s is None:
            return 0.0, 0.0
        usable = self._usable(key, max(rows, batch_rows), live)
        wait_s = others_s + (busy_s + self._queued_s(key, rows, batch_rows)) / usable
        return wait_s, MODELLING_ERROR * wait_s + own_s

    def _batch_rows(self, key: LaneKey, timeout_s: float) -> int:
        """Return the maximum rows with which a request can wait for a batch, run in the next, and
        still be answered in time."""
        time = self._time_of(key.model, key.is_image)
        for rows in range(self._settings.max_batch_size, 1, -1):
            wait_s, own_s = time.expected_s(rows) or 0.0, time.cautious_s(rows) or 0.0
            if MODELLING_ERROR * wait_s + own_s <= timeout_s:
                return rows
        return 1

    def _usable(self, key: LaneKey, rows: int, live: int) -> float:
        """Return how many live workers compute for the model at the present load of the others."""
        if len(self._models) == 1:
            return live
        served = [model for model in self._models.values() if model.is_ready]
        active = sum(model.pending > 0 or model.name == key.model for model in served) or 1
        if self._is_short(key, rows):
            return live / active
        left = live - _share(live, len(served)) * (len(served) - active)
        return max(left / active, min(1.0, live / active))

    def _load(self, key: LaneKey, now: float) -> tuple[int, float, float, bool]:
        """Return the number of workers that may answer, the remaining seconds of the model's
        running batches, the seconds until another model's batch ends if all workers run those, and
        whether a worker is idle.

        If all workers are quiet, the gateway was probably stopped itself: then one counts.
        """
        model = self._models[key.model]
        live, busy_s, others_s, is_idle = 0, 0.0, math.inf, False
        for worker in self._workers:
            if self._workers.is_quiet(worker, now):
                continue
            if model.version_for(worker, key.version) is None:
                continue
            live += 1
            running, left_s = worker.model, worker.free_s - now
            if running is None or left_s <= 0:
                is_idle |= running is None
                others_s = 0.0
            elif running == key.model:
                busy_s += left_s
                others_s = 0.0
            elif left_s < others_s:
                others_s = left_s
        return live or 1, busy_s, others_s if live else 0.0, is_idle

    def _queued_s(self, key: LaneKey, rows: int, batch_rows: int) -> float:
        """Return the seconds that one worker would need for the model's batches ahead."""
        total_s = 0.0
        for lane in self._requests.lanes.values():
            if lane.key.model != key.model:
                continue
            time = self._time_of(lane.key.model, lane.key.is_image)
            total_s += time.expected_s(lane.rows, lane.batches) or 0.0
            if lane.key == key and lane.joins(rows, batch_rows):
                total_s -= time.expected_s(lane.last.rows) or 0.0
        return total_s

    def _time_of(self, model: str, is_image: bool) -> ServiceTime:
        kind = model, is_image
        found = self._times.get(kind)
        if found is None:
            found = self._times[kind] = ServiceTime()
        return found


def no_such_model(name: str, models: Iterable[str]) -> Result:
    """Return the result of a request for an unknown model."""
    return _not_found(f"no model {name[:80]!r}; {suggestion(name, models)}")


def _mismatch(
    request: InferenceRequest, description: ModelDescription, max_rows: int
) -> str | None:
    """Return why a request does not fit its model, or None if it does."""
    payload_bytes = len(request.payload)
    rows, name = request.rows, description.name
    if not description.is_batched:
        max_rows = 1
    min_rows = 0 if description.is_batched and not request.is_image else 1
    if not min_rows <= rows <= max_rows:
        return f"the request has {rows} rows; expected {min_rows} to {max_rows}, as in a batch"
    timeout_s = request.timeout_s
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        return f"the timeout is {timeout_s} s; expected seconds above 0"
    if request.is_image:
        if not description.takes_images:
            return f"{name} takes no images; expected a tensor of {description.input_shape}"
        if rows != 1 or not payload_bytes:
            return f"the request has {rows} rows in {payload_bytes} bytes; expected one image"
    elif description.is_batched and payload_bytes != rows * description.row_bytes:
        expected = " and ".join(
            f"{(rows, *of.shape)} of {of.datatype}" for of in description.inputs
        )
        return (
            f"the input has {payload_bytes} bytes; expected {rows * description.row_bytes} for "
            f"{expected} for {name}"
        )
    return None


def _share(workers: int, models: int) -> int:
    return max(1, workers // max(1, models))


def _not_found(reason: str) -> Result:
    return Result(Status.NOT_FOUND, reason=reason)


def _unavailable(reason: str, retry_after_s: float) -> Result:
    return Result(Status.UNAVAILABLE, reason=reason, retry_after_s=retry_after_s)


class ServiceTime:
    """Expected seconds of a batch by its rows; None while nothing was measured.

    The model is a straight line: a fixed cost for the batch, and a cost for each row. So every
    measurement informs all sizes, and a size that once seemed slow is tried again. The line is
    fitted by least squares to recent batches and, with a small weight, to an empty batch that takes
    no time: while all batches have one size, the estimate is proportional.
    """

    def __init__(self) -> None:
        self._means: tuple[float, ...] = ()  # of _terms
        self._batch_s = self._row_s = 0.0
        self._deviation = FIRST_DEVIATION
        self._count = 0
        self._measured_s = 0.0

    def observe(self, rows: int, seconds: float, now: float) -> None:
        """Add a measurement. A single outlier does not move the means by much."""
        if seconds <= 0:  # too short for the clock
            return
        expected_s = self.expected_s(rows)
        if expected_s is None or (self._count < FIRST_FEW and seconds < expected_s / 2):
            # The first batch builds its plan and touches its memory, so its time is discarded.
            self._means = _terms(rows, seconds)
            self._deviation = FIRST_DEVIATION
        else:
            seconds = min(seconds, LARGEST_STEP * expected_s)
            self._deviation += NEWEST_WEIGHT * (abs(seconds / expected_s - 1) - self._deviation)
            weight = max(NEWEST_WEIGHT, 1 / (self._count + 1))
            pairs = zip(self._means, _terms(rows, seconds), strict=True)
            self._means = tuple(mean + weight * (new - mean) for mean, new in pairs)
        self._batch_s, self._row_s = _line(*self._means)
        self._count += 1
        self._measured_s = now

    def expected_s(self, rows: int, batches: int = 1) -> float | None:
        """Return the recent mean for ``rows`` in ``batches``."""
        return batches * self._batch_s + rows * self._row_s if self._count else None

    def cautious_s(self, rows: int) -> float | None:
        """Return a time that few batches exceed: the mean plus four mean deviations."""
        expected_s = self.expected_s(rows)
        return None if expected_s is None else expected_s * (1 + 4 * self._deviation)

    def is_fresh(self, now: float) -> bool:
        """Return whether a batch was measured in the last few seconds."""
        return self._count > 0 and now - self._measured_s < FRESH_FOR_S


def _terms(rows: float, seconds: float) -> tuple[float, ...]:
    """Return the terms whose means least squares needs."""
    return rows, seconds, rows * rows, rows * seconds


def _line(rows: float, seconds: float, squares: float, products: float) -> tuple[float, float]:
    """Return the seconds per batch and per row, not below 0, from the means of ``_terms``."""
    count = 1 + NO_ROWS_WEIGHT
    row_s = (count * products - rows * seconds) / (count * squares - rows * rows)
    row_s = min(row_s, products / squares)
    return ((products - row_s * squares) / rows, row_s) if row_s > 0 else (seconds, 0.0)
