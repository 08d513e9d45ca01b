"""Options of a cluster's commands: the place of its processes, and the server to connect to."""

import argparse
from pathlib import Path

from dist_net.errors import SettingError
from dist_net.ground.command_line import AUTO as AUTO
from dist_net.ground.command_line import count_or_auto
from dist_net.processes.token_arguments import add_token_arguments, token_given
from dist_net.wire.security import load_peer_keys
from dist_net.wire.token_exchange import join_by_token
from dist_net.wire.transport import ServerAccess

worker_count = count_or_auto(0)  # the type of ``--workers``; auto: as many as Ray has room for
MAX_WORKERS = 256  # a larger number is a typing error, and would exhaust the host


def add_cluster_arguments(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--cluster",
        choices=("local", "ray"),
        default="local",
        help="run processes on this host (default) or on the nodes of a Ray cluster",
    )
    text = f"of the Ray cluster (default: {AUTO}, the cluster of this host)"
    group.add_argument("--address", metavar="HOST:PORT", help=text)


def add_server_arguments(parser: argparse.ArgumentParser, server: str, printed_by: str) -> None:
    """Declare the server that a command connects to: by a token, or by its address and keys."""
    way_in = add_token_arguments(parser, printed_by)
    way_in.add_argument(
        "--connect", metavar="ADDRESS", help=f"the {server}'s address, in place of a token"
    )
    parser.add_argument("--keys", type=Path, metavar="DIR", help="own keys, for --connect")


def server_given(arguments: argparse.Namespace, kind: str) -> ServerAccess:
    """Return the server and the keys for it; raise TokenError, or as ``join_by_token`` does."""
    if arguments.connect is not None:
        keys = load_peer_keys(arguments.keys) if arguments.keys else None
        return ServerAccess(arguments.connect, keys)
    return join_by_token(token_given(arguments, kind))


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
    from dist_net.processes.ray_cluster import connected  # late: most commands need no Ray

    connected(address)
    return address
