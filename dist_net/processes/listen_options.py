"""How a server is opened to other hosts: its keys, and the line to paste there."""

from __future__ import annotations

import argparse
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_net.command_line import command_line
from dist_net.errors import KeyFileError
from dist_net.wire.address import checked_host, listen_address, reachable_addresses
from dist_net.wire.invitation import TOKEN_LIFETIME_S, invite, require_lifetime
from dist_net.wire.token import MAX_ADDRESSES, POOL, TRAINING, JoinToken

COMMANDS = {TRAINING: "join", POOL: "inference-worker"}


@dataclass(frozen=True)
class Opening:
    """Where a server listens, for whom, and what a person said of it.

    ``keys``: the directory of its keys; None: they are made if it listens beyond this host.
    ``contact`` is this host's name or number as others know it, if a person said so. ``lifetime_s``
    is a token's. Raises AddressError and TokenError for what cannot be.
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

    @property
    def needs_keys(self) -> bool:
        """Whether keys are to be made: it listens beyond this host, and has none."""
        return self.keys is None and not all(
            listen_address(each).stays_on_this_host for each in self.listen
        )

    def token(self, keys: Path | None, bound: Sequence[str]) -> JoinToken | None:
        """The token of a server that listens now; None if it does on Unix sockets alone.

        ``keys`` is the directory of its keys, if it has any; ``bound`` are its addresses in the
        order of ``listen``, with the ports that were chosen.
        """
        found: list[str] = []
        for listen, address in zip(self.listen, bound, strict=True):
            if address.startswith("tcp://"):
                found += reachable_addresses(listen, address, self.contact)
        addresses = tuple(dict.fromkeys(found))[:MAX_ADDRESSES]
        if not addresses:
            return None
        if keys is None:
            expires_s = int(time.time() + self.lifetime_s)
            return JoinToken(self.kind, secrets.token_hex(4), expires_s, addresses)
        return invite(keys, self.kind, addresses, self.lifetime_s)

    def lines(self, keys: Path | None, bound: Sequence[str], directory: Path | None) -> list[str]:
        """What is said of the token, if there is one; or why it cannot be made.

        ``directory`` is that of its run, or of its keys; the others are as for ``token``.
        """
        try:
            token = self.token(keys, bound)
        except KeyFileError as error:
            return [f"no token is made for other hosts: {error}"]
        return [] if token is None else invitation_lines(token, directory)


def add_invitation_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares what the line to paste says."""
    group.add_argument(
        "--contact",
        metavar="HOST",
        help="this host's name or IP address as others know it (default: by interfaces and routes)",
    )
    group.add_argument(
        "--token-lifetime",
        type=float,
        default=TOKEN_LIFETIME_S,
        metavar="SECONDS",
        help="for how long others may join by the line (default: a day)",
    )


def opening_of(arguments: argparse.Namespace) -> Opening:
    """How a run is to be opened, as a command line says; raises AddressError and TokenError."""
    listen = tuple(arguments.listen)
    return Opening(listen, arguments.keys, arguments.contact, arguments.token_lifetime)


def invitation_lines(token: JoinToken, directory: Path | None) -> list[str]:
    """What is said of a token: a title, the line to paste, and how it ends if it does.

    ``directory`` is that of its run, or of its keys.
    """
    if not token.secret:
        return ["workers of this host may join too:", f"    {pasted(token)}"]
    revoking = command_line("keys", "revoke", directory, token.identity)
    return [
        "workers of other hosts may join, there:",
        f"    {pasted(token)}",
        f"until {until(token)}, or until this is typed here: {revoking}",
    ]


def pasted(token: JoinToken) -> str:
    """Return the line to paste on another host, where no command line shows the token."""
    return f"echo {token.text} | dist-net {COMMANDS[token.kind]}"


def until(token: JoinToken) -> str:
    """When a token ends, for people."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(token.expires_s))
