"""Options of a cluster's commands: the place of processes, their server, and how hosts join it."""

import argparse
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dist_net.errors import KeyFileError, SettingError
from dist_net.ground.command_line import AUTO as AUTO
from dist_net.ground.command_line import add_options, command_line, count_or_auto
from dist_net.processes.token_arguments import add_token_arguments, token_given
from dist_net.wire.address import checked_host, listen_address, reachable_addresses
from dist_net.wire.invitation import TOKEN_LIFETIME_S, invite, require_lifetime
from dist_net.wire.security import load_peer_keys
from dist_net.wire.token import COMMANDS, MAX_ADDRESSES, STANDBY_OF_RUN, TRAINING, JoinToken
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


LOOPBACK = "127.0.0.1", "localhost"


@dataclass(frozen=True)
class ListenOptions:
    """The addresses that a server listens on, and how other hosts join it.

    ``keys``: the directory of its keys; None: create keys if it listens beyond this host.
    ``contact``: the name or IP address of this host for other hosts; None: by interfaces and
    routes. ``lifetime_s``: of a token. Raise AddressError and TokenError for invalid values.
    """

    listen: tuple[str, ...] = ()
    keys: Path | None = None
    contact: str | None = None
    lifetime_s: float = TOKEN_LIFETIME_S
    kind: str = TRAINING

    def __post_init__(self) -> None:
        require_lifetime(self.lifetime_s)
        if self.contact is not None:
            checked_host(self.contact)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        listen = tuple(arguments.listen)
        return cls(listen, arguments.keys, arguments.contact, arguments.token_lifetime)

    @property
    def needs_keys(self) -> bool:
        """Whether to create keys: the server listens beyond this host and has none."""
        return self.keys is None and not all(
            listen_address(each).stays_on_this_host for each in self.listen
        )

    def reachable(self, bound: Sequence[str]) -> tuple[str, ...]:
        """Return the TCP addresses for other hosts; ``bound``: see ``token``."""
        found: list[str] = []
        for listen, address in zip(self.listen, bound, strict=True):
            if address.startswith("tcp://"):
                found += reachable_addresses(listen, address, self.contact)
        return tuple(dict.fromkeys(found))

    def known_as(self, bound: Sequence[str]) -> list[str]:
        """Return the addresses by which a user of this host may name the server."""
        known = {*bound, *self.reachable(bound)}
        ports = {each.rpartition(":")[2] for each in known if each.startswith("tcp://")}
        return sorted(known | {f"tcp://{host}:{port}" for port in ports for host in LOOPBACK})

    def token(
        self, keys: Path | None, bound: Sequence[str], kind: str | None = None
    ) -> JoinToken | None:
        """Return a new token of a listening server; None if it listens on Unix sockets only.

        ``keys``: the directory of its keys, if it has any; ``bound``: its addresses in the order of
        ``listen``, with the chosen ports.
        """
        addresses = self.reachable(bound)[:MAX_ADDRESSES]
        if not addresses:
            return None
        if keys is None:
            expires_s = int(time.time() + self.lifetime_s)
            return JoinToken(self.kind, secrets.token_hex(4), expires_s, addresses)
        return invite(keys, kind or self.kind, addresses, self.lifetime_s)

    def lines(self, keys: Path | None, bound: Sequence[str], directory: Path | None) -> list[str]:
        """Return lines on a new token, or why none; ``directory``: of the run or of the keys."""
        try:
            token = self.token(keys, bound)
        except KeyFileError as error:
            return [f"no token for other hosts: {error}"]
        if token is None:
            return []
        if not token.secret:
            return ["workers of this host may join too:", f"    {pasted(token)}"]
        revoking = command_line("keys", "revoke", directory, token.identity)
        lines = [
            "to add workers of another host, run there:",
            f"    {pasted(token)}",
            f"valid until {until(token)}; to revoke it, run here: {revoking}",
        ]
        if self.kind == TRAINING and (token := self.token(keys, bound, STANDBY_OF_RUN)):
            revoking = command_line("keys", "revoke", directory, token.identity)
            lines += [
                "to go on there if this host is lost, run instead, on a host that you trust:",
                f"    {pasted(token)}",
                f"to revoke it, run here: {revoking}",
            ]
        return lines


def add_invitation_arguments(group: argparse._ArgumentGroup) -> None:
    host = "the name or IP address of this host for others (default: by interfaces and routes)"
    add_options(
        group,
        ("--contact", str, "HOST", host),
        ("--token-lifetime", float, "SECONDS", "how long the token is valid", TOKEN_LIFETIME_S),
    )


def pasted(token: JoinToken) -> str:
    """Return the line to paste on another host, where no command line shows the token."""
    return f"echo {token.text} | dist-net {COMMANDS[token.kind]}"


def until(token: JoinToken) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(token.expires_s))
