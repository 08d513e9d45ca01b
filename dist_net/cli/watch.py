"""``dist-net watch RUN``: the page of a run, live or afterwards, or as one file."""

import argparse
import time
from contextlib import suppress
from pathlib import Path

from dist_net.cli.served_run import ANY_PORT, add_page_token_argument, settings_of
from dist_net.errors import FileWriteError
from dist_net.ground.command_line import add_options, importing
from dist_net.ground.files import replacing
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.terminal import plain_console
from dist_net.training.run.timeline_files import FollowedDirectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "a run's directory (default: the newest under runs/)"
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
    assert settings is not None  # --page has a default
    with serving_page(RunPage(lambda _: feed), settings) as url, suppress(KeyboardInterrupt):
        plain_console().print(f"page: {url}")
        while True:
            time.sleep(3600)
    return 0
