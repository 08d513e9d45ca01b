"""Addresses: parsing, and this host's addresses for others.

tcp://HOST:PORT     HOST is a name, an IPv4 address, an [IPv6 address], or * for all interfaces;
                    with PORT 0 the system chooses the port to listen on
ipc://PATH          a Unix socket of this host; on Linux ipc://@NAME creates no file

A server may listen on every interface, and the routes of another host decide which address it can
reach. A token therefore contains all addresses, likeliest first, and its holder connects to all at
once: see ``dist_net.wire.token_exchange``.
"""

import errno
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from dist_net.errors import AddressError, InsecureAddressError
from dist_net.wire.token import MAX_ADDRESSES

# A Unix socket's path has 108 bytes with the zero at its end (unix(7)).
_MAX_PATH_BYTES = 107

_EXPECTED = "expected tcp://HOST:PORT or ipc://PATH"

_LISTEN_REMEDIES = {
    errno.EADDRINUSE: "another process listens on it: stop that process, or choose another port",
    errno.EADDRNOTAVAIL: "it is not an address of this host: 'ip address' lists them",
    errno.ENODEV: "it is not an address of this host: 'ip address' lists them",
    errno.EACCES: "it is not permitted: choose a port from 1024 up, or your own directory",
    errno.EPERM: "it is not permitted: choose a port from 1024 up, or your own directory",
    errno.ENOENT: "its directory does not exist: create it",
}

_IPV4_TABLE = Path("/proc/net/fib_trie")
_IPV4_OF_THIS_HOST = re.compile(r"-- (\S+)\n\s+/32 host LOCAL")
_IPV6_TABLE = Path("/proc/net/if_inet6")
_IPV6_UNUSABLE = 0x01 | 0x20 | 0x40  # temporary, deprecated, tentative (linux/if_addr.h)
# Reserved for documentation (RFC 5737, RFC 3849), so they are reached by the default route.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


class Address(NamedTuple):
    """A checked address.

    ``endpoint`` is the address for ZeroMQ, with the host resolved, preferably to IPv4. For a Unix
    socket ``host`` is the path and ``port`` -1.
    """

    text: str
    endpoint: str
    host: str
    port: int
    stays_on_this_host: bool

    @property
    def is_tcp(self) -> bool:
        return self.port >= 0


def listen_address(text: str) -> Address:
    """Check an address to listen on; raise ``AddressError``."""
    return _parse(text, listening=True)


def contact_address(text: str) -> Address:
    """Check an address to connect to; raise ``AddressError``."""
    address = _parse(text, listening=False)
    if address.is_tcp and ipaddress.ip_address(_without_scope(address.host)).is_unspecified:
        raise AddressError(
            f"cannot connect to {text!r}, which means every interface of a listening host; "
            "expected that host's name or address"
        )
    return address


def _parse(text: str, *, listening: bool) -> Address:
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "ipc":
        if not rest or "\0" in rest or len(rest.encode()) > _MAX_PATH_BYTES:
            raise AddressError(
                f"the path of {text!r} has {len(rest.encode())} bytes; "
                f"expected 1 to {_MAX_PATH_BYTES}, none of them zero"
            )
        return Address(text, text, rest, -1, True)
    if separator and scheme == "tcp":
        host, port = _host_and_port(text, lowest_port=0 if listening else 1)
        number = _resolve(text, "0.0.0.0" if host == "*" else host, port)
        is_loopback = ipaddress.ip_address(_without_scope(number)).is_loopback
        return Address(text, f"tcp://{bracketed(number)}:{port}", number, port, is_loopback)
    raise AddressError(f"the address {text!r} is invalid; {_EXPECTED}")


def _host_and_port(text: str, lowest_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"the address {text!r} is invalid ({error}); {_EXPECTED}") from error
    if not host or port is None or port < lowest_port or parts.path or parts.username is not None:
        raise AddressError(
            f"the address {text!r} is invalid; {_EXPECTED} with a port from {lowest_port} to 65535"
        )
    return host, port


def _resolve(text: str, host: str, port: int) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AddressError(
            f"cannot resolve the host {host!r} of {text!r} ({error}); "
            "expected an IP address or a name that resolves on this host"
        ) from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def bracketed(host: str) -> str:
    """Return the host as in URLs: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def _without_scope(number: str) -> str:
    return number.partition("%")[0]


def reachable_addresses(listen: str, bound: str, host: str | None = None) -> tuple[str, ...]:
    """Return the addresses for other hosts, ``tcp://HOST:PORT``, likeliest first.

    ``listen`` is the server's configured address; ``bound`` has the port that the system chose.
    ``host`` is a name or IP address to use instead of this host's own. Raise ``AddressError``.
    """
    address, port = listen_address(listen), bound.rpartition(":")[2]
    if host is not None:
        return (f"tcp://{bracketed(checked_host(host))}:{port}",)
    if address.host not in ("0.0.0.0", "::"):
        return (f"tcp://{bracketed(address.host)}:{port}",)
    found = candidates(_by_route(), _of_interfaces(), has_ipv6=":" in address.host)
    return tuple(f"tcp://{bracketed(each)}:{port}" for each in found)


def checked_host(host: str) -> str:
    """Return a host name or IP address that a token can contain; raise ``AddressError``."""
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    with suppress(ValueError):
        return str(ipaddress.ip_address(inner))
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", inner):
        raise AddressError(
            f"the contact {host!r} is not a host; expected this host's name or IP address as seen "
            f"by other hosts, without a port"
        )
    return inner


def candidates(
    by_route: Iterable[str], of_interfaces: Iterable[str], *, has_ipv6: bool
) -> list[str]:
    """Return the addresses for other hosts, likeliest first; 127.0.0.1 if none is found.

    Addresses of default routes precede others; loopback and link-local addresses are excluded.
    """
    found = [
        number
        for number in dict.fromkeys(map(ipaddress.ip_address, (*by_route, *of_interfaces)))
        if not number.is_unspecified and (has_ipv6 or number.version == 4)
    ]
    reachable = [each for each in found if not each.is_loopback and not each.is_link_local]
    loopback = [ipaddress.ip_address("127.0.0.1")]
    return [str(each) for each in (reachable or loopback)[:MAX_ADDRESSES]]


def _by_route() -> Iterator[str]:
    """Yield the source addresses of this host's default routes; nothing is sent."""
    for family, far in _FAR:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            yield probe.getsockname()[0]


def host_towards(address: str) -> str:
    """Return this host's IP address on the route to a server, or raise ``AddressError``."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        family, kind, *_, where = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise AddressError(
            f"no route to {address}: {error.strerror}; pass --contact HOST"
        ) from error


def _of_interfaces() -> Iterator[str]:
    """Yield the addresses of this host's interfaces; if /proc has none, resolve its name."""
    try:
        yield from _IPV4_OF_THIS_HOST.findall(_IPV4_TABLE.read_text())
        for line in _IPV6_TABLE.read_text().splitlines() if _IPV6_TABLE.exists() else ():
            digits, _, _, _, flags, _ = line.split()
            if not int(flags, 16) & _IPV6_UNUSABLE:
                yield str(ipaddress.IPv6Address(bytes.fromhex(digits)))
    except OSError:
        with suppress(OSError):
            for *_, where in socket.getaddrinfo(socket.gethostname(), None):
                yield str(where[0]).partition("%")[0]


def listen_error(address: Address, number: int) -> AddressError:
    """Return the error for an address that could not be bound; ``number`` is the errno."""
    remedy = _LISTEN_REMEDIES.get(number, os.strerror(number))
    return AddressError(f"cannot listen on {address.text!r}: {remedy}")


def require_keys(address: Address, keys: object, action: str) -> None:
    """Raise ``InsecureAddressError`` for an address beyond this host without keys."""
    if keys is None and not address.stays_on_this_host:
        raise InsecureAddressError(
            f"will not {action} {address.text!r}, which reaches beyond this host, without keys: "
            "create keys with 'dist-net keys create DIR' and pass --keys DIR, "
            "or use tcp://127.0.0.1:PORT"
        )


def refuse_taken_path(address: Address) -> None:
    """Raise ``AddressError`` if a Unix socket's path is in use: ZeroMQ would delete the file."""
    path = Path(address.host)
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise AddressError(
            f"cannot listen on {address.text!r}: the file exists and is no socket; "
            "choose another path"
        )
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(address.host)
    except ConnectionRefusedError:
        return  # the socket of a process that has ended
    except OSError as error:
        raise AddressError(f"cannot listen on {address.text!r}: {error.strerror}") from error
    raise listen_error(address, errno.EADDRINUSE)
