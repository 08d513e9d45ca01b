"""Which worker gets the next batch, and when a request would be answered. Pure."""

from __future__ import annotations

from dist_net.serving.pool.request_queue import LaneKey, RequestQueue
from dist_net.serving.pool.roster import Roster, Worker
from dist_net.serving.pool.service_time import ServiceTime
from dist_net.serving.pool.settings import PoolSettings
from dist_net.serving.pool.versions import ModelVersions

SHORT_BATCH_S = 0.005
"""A worker that is quicker with a batch gets the next one before it is done: the way there would
cost more than the wait."""

MODELLING_ERROR = 1.5
"""By how much the work ahead may turn out longer than its mean: the load of other processes.

In the simulation of the tests, of machines whose speed changes by a fifth up and down within
seconds, 1.25 has up to 6 % late and 1.5 none; workers are as busy with either.
"""


class Router:
    """Looks at workers, queue and measured times; changes none of them."""

    def __init__(
        self,
        settings: PoolSettings,
        workers: Roster,
        queue: RequestQueue,
        models: dict[str, ModelVersions],
    ) -> None:
        self._max_rows = settings.max_batch_size
        self._workers = workers
        self._queue = queue
        self._models = models
        self._times: dict[tuple[str, bool], ServiceTime] = {}

    def time_of(self, model: str, is_picture: bool) -> ServiceTime:
        """The measured times of a model's batches of one kind."""
        kind = model, is_picture
        found = self._times.get(kind)
        if found is None:
            found = self._times[kind] = ServiceTime()
        return found

    def can_answer(self, model: ModelVersions, now: float) -> bool:
        """Whether a worker that shows signs of life would run a request that names no version."""
        return any(
            model.version_for(worker, None) is not None
            for worker in self._workers
            if not self._workers.is_quiet(worker, now)
        )

    def choose(self, key: LaneKey, rows: int, now: float) -> tuple[Worker, int] | None:
        """The worker for a batch and the version it will answer by; None: all are busy.

        Idle ones come before busy ones, and those that load a version come last; among equals, one
        that has the newest version.
        """
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

    def seconds_until_answered(
        self, key: LaneKey, rows: int, batch_rows: int, now: float
    ) -> tuple[float, float] | None:
        """For a request that would be admitted now: (its wait, until it is answered at the latest).

        ``batch_rows``: how many its batch may have.

        List scheduling: none starts later than when the work ahead is done by all together (Graham,
        1966). None: nothing to go by was measured, or not lately while a worker has nothing to do.
        """
        time = self.time_of(key.model, key.is_picture)
        live, busy_s, is_idle = self._load(key, now)
        if is_idle and not self._queue:
            own_s = time.cautious_s(rows)
            return None if own_s is None or not time.is_fresh(now) else (0.0, own_s)
        own_s = time.cautious_s(max(rows, batch_rows))
        if own_s is None:
            return None
        wait_s = (busy_s + self._queued_s(key, rows, batch_rows)) / live
        return wait_s, MODELLING_ERROR * wait_s + own_s

    def batch_rows(self, key: LaneKey, timeout_s: float) -> int:
        """The most rows of a batch, such that who waits for another one like it is in time."""
        time = self.time_of(key.model, key.is_picture)
        for rows in range(self._max_rows, 1, -1):
            wait_s, own_s = time.expected_s(rows) or 0.0, time.cautious_s(rows) or 0.0
            if MODELLING_ERROR * wait_s + own_s <= timeout_s:
                return rows
        return 1

    def _are_short(self, worker: Worker, key: LaneKey, rows: int) -> bool:
        """Whether what the worker has, and what it would get, take it little time."""
        expected_s = self.time_of(key.model, key.is_picture).expected_s(rows)
        return (
            expected_s is not None
            and expected_s < SHORT_BATCH_S
            and all(0 < batch.expected_s < SHORT_BATCH_S for batch in worker.running.values())
        )

    def _load(self, key: LaneKey, now: float) -> tuple[int, float, bool]:
        """Workers that may answer, seconds of work that they have yet, whether one has none.

        If all of them are quiet, it is more likely that the gateway was: then one counts.
        """
        model = self._models[key.model]
        live, busy_s, is_idle = 0, 0.0, False
        for worker in self._workers:
            if self._workers.is_quiet(worker, now):
                continue
            if model.version_for(worker, key.version) is None:
                continue
            live += 1
            if not worker.running:
                is_idle = True
            elif worker.free_s > now:
                busy_s += worker.free_s - now
        return live or 1, busy_s, is_idle

    def _queued_s(self, key: LaneKey, rows: int, batch_rows: int) -> float:
        """What the batches ahead of such a request will take a single worker."""
        total_s = 0.0
        for lane in self._queue.lanes.values():
            time = self.time_of(lane.key.model, lane.key.is_picture)
            total_s += time.expected_s(lane.rows, lane.batches) or 0.0
            if lane.key == key and lane.joins(rows, batch_rows):
                total_s -= time.expected_s(lane.last.rows) or 0.0
        return total_s
