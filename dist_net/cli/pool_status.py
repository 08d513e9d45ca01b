"""Render an inference pool's report as a terminal view or as one line. No I/O."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def pool_view(report: dict[str, Any]) -> RenderableType:
    """Return a terminal view of the pool's queue, models and workers."""
    models = Table("model", "version", "requests/s", "p50 ms", "p99 ms", "refused", "failed")
    for model in report["models"]:
        times = model["latency_ms"] or {}
        models.add_row(
            model["name"],
            str(model["version"]) if model["is_ready"] else model["reason"] or "not ready",
            f"{model['requests_per_s']:,.1f}",
            *("" if times.get(key) is None else f"{times[key]:,.1f}" for key in ("p50", "p99")),
            f"{model['refused']:,}",
            f"{model['failed']:,}",
        )
    workers = Table("worker", "host", "process", "state", "requests", "last heard")
    for worker in report["workers"]:
        workers.add_row(
            worker["name"],
            worker["host"],
            str(worker["process_id"]),
            worker["state"],
            f"{worker['requests']:,}",
            f"{worker['heard_s_ago']:.1f} s ago",
        )
    return Group(Text(_pool(report)), models, workers)


def pool_line(report: dict[str, Any]) -> str:
    """Return one log line about the pool and its models."""
    models = (f"{each['name']} {each['requests_per_s']:,.1f}/s" for each in report["models"])
    return "; ".join([_pool(report), *models, f"{len(report['workers'])} workers"])


def _pool(report: dict[str, Any]) -> str:
    queue = report["queue"]
    return (
        f"{'ready' if report['is_ready'] else 'not ready'}"
        f"{', draining' if report['is_draining'] else ''}, up for {report['uptime_s']:,.0f} s, "
        f"{queue['requests']:,} of {queue['request_limit']:,} requests and {queue['bytes']:,} of "
        f"{queue['byte_limit']:,} bytes in the queue"
    )
