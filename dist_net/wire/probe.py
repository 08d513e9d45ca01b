"""Why nobody answers at an address: one look at it with a plain socket.

The first bytes that a ZeroMQ peer sends (ZMTP 3.1, RFC 37) say whether it wants keys.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from dist_net.wire.address import Address

_GREETING_BYTES = 64
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_MECHANISM = slice(12, 32)
# A greeting's beginning, up to version 3.1, makes the peer send its own; more, with a mechanism
# that is not the peer's, would make it hang up before.
_OPENING = _SIGNATURE + b"\x03\x01"


def silence_cause(address: Address, has_keys: bool, timeout_s: float = 1.0) -> str:
    """What may be wrong, and what to do, as a clause; takes at most about ``timeout_s``."""
    try:
        with _connection(address, timeout_s) as connection:
            greeting = _exchange_greetings(connection)
    except OSError as error:
        reason = error.strerror or str(error)
        return f"nobody listens there ({reason}): is the server running, and is the address right?"
    if greeting[:1] != _SIGNATURE[:1] or len(greeting) < _MECHANISM.stop:
        return "what listens there is not a dist-net server: is the port right?"
    wants_keys = greeting[_MECHANISM].rstrip(b"\0") == b"CURVE"
    if wants_keys and not has_keys:
        return "the server there wants keys: give --keys DIR"
    if wants_keys:
        return (
            "the server there is busy, or refuses these keys: is this worker's key in its "
            "clients directory, and is server.key here the same as there?"
        )
    if has_keys:
        return "the server there works without keys: start one of the two differently"
    return "a server listens there but is busy or stuck: look at its log"


@contextmanager
def _connection(address: Address, timeout_s: float) -> Iterator[socket.socket]:
    if address.is_tcp:
        with socket.create_connection((address.host, address.port), timeout_s) as connection:
            connection.settimeout(timeout_s)
            yield connection
    else:
        with unix_connection(address, timeout_s) as connection:
            yield connection


@contextmanager
def unix_connection(address: Address, timeout_s: float) -> Iterator[socket.socket]:
    """A connection to a Unix socket's address; raises `OSError` where nobody listens."""
    path = f"\0{address.host[1:]}" if address.host.startswith("@") else address.host
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        yield connection


def _exchange_greetings(connection: socket.socket) -> bytes:
    """The peer's greeting; shorter where it stays silent or hangs up."""
    received = b""
    try:
        connection.sendall(_OPENING)
        while len(received) < _GREETING_BYTES:
            chunk = connection.recv(_GREETING_BYTES - len(received))
            if not chunk:
                break
            received += chunk
    except OSError:
        return received
    return received
