"""Find the server on another host that continues the run of a directory."""

from contextlib import suppress
from pathlib import Path

from dist_net.errors import DistNetError
from dist_net.nets.observer import NO_RECORDS, Observer, value_in
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.server.ownership import last_term
from dist_net.training.server.standbys import NOTHING, Remembered
from dist_net.wire.security import load_server_keys
from dist_net.wire.standbys import Standby
from dist_net.wire.transport import ServerAccess, access_with

ANSWERS_WITHIN_S = 2.0


def remembered_in(directory: RunDirectory) -> Remembered:
    """Return the other hosts and the standbys of the directory's run."""
    if not directory.standbys.exists():
        return NOTHING
    return Remembered.from_json(directory.standbys.read_bytes())


def successor_of(directory: RunDirectory, keys: Path | None) -> tuple[ServerAccess, int] | None:
    """Return the server that continues the directory's run in a later term, and that term.

    ``keys``: the key directory of the run's server; None: ``directory.keys``. With its key pair,
    the run's other servers admit this host as a standby. Return None if nobody answers.
    """
    remembered, own_term = remembered_in(directory), last_term(directory.owner)
    for address, public_key, *_ in (*remembered.standbys, *remembered.former):
        with suppress(DistNetError):  # such as NoAnswerError
            own = load_server_keys(keys or directory.keys, of_standby=True) if public_key else None
            server = access_with(own, Standby(address, public_key))
            with Observer(*server, ANSWERS_WITHIN_S) as observer:
                term: int = value_in(observer.status(NO_RECORDS), "term", address)
            if term > own_term:
                return server, term
    return None
