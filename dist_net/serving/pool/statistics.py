"""Counters and times of the requests to a version of a model."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil
from typing import Self

from dist_net.serving.pool.requests import Result, Status

NO_VERSION = -1
"""The key of requests that belong to no served version: see ModelStatistics."""

ENDS = ("admitted", "answered", "refused", "expired", "failed", "cancelled")
"""The counters of requests: admitted, and by result."""

TIMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
WINDOW_S = 10.0
MAX_LATENCIES = 4096


@dataclass(slots=True)
class Timed:
    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        """Add ``count`` events of ``seconds`` in total."""
        self.count += count
        self.seconds += seconds


BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


@dataclass(slots=True)
class Histogram(Timed):
    """Events by their seconds: ``counts`` of those up to each of ``BUCKETS_S``, and of longer."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))

    def observe(self, seconds: float) -> None:
        self.add(1, seconds)
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1


class RecentLatencies:
    """Latencies of the last ten seconds, the newest ``MAX_LATENCIES``: a report takes 1 ms."""

    def __init__(self) -> None:
        # Oldest first.
        self._answered: deque[tuple[float, float]] = deque(maxlen=MAX_LATENCIES)

    def add(self, latency_s: float, now: float) -> None:
        """Count an answer with this latency."""
        self._answered.append((now, latency_s))
        self._forget(now)

    def requests_per_s(self, now: float) -> float:
        """Return the mean over the last ten seconds, or over the time of the kept answers."""
        self._forget(now)
        is_full = len(self._answered) == MAX_LATENCIES
        seconds = max(now - self._answered[0][0], 1e-3) if is_full else WINDOW_S
        return len(self._answered) / seconds

    def percentiles_s(self, shares: Iterable[float], now: float) -> tuple[float, ...] | None:
        """Return the percentiles for these shares, such as 0.99; None without answers."""
        self._forget(now)
        latencies_s = sorted(latency_s for _, latency_s in self._answered)
        count = len(latencies_s)
        return tuple(latencies_s[ceil(share * count) - 1] for share in shares) if count else None

    def _forget(self, now: float) -> None:
        while self._answered and self._answered[0][0] <= now - WINDOW_S:
            self._answered.popleft()


@dataclass(slots=True)
class ModelStatistics:
    """The requests to one version of a model since it was loaded.

    ``inference_count``: the answered rows, and ``execution_count``: the answered batches, both
    without images that could not be decoded.
    ``last_inference_s``: the time of the last answer on the pool's clock; None without answers.

    The number of requests answered OK and their seconds in total: ``success``, from admission to
    answer; ``queue``, from admission to dispatch; ``compute_input`` and ``compute_infer``, for
    their batches' inputs and network; ``compute_output``, for the transport to the worker and back.
    ``fail``: requests with another result, unless cancelled. ``batches``: the seconds in the
    network by rows of the batch.

    Requests: ``admitted`` = ``answered`` (OK or a bad input) + ``expired`` + ``failed`` +
    ``cancelled`` + pending requests; ``refused`` were never admitted. A request that names no
    version is counted as admitted for the newest version at that time, and as ended for the version
    that answered; so only the sums over a model's versions balance. ``retried``: the number of
    times that a request was moved from a lost worker to another.

    Under the key NO_VERSION a model keeps the counts of its dropped versions, and of requests
    refused while it had none. So the sum over a model's versions never falls.
    """

    last_inference_s: float | None = None
    success: Histogram = field(default_factory=Histogram)
    fail: Timed = field(default_factory=Timed)
    queue: Histogram = field(default_factory=Histogram)
    compute_input: Timed = field(default_factory=Timed)
    compute_infer: Histogram = field(default_factory=Histogram)
    compute_output: Timed = field(default_factory=Timed)
    batches: dict[int, Timed] = field(default_factory=dict)
    admitted: int = 0
    answered: int = 0
    refused: int = 0
    expired: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0

    @property
    def inference_count(self) -> int:
        return sum(rows * timed.count for rows, timed in self.batches.items())

    @property
    def execution_count(self) -> int:
        return sum(timed.count for timed in self.batches.values())

    def ran(self, rows: int, compute_s: float, now: float) -> None:
        self.last_inference_s = now
        self.batches.setdefault(rows, Timed()).add(1, compute_s)

    def ended(self, result: Result, latency_s: float, transit_s: float) -> None:
        """Count an admitted request's result; ``transit_s``: its batch's transport both ways."""
        if result.status is Status.OK:
            self.answered += 1
            self.success.observe(latency_s)
            self.queue.observe(result.queue_s)
            self.compute_input.add(1, result.prepare_s)
            self.compute_infer.observe(result.compute_s)
            self.compute_output.add(1, transit_s)
            return
        self.fail.add(1, latency_s)
        if result.status is Status.BAD_INPUT:
            self.answered += 1
        elif result.status is Status.EXPIRED:
            self.expired += 1
        else:
            self.failed += 1

    def absorb(self, other: Self) -> None:
        """Add the counts of ``other``."""
        if other.last_inference_s is not None:
            self.last_inference_s = max(self.last_inference_s or 0.0, other.last_inference_s)
        for name in TIMES:
            theirs: Timed = getattr(other, name)
            own: Timed = getattr(self, name)
            own.add(theirs.count, theirs.seconds)
            if isinstance(own, Histogram) and isinstance(theirs, Histogram):
                own.counts = [a + b for a, b in zip(own.counts, theirs.counts, strict=True)]
        for rows, timed in other.batches.items():
            self.batches.setdefault(rows, Timed()).add(timed.count, timed.seconds)
        for name in (*ENDS, "retried"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def total(statistics: Iterable[ModelStatistics]) -> ModelStatistics:
    together = ModelStatistics()
    for each in statistics:
        together.absorb(each)
    return together
