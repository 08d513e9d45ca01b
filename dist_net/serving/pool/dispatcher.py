"""Which batch goes next and to which worker, and when a new request would be answered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from dist_net.serving.pool.membership import PoolMembership, RunningBatch, Worker
from dist_net.serving.pool.request_queue import Lane, LaneKey, RequestQueue
from dist_net.serving.pool.service_time import ServiceTime
from dist_net.serving.pool.settings import PoolSettings
from dist_net.serving.pool.versions import ModelVersions
from dist_net.wire.serving_messages import BatchDone

SHORT_BATCH_S = 0.005
"""A worker that is quicker with a batch gets the next one before it is done: waiting for the
message would cost more than the computation."""

MIN_CHARGE_S = 1e-4
"""What a batch costs its model's turn at least, since its time may be unknown."""

MODELLING_ERROR = 1.5
"""How many times longer than its mean the work ahead may take: other processes use the cores too.

In the tests' simulation of machines whose speed changes by a fifth up and down within seconds,
1.25 has up to 6 % late answers and 1.5 none; workers are as busy with either.
"""


class Dispatcher:
    """Takes batches out of the queues of the models.

    Models take turns, so that each gets the same time of the workers (start-time fair queueing,
    Goyal et al. 1996); within a model the oldest request is first. Each model has an equal share of
    the workers. While it does not use it, others leave idle workers for it, except for batches
    that take less than ``SHORT_BATCH_S``.

    ``held_until_s``: when a batch that waits for more requests will go; None: none waits.
    """

    def __init__(
        self,
        settings: PoolSettings,
        workers: PoolMembership,
        queues: Mapping[str, RequestQueue],
        models: Mapping[str, ModelVersions],
    ) -> None:
        self.held_until_s: float | None = None
        self._max_rows = settings.max_batch_size
        self._timeout_s = settings.batch_timeout_s
        self._workers = workers
        self._queues = queues
        self._models = models
        self._times: dict[tuple[str, bool], ServiceTime] = {}
        self._turns_s = dict.fromkeys(models, 0.0)  # by model, the virtual time of its next batch
        self._turn_s = 0.0  # that of the last batch
        self._next_batch_id = 1

    # What goes now

    def next_batch(self, now: float) -> tuple[Worker, RunningBatch] | None:
        """Start the next batch on a worker; None: no more can go now."""
        self.held_until_s = None
        for lane in self._by_turn():
            choice = self._choose(lane.key, lane.next_rows, now)
            if choice is not None and not self._waits(lane, choice[0], now):
                return choice[0], self._start(lane, *choice, now)
        return None

    def returned(self, worker: Worker, batch: RunningBatch, done: BatchDone, now: float) -> None:
        """A worker sent a batch back: it is free for another, and how long it took is known."""
        took_s = worker.finish(batch, now)
        name = batch.description.name
        self._turns_s[name] += took_s - batch.expected_s
        if rows := batch.computed_rows(done):
            self._time_of(name, batch.is_image).observe(rows, took_s, now)

    def can_answer(self, model: ModelVersions, now: float) -> bool:
        """Whether a live worker would run a request that names no version."""
        return any(
            model.version_for(worker, None) is not None
            for worker in self._workers
            if not self._workers.is_quiet(worker, now)
        )

    def _by_turn(self) -> list[Lane]:
        """The lanes, those of the model whose turn it is first."""
        waiting = [queue for queue in self._queues.values() if queue.lanes]
        if len(waiting) < 2:
            return waiting[0].by_age() if waiting else []
        lanes = [lane for queue in waiting for lane in queue.lanes.values()]
        lanes.sort(key=lambda lane: (self._turn_of(lane.key.model), lane.oldest.admitted_s))
        return lanes

    def _turn_of(self, model: str) -> float:
        """The virtual time of the model's next batch: an idle model saves up no time."""
        return max(self._turns_s[model], self._turn_s)

    def _leaves_shares(self, key: LaneKey, rows: int, now: float) -> bool:
        """Whether a batch on an idle worker leaves the other models their shares."""
        if len(self._models) == 1 or self._is_short(key, rows):
            return True
        served = [name for name, model in self._models.items() if model.is_ready]
        live = [worker for worker in self._workers if not self._workers.is_quiet(worker, now)]
        share = self._share(len(live), len(served))
        used = Counter(worker.model for worker in live)
        if used[key.model] < share:
            return True
        unused = sum(max(0, share - used[name]) for name in served if name != key.model)
        return used[None] > unused

    def _choose(self, key: LaneKey, rows: int, now: float) -> tuple[Worker, int] | None:
        """The worker for a batch, and the version that will answer; None: all are busy.

        Idle workers come before busy ones, and those that load a version last; among equals, one
        that has the newest version.
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
        """Whether the worker's batches, and the one it would get, take little time."""
        return self._is_short(key, rows) and all(
            0 < batch.expected_s < SHORT_BATCH_S for batch in worker.running.values()
        )

    def _is_short(self, key: LaneKey, rows: int) -> bool:
        expected_s = self._time_of(key.model, key.is_image).expected_s(rows)
        return expected_s is not None and expected_s < SHORT_BATCH_S

    def _waits(self, lane: Lane, worker: Worker, now: float) -> bool:
        """Whether the batch waits for more requests; never if there is nothing else to do."""
        if not self._timeout_s or lane.is_full:
            return False
        if not worker.running and len(lane.requests) == sum(map(len, self._queues.values())):
            return False
        until_s = lane.oldest.admitted_s + self._timeout_s
        if now >= until_s:
            return False
        self.held_until_s = min(until_s, self.held_until_s or until_s)
        return True

    def _start(self, lane: Lane, worker: Worker, version: int, now: float) -> RunningBatch:
        name, _, is_image = lane.key
        requests = self._queues[name].take(lane)
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

    # What a new request may expect

    def seconds_until_answered(
        self, key: LaneKey, rows: int, batch_rows: int, now: float
    ) -> tuple[float, float] | None:
        """For a request admitted now, (its wait, when it is answered at the latest), in seconds.

        ``batch_rows``: how many its batch may have.

        List scheduling: it starts no later than when the model's workers together have done the
        model's work ahead (Graham, 1966). None: nothing was measured, or not lately while a worker
        is idle.
        """
        time = self._time_of(key.model, key.is_image)
        live, busy_s, others_s, is_idle = self._load(key, now)
        if is_idle and not self._queues[key.model] and self._leaves_shares(key, rows, now):
            own_s = time.cautious_s(rows)
            return None if own_s is None or not time.is_fresh(now) else (0.0, own_s)
        own_s = time.cautious_s(max(rows, batch_rows))
        if own_s is None:
            return None
        usable = self._usable(key, max(rows, batch_rows), live)
        wait_s = others_s + (busy_s + self._queued_s(key, rows, batch_rows)) / usable
        return wait_s, MODELLING_ERROR * wait_s + own_s

    def batch_rows(self, key: LaneKey, timeout_s: float) -> int:
        """The most rows a batch may have, if a request that waits for one batch, and runs in the
        next, is to be answered in time."""
        time = self._time_of(key.model, key.is_image)
        for rows in range(self._max_rows, 1, -1):
            wait_s, own_s = time.expected_s(rows) or 0.0, time.cautious_s(rows) or 0.0
            if MODELLING_ERROR * wait_s + own_s <= timeout_s:
                return rows
        return 1

    def _usable(self, key: LaneKey, rows: int, live: int) -> float:
        """How many of the live workers compute for the model, if others go on as they do now."""
        if len(self._models) == 1:
            return live
        served = [model for model in self._models.values() if model.is_ready]
        active = sum(model.pending > 0 or model.name == key.model for model in served) or 1
        if self._is_short(key, rows):
            return live / active
        left = live - self._share(live, len(served)) * (len(served) - active)
        return max(left / active, min(1.0, live / active))

    @staticmethod
    def _share(workers: int, models: int) -> int:
        return max(1, workers // max(1, models))

    def _load(self, key: LaneKey, now: float) -> tuple[int, float, float, bool]:
        """Return how many workers may answer, the seconds of the model's work that they have left,
        the seconds until one is done with another model's batch, if all compute those; and
        whether one is idle.

        If all of them are quiet, it is more likely that the gateway stood still: then one counts.
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
        """How long one worker would take for the model's batches ahead of such a request."""
        total_s = 0.0
        for lane in self._queues[key.model].lanes.values():
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
