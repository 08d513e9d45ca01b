"""Addresses of the cluster: what people may write, and whether it reaches beyond this host.

tcp://HOST:PORT     HOST is a name, an IPv4 address, an [IPv6 address], or * to listen everywhere;
                    PORT 0 lets the system choose one to listen on
ipc://PATH          a Unix socket of this host; on Linux ipc://@NAME leaves no file behind
"""

import ipaddress
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from dist_net.errors import AddressError

# A Unix socket's path is an array of 108 bytes with a zero at its end (unix(7)).
_MAX_PATH_BYTES = 107

_EXPECTED = "expected tcp://HOST:PORT or ipc://PATH"


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
        bracketed = f"[{number}]" if ":" in number else number
        is_loopback = ipaddress.ip_address(_without_scope(number)).is_loopback
        return Address(text, f"tcp://{bracketed}:{port}", number, port, is_loopback)
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


def _without_scope(number: str) -> str:
    return number.partition("%")[0]
