"""``dist-net keys``: make the keys of a cluster."""

import argparse
import shlex
from pathlib import Path

from dist_net.cluster.command_line import command_line
from dist_net.wire.security import DEFAULT_WORKER, add_worker_keys, create_keys, has_server_keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser(
        "create",
        help="make the server's keys in a new directory, and a worker's",
        description="Make the keys of a new cluster, or, with --worker, add a worker's keys to it.",
    )
    create.add_argument("directory", metavar="DIR", type=Path, help="where the keys are kept")
    create.add_argument(
        "--worker",
        metavar="NAME",
        dest="workers",
        action="append",
        help=f"a worker to make keys for ({DEFAULT_WORKER!r} unless given); may be repeated",
    )
    # Every command takes this one; of an action's parser it would be unknown.
    create.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the keys, and say what to copy where; raises `KeyFileError`."""
    directory: Path = arguments.directory
    if not (arguments.workers and has_server_keys(directory)):
        create_keys(directory)
    workers = arguments.workers or [DEFAULT_WORKER]
    bundles = [add_worker_keys(directory, worker) for worker in workers]
    serve = ("parameter-server", "RECIPE", "--listen", "tcp://HOST:PORT", "--keys", directory)
    print(f"Keys are in {directory}; it stays on the server's host. There:")
    print(f"    {command_line(*serve)}")
    print("A worker needs one directory of it. Copy it to the worker's host, and use it there:")
    for bundle in bundles:
        print(f"    {shlex.join(('scp', '-rp', str(bundle), 'WORKER_HOST:'))}")
        print(f"    dist-net worker RECIPE --connect tcp://HOST:PORT --keys {bundle.name}")
    return 0
