"""``dist-net parameter-server``: start a run whose workers join from other hosts."""

import argparse

from dist_net.cli.train import add_run_arguments, run_with_workers
from dist_net.errors import AddressError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until the run is done; return the exit code."""
    if not arguments.listen:
        raise AddressError(
            "no address to listen on; pass --listen tcp://HOST:PORT, this host's address"
        )
    return run_with_workers(arguments, workers=0)
