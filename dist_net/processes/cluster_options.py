"""Command-line options for the place of a cluster's processes and the number of workers.

Shared by ``train``, ``serve`` and ``join``.
"""

from __future__ import annotations

import argparse

from dist_net.errors import SettingError
from dist_net.processes.ray_connection import ANY, connected

AUTO = "auto"
MAX_WORKERS = 256  # a larger number is a typing error, and would exhaust the host


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
        help=f"of the Ray cluster (default: {ANY}, the cluster of this host)",
    )


def worker_count(text: str) -> int | None:
    """Argument type: a number from 0, or ``auto``, which is None."""
    if text == AUTO:
        return None
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def ray_address(arguments: argparse.Namespace, workers: int | None) -> str | None:
    """Connect to the Ray cluster and return its address; None: processes run on this host.

    Raise SettingError for options that contradict each other, MissingExtraError, RayClusterError.
    """
    if arguments.cluster == "local":
        if arguments.address is not None or workers is None:
            given = "--workers auto" if workers is None else f"--address {arguments.address}"
            raise SettingError(f"{given} without a cluster; expected --cluster ray too")
        return None
    address: str = arguments.address or ANY
    connected(address)
    return address
