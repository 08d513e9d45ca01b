"""The options by which a command reaches a pool, and the client that they describe."""

import argparse
from pathlib import Path

from dist_net.ground.command_line import add_options
from dist_net.serving.client.client import Client
from dist_net.serving.http.settings import TokenFile


def add_pool_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(
        parser,
        ("--token-file", Path, "FILE", "a pool's tokens, of which an operator's is sent"),
        ("--certificates", Path, "FILE", "PEM, the authorities of a pool with TLS"),
    )


def pool_client(arguments: argparse.Namespace, address: str, timeout_s: float) -> Client:
    """Return a client of the pool at ``address``. Raise AddressError and KeyFileError."""
    token = TokenFile(arguments.token_file).best_token() if arguments.token_file else None
    return Client(address, token, timeout_s, arguments.certificates)
