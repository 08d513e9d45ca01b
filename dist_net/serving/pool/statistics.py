"""What a version of a model was asked and how it went. Pure; time is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, log2

NO_VERSION = -1
"""Where a model's statistics keep what is of no version that is served: see ModelStatistics."""

ENDS = ("admitted", "answered", "refused", "expired", "failed", "cancelled")
"""What is counted of requests: how they came in, and how they ended."""

WINDOW_S = 10
BINS_PER_OCTAVE = 16
SHORTEST_S = 2.0**-17
BINS = 24 * BINS_PER_OCTAVE


@dataclass(slots=True)
class Timed:
    """How often something happened, and how many seconds that took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, count: int, seconds: float) -> None:
        """Count it ``count`` times more, ``seconds`` together."""
        self.count += count
        self.seconds += seconds


class RecentLatencies:
    """How long requests took that were answered in the last ten seconds.

    One histogram for each second, whose bins are 4.4 % wide: from 8 us to two minutes.
    """

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, list[int]]] = deque()

    def add(self, latency_s: float, now: float) -> None:
        """Count an answer that came ``latency_s`` after its request."""
        octaves = log2(latency_s / SHORTEST_S) if latency_s > SHORTEST_S else 0.0
        self._bins(int(now))[min(int(octaves * BINS_PER_OCTAVE), BINS - 1)] += 1

    def requests_per_s(self, now: float) -> float:
        """Answers for each of the last ten seconds, on average."""
        self._forget(now)
        return sum(sum(bins) for _, bins in self._seconds) / WINDOW_S

    def percentiles_s(self, shares: Iterable[float], now: float) -> tuple[float, ...] | None:
        """The latencies that these shares (0.99, say) of the answers kept; None if there is none.

        Each is off by 2.2 % at most.
        """
        self._forget(now)
        bins = [sum(counts) for counts in zip(*(bins for _, bins in self._seconds), strict=True)]
        total = sum(bins)
        return tuple(_quantile(bins, ceil(share * total)) for share in shares) if total else None

    def absorb(self, other: RecentLatencies) -> None:
        """Count all that ``other`` counted, too."""
        merged = dict(self._seconds)
        for second, bins in other._seconds:
            mine = merged.get(second, [0] * BINS)
            merged[second] = [a + b for a, b in zip(mine, bins, strict=True)]
        self._seconds = deque(sorted(merged.items()))

    def _bins(self, second: int) -> list[int]:
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append((second, [0] * BINS))
            self._forget(second)
        return self._seconds[-1][1]

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= int(now) - WINDOW_S:
            self._seconds.popleft()


def total(statistics: Iterable[ModelStatistics]) -> ModelStatistics:
    """What all of them counted together."""
    together = ModelStatistics()
    for each in statistics:
        together.absorb(each)
    return together


def _quantile(bins: list[int], rank: int) -> float:
    """The middle of the bin where the ``rank``-th smallest lies."""
    for index, count in enumerate(bins):
        rank -= count
        if rank <= 0 < count:
            return SHORTEST_S * float(2.0 ** ((index + 0.5) / BINS_PER_OCTAVE))
    raise AssertionError("a rank beyond the count of all")


@dataclass(slots=True)
class ModelStatistics:
    """What one version of a model was asked since it was loaded.

    ``inference_count`` counts rows and ``execution_count`` batches that were answered;
    ``last_inference_s`` is when the last one was, on the pool's clock, whatever moment that counts
    from (None: never). Of requests that were answered OK, each a count and total seconds:
    ``success`` from admission to answer, ``queue`` from admission to dispatch, ``compute_input``
    and ``compute_infer`` what their batches took for inputs and network, ``compute_output`` the
    rest: the ways to the worker and back. ``fail``: from admission to any other end but
    cancellation. ``batches``: by rows, how many batches and their seconds in the network.

    Requests: ``admitted`` = ``answered`` (OK or a bad input) + ``expired`` + ``failed`` +
    ``cancelled`` + those that are in the pool still; ``refused`` were not admitted. A request that
    names no version counts as admitted for the newest one then, and ends for the one that answered;
    so only the sums over a model's versions balance. ``retried``: how often one was taken from a
    lost worker, to be given to another.

    Under the key NO_VERSION a model keeps all that its dropped versions counted and what was
    refused while it had none: so a sum over a model's versions never falls.
    """

    inference_count: int = 0
    execution_count: int = 0
    last_inference_s: float | None = None
    success: Timed = field(default_factory=Timed)
    fail: Timed = field(default_factory=Timed)
    queue: Timed = field(default_factory=Timed)
    compute_input: Timed = field(default_factory=Timed)
    compute_infer: Timed = field(default_factory=Timed)
    compute_output: Timed = field(default_factory=Timed)
    batches: dict[int, Timed] = field(default_factory=dict)
    admitted: int = 0
    answered: int = 0
    refused: int = 0
    expired: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    recent: RecentLatencies = field(default_factory=RecentLatencies)

    def ran(self, rows: int, compute_s: float, now: float) -> None:
        """Count a batch that came back."""
        self.inference_count += rows
        self.execution_count += 1
        self.last_inference_s = now
        self.batches.setdefault(rows, Timed()).add(1, compute_s)

    def absorb(self, other: ModelStatistics) -> None:
        """Count all that ``other`` counted, too."""
        self.inference_count += other.inference_count
        self.execution_count += other.execution_count
        if other.last_inference_s is not None:
            self.last_inference_s = max(self.last_inference_s or 0.0, other.last_inference_s)
        for name in (
            "success",
            "fail",
            "queue",
            "compute_input",
            "compute_infer",
            "compute_output",
        ):
            theirs: Timed = getattr(other, name)
            getattr(self, name).add(theirs.count, theirs.seconds)
        for rows, timed in other.batches.items():
            self.batches.setdefault(rows, Timed()).add(timed.count, timed.seconds)
        for name in (*ENDS, "retried"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.recent.absorb(other.recent)
