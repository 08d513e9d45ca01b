"""By which addresses others may reach a server that listens on this host.

A server may listen on every interface, and then only the other host's routes say which of its
addresses is the right one. So a token names all of them, likeliest first, and its holder tries them
together; see `dist_net.wire.reaching`.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dist_net.errors import AddressError
from dist_net.wire.address import Address, bracketed, listen_address
from dist_net.wire.token import MOST_ADDRESSES

# netdevice(7): every IPv4 address of this host, in structures of 40 bytes
_SIOCGIFCONF = 0x8912
_IFREQ_BYTES = 40
_IPV4 = slice(20, 24)
_IPV6_OF_INTERFACES = Path("/proc/net/if_inet6")
_IPV6_UNUSABLE = 0x01 | 0x20 | 0x40  # temporary, deprecated, tentative (linux/if_addr.h)
# Of the documentation's networks (RFC 5737, RFC 3849): the way to them is the default route.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def contacts_of(listen: str, bound: str, said: str | None = None) -> tuple[str, ...]:
    """Where others may reach a server: ``tcp://HOST:PORT``, likeliest first.

    ``listen`` is the address that it was given, ``bound`` the same with the port that was chosen.
    ``said``: the host's name or number, where a person knows better. Raises `AddressError`.
    """
    address, port = listen_address(listen), bound.rpartition(":")[2]
    if said is not None:
        return (f"tcp://{bracketed(checked_host(said))}:{port}",)
    if not _is_everywhere(address):
        return (f"tcp://{bracketed(address.host)}:{port}",)
    hosts = candidates(_by_route(), _of_interfaces(), takes_ipv6=":" in address.host)
    return tuple(f"tcp://{bracketed(host)}:{port}" for host in hosts)


def checked_host(host: str) -> str:
    """A host as a token may carry it: a name of ASCII letters, or a number; no port."""
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    with suppress(ValueError):
        return str(ipaddress.ip_address(inner))
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", inner):
        raise AddressError(
            f"the contact {host!r} cannot be used; expected this host's name or IP address as "
            f"others know it, without a port"
        )
    return inner


def candidates(
    by_route: Iterable[str], of_interfaces: Iterable[str], *, takes_ipv6: bool
) -> list[str]:
    """Which of a host's addresses others may try, likeliest first; at least one.

    That by which this host's own messages leave it comes first, then the other ones. Those that
    only this host or one cable reaches are left out, unless there is nothing else.
    """
    found = [
        number
        for number in dict.fromkeys(map(ipaddress.ip_address, (*by_route, *of_interfaces)))
        if not number.is_unspecified and (takes_ipv6 or number.version == 4)
    ]
    reachable = [each for each in found if not each.is_loopback and not each.is_link_local]
    loopback = [ipaddress.ip_address("127.0.0.1")]
    return [str(each) for each in (reachable or loopback)[:MOST_ADDRESSES]]


def _is_everywhere(address: Address) -> bool:
    return address.host in ("0.0.0.0", "::")


def _by_route() -> Iterator[str]:
    """From which addresses this host would send to hosts far away; nothing is sent."""
    for family, far in _FAR:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            yield probe.getsockname()[0]


def _of_interfaces() -> Iterator[str]:
    """The addresses of this host's interfaces; on other systems than Linux, those of its name."""
    try:
        yield from _ipv4_of_interfaces()
        yield from _ipv6_of_interfaces()
    except OSError:
        with suppress(OSError):
            for *_, where in socket.getaddrinfo(socket.gethostname(), None):
                yield str(where[0]).partition("%")[0]


def _ipv4_of_interfaces() -> Iterator[str]:
    found = array.array("B", bytes(256 * _IFREQ_BYTES))
    request = struct.pack("iL", len(found), found.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        length, _ = struct.unpack("iL", fcntl.ioctl(probe, _SIOCGIFCONF, request))
    for place in range(0, length, _IFREQ_BYTES):
        yield socket.inet_ntoa(found[place : place + _IFREQ_BYTES][_IPV4].tobytes())


def _ipv6_of_interfaces() -> Iterator[str]:
    if not _IPV6_OF_INTERFACES.exists():  # there is no IPv6
        return
    for line in _IPV6_OF_INTERFACES.read_text().splitlines():
        digits, _, _, _, flags, _ = line.split()
        if not int(flags, 16) & _IPV6_UNUSABLE:
            yield str(ipaddress.IPv6Address(bytes.fromhex(digits)))
