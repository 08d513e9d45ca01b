"""Addresses: what people may write, and why one cannot be listened on or gets no answer.

tcp://HOST:PORT     HOST is a name, an IPv4 address, an [IPv6 address], or * to listen everywhere;
                    PORT 0 lets the system choose one to listen on
ipc://PATH          a Unix socket of this host; on Linux ipc://@NAME leaves no file behind
"""

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from dist_net.errors import AddressError, InsecureAddressError, ListenError

# A Unix socket's path is an array of 108 bytes with a zero at its end (unix(7)).
_MAX_PATH_BYTES = 107

_EXPECTED = "expected tcp://HOST:PORT or ipc://PATH"

_LISTEN_REMEDIES = {
    errno.EADDRINUSE: "another process listens there: stop it, or choose another port",
    errno.EADDRNOTAVAIL: "it is not an address of this host: use one that 'ip address' shows",
    errno.ENODEV: "it is not an address of this host: use one that 'ip address' shows",
    errno.EACCES: "it is not permitted: choose a port from 1024 up, or a directory of yours",
    errno.EPERM: "it is not permitted: choose a port from 1024 up, or a directory of yours",
    errno.ENOENT: "its directory does not exist: make it first",
}

# The first bytes that a ZeroMQ peer sends say whether it wants keys (ZMTP 3.1, RFC 37).
_GREETING_BYTES = 64
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_MECHANISM = slice(12, 32)
# A greeting's beginning, up to version 3.1, makes the peer send its own; more, with a mechanism
# that is not the peer's, would make it hang up before.
_OPENING = _SIGNATURE + b"\x03\x01"


class Address(NamedTuple):
    """A checked address.

    ``endpoint`` is what ZeroMQ takes: a host's name is resolved, to IPv4 where it has both.
    ``host`` and ``port`` are those of TCP; for a Unix socket ``host`` is the path, ``port`` -1.
    """

    text: str
    endpoint: str
    host: str
    port: int
    stays_on_this_host: bool

    @property
    def is_tcp(self) -> bool:
        """Whether this is a TCP address; else it is a Unix socket's."""
        return self.port >= 0


def listen_address(text: str) -> Address:
    """Check an address to listen on; raises `AddressError`."""
    return _parse(text, listening=True)


def contact_address(text: str) -> Address:
    """Check an address to connect to; raises `AddressError`."""
    address = _parse(text, listening=False)
    if address.is_tcp and ipaddress.ip_address(_without_scope(address.host)).is_unspecified:
        raise AddressError(
            f"cannot connect to {text!r}: it stands for every address of a host that listens; "
            "expected that host's name or address"
        )
    return address


def _parse(text: str, *, listening: bool) -> Address:
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "ipc":
        return _ipc_address(text, rest)
    if separator and scheme == "tcp":
        host, port = _host_and_port(text, lowest_port=0 if listening else 1)
        number = _resolve(text, "0.0.0.0" if host == "*" else host, port)
        is_loopback = ipaddress.ip_address(_without_scope(number)).is_loopback
        return Address(text, f"tcp://{bracketed(number)}:{port}", number, port, is_loopback)
    raise AddressError(f"the address {text!r} cannot be used; {_EXPECTED}")


def _ipc_address(text: str, path: str) -> Address:
    if not path or "\0" in path or len(path.encode()) > _MAX_PATH_BYTES:
        raise AddressError(
            f"the path of {text!r} has {len(path.encode())} bytes; "
            f"expected 1 to {_MAX_PATH_BYTES}, none of them zero"
        )
    return Address(text, text, path, -1, True)


def _host_and_port(text: str, lowest_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"the address {text!r} cannot be used ({error}); {_EXPECTED}") from error
    if not host or port is None or port < lowest_port or parts.path or parts.username is not None:
        raise AddressError(
            f"the address {text!r} cannot be used; {_EXPECTED} "
            f"with a port from {lowest_port} to 65535"
        )
    return host, port


def _resolve(text: str, host: str, port: int) -> str:
    """The host's numeric address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AddressError(
            f"the host {host!r} of {text!r} is not known here ({error}); "
            "expected an IP address or a name that resolves on this host"
        ) from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def bracketed(host: str) -> str:
    """A host as it stands before a port: IPv6 numbers in brackets."""
    return f"[{host}]" if ":" in host else host


def _without_scope(number: str) -> str:
    return number.partition("%")[0]


def listen_error(address: Address, number: int) -> ListenError:
    """The error for an address that could not be bound; ``number`` is the system's errno."""
    remedy = _LISTEN_REMEDIES.get(number, os.strerror(number))
    return ListenError(f"cannot listen on {address.text!r}: {remedy}")


def require_keys(address: Address, keys: object, action: str) -> None:
    """Raise `InsecureAddressError` for an address beyond this host without keys."""
    if keys is None and not address.stays_on_this_host:
        raise InsecureAddressError(
            f"will not {action} {address.text!r}, which reaches beyond this host, without keys: "
            "make them with 'dist-net keys create DIR' and give --keys DIR, "
            "or use tcp://127.0.0.1:PORT"
        )


def refuse_taken_path(address: Address) -> None:
    """Raise `ListenError` if a Unix socket's path is in use: ZeroMQ would delete what is there."""
    path = Path(address.host)
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ListenError(
            f"cannot listen on {address.text!r}: a file that is no socket is there; "
            "choose another path"
        )
    try:
        _connection(address, timeout_s=1.0).close()
    except ConnectionRefusedError:
        return  # left behind by a process that died
    except OSError as error:
        raise ListenError(f"cannot listen on {address.text!r}: {error.strerror}") from error
    raise listen_error(address, errno.EADDRINUSE)


def silence_cause(address: Address, has_keys: bool, timeout_s: float = 1.0) -> str:
    """Why a server does not answer, and what to do; takes at most about ``timeout_s``."""
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
            "the server there is busy, or refuses these keys: is this key in its workers, clients "
            "or operators directory, and is server.key here the same as there?"
        )
    if has_keys:
        return "the server there works without keys: start one of the two differently"
    return "a server listens there but is busy or stuck: look at its log"


def _connection(address: Address, timeout_s: float) -> socket.socket:
    """A plain socket that is connected; raises `OSError` where nobody listens."""
    if address.is_tcp:
        return socket.create_connection((address.host, address.port), timeout_s)
    path = f"\0{address.host[1:]}" if address.host.startswith("@") else address.host
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


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
