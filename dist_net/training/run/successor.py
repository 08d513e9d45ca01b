"""The server that goes on elsewhere with the run of a directory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dist_net.errors import DistNetError
from dist_net.nets.observer import NO_RECORDS, Observer
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.server.ownership import last_term
from dist_net.training.server.standbys import NOTHING, Remembered
from dist_net.wire.security import PeerKeys, load_server_keys
from dist_net.wire.transport import ServerAccess

ANSWERS_WITHIN_S = 2.0


class Successor(NamedTuple):
    """A server that goes on with a run, in a later term."""

    server: ServerAccess
    term: int


def remembered_in(directory: RunDirectory) -> Remembered:
    """Return the other hosts of the directory's run, and those who may go on with it."""
    if not directory.standbys.exists():
        return NOTHING
    return Remembered.from_json(directory.standbys.read_bytes())


def successor_of(directory: RunDirectory, keys: Path | None) -> Successor | None:
    """Return who goes on with the directory's run in a later term; None if nobody answers.

    ``keys``: the key directory of the run's server; None: ``directory.keys``. With its key pair,
    the run's other servers admit this host as a standby.
    """
    remembered, term = remembered_in(directory), last_term(directory.owner)
    for address, public_key, *_ in (*remembered.standbys, *remembered.former):
        with suppress(DistNetError):  # of this one, such as that it does not answer
            peer_keys = None
            if public_key:
                own = load_server_keys(keys or directory.keys, of_standby=True)
                peer_keys = PeerKeys(public_key.encode(), own.public, own.secret)
            server = ServerAccess(address, peer_keys)
            with Observer(*server, ANSWERS_WITHIN_S) as observer:
                theirs = observer.status(NO_RECORDS).get("term", 0)
            if theirs > term:
                return Successor(server, theirs)
    return None
