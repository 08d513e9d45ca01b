"""What a batch that came back means for each of its requests. Pure."""

from __future__ import annotations

import math

from dist_net.serving.pool.requests import Outcome, Status
from dist_net.serving.pool.roster import RunningBatch
from dist_net.serving.pool.statistics import ModelStatistics
from dist_net.wire.serving_messages import BatchDone

FLOAT_BYTES = 4
FROM_WORKERS = frozenset((Status.OK, Status.BAD_INPUT, Status.FAILED))
"""How a worker may say that a request ended."""


def fault(batch: RunningBatch, done: BatchDone) -> str | None:
    """Why the worker's answer cannot be one to this batch; None: it can."""
    asked = len(batch.requests)
    if not len(done.statuses) == len(done.payloads) == asked:
        return (
            f"{len(done.statuses)} statuses and {len(done.payloads)} payloads for {asked} requests"
        )
    if not (0 <= done.prepare_s < math.inf and 0 <= done.compute_s < math.inf):
        return f"times of {done.prepare_s} s and {done.compute_s} s"
    row_bytes = FLOAT_BYTES * batch.description.classes
    for request, status, payload in zip(batch.requests, done.statuses, done.payloads, strict=True):
        if status not in FROM_WORKERS:
            return f"the status {status}"
        if status == Status.OK and len(payload) != request.rows * row_bytes:
            return f"{len(payload)} bytes for {request.rows} rows of {row_bytes} bytes"
    return None


def outcomes(batch: RunningBatch, done: BatchDone) -> list[Outcome]:
    """How each request ended, in order."""
    version = batch.description.version
    ended = []
    for request, value, payload in zip(batch.requests, done.statuses, done.payloads, strict=True):
        status = Status(value)
        is_ok = status is Status.OK
        ended.append(
            Outcome(
                status,
                version,
                payload if is_ok else b"",
                "" if is_ok else bytes(payload).decode(errors="replace"),
                0.0,
                batch.sent_s - request.admitted_s,
                done.prepare_s,
                done.compute_s,
                batch.rows,
                batch.description.labels,
            )
        )
    return ended


def computed_rows(batch: RunningBatch, ended: list[Outcome]) -> int:
    """How many rows the net computed: a picture that is bad tells nothing of its speed."""
    pairs = zip(batch.requests, ended, strict=True)
    return sum(request.rows for request, outcome in pairs if outcome.status is Status.OK)


def count_batch(
    statistics: ModelStatistics,
    batch: RunningBatch,
    done: BatchDone,
    ended: list[Outcome],
    now: float,
) -> None:
    """Count the batch, and each of its requests whose answer is still wanted."""
    statistics.ran(batch.rows, done.compute_s, now)
    answered = 0
    for request, outcome in zip(batch.requests, ended, strict=True):
        if request.is_cancelled:
            continue
        latency_s = now - request.admitted_s
        if outcome.status is Status.OK:
            answered += 1
            statistics.success.add(1, latency_s)
            statistics.queue.add(1, outcome.queue_s)
            statistics.recent.add(latency_s, now)
        else:
            count_failure(statistics, outcome.status, latency_s)
    statistics.answered += answered
    statistics.compute_input.add(answered, answered * done.prepare_s)
    statistics.compute_infer.add(answered, answered * done.compute_s)
    ways_s = max(now - batch.sent_s - done.prepare_s - done.compute_s, 0.0)
    statistics.compute_output.add(answered, answered * ways_s)


def count_failure(statistics: ModelStatistics, status: Status, latency_s: float) -> None:
    """Count a request that was admitted and ended in another way than OK."""
    statistics.fail.add(1, latency_s)
    if status is Status.BAD_INPUT:
        statistics.answered += 1
    elif status is Status.EXPIRED:
        statistics.expired += 1
    else:
        statistics.failed += 1
