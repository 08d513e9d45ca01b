"""The addresses by which other hosts may reach a server on this host.

A server may listen on every interface, and the routes of another host decide which address it can
reach. A token therefore contains all addresses, likeliest first, and its holder connects to all at
once: see `dist_net.wire.reaching`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dist_net.errors import AddressError
from dist_net.wire.address import bracketed, listen_address
from dist_net.wire.token import MAX_ADDRESSES

_IPV4_TABLE = Path("/proc/net/fib_trie")
_IPV4_OF_THIS_HOST = re.compile(r"-- (\S+)\n\s+/32 host LOCAL")
_IPV6_TABLE = Path("/proc/net/if_inet6")
_IPV6_UNUSABLE = 0x01 | 0x20 | 0x40  # temporary, deprecated, tentative (linux/if_addr.h)
# Reserved for documentation (RFC 5737, RFC 3849), so they are reached by the default route.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def contact_addresses(listen: str, bound: str, host: str | None = None) -> tuple[str, ...]:
    """Return the addresses for other hosts, ``tcp://HOST:PORT``, likeliest first.

    ``listen`` is the server's configured address; ``bound`` has the port that the system chose.
    ``host`` is a name or IP address to use instead of this host's own. Raises `AddressError`.
    """
    address, port = listen_address(listen), bound.rpartition(":")[2]
    if host is not None:
        return (f"tcp://{bracketed(checked_host(host))}:{port}",)
    if address.host not in ("0.0.0.0", "::"):
        return (f"tcp://{bracketed(address.host)}:{port}",)
    found = candidates(_by_route(), _of_interfaces(), has_ipv6=":" in address.host)
    return tuple(f"tcp://{bracketed(each)}:{port}" for each in found)


def checked_host(host: str) -> str:
    """Return a host name or IP address that a token can contain; raises `AddressError`."""
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
    """Return the addresses for other hosts, likeliest first; 127.0.0.1 if there are none.

    The source addresses of the default routes precede others. Loopback and link-local addresses are
    excluded.
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
