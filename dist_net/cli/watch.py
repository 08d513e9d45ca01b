"""``dist-net watch RUN``: the page of a run, live or afterwards, or of several to compare."""

import argparse
import json
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from dist_net.cli.served_run import ANY_PORT, add_page_token_argument, settings_of
from dist_net.errors import FileWriteError, SettingError
from dist_net.ground.command_line import add_options, importing
from dist_net.ground.files import replacing
from dist_net.nets.run_directory import UNREADABLE, RunDirectory, newest_first
from dist_net.processes.terminal import plain_console
from dist_net.training.run.timeline_files import FollowedDirectory, read_lines

RUNS_LISTED = 200
LAST_BYTES = 2**14  # of metrics.jsonl, in which a test is looked for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "a run's directory, or a directory of runs (default: the newest run under runs/)"
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help=text)
    address = "where to serve the page (default: on this host, at a free port)"
    export = "write the page as one file, which needs no server, and exit"
    add_options(
        parser,
        ("--page", str, "HOST:PORT", address),
        ("--export", Path, "FILE.html", export),
    )
    parser.set_defaults(page=ANY_PORT)
    add_page_token_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    with importing("web", "watch"):
        from dist_net.cli.run_page import RunPage, exported_page, serving_page
    given, settings = arguments.run, settings_of(arguments, "page")
    assert settings is not None  # --page has a default
    if given is not None and not RunDirectory(given).holds_run and newest_first({given}, False):
        if arguments.export is not None:
            raise SettingError(f"--export: {given} holds several runs; pass one of them")
        runs = SeveralRuns(given)
        return _serve(serving_page(RunPage(runs.feed_of, runs.listed), settings))
    directory = RunDirectory.newest(False) if given is None else RunDirectory.open(given)
    feed = FollowedDirectory(directory)
    if arguments.export is not None:
        try:
            with replacing(arguments.export) as file:
                file.write_text(exported_page(feed), encoding="utf-8")
        except OSError as error:
            text = f"{arguments.export}: {error.strerror}; expected a directory with free space"
            raise FileWriteError(text) from error
        return 0
    return _serve(serving_page(RunPage(lambda _: feed), settings))


def _serve(serving: AbstractContextManager[str]) -> int:
    with serving as url, suppress(KeyboardInterrupt):
        plain_console().print(f"page: {url}")
        while True:
            time.sleep(3600)
    return 0


class SeveralRuns:
    """The runs in a directory, newest first, each followed from the first request of its page."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._feeds: dict[str, FollowedDirectory] = {}

    def feed_of(self, name: str) -> FollowedDirectory | None:
        for each in self._runs() if name not in self._feeds else ():
            if each.path.name == name:
                self._feeds[name] = FollowedDirectory(each)
        return self._feeds.get(name)

    def listed(self) -> list[dict[str, Any]]:
        """Return each run's name, settings, and last record of a test."""
        return [
            {"name": each.path.name, "settings": _settings(each), "test": _last_test(each)}
            for each in self._runs()
        ]

    def _runs(self) -> list[RunDirectory]:
        return newest_first({self._parent}, has_model=False)[:RUNS_LISTED]


def _settings(run: RunDirectory) -> dict[str, Any]:
    with suppress(*UNREADABLE):
        return dict(json.loads(run.options.read_bytes()))
    return {}


def _last_test(run: RunDirectory) -> dict[str, Any] | None:
    with suppress(OSError):
        _, _, lines = read_lines(run.metrics, max(0, run.metrics.stat().st_size - LAST_BYTES))
        return next((each for each in reversed(lines) if each.get("kind") == "test"), None)
    return None
