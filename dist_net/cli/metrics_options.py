"""The ``--metrics`` options of the commands that start a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_net.command_line import add_options, importing
from dist_net.errors import InsecureAddressError, SettingError
from dist_net.serving.http.settings import HttpSettings, TokenFile

Publish = Callable[[dict[str, Any]], None]


def add_metrics_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--metrics`` and ``--metrics-token-file``."""
    token = "the operator's token that Prometheus must send; required beyond this host"
    add_options(
        parser,
        ("--metrics", str, "HOST:PORT", "serve Prometheus metrics at HOST:PORT/metrics"),
        ("--metrics-token-file", Path, "FILE", token),
    )


@contextmanager
def served_metrics(arguments: argparse.Namespace, console: Console) -> Iterator[Publish | None]:
    """Serve metrics during the context, if requested; yield the function that publishes a report.

    Raise ``BadInputError`` for an invalid address or token, ``AddressError`` and
    ``MissingExtraError``.
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
        from dist_net.cli.run_metrics import RunMetricsServer
    with RunMetricsServer(settings) as server:
        console.print(f"metrics: {server.url}")
        yield server.publish
