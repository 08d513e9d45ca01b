"""What a command serves about its run over HTTP: Prometheus metrics."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dist_net.errors import InsecureAddressError, SettingError
from dist_net.ground.command_line import add_options, importing
from dist_net.serving.http.settings import HttpSettings, TokenFile
from dist_net.training.run.training_progress import Publish


def add_metrics_arguments(parser: argparse.ArgumentParser) -> None:
    token = "the operator's token that Prometheus must send; required beyond this host"
    add_options(
        parser,
        ("--metrics", str, "HOST:PORT", "serve Prometheus metrics at HOST:PORT/metrics"),
        ("--metrics-token-file", Path, "FILE", token),
    )


@contextmanager
def served_metrics(arguments: argparse.Namespace, console: Console) -> Iterator[Publish | None]:
    """Serve metrics during the context, if requested; yield the function that publishes a report.

    Raise ``BadInputError`` for an invalid address or token, and ``MissingExtraError``.
    """
    address, file = arguments.metrics, arguments.metrics_token_file
    if address is None:
        if file is not None:
            raise SettingError(f"--metrics-token-file={file}: expected --metrics HOST:PORT too")
        yield None
        return
    try:
        settings = HttpSettings(address=address, tokens=TokenFile(file) if file else None)
    except InsecureAddressError as error:
        raise InsecureAddressError(
            f"metrics on {address} are readable from other hosts; expected a token "
            f"(--metrics-token-file), or 127.0.0.1"
        ) from error
    with importing("web", "--metrics"):
        from dist_net.cli.run_http import RunHttpServer
        from dist_net.cli.run_metrics import PublishedReport
    published = PublishedReport()
    with RunHttpServer([published.route], settings, frozenset()) as server:
        console.print(f"metrics: {server.url}/metrics")
        yield published.publish
