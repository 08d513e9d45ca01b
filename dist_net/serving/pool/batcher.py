"""When a batch goes, with which requests, and to whom. Pure; time is passed in."""

from __future__ import annotations

from dist_net.serving.pool.request_queue import Lane, RequestQueue
from dist_net.serving.pool.roster import RunningBatch, Worker
from dist_net.serving.pool.routing import Router
from dist_net.serving.pool.settings import PoolSettings
from dist_net.serving.pool.versions import ModelVersions


class Batcher:
    """Makes batches of the requests in the queue, the oldest first whatever model it asks.

    ``held_until_s``: when a batch goes that waits for more requests; None: none waits.
    """

    def __init__(
        self,
        settings: PoolSettings,
        queue: RequestQueue,
        models: dict[str, ModelVersions],
        router: Router,
    ) -> None:
        self.held_until_s: float | None = None
        self._timeout_s = settings.batch_timeout_s
        self._queue = queue
        self._models = models
        self._router = router
        self._next_batch_id = 1

    def next_batch(self, now: float) -> tuple[Worker, RunningBatch] | None:
        """A batch that its worker has now; None: no more can go."""
        self.held_until_s = None
        for lane in self._queue.by_age():
            choice = self._router.choose(lane.key, lane.next_rows, now)
            if choice is not None and not self._waits(lane, choice[0], now):
                return choice[0], self._start(lane, *choice, now)
        return None

    def _waits(self, lane: Lane, worker: Worker, now: float) -> bool:
        """Whether the lane's batch shall wait for more; not if nothing else is to be done."""
        if not self._timeout_s or lane.is_full:
            return False
        if not worker.running and len(lane.requests) == len(self._queue):
            return False
        until_s = lane.oldest.admitted_s + self._timeout_s
        if now >= until_s:
            return False
        self.held_until_s = min(until_s, self.held_until_s or until_s)
        return True

    def _start(self, lane: Lane, worker: Worker, version: int, now: float) -> RunningBatch:
        name, _, is_picture = lane.key
        requests = self._queue.take(lane)
        rows = sum(request.rows for request in requests)
        batch = RunningBatch(
            self._next_batch_id,
            self._models[name].versions[version].description,
            is_picture,
            requests,
            rows,
            now,
            self._router.time_of(name, is_picture).expected_s(rows) or 0.0,
        )
        self._next_batch_id += 1
        worker.start(batch)
        return batch
