"""``dist-net watch RUN``: the page of a run, live or afterwards, or of several to compare."""

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_net.cli.served_run import ANY_PORT, add_page_token_argument, settings_of
from dist_net.cli.status import KEYS_OF_CLIENT, followed, server_at, shown
from dist_net.errors import FileWriteError, SettingError
from dist_net.ground.command_line import add_options, importing
from dist_net.ground.files import replacing
from dist_net.nets.observer import Following
from dist_net.nets.run_directory import UNREADABLE, RunDirectory, newest_first
from dist_net.nets.sources.named_source import is_live
from dist_net.processes.own_directory import temporary_directory
from dist_net.processes.terminal import plain_console
from dist_net.training.run.metrics_files import MetricsFiles
from dist_net.training.run.run_picture import RunPicture
from dist_net.training.run.timeline_files import (
    WRITE_EVERY_S,
    FollowedDirectory,
    TimelineFile,
    read_lines,
)
from dist_net.training.run.training_progress import RunNotices
from dist_net.wire.security import CLIENT

RUNS_LISTED = 200
RUNS_FOLLOWED = 32
"""The timelines that are kept in memory; a page of another run reads its files again."""

LAST_BYTES = 2**14  # of metrics.jsonl, in which a test is looked for
ANSWER_WITHIN_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = (
        "a run's directory, a directory of runs, or for a run of other hosts its server's address "
        "or a token (default: the newest run under runs/)"
    )
    parser.add_argument("run", metavar="RUN", nargs="?", help=text)
    address = "where to serve the page (default: on this host, at a free port)"
    export = "write the page as one file, which needs no server, and exit"
    add_options(
        parser,
        ("--page", str, "HOST:PORT", address),
        ("--export", Path, "FILE.html", export),
        KEYS_OF_CLIENT,
    )
    parser.set_defaults(page=ANY_PORT)
    add_page_token_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    with importing("web", "watch"):
        from dist_net.cli.run_page import RunPage, serving_page
    settings = settings_of(arguments, "page")
    assert settings is not None  # --page has a default

    def serve(page: RunPage, records: Iterable[object] = ()) -> int:
        with serving_page(page, settings) as url, suppress(KeyboardInterrupt):
            plain_console().print(f"page: {url}")
            for _ in records:
                pass
            while True:
                time.sleep(3600)
        return 0

    if arguments.run is not None and is_live(arguments.run):
        if arguments.export is not None:
            raise SettingError(f"--export: {arguments.run[:30]} is no directory of a run")
        place = arguments.run, arguments.keys
        with server_at(*place, CLIENT, "watch") as server, temporary_directory() as copy:
            with (elsewhere := Following(server)).observed(ANSWER_WITHIN_S):
                directory = RunDirectory(copy)  # it answers
            feed = FollowedDirectory(directory, server.address)
            return serve(RunPage(lambda _: feed), recorded(elsewhere, directory))
    given = None if arguments.run is None else Path(arguments.run)
    if given is not None and not RunDirectory(given).holds_run and newest_first({given}, False):
        if arguments.export is not None:
            raise SettingError(f"--export: {given} holds several runs; pass one of them")
        runs = SeveralRuns(given)
        return serve(RunPage(runs.feed_of, runs.listed))
    feed = FollowedDirectory(
        RunDirectory.newest(False) if given is None else RunDirectory.open(given)
    )
    if arguments.export is None:
        return serve(RunPage(lambda _: feed))
    try:
        with replacing(arguments.export) as file:
            file.write_text(RunPicture(feed.since("")[1]).html, encoding="utf-8")
    except OSError as error:
        text = f"{arguments.export}: {error.strerror}; expected a directory with free space"
        raise FileWriteError(text) from error
    return 0


def recorded(run: Following, directory: RunDirectory) -> Iterator[None]:
    """Record a run of other hosts in a directory's timeline and metrics, until it ends."""
    metrics, timeline = MetricsFiles(directory), TimelineFile(directory)
    run.notify = timeline.notified
    notices = RunNotices(timeline.notified, lambda _: None)

    def record(report: dict[str, Any]) -> None:
        timeline.reported(report)
        metrics.append({"kind": "train", **each} for each in report["records"])
        notices.notify_changes(report | {"metrics_error": metrics.error})

    for report in followed(run, ANSWER_WITHIN_S, WRITE_EVERY_S, 0, math.inf):
        yield shown(report, record, record)


class SeveralRuns:
    """The runs in a directory, newest first. The runs whose pages are open are followed."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._feeds: dict[str, FollowedDirectory] = {}

    def feed_of(self, name: str) -> FollowedDirectory | None:
        with suppress(OSError):  # a name that is too long for a file
            run = RunDirectory(self._parent / name)
            if run.path.name == name != ".." and run.holds_run:
                known = self._feeds.pop(name) if name in self._feeds else None
                self._feeds[name] = known or FollowedDirectory(run)
                if len(self._feeds) > RUNS_FOLLOWED:
                    del self._feeds[next(iter(self._feeds))]
                return self._feeds[name]
        return None

    def listed(self) -> list[dict[str, Any]]:
        """Return each run's name, settings, and last record of a test."""
        return [
            {"name": each.path.name, "settings": _settings(each), "test": _last_test(each)}
            for each in newest_first({self._parent}, has_model=False)[:RUNS_LISTED]
        ]


def _settings(run: RunDirectory) -> dict[str, Any]:
    with suppress(*UNREADABLE):
        return dict(json.loads(run.options.read_bytes()))
    return {}


def _last_test(run: RunDirectory) -> dict[str, Any] | None:
    with suppress(OSError):
        _, _, lines = read_lines(run.metrics, max(0, run.metrics.stat().st_size - LAST_BYTES))
        return next((each for each in reversed(lines) if each.get("kind") == "test"), None)
    return None
