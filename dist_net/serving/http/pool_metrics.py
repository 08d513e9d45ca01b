"""/metrics for Prometheus, read from the pool on each request.

Dashboards for Triton expect the names ``nv_inference_*``, in microseconds; ``dist_net_*`` are our
own, in seconds. Counters have no label for the version: a version may come and go between two
scrapes, and its counts would be lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.replies import Refusals
from dist_net.serving.pool.statistics import ENDS, ModelStatistics, total

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_US_PER_S = 1e6
_DURATIONS = {
    "nv_inference_request_duration_us": ("success", "answered requests, from admission to answer"),
    "nv_inference_queue_duration_us": ("queue", "answered requests, from admission to dispatch"),
    "nv_inference_compute_input_duration_us": ("compute_input", "preparing the inputs"),
    "nv_inference_compute_infer_duration_us": ("compute_infer", "computing the network"),
    "nv_inference_compute_output_duration_us": (
        "compute_output",
        "transport to the workers and back",
    ),
}
_PERCENTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}

Counted = list[tuple[str, ModelStatistics]]


def metrics_route(collector: Collector) -> Route:
    """Return the route ``/metrics``, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(collector)

    async def metrics(_: Request) -> Response:
        """Return the metrics for Prometheus."""
        return Response(generate_latest(registry), media_type=_CONTENT_TYPE)

    return Route("/metrics", metrics)


class PoolCollector(Collector):
    """The metrics of the pool, and the refusals of its HTTP server."""

    def __init__(self, gateway: Gateway, refusals: Refusals) -> None:
        self._gateway = gateway
        self._refusals = refusals

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        counted: Counted = [
            (name, total(self._gateway.statistics(name).values()))
            for name in self._gateway.models()
        ]
        yield from _triton_metrics(counted)
        yield from _request_metrics(counted)
        yield from _pool_metrics(self._gateway.status())
        refused = CounterMetricFamily(
            "dist_net_http_refused", "HTTP requests refused, by status code", labels=("code",)
        )
        for code, count in sorted(self._refusals.counts.items()):
            refused.add_metric((str(code),), count)
        yield refused
        unloads = CounterMetricFamily("dist_net_unloads", "unloads of a model", labels=("model",))
        for model, count in sorted(self._gateway.unloads.items()):
            unloads.add_metric((model,), count)
        yield unloads


def _triton_metrics(counted: Counted) -> Iterator[Metric]:
    # Untyped, because a counter's name must end in _total, and these do not.
    def family(name: str, text: str, value: Any) -> Metric:
        metric = UntypedMetricFamily(name, text, labels=("model",))
        for model, each in counted:
            metric.add_metric((model,), value(each))
        return metric

    yield family("nv_inference_request_success", "requests answered", lambda s: s.success.count)
    yield family("nv_inference_request_failure", "requests that failed", lambda s: s.fail.count)
    yield family("nv_inference_count", "rows answered", lambda s: s.inference_count)
    yield family("nv_inference_exec_count", "batches run", lambda s: s.execution_count)
    for name, (field, text) in _DURATIONS.items():

        def total_us(statistics: ModelStatistics, field: str = field) -> float:
            return float(getattr(statistics, field).seconds) * _US_PER_S

        yield family(name, f"microseconds in all: {text}", total_us)


def _request_metrics(counted: Counted) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "dist_net_requests", "requests by result", labels=("model", "end")
    )
    batches = CounterMetricFamily(
        "dist_net_batches", "batches by number of rows", labels=("model", "rows")
    )
    retries = CounterMetricFamily(
        "dist_net_retries", "requests moved from lost workers", labels=("model",)
    )
    for model, each in counted:
        retries.add_metric((model,), each.retried)
        for end in ENDS:
            requests.add_metric((model, end), getattr(each, end))
        for rows, timed in sorted(each.batches.items()):
            batches.add_metric((model, str(rows)), timed.count)
    yield requests
    yield retries
    yield batches


def _pool_metrics(status: dict[str, Any]) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(f"dist_net_{name}", text, value)

    queue = status["queue"]
    yield gauge("ready", "1 if every model is ready", status["is_ready"])
    yield gauge(
        "draining", "1 while the pool shuts down and admits no requests", status["is_draining"]
    )
    yield gauge("uptime_seconds", "seconds since the gateway started", status["uptime_s"])
    yield gauge("queue_requests", "queued requests", queue["requests"])
    yield gauge("queue_request_limit", "maximum number of queued requests", queue["request_limit"])
    yield gauge("queue_bytes", "bytes of unanswered requests", queue["bytes"])
    yield gauge("queue_byte_limit", "maximum bytes of unanswered requests", queue["byte_limit"])
    workers = GaugeMetricFamily("dist_net_workers", "workers by state", labels=("state",))
    states = [worker["state"] for worker in status["workers"]]
    for state in ("idle", "busy", "loading", "silent"):
        workers.add_metric((state,), states.count(state))
    yield workers
    yield from _model_metrics(status["models"])


def _model_metrics(models: list[dict[str, Any]]) -> Iterator[Metric]:
    ready = GaugeMetricFamily("dist_net_model_ready", "1 if a worker can answer", labels=("model",))
    latency = GaugeMetricFamily(
        "dist_net_latency_seconds", "latency of the last ten seconds", labels=("model", "quantile")
    )
    for model in models:
        ready.add_metric((model["name"],), model["is_ready"])
        for percentile, quantile in _PERCENTILES.items():
            found_ms = (model["latency_ms"] or {}).get(percentile)
            if found_ms is not None:
                latency.add_metric((model["name"], quantile), found_ms / 1e3)
    yield ready
    yield latency
