"""``dist-net status ADDRESS``: show the workers and progress of a run or an inference pool."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dist_net.cli.run_status import run_line, run_view
from dist_net.command_line import add_options, command_line, number_above_zero
from dist_net.errors import (
    AccessRefusedError,
    InsecureAddressError,
    NoAnswerError,
    ProtocolError,
)
from dist_net.nets.observer import NO_RECORDS, Observer
from dist_net.printable import counted, printable_report
from dist_net.processes.own_directory import announced_keys
from dist_net.processes.terminal import plain_console
from dist_net.wire.security import CLIENT, OPERATOR, PeerKeys, load_peer_keys

OVER = ("finished", "stopping")

Shown = TypeVar("Shown")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address", metavar="ADDRESS", help="as for --connect of dist-net worker or reload"
    )
    add_options(
        parser,
        ("--keys", Path, "DIR", "a client's keys (default: those of a run or join of this user)"),
        ("--timeout", number_above_zero, "SECONDS", "to wait for a report", 5.0),
        ("--every", number_above_zero, "SECONDS", "interval of --follow", 1.0),
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="update until the run ends: redraw a terminal, print lines elsewhere",
    )


def run(arguments: argparse.Namespace) -> int:
    given = arguments.keys or announced_keys(arguments.address)
    keys = load_peer_keys(given, CLIENT) if given else None
    try:
        return _show(arguments, keys)
    except (AccessRefusedError, InsecureAddressError) as error:
        keys_of_run = Path("RUN_DIRECTORY", "keys", OPERATOR)
        command = command_line("status", arguments.address, "--keys", keys_of_run)
        error.add_note(f"as the user and on the host of the run: {command}")
        raise


def _show(arguments: argparse.Namespace, keys: PeerKeys | None) -> int:
    console = plain_console(stderr=False)
    if arguments.follow:
        is_live = console.is_terminal and not arguments.json
        say = (console if is_live else plain_console()).print
        reports = followed(arguments.address, keys, arguments.timeout, arguments.every, say)
    else:
        with Observer(arguments.address, keys, arguments.timeout) as observer:
            reports = iter([observer.status(0 if arguments.json else NO_RECORDS)])
    if arguments.json:
        for report in reports:
            print(json.dumps(report), flush=True)
    elif not arguments.follow:
        console.print(view(next(reports)))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for report in reports:
                live.update(view(report), refresh=True)
    else:
        for report in reports:
            print(line(report), flush=True)
    return 0


def followed(
    address: str,
    keys: PeerKeys | None,
    timeout_s: float,
    every_s: float,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Yield a report every ``every_s`` until the run ends, each with the new metric records.

    If the server does not reply, notify the user through ``say`` and retry once over a new
    connection: the server may have restarted. Raise ``NoAnswerError``.
    """
    next_record, was_silent = NO_RECORDS, False
    while True:
        try:
            with Observer(address, keys, timeout_s) as observer:
                while True:
                    report = observer.status(next_record)
                    was_silent = False
                    next_record = report.get("next_record", NO_RECORDS)
                    yield report
                    if report.get("state") in OVER:
                        return
                    time.sleep(every_s)
        except NoAnswerError as error:
            if was_silent:
                raise
            was_silent = True
            say(f"{error}: retrying once")


def view(report: dict[str, Any]) -> RenderableType:
    return _shown(report, run_view, pool_view)


def line(report: dict[str, Any]) -> str:
    return _shown(report, run_line, pool_line)


def _shown(
    report: dict[str, Any],
    of_run: Callable[[dict[str, Any]], Shown],
    of_pool: Callable[[dict[str, Any]], Shown],
) -> Shown:
    """Return a report in this form; raise ``ProtocolError`` for a malformed report."""
    try:
        return (of_run if "recipe" in report else of_pool)(printable_report(report))
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ProtocolError(
            f"cannot show the server's report ({error!r}); expected a parameter server or a "
            f"gateway of this release of dist-net"
        ) from error


def pool_view(report: dict[str, Any]) -> RenderableType:
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
    models = (f"{each['name']} {each['requests_per_s']:,.1f}/s" for each in report["models"])
    return "; ".join([_pool(report), *models, counted(len(report["workers"]), "worker")])


def _pool(report: dict[str, Any]) -> str:
    queue = report["queue"]
    return (
        f"{'ready' if report['is_ready'] else 'not ready'}"
        f"{', draining' if report['is_draining'] else ''}, up for {report['uptime_s']:,.0f} s, "
        f"{queue['requests']:,} of {queue['request_limit']:,} requests and {queue['bytes']:,} of "
        f"{queue['byte_limit']:,} bytes in the queue"
    )
