"""``dist-net status ADDRESS``: who takes part in a run or an inference pool, and its progress."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_net.cluster.terminal import plain_console
from dist_net.models.observer import Observer
from dist_net.wire.security import CLIENT, load_peer_keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address", metavar="ADDRESS", help="as for dist-net worker or reload --connect"
    )
    parser.add_argument("--keys", type=Path, metavar="DIR", help="a client's keys")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="default: 5")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Asks once, shows the answer, and gives the exit code."""
    keys = load_peer_keys(arguments.keys, CLIENT) if arguments.keys else None
    with Observer(arguments.address, keys, arguments.timeout) as observer:
        report = observer.status()
    if arguments.json:
        print(json.dumps(report))
        return 0
    console = plain_console(stderr=False)
    if "recipe" in report:
        show_run(report, console)
    else:
        show_pool(report, console)
    return 0


def show_run(report: dict[str, Any], console: Console) -> None:
    console.print(
        f"{report['recipe']}: {report['state']}, {report['samples']:,} of "
        f"{report['samples_total']:,} samples, version {report['version']:,}, "
        f"{report['samples_per_s']:,.0f} samples/s, staleness {report['staleness_mean']:.2f} on "
        f"average and {report['staleness_max']} at most; {report['workers_joined']} workers "
        f"joined, {report['workers_lost']} lost; the server's start {report['server_starts']}, "
        f"incarnation {report['incarnation']}",
    )
    for error in (report["checkpoint_error"], report["journal_error"]):
        if error is not None:
            console.print(error, style="yellow")
    table = Table("worker", "pushes", "samples/s", "last heard", "last progress")
    for worker in report["workers"]:
        table.add_row(
            worker["name"],
            f"{worker['pushes']:,}",
            f"{worker['samples_per_s']:,.0f}",
            f"{worker['heard_s_ago']:.1f} s ago",
            f"{worker['progress_s_ago']:.1f} s ago",
        )
    console.print(table)


def show_pool(report: dict[str, Any], console: Console) -> None:
    queue = report["queue"]
    console.print(
        f"{'ready' if report['is_ready'] else 'not ready'}"
        f"{', draining' if report['is_draining'] else ''}, up for {report['uptime_s']:,.0f} s, "
        f"{queue['requests']:,} of {queue['request_limit']:,} requests and {queue['bytes']:,} of "
        f"{queue['byte_limit']:,} bytes in the queue",
    )
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
    console.print(models)
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
    console.print(workers)
