"""The options that say where a cluster's processes run, and how many workers there are."""

from __future__ import annotations

import argparse

from dist_net.errors import SettingError
from dist_net.processes.ray_connection import ANY, connected

AUTO = "auto"
MAX_WORKERS = 256  # more are a typing error, and would exhaust the host


def add_cluster_arguments(group: argparse._ActionsContainer) -> None:
    """Declares where processes run."""
    group.add_argument(
        "--cluster",
        choices=("local", "ray"),
        default="local",
        help="where processes run: on this host (default), or where Ray finds room",
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help=f"of the Ray cluster (default: {ANY}, the one that this host is a node of)",
    )


def worker_count(text: str) -> int | None:
    """The type of an argument: a whole number, or ``auto``, which is None."""
    if text == AUTO:
        return None
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def ray_address(arguments: argparse.Namespace, workers: int | None) -> str | None:
    """The address of the Ray cluster to use, once this process is connected to it; None: no Ray.

    Raises SettingError for options that ask for something else, MissingExtraError and
    RayClusterError.
    """
    if arguments.cluster == "local":
        if arguments.address is not None or workers is None:
            given = "--workers auto" if workers is None else f"--address {arguments.address}"
            raise SettingError(f"{given} without a cluster; expected --cluster ray too")
        return None
    address: str = arguments.address or ANY
    connected(address)
    return address
