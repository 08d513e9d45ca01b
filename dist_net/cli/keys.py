"""``dist-net keys``: create and revoke the keys of a cluster."""

import argparse
import shlex
import sys
from pathlib import Path

from dist_net.errors import KeyFileError
from dist_net.ground.command_line import add_options, command_line
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.cluster_options import pasted, until
from dist_net.wire.invitation import TOKEN_LIFETIME_S, invite_again, revoke
from dist_net.wire.security import ROLES, add_keys, create_keys, has_server_keys

MAY = {
    "worker": "may train, and serve requests of a pool",
    "client": "may send requests to a pool, and watch a run",
    "operator": "may also end a run, and reload and unload models",
}
USE = {
    "worker": "dist-net worker RECIPE --connect tcp://HOST:PORT",
    "client": "dist-net status tcp://HOST:PORT",
    "operator": "dist-net reload MODEL --connect tcp://HOST:PORT",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser(
        "create",
        help="create a directory with keys for the server and for one peer in each role",
        description="Create the keys of a new cluster, or add keys to it with --worker, --client "
        "or --operator. " + "; ".join(f"A peer of role {role} {MAY[role]}" for role in ROLES) + ".",
    )
    create.add_argument("directory", metavar="DIR", type=Path, help="directory of the keys")
    for role in ROLES:
        create.add_argument(
            f"--{role}",
            metavar="NAME",
            action="append",
            default=[],
            help=f"create {role} keys of this name; may be repeated (default: one of each role)",
        )
    taken_back = actions.add_parser(
        "revoke",
        help="revoke a token or a key, effective immediately",
        description="Revoke a key, or a token and every key that it enrolled. A running server "
        "closes their connections within a second or two.",
    )
    token = actions.add_parser(
        "token",
        help="create another token for a server that listens beyond this host",
        description="Create another token and print the command to run on the host that joins.",
    )
    for action in (token, taken_back):
        action.add_argument(
            "directory", metavar="DIR", type=Path, help="a run directory or a key directory"
        )
    text = "for a host that goes on with the run if this is lost"
    token.add_argument("--standby", action="store_true", help=text)
    lifetime = "how long the token is valid"
    add_options(token, ("--token-lifetime", float, "SECONDS", lifetime, TOKEN_LIFETIME_S))
    taken_back.add_argument("names", metavar="NAME", nargs="+", help="a token id or a key name")
    for action in (create, token, taken_back):
        # Every command takes --debug; an action's parser must accept it as well.
        action.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def run(arguments: argparse.Namespace) -> int:
    """Create or revoke keys; raise ``KeyFileError``."""
    if arguments.action == "create":
        return _create(arguments)
    if not arguments.directory.is_dir():
        raise KeyFileError(
            f"no directory {arguments.directory}; expected a run directory, or a directory that "
            f"'dist-net keys create' made"
        )
    of_run = RunDirectory(arguments.directory).keys
    directory = of_run if of_run.is_dir() else arguments.directory
    if arguments.action == "token":
        token = invite_again(directory, arguments.token_lifetime, standby=arguments.standby)
        print(pasted(token))
        print(f"until {until(token)}; its id is {token.identity}", file=sys.stderr)
        return 0
    faults = []
    for name in arguments.names:  # each, whether or not another one fails
        try:
            print(f"revoked: {', '.join(revoke(directory, name))}")
        except KeyFileError as error:
            faults.append(str(error))
    if faults:
        raise KeyFileError("; ".join(faults))
    return 0


def _create(arguments: argparse.Namespace) -> int:
    directory: Path = arguments.directory
    wanted = [(role, name) for role in ROLES for name in getattr(arguments, role)]
    if not (wanted and has_server_keys(directory)):
        create_keys(directory)
    wanted = wanted or [(role, None) for role in ROLES]
    bundles = [(role, add_keys(directory, role, name)) for role, name in wanted]
    serve = ("parameter-server", "RECIPE", "--listen", "tcp://HOST:PORT", "--keys", directory)
    print(f"Keys are in {directory}, which stays on the server's host. On that host:")
    print(f"    {command_line(*serve)}")
    print("Each peer needs one subdirectory. Copy it to the peer's host and use it there:")
    for role, bundle in bundles:
        print(f"  {role} ({MAY[role]}):")
        print(f"    {shlex.join(('scp', '-rp', str(bundle), f'{role.upper()}_HOST:'))}")
        print(f"    {USE[role]} --keys {bundle.name}")
    return 0
