"""/metrics for Prometheus, read from the pool on each request.

Dashboards for Triton expect the names ``nv_inference_*``, in microseconds; ``dist_net_*`` are our
own, in seconds. Counters have no label for the version: a version may come and go between two
scrapes, and its counts would be lost.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.replies import Refusals
from dist_net.serving.pool.statistics import BUCKETS_S, ENDS, Histogram, ModelStatistics, total

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_US_PER_S = 1e6
_DURATIONS = {
    "request": ("success", "answered requests, admission to answer"),
    "queue": ("queue", "answered requests, admission to dispatch"),
    "compute_input": ("compute_input", "preparing the inputs"),
    "compute_infer": ("compute_infer", "computing the network"),
    "compute_output": ("compute_output", "transport to the workers and back"),
}
_STAGES = {"queue": "queue", "compute": "compute_infer", "total": "success"}
_STATES = ("idle", "busy", "loading", "silent")


class LateCollector(NamedTuple):
    """A collector without ``describe``: its metrics are unknown until they are collected."""

    collect: Callable[[], Iterable[Metric]]


def metrics_route(collect: Callable[[], Iterable[Metric]]) -> Route:
    """Return the route ``/metrics``: the metrics of ``collect``, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(cast(Any, LateCollector(collect)))

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=_CONTENT_TYPE)

    return Route("/metrics", metrics)


def pool_metrics(gateway: Gateway, refusals: Refusals, ledger: ClientLedger) -> Iterator[Metric]:
    """Yield the metrics of the pool and of its clients, and the refusals of its HTTP server."""
    counted = {name: total(gateway.statistics(name).values()) for name in gateway.models()}
    yield from _triton_metrics(counted)
    yield from _request_metrics(counted)
    yield from _pool_metrics(gateway.status())
    for name, text, label, counts in (
        ("http_refused", "HTTP requests refused, by status code", "code", refusals.counts),
        ("unloads", "unloads of a model", "model", gateway.unloads),
        ("ended_processes", "workers that ended, and were replaced", "host", gateway.ended),
    ):
        yield counter_family(name, text, label, sorted(counts.items()))
    yield from _client_metrics(ledger)
    drift = [known for each in gateway.drift if (known := each.facts())]
    for name, text, key in (
        (
            "drift_alarm",
            "1 if the images are unlike those that the model was judged on",
            "is_alarm",
        ),
        ("unknown_share", "of the last 200 images", "unknown"),
        ("mean_probability", "of the answers to the last 200 images", "probability"),
    ):
        yield gauge_family(name, text, "model", [(each["model"], each[key]) for each in drift])
    lag = gateway.lag
    yield _histogram("loop_lag_seconds", "lateness of the gateway's timer", "", [((), lag)])


MetricValues = Iterable[tuple[Any, float]]
"""The values of a metric, each after its labels."""


def _family(kind: type[Metric], name: str, text: str, labels: str, values: MetricValues) -> Metric:
    metric: Any = kind(name, text, labels=labels.split())  # type: ignore[call-arg]
    for label, value in values:
        metric.add_metric([*map(str, label if isinstance(label, tuple) else (label,))], value)
    return cast(Metric, metric)


def counter_family(name: str, text: str, labels: str, values: MetricValues) -> Metric:
    """Return a counter of ours; ``labels`` are separated by spaces."""
    return _family(CounterMetricFamily, f"dist_net_{name}", text, labels, values)


def gauge_family(name: str, text: str, labels: str, values: MetricValues) -> Metric:
    """Return a gauge of ours; ``labels`` are separated by spaces."""
    return _family(GaugeMetricFamily, f"dist_net_{name}", text, labels, values)


def _histogram(
    name: str, text: str, labels: str, values: Iterable[tuple[tuple[str, ...], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(f"dist_net_{name}", text, labels=labels.split())
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    for label, each in values:
        buckets = list(zip(bounds, accumulate(each.counts), strict=True))
        family.add_metric(label, buckets, each.seconds)
    return family


def _triton_metrics(counted: Mapping[str, ModelStatistics]) -> Iterator[Metric]:
    # Untyped, because a counter's name must end in _total, and these do not.
    def family(name: str, text: str, value: Callable[[ModelStatistics], float]) -> Metric:
        values = [(model, value(each)) for model, each in counted.items()]
        return _family(UntypedMetricFamily, f"nv_inference_{name}", text, "model", values)

    yield family("request_success", "requests answered", lambda s: s.success.count)
    yield family("request_failure", "requests that failed", lambda s: s.fail.count)
    yield family("count", "rows answered", lambda s: s.inference_count)
    yield family("exec_count", "batches run", lambda s: s.execution_count)
    for name, (field, text) in _DURATIONS.items():
        values = [(m, getattr(each, field).seconds * _US_PER_S) for m, each in counted.items()]
        name, text = f"nv_inference_{name}_duration_us", f"microseconds in all: {text}"
        yield _family(UntypedMetricFamily, name, text, "model", values)


def _request_metrics(counted: Mapping[str, ModelStatistics]) -> Iterator[Metric]:
    ends = [((model, end), getattr(each, end)) for model, each in counted.items() for end in ENDS]
    yield counter_family("requests", "requests by result", "model end", ends)
    text = "seconds of answered requests: in the queue, in the network, in total"
    stages = [
        ((model, stage), getattr(each, name))
        for model, each in counted.items()
        for stage, name in _STAGES.items()
    ]
    yield _histogram("latency_seconds", text, "model stage", stages)
    retried = [(model, each.retried) for model, each in counted.items()]
    yield counter_family("retries", "requests moved from lost workers", "model", retried)
    batches = [
        ((model, rows), timed.count)
        for model, each in counted.items()
        for rows, timed in sorted(each.batches.items())
    ]
    yield counter_family("batches", "batches by number of rows", "model rows", batches)


def _client_metrics(ledger: ClientLedger) -> Iterator[Metric]:
    for name, text in (
        ("requests", "requests of a token or address"),
        ("refused", "requests beyond the quota of a token or address"),
        ("received_bytes", "bytes of requests by token or address"),
        ("sent_bytes", "bytes of answers by token or address"),
    ):
        values = [(client, getattr(of, name)) for client, of in ledger.accounts.items()]
        yield counter_family(f"client_{name}", text, "client", values)


def _pool_metrics(status: dict[str, Any]) -> Iterator[Metric]:
    queue = status["queue"]
    for name, text, value in (
        ("ready", "1 if every model is ready", status["is_ready"]),
        ("draining", "1 while the pool shuts down and admits no requests", status["is_draining"]),
        ("uptime_seconds", "seconds since the gateway started", status["uptime_s"]),
        ("queue_requests", "queued requests", queue["requests"]),
        ("queue_request_limit", "maximum number of queued requests", queue["request_limit"]),
        ("queue_bytes", "bytes of requests and of answers until they are read", queue["bytes"]),
        ("queue_byte_limit", "maximum of queue_bytes", queue["byte_limit"]),
    ):
        yield gauge_family(name, text, "", [((), value)])
    states = [worker["state"] for worker in status["workers"]]
    counts = [(state, states.count(state)) for state in _STATES]
    yield gauge_family("workers", "workers by state", "state", counts)
    models = status["models"]
    yield from _rollout_metrics(models)
    ready = [(model["name"], model["is_ready"]) for model in models]
    yield gauge_family("model_ready", "1 if a worker can answer", "model", ready)


def _rollout_metrics(models: Iterable[dict[str, Any]]) -> Iterator[Metric]:
    """Yield the last rollout of each model: its share, and its versions' answers."""
    last = [(model["name"], each) for model in models if (each := model["rollout"])]
    shares = [((n, each["version"]), each["share"]) for n, each in last if not each["outcome"]]
    yield gauge_family("rollout_share", "of a version on trial", "model version", shares)
    for name, text in (
        ("answers", "answers compared in the last rollout"),
        ("errors", "of these, answers that failed"),
        ("unknown", "of these, answers that were unknown"),
        ("seconds", "of these, from admission to answer, in total"),
    ):
        values = [((n, v), of[name]) for n, each in last for v, of in each["versions"].items()]
        yield gauge_family(f"rollout_{name}", text, "model version", values)
