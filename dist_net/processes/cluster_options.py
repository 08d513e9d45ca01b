"""Options of a cluster's commands: the place of its processes, and the server to connect to."""

from __future__ import annotations

import argparse
import signal
import socket
from pathlib import Path
from typing import Any

from dist_net.errors import MissingExtraError, RayClusterError, SettingError
from dist_net.processes.hidden_tokens import add_token_arguments, token_given
from dist_net.wire.reaching import REACH_WITHIN_S, ServerAccess, join_by_token
from dist_net.wire.security import load_peer_keys

AUTO = "auto"
MAX_WORKERS = 256  # a larger number is a typing error, and would exhaust the host
ANSWERS_WITHIN_S = 5.0

# The first bytes of an HTTP/2 connection in each direction (RFC 9113, 3.4); gRPC uses HTTP/2.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_TLS_ALERT = b"\x15"  # of a Ray cluster with TLS


def add_cluster_arguments(group: argparse._ActionsContainer) -> None:
    """Add ``--cluster`` and ``--address``."""
    group.add_argument(
        "--cluster",
        choices=("local", "ray"),
        default="local",
        help="run processes on this host (default) or on the nodes of a Ray cluster",
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help=f"of the Ray cluster (default: {AUTO}, the cluster of this host)",
    )


def worker_count(text: str) -> int | None:
    """Argument type: a number from 0, or ``auto``, which is None."""
    if text == AUTO:
        return None
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def add_server_arguments(parser: argparse.ArgumentParser, server: str, printed_by: str) -> None:
    """Declare the server that a command connects to: by a token, or by its address and keys."""
    way_in = add_token_arguments(parser, printed_by)
    way_in.add_argument(
        "--connect", metavar="ADDRESS", help=f"the {server}'s address, in place of a token"
    )
    parser.add_argument("--keys", type=Path, metavar="DIR", help="own keys, for --connect")


def server_given(
    arguments: argparse.Namespace, kind: str, timeout_s: float = REACH_WITHIN_S
) -> ServerAccess:
    """Return the server of a command line, and the keys for it.

    Raise TokenError for a missing or damaged token, and the errors of ``join_by_token``.
    """
    if arguments.connect is not None:
        keys = load_peer_keys(arguments.keys) if arguments.keys else None
        return ServerAccess(arguments.connect, keys)
    return join_by_token(token_given(arguments, kind), timeout_s=timeout_s)


def ray_address(arguments: argparse.Namespace, workers: int | None) -> str | None:
    """Connect to the Ray cluster and return its address; None: processes run on this host.

    Raise SettingError for options that contradict each other, MissingExtraError, RayClusterError.
    """
    if arguments.cluster == "local":
        if arguments.address is not None or workers is None:
            given = "--workers auto" if workers is None else f"--address {arguments.address}"
            raise SettingError(f"{given} without a cluster; expected --cluster ray too")
        return None
    address: str = arguments.address or AUTO
    connected(address)
    return address


def connected(address: str) -> Any:
    """Connect to the Ray cluster at ``address`` and return the module ``ray``.

    ``address``: HOST:PORT, or ``auto`` for the cluster of this host. Raise MissingExtraError, and
    RayClusterError if there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "--cluster ray needs Ray, which is not installed; install it on each node with: "
            "pip install -e '.[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    if address != AUTO:
        _require_ray(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        raise RayClusterError(
            f"no Ray cluster at {address!r}, of which this host is a node "
            f"({' '.join(str(error).split())}); expected the HOST:PORT of one, to which 'ray start "
            f"--address HOST:PORT' has joined this host"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray installs another
    return ray


def _require_ray(address: str) -> None:
    """Raise RayClusterError if no gRPC server listens: Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if "://" in address or not (host and port.isdecimal()):
            raise OSError("it is not HOST:PORT")
        place = host.strip("[]"), int(port)
        with socket.create_connection(place, ANSWERS_WITHIN_S) as connection:
            connection.sendall(_PREFACE + _SETTINGS)
            answer = connection.recv(len(_SETTINGS))
        if answer[3:4] != _SETTINGS[3:4] and answer[:1] != _TLS_ALERT:
            raise OSError("the listening process is not Ray")
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RayClusterError(
            f"no Ray cluster at {address!r} ({reason}); expected the HOST:PORT that 'ray start "
            f"--head' prints, 6379 by default"
        ) from error
