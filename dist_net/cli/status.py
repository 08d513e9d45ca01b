"""``dist-net status ADDRESS``: show the workers and progress of a run or an inference pool."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from dist_net.cli.parser import add_json_argument, print_json
from dist_net.errors import AccessRefusedError, InsecureAddressError, NoAnswerError, ProtocolError
from dist_net.ground.command_line import add_options, command_line, number_above_zero
from dist_net.ground.printable import counted, printable_report
from dist_net.nets.observer import NO_RECORDS, Following, Observer
from dist_net.nets.sources.named_source import live_server
from dist_net.processes.own_directory import announced_keys
from dist_net.processes.terminal import plain_console
from dist_net.serving.client.client import Client
from dist_net.serving.http.settings import TokenFile
from dist_net.training.run.training_progress import WARNINGS, exchange_facts
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.metrics import STALENESS_BUCKETS
from dist_net.wire.security import CLIENT, OPERATOR, load_peer_keys
from dist_net.wire.transport import ServerAccess

OVER = ("finished", "stopping")
KEYS = "a client's keys (default: those of a run or join of this user)"
KEYS_OF_CLIENT = "--keys", Path, "DIR", KEYS

Shown = TypeVar("Shown")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "as for --connect of dist-net worker or reload, or a token as for dist-net join"
    parser.add_argument("address", metavar="ADDRESS", help=text)
    add_options(
        parser,
        KEYS_OF_CLIENT,
        ("--timeout", number_above_zero, "SECONDS", "to wait for a report", 5.0),
        ("--every", number_above_zero, "SECONDS", "interval of --follow", 1.0),
    )
    add_pool_arguments(parser)
    add_json_argument(parser, "each report as one")
    text = "update until the run ends: redraw a terminal, print lines elsewhere"
    parser.add_argument("--follow", action="store_true", help=text)


def add_pool_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser,
        ("--token-file", Path, "FILE", "a pool's tokens, of which an operator's is sent"),
        ("--certificates", Path, "FILE", "PEM, the authorities of a pool with TLS"),
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.address.startswith(("http:", "https:")):
        return _show(arguments, None)
    with server_at(arguments.address, arguments.keys, CLIENT, "status") as server:
        return _show(arguments, server)


@contextmanager
def server_at(place: str, keys: Path | None, role: str, *words: str) -> Iterator[ServerAccess]:
    """Yield the access to the server at an address, or of a token, for a command with these words.

    Without ``keys``, use those of a process of this user. Add the remedy to a refusal.
    """
    given = keys or announced_keys(place)
    server = live_server(place, load_peer_keys(given, role) if given else None, role)
    try:
        yield server
    except (AccessRefusedError, InsecureAddressError) as error:
        keys_of_run = Path("RUN_DIRECTORY", "keys", OPERATOR)
        command = command_line(*words, server.address, "--keys", keys_of_run)
        error.add_note(f"as the user and on the host of the run: {command}")
        raise


def _show(arguments: argparse.Namespace, server: ServerAccess | None) -> int:
    console = plain_console(stderr=False)
    is_live = arguments.follow and console.is_terminal and not arguments.json
    if server is None:
        reports = pool_reports(arguments)
    elif arguments.follow:
        run = Following(server, notify=(console if is_live else plain_console()).print)
        reports = followed(run, arguments.timeout, arguments.every)
    else:
        with Observer(*server, arguments.timeout) as observer:
            reports = iter([observer.status(0 if arguments.json else NO_RECORDS)])
    if arguments.json:
        for report in reports:
            print_json(report)
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


def pool_client(arguments: argparse.Namespace, address: str, timeout_s: float) -> Client:
    """Return a client of the pool at ``address``. Raise AddressError and KeyFileError."""
    token = TokenFile(arguments.token_file).best_token() if arguments.token_file else None
    return Client(address, token, timeout_s, arguments.certificates)


def pool_reports(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with pool_client(arguments, arguments.address, arguments.timeout) as client:
        yield client.status()
        while arguments.follow:
            time.sleep(arguments.every)
            yield client.status()


def followed(
    run: Following,
    timeout_s: float,
    every_s: float,
    next_record: int = NO_RECORDS,
    retries: float = 1,
) -> Iterator[dict[str, Any]]:
    """Yield a report every ``every_s`` until the run ends, each with the new metric records.

    If the server does not reply, notify of that and retry, ``retries`` times: the server may have
    restarted, or a standby continues its run. Raise ``NoAnswerError``.
    """
    failures = 0
    while True:
        try:
            with run.observed(timeout_s, next_record) as (_, report):
                failures = 0
        except NoAnswerError as error:
            failures += 1
            if failures > retries:
                raise
            if failures == 1:
                run.notify(f"{error}: retrying")
            continue
        next_record = report.get("next_record", NO_RECORDS)
        yield report
        if report.get("state") in OVER:
            return
        time.sleep(every_s)


def view(report: dict[str, Any]) -> RenderableType:
    return shown(report, run_view, pool_view)


def line(report: dict[str, Any]) -> str:
    return shown(report, run_line, pool_line)


def shown(
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


Report = dict[str, Any]
NumericColumn = tuple[str, Callable[[Report], str]]

NAMES_SHOWN = 8
BAR_CELLS = 30
EIGHTHS = " ▏▎▍▌▋▊▉"
WARNING, ERROR = "yellow", "red"


def run_view(report: Report) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in _facts(report):
        table.add_row(name, value)
    view: list[RenderableType] = [table, Text(), *_errors(report), _workers(report), *_slow(report)]
    if report["consistency"] == Consistency.ASYNC:
        # The histogram is last: a short terminal cuts off the end.
        view += [Text(), staleness_bars(report["staleness_histogram"])]
    return Group(*view)


def run_line(report: Report) -> str:
    share = report["samples"] / report["samples_total"]
    parts = [
        f"{report['recipe']} {report['state']} {share:.1%}",
        f"version {report['version']:,}",
        f"{report['samples_per_s']:,.0f} samples/s",
        exchange_facts(report),
        counted(report["worker_count"], "worker"),
        f"start {report['server_starts']}",
        f"journal {report['journal_lag_records']:,} records, {report['journal_lag_s']:.1f} s "
        f"behind",
        *(f"standby {each['host']} {_behind(each)}" for each in report["standbys"]),
    ]
    return "; ".join([*parts, *map(str, _errors(report)), *map(str, _slow(report))])


def _facts(report: Report) -> Iterator[tuple[str, RenderableType]]:
    done, total = report["samples"], report["samples_total"]
    yield report["recipe"], f"{report['state']}, {done:,} of {total:,} samples ({done / total:.1%})"
    yield "", Text(bar(done, total).ljust(BAR_CELLS, "·"))
    yield (
        "speed",
        f"{report['samples_per_s']:,.0f} samples/s since the beginning, version "
        f"{report['version']:,}",
    )
    yield "server", f"term {report['term_number']}, start {report['server_starts']}"
    yield (
        "workers",
        f"{report['worker_count']} now, {report['workers_joined']} joined, "
        f"{report['workers_lost']} lost, {report['workers_restarted']} restarted",
    )
    yield (
        "pushes",
        f"{report['pushes_applied']:,} applied, {report['pushes_rejected']:,} rejected, "
        f"{report['duplicates_dropped']:,} duplicates, {report['gradients_refused']:,} not finite",
    )
    received, sent = report["bytes_received_per_sample"], report["bytes_sent_per_sample"]
    if received or sent:
        yield "network", f"{received:,.0f} bytes received and {sent:,.0f} sent per sample"
    yield (
        "journal",
        f"{report['journal_lag_records']:,} records ({report['journal_lag_bytes']:,} bytes) not "
        f"on disk for {report['journal_lag_s']:.1f} s; failed {_times(report['journal_failures'])}",
    )
    yield (
        "checkpoint",
        f"{report['versions_since_checkpoint']:,} versions ago; failed "
        f"{_times(report['checkpoints_failed'])}; {report['samples_done_again']:,} samples "
        f"repeated",
    )
    yield report["consistency"], exchange_facts(report)
    for standby in report["standbys"]:
        where = f"at {standby['address']}" if standby["address"] else "copies only"
        yield "standby", Text(f"{standby['host']} {where}, {_behind(standby)}")
    for name, what in (("host", "host"), ("blas", "BLAS")):
        yield from _in_groups(what, name, report["workers"])


def _behind(standby: Report) -> str:
    if not standby["has_copy"]:
        return f"no copy yet: {standby['arrived_share']:.0%} has arrived"
    return (
        f"{standby['versions_behind']:,} versions, {standby['samples_behind']:,} samples, "
        f"{standby['seconds_behind']:.1f} s behind; heard {standby['heard_s_ago']:.1f} s ago"
    )


def _in_groups(what: str, name: str, workers: list[Report]) -> Iterator[tuple[str, Text]]:
    """Yield a row per value of ``name``; several values have the names of their workers."""
    groups: dict[str, list[str]] = {}
    for each in workers:
        groups.setdefault(each[name] or "unknown", []).append(each["name"])
    for value, names in groups.items():
        more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
        whose = f": {', '.join(names[:NAMES_SHOWN])}{more}" if len(groups) > 1 else ""
        yield what, Text(value + whose)
        what = ""


def _times(count: int) -> str:
    return "never" if count == 0 else "once" if count == 1 else f"{count:,} times"


def staleness_bars(histogram: list[int]) -> Table:
    """Return one bar per staleness bucket: 0, 1, 2 to 3, 4 to 7, and so on."""
    bars = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    bars.add_column("staleness", justify="right")
    bars.add_column(no_wrap=True, width=BAR_CELLS)
    bars.add_column("pushes", justify="right")
    most = max(histogram, default=0)
    for digits, count in enumerate(histogram):
        bars.add_row(_bucket(digits), bar(count, most), f"{count:,}")
    return bars


def _bucket(digits: int) -> str:
    """Return the range of the numbers with this many binary digits."""
    low, high = 2**digits // 2, 2**digits - 1
    if digits == STALENESS_BUCKETS - 1:
        return f"{low:,} and more"
    return f"{low:,}" if low >= high else f"{low:,} to {high:,}"


def bar(count: int, most: int) -> str:
    """Return a bar: ``BAR_CELLS`` cells for ``most``, at least 1/8 cell for any count above 0."""
    eighths = round(8 * BAR_CELLS * count / most) if most else 0
    eighths = max(eighths, count > 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _errors(report: Report) -> Iterator[Text]:
    for name in WARNINGS:
        if report.get(name) is not None:
            yield _paragraph(report[name], ERROR if name.endswith("_error") else WARNING)


def _workers(report: Report) -> Table:
    workers = report["workers"]
    columns: list[NumericColumn] = [
        ("cores", lambda each: f"{each['cores'] or '?'}"),
        ("threads", lambda each: f"{each['threads'] or '?'}"),
        ("samples/s", lambda each: f"{each['samples_per_s']:,.0f}"),
        ("staleness", lambda each: f"{each['staleness_mean']:.2f}"),
        ("round trip", lambda each: f"{each['round_trip_s'] * 1e3:.1f} ms"),
        ("heard", lambda each: f"{each['heard_s_ago']:.1f} s"),
        ("pushed", lambda each: f"{each['progress_s_ago']:.1f} s"),
    ]
    if any(each["core_quota"] for each in workers):
        columns.insert(1, ("quota", lambda each: f"{each['core_quota'] or 'none'}"))
    if any(each["starts"] > 1 for each in workers):
        columns.append(("starts", lambda each: f"{each['starts']:,}"))
    table = Table(Column("worker", overflow="fold"), box=None, padding=(0, 1, 0, 0))
    for title, _ in columns:
        table.add_column(title, justify="right")
    for each in workers:
        cells = [each["name"], *(cell(each) for _, cell in columns)]
        table.add_row(*map(Text, cells), style=WARNING if each["is_slow"] else "")
    if (left_out := report["worker_count"] - len(workers)) > 0:
        table.add_row(Text(f"and {left_out:,} more"))
    return table


def _slow(report: Report) -> Iterator[Text]:
    for each in report["workers"]:
        if each["is_slow"]:
            share = each["speed_share"]
            how = "" if share is None else f" ({share:.0%} of the others' median speed)"
            why = "; ".join(each["slow_because"]) or "cause unknown"
            yield _paragraph(f"{each['name']} is slow{how}: {why}", WARNING)


def _paragraph(text: str, style: str) -> Text:
    """Return text that rich wraps even on a console that leaves wrapping to the terminal."""
    return Text(text, style, no_wrap=False, overflow="fold")
