"""Render a training run's report as a terminal view or as one line. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from dist_net.printable import counted
from dist_net.training.run.training_progress import exchange_facts
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.metrics import STALENESS_BUCKETS

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
        # The histogram comes last: a short terminal cuts off the end.
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
    yield "server", f"incarnation {report['incarnation']}, start {report['server_starts']}"
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
    for name, what in (("host", "host"), ("blas", "BLAS")):
        yield from _in_groups(what, name, report["workers"])


def _in_groups(what: str, name: str, workers: list[Report]) -> Iterator[tuple[str, Text]]:
    """Yield a row per value of ``name``; if there are several, with the names of its workers."""
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
    for name, style in (
        ("checkpoint_error", ERROR),
        ("journal_error", ERROR),
        ("loss_warning", WARNING),
        ("worker_warning", WARNING),
        ("kernel_warning", WARNING),
    ):
        if report[name] is not None:
            yield _paragraph(report[name], style)


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
