"""The last report of a run as Prometheus metrics.

Counters continue after a restart of the server, from its checkpoint. The labels of a worker are its
name and its host; a report limits the number of workers.
"""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import HistogramMetricFamily, Metric
from starlette.routing import Route

from dist_net.serving.http.pool_metrics import counter_family, gauge_family, metrics_route

COUNTERS = {
    "samples": ("samples", "samples applied, in all epochs"),
    "training_seconds": ("seconds", "seconds of training, without interruptions"),
    "server_starts": ("server_starts", "starts of the parameter server, including the current one"),
    "workers_joined": ("workers_joined", "workers that joined"),
    "workers_lost": ("workers_lost", "workers lost: silent for too long, or sent invalid messages"),
    "workers_restarted": (
        "workers_restarted",
        "workers that joined under the name of an earlier worker",
    ),
    "samples_done_again": ("samples_done_again", "samples repeated after a restart of the server"),
    "checkpoint_failures": ("checkpoints_failed", "failed writes of checkpoints"),
    "journal_failures": ("journal_failures", "failed writes of the journal"),
}
PUSHES = {
    "applied": "pushes_applied",
    "rejected": "pushes_rejected",
    "duplicate": "duplicates_dropped",
    "not_finite": "gradients_refused",
}
STATES = ("waiting", "training", "finished", "stopping")
GAUGES = {
    "samples_wanted": ("samples_total", "samples of the whole run"),
    "weights_version": ("version", "updates applied to the weights"),
    "training_workers": ("worker_count", "workers in the run"),
    "versions_since_checkpoint": ("versions_since_checkpoint", "updates since the last checkpoint"),
    "journal_lag_records": ("journal_lag_records", "journal records not yet on the disk"),
    "journal_lag_bytes": ("journal_lag_bytes", "journal bytes not yet on the disk"),
    "journal_lag_seconds": (
        "journal_lag_s",
        "age of the oldest journal record not yet on the disk",
    ),
}
FAILING = {"checkpoint": "checkpoint_error", "journal": "journal_error"}
WORKER_GAUGES = {
    "samples_per_second": ("samples_per_s", "recent speed while the worker had work"),
    "staleness_updates": ("staleness_mean", "mean staleness of the worker's pushes"),
    "round_trip_seconds": ("round_trip_s", "time of a push and its answer"),
    "silence_seconds": ("heard_s_ago", "seconds since the worker's last message"),
    "slow": ("is_slow", "1 if the worker is silent, or slower than the others"),
    "cores": ("cores", "cores available to the worker"),
    "threads": ("threads", "threads of the worker"),
}


def run_metrics(report: dict[str, Any], age_s: float) -> Iterator[Metric]:
    """Yield the metrics of a report that was published ``age_s`` ago."""
    text = "seconds since the server's last report"
    yield gauge_family("report_age_seconds", text, "", [((), age_s)])
    for name, (key, text) in COUNTERS.items():
        yield counter_family(name, text, "", [((), report[key])])
    for name, (key, text) in GAUGES.items():
        yield gauge_family(name, text, "", [((), report[key])])
    pushes = [(end, report[key]) for end, key in PUSHES.items()]
    yield counter_family("pushes", "pushes by result", "end", pushes)
    states = [(each, report["state"] == each) for each in STATES]
    yield gauge_family("run_state", "1 for the current state", "state", states)
    failing = [(file, report[key] is not None) for file, key in FAILING.items()]
    yield gauge_family("failing", "1 if the file cannot be written", "file", failing)
    yield _staleness(report)
    yield from _worker_metrics(report["workers"])


def _staleness(report: dict[str, Any]) -> Metric:
    """Return the cumulative buckets of a run's report, by their greatest staleness."""
    buckets, total = [], 0
    for digits, count in enumerate(report["staleness_histogram"]):
        total += count
        buckets.append((str(2**digits - 1), total))
    buckets.append(("+Inf", total))
    return HistogramMetricFamily(
        "dist_net_staleness_updates",
        "staleness of applied pushes",
        buckets=buckets,
        sum_value=report["staleness_mean"] * report["pushes_applied"],
    )


def _worker_metrics(workers: list[dict[str, Any]]) -> Iterator[Metric]:
    seen: Counter[tuple[str, str]] = Counter()
    labels = []
    for each in workers:  # two of one name on a host would be one series with two values
        host, name = each["host"], each["name"]
        seen[host, name] += 1
        count = seen[host, name]
        labels.append((name if count == 1 else f"{name} ({count})", host))
    for metric, (key, text) in WORKER_GAUGES.items():
        values = [(label, each[key]) for label, each in zip(labels, workers, strict=True)]
        yield gauge_family(f"worker_{metric}", text, "worker host", values)


class PublishedReport:
    """The last report of a run, from which Prometheus collects metrics."""

    def __init__(self) -> None:
        self._published: tuple[dict[str, Any], float] | None = None

    @property
    def route(self) -> Route:
        return metrics_route(self._collect)

    def publish(self, report: dict[str, Any]) -> None:
        self._published = report, time.monotonic()

    def _collect(self) -> Iterator[Metric]:
        if self._published is not None:
            report, published_s = self._published
            yield from run_metrics(report, time.monotonic() - published_s)
