"""The counters of a run: pushes, staleness, loss, speed. Pure; time is passed in."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from typing import Any

RECORDS_PER_EPOCH = 20
RECORD_SHARE = 1 / 1000
"""The shortest time between metric records, as a share of the run's: short epochs write few."""

RECORDS_PER_REPORT = 256  # a report is one message of bounded size
RECORDS_KEPT = 10_000  # in memory, until an observer fetches them
RECORDS_IN_CHECKPOINT = 1_000
RECORDED = (
    *("samples", "epoch", "version", "loss", "staleness_mean", "samples_per_s", "seconds"),
    "learning_rate",
)
"""The numbers in every metric record, besides an ``accuracy`` that may be None."""

NOT_REPORTED = {
    *("working_s", "waiting_s", "staleness_sum", "staleness_buckets", "kernels", "window"),
    *("bytes_received", "bytes_sent"),
}
"""Counters that a report contains as means or under another name, or not at all."""

STALENESS_BUCKETS = 16
RECENT_S = 10.0
"""The time constant of a worker's recent speed, an exponential moving average."""

NOISE = 0.02
"""Losses below this share of a run's first one are equal but for noise."""


def loss_change(before: float, after: float, first: float) -> float:
    """Return the rise of a loss (a fall is negative) as a share of its size.

    The size is ``before``, or ``NOISE`` times the ``first`` loss if that is larger.
    """
    if not math.isfinite(before):
        return -math.inf if math.isfinite(after) else 0.0
    return (after - before) / (max(abs(before), NOISE * abs(first)) or 1.0)


@dataclass
class Window:
    """Sums since the last metric record."""

    samples: int = 0
    pushes: int = 0
    loss: float = 0.0
    correct: int = 0
    staleness: int = 0
    began_s: float = 0.0


class RecentSpeed:
    """Samples per second of one worker while it has work, averaged over about ``RECENT_S``."""

    def __init__(self) -> None:
        self._samples = 0.0
        self._seconds = 0.0
        self._since_s: float | None = None

    @property
    def is_measuring(self) -> bool:
        """Whether the worker has work."""
        return self._since_s is not None

    def has_work(self, now: float) -> None:
        if self._since_s is None:
            self._since_s = now

    def waits(self, now: float) -> None:
        self._advance(now)
        self._since_s = None

    def computed(self, samples: int, now: float) -> None:
        self._advance(now)
        self._samples += samples

    def samples_per_s(self, now: float) -> float:
        self._advance(now)
        return self._samples / self._seconds if self._seconds else 0.0

    def measured_s(self, now: float) -> float:
        """Return the time over which the speed was measured, at most ``RECENT_S``."""
        self._advance(now)
        return self._seconds

    def _advance(self, now: float) -> None:
        if self._since_s is None:
            return
        fade = math.exp((self._since_s - now) / RECENT_S)
        self._samples *= fade
        self._seconds = self._seconds * fade + RECENT_S * (1 - fade)
        self._since_s = now


@dataclass
class RunMetrics:
    """Counters and metric records of a run; a resumed run continues the checkpoint's counters.

    Only the newest of the ``next_record`` records so far are kept, for an observer to fetch.
    ``seconds`` runs from the first lease to the last applied push, without interruptions.
    ``working_s`` and ``waiting_s`` are sums over the workers: a lease until its push, and a push
    until the next lease. ``staleness_buckets[n]`` counts pushes whose staleness has n binary
    digits, or more in the last bucket. ``samples_done_again`` were applied after the checkpoints
    from which the run was resumed. ``kernels`` maps the workers' kernels, see ``Equipment``, to
    their BLAS libraries. ``bytes_received`` and ``bytes_sent``: of workers that share no memory.
    """

    server_starts: int = 1
    pushes_applied: int = 0
    pushes_rejected: int = 0
    duplicates_dropped: int = 0
    gradients_refused: int = 0
    workers_joined: int = 0
    workers_lost: int = 0
    workers_restarted: int = 0
    samples_done_again: int = 0
    checkpoints_failed: int = 0
    journal_failures: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    working_s: float = 0.0
    waiting_s: float = 0.0
    staleness_sum: int = 0
    staleness_max: int = 0
    staleness_buckets: list[int] = field(default_factory=list)
    kernels: dict[str, str] = field(default_factory=dict)
    records: deque[dict[str, float | None]] = field(
        default_factory=lambda: deque(maxlen=RECORDS_KEPT)
    )
    next_record: int = 0
    window: Window = field(default_factory=Window)

    def __post_init__(self) -> None:
        self._began_s: float | None = None

    def lease_granted(self, now: float) -> None:
        """Start the run's clock at the first lease."""
        if self._began_s is None:
            self._began_s = now - self.seconds

    def pushes_accepted(
        self, samples: int, loss_sum: float, correct: int, staleness: Sequence[int], now: float
    ) -> None:
        """Count pushes that were applied together; ``staleness`` has a number for each."""
        self.pushes_applied += len(staleness)
        self.staleness_sum += sum(staleness)
        self.staleness_max = max(self.staleness_max, *staleness)
        buckets = self.staleness_buckets
        for each in staleness:
            bucket = min(each.bit_length(), STALENESS_BUCKETS - 1)
            buckets += [0] * (bucket + 1 - len(buckets))
            buckets[bucket] += 1
        if self._began_s is not None:
            self.seconds = now - self._began_s
        window = self.window
        window.samples += samples
        window.pushes += len(staleness)
        window.loss += loss_sum
        window.correct += correct
        window.staleness += sum(staleness)

    def record_due(self, applied_samples: int, samples: int) -> bool:
        """Return whether another ``1 / RECORDS_PER_EPOCH`` of an epoch is completed."""
        before = RECORDS_PER_EPOCH * (applied_samples - self.window.samples) // samples
        is_completed = RECORDS_PER_EPOCH * applied_samples // samples > before
        return is_completed and self.seconds - self.window.began_s >= RECORD_SHARE * self.seconds

    def record(
        self,
        applied_samples: int,
        samples: int,
        version: int,
        learning_rate: float,
        *,
        has_accuracy: bool = True,
    ) -> None:
        """Append a metric record with the means over the pushes since the previous record."""
        window = self.window
        elapsed_s = self.seconds - window.began_s
        record = {
            "samples": applied_samples,
            "epoch": applied_samples / samples,
            "version": version,
            "loss": window.loss / window.samples,
            "accuracy": window.correct / window.samples if has_accuracy else None,
            "staleness_mean": window.staleness / window.pushes,
            "samples_per_s": window.samples / elapsed_s if elapsed_s > 0 else 0.0,
            "seconds": self.seconds,
            "learning_rate": learning_rate,
        }
        self.records.append(record)
        self.next_record += 1
        self.window = Window(began_s=self.seconds)

    def report(self, applied_samples: int, first_record: int) -> dict[str, Any]:
        """Return the counters, and ``RECORDS_PER_REPORT`` records from ``first_record`` on."""
        oldest = self.next_record - len(self.records)
        first = min(max(oldest, first_record), self.next_record)
        records = list(islice(self.records, first - oldest, first - oldest + RECORDS_PER_REPORT))
        names = {each.name for each in fields(self)} - NOT_REPORTED
        return {name: getattr(self, name) for name in names} | {
            "samples_per_s": applied_samples / self.seconds if self.seconds > 0 else 0.0,
            "waiting_share": self.waiting_s / ((self.working_s + self.waiting_s) or 1.0),
            "staleness_mean": self.staleness_sum / max(1, self.pushes_applied),
            "staleness_histogram": self.staleness_buckets,
            "bytes_received_per_sample": self.bytes_received / max(1, applied_samples),
            "bytes_sent_per_sample": self.bytes_sent / max(1, applied_samples),
            "records": records,
            "next_record": first + len(records),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the state for a checkpoint, of bounded size."""
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        return state | {
            "kernels": dict(self.kernels),
            "records": list(self.records)[-RECORDS_IN_CHECKPOINT:],
            "staleness_buckets": list(self.staleness_buckets),
            "window": asdict(self.window),
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "RunMetrics":
        """Return the metrics of a server that resumes; ignore counters of another release.

        Raise ``KeyError``, ``TypeError`` or ``ValueError`` for other JSON than ``to_json``'s.
        """
        known = {each.name: state[each.name] for each in fields(cls) if each.name in state}
        records, window = known.pop("records"), Window(**known.pop("window"))
        buckets = list(known.pop("staleness_buckets"))
        kernels = {str(each): str(blas) for each, blas in dict(known.pop("kernels", {})).items()}
        times = {name: known.pop(name) for name in ("seconds", "working_s", "waiting_s")}
        _require_numbers([*known.values(), *buckets, window.samples, window.pushes], int)
        _require_numbers([*times.values(), window.began_s, abs(window.loss)], int, float)
        _require_numbers([window.correct, window.staleness], int)
        for record in records:
            numbers = [record["accuracy"] or 0, *(record[name] for name in RECORDED)]
            _require_numbers(map(abs, numbers), int, float)
        metrics = cls(**known, **times, staleness_buckets=buckets, kernels=kernels, window=window)
        metrics.records.extend(records)
        metrics.server_starts += 1
        return metrics


def _require_numbers(values: Iterable[Any], *kinds: type) -> None:
    """Raise ``ValueError`` unless all values are finite, at least 0, and of these types."""
    for value in values:
        if type(value) not in kinds or not 0 <= value < math.inf:
            raise ValueError(f"{value!r:.80} is no counter")
