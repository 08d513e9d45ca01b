"""Serve a command's run over HTTP: Prometheus metrics, and a live page."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dist_net.errors import InsecureAddressError, SettingError
from dist_net.ground.command_line import add_options, importing
from dist_net.nets.run_directory import RunDirectory
from dist_net.serving.http.settings import HttpSettings, TokenFile
from dist_net.training.run.timeline_files import FollowedDirectory
from dist_net.training.run.training_progress import Publish

ANY_PORT = "127.0.0.1:0"
FollowDirectory = Callable[[RunDirectory], None]


def add_served_arguments(parser: argparse.ArgumentParser) -> None:
    token = "the operator's token that Prometheus must send; required beyond this host"
    add_options(
        parser,
        ("--metrics", str, "HOST:PORT", "serve Prometheus metrics at HOST:PORT/metrics"),
        ("--metrics-token-file", Path, "FILE", token),
    )
    text = "serve a live page of the run (default: on this host, at a free port)"
    parser.add_argument("--page", nargs="?", const=ANY_PORT, metavar="HOST:PORT", help=text)
    add_page_token_argument(parser)


def add_page_token_argument(parser: argparse.ArgumentParser) -> None:
    token = "the tokens with which the page may be read; required beyond this host"
    add_options(parser, ("--page-token-file", Path, "FILE", token))


def settings_of(arguments: argparse.Namespace, option: str) -> HttpSettings | None:
    """Return where to serve metrics or the page, None if that is not requested.

    Raise ``BadInputError`` for an invalid address or token.
    """
    address, file = (vars(arguments)[f"{option}{each}"] for each in ("", "_token_file"))
    if address is None:
        if file is not None:
            text = f"--{option}-token-file={file}: expected --{option} HOST:PORT too"
            raise SettingError(text)
        return None
    try:
        tokens = TokenFile(file) if file else None
        return HttpSettings(address=address, tokens=tokens, shutdown_timeout_s=1.0)
    except InsecureAddressError as error:
        raise InsecureAddressError(
            f"the {option} on {address} can be read from other hosts; expected a token "
            f"(--{option}-token-file), or 127.0.0.1"
        ) from error


@contextmanager
def served_metrics(arguments: argparse.Namespace, console: Console) -> Iterator[Publish | None]:
    """Serve metrics during the context, if requested; yield the function that publishes a report.

    Raise as ``settings_of``, and ``MissingExtraError``.
    """
    if (settings := settings_of(arguments, "metrics")) is None:
        yield None
        return
    with importing("web", "--metrics"):
        from dist_net.cli.run_http import RunHttpServer
        from dist_net.cli.run_metrics import PublishedReport
    published = PublishedReport()
    with RunHttpServer([published.route], settings, frozenset()) as server:
        console.print(f"metrics: {server.url}/metrics")
        yield published.publish


@contextmanager
def served_page(arguments: argparse.Namespace, console: Console) -> Iterator[FollowDirectory]:
    """Serve the page of a run during the context, if requested; yield a function of its directory.

    The function may be called again, when another directory continues the run. Raise as
    ``served_metrics``.
    """
    if (settings := settings_of(arguments, "page")) is None:
        yield lambda _: None
        return
    with importing("web", "--page"):
        from dist_net.cli.run_page import RunPage, serving_page
    followed: list[FollowedDirectory] = []
    with serving_page(RunPage(lambda _: followed[-1] if followed else None), settings) as url:
        console.print(f"page: {url}")
        yield lambda directory: followed.append(FollowedDirectory(directory))
