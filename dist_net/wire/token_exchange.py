"""Connect by a token: find the address that answers, and exchange the token for a key."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import zmq

from dist_net.errors import AddressError, NoAnswerError, TokenError
from dist_net.wire.address import bracketed, contact_address, silence_cause
from dist_net.wire.fields import MAX_HEADER_BYTES
from dist_net.wire.invitation import duration_text, peer_keys_of
from dist_net.wire.messages import Enroll, Enrolled, Refuse
from dist_net.wire.security import WORKER, PeerKeys, secure_client
from dist_net.wire.token import JoinToken
from dist_net.wire.transport import ClientSocket

REACH_WITHIN_S = 10.0
HANG_UPS_COUNT_AFTER_S = 1.0
"""A server that still closes the connection after this time has other keys."""

# zmq_socket_monitor(3)
_EVENT = struct.Struct("=Hi")
_HUNG_UP = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | _REFUSED | _HUNG_UP


class ServerAccess(NamedTuple):
    """The address of a server, and a key pair that it admits; None if it requires no keys."""

    address: str
    keys: PeerKeys | None


def join_by_token(
    token: JoinToken, role: str = WORKER, timeout_s: float = REACH_WITHIN_S
) -> ServerAccess:
    """Connect to a token's server, and enroll a new key pair.

    Raise ``TokenError`` if the server refuses the token or has other keys, ``NoAnswerError`` if no
    server replies in time, and ``AddressError`` if no address resolves.
    """
    if not token.secret:
        return ServerAccess(_first_reached(token, None, timeout_s), None)
    carried = peer_keys_of(token)
    address = _first_reached(token, carried, timeout_s)
    own = PeerKeys.new(carried.server_public)
    with ClientSocket(address, carried) as holder:
        holder.send(Enroll(socket.gethostname()[:128], role, own.public.decode()))
        answer = holder.receive(timeout_s)
        if answer is None:
            raise holder.no_answer(timeout_s)
    if isinstance(answer, Refuse):
        raise TokenError(f"the server at {address} refused this token: {answer.reason}")
    if not isinstance(answer, Enrolled):
        raise TokenError(f"{address} replied to a token with {type(answer).__name__}")
    return ServerAccess(address, own)


def _first_reached(token: JoinToken, keys: PeerKeys | None, timeout_s: float) -> str:
    """Return the token's address that replies first; one socket connects to all at once.

    Raise the errors of ``join_by_token``.
    """
    seen = dict.fromkeys(_resolved(token.addresses), 0)  # the events of each address
    with ExitStack() as opened:
        context = opened.enter_context(zmq.Context())
        dealer = opened.enter_context(context.socket(zmq.DEALER))
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES)
        if keys is not None:
            secure_client(dealer, keys)
        monitor = opened.enter_context(dealer.get_monitor_socket(_EVENTS))
        opened.callback(dealer.disable_monitor)  # an event without a reader would block ZeroMQ
        for address in seen:
            dealer.setsockopt(zmq.IPV6, int("[" in address))
            dealer.connect(address)
        begun_s = now = time.monotonic()
        while (left_s := begun_s + timeout_s - now) > 0:
            if monitor.poll(int(min(left_s, 0.1) * 1000)):
                what, endpoint = monitor.recv_multipart()
                event, _ = _EVENT.unpack(what)
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return str(endpoint.decode())
                seen[endpoint.decode()] = seen.get(endpoint.decode(), 0) | event
            now = time.monotonic()
            final = _REFUSED | _HUNG_UP if now > begun_s + HANG_UPS_COUNT_AFTER_S else _REFUSED
            if all(events & final for events in seen.values()):
                break
    refused = [address for address, events in seen.items() if events & _REFUSED]
    if refused:
        over_s = time.time() - token.expires_s
        ended = f"expired {duration_text(over_s)} ago by this host's clock"
        raise TokenError(
            f"the server at {refused[0]} does not know this token: it "
            f"{ended if over_s > 0 else 'was revoked'}; 'dist-net keys token DIR' on the server's "
            f"host creates another token"
        )
    causes = "; ".join(f"{each}: {_cause(each, seen[each], keys)}" for each in seen)
    if all(events & _HUNG_UP for events in seen.values()):
        raise TokenError(f"this token is of another run or server; {causes}")
    raise NoAnswerError(f"no server answered this token in {now - begun_s:.1f} s; {causes}")


def _cause(address: str, events: int, keys: PeerKeys | None) -> str:
    """Return why no server was reached at the address."""
    if events & _HUNG_UP:
        return "the server closes the connection: it has other keys, or is not a dist-net server"
    return silence_cause(contact_address(address), keys is not None)


def _resolved(addresses: Sequence[str]) -> list[str]:
    """Return all addresses with their names resolved; raise ``AddressError`` if none resolves."""
    found: list[str] = []
    unknown: list[str] = []
    for address in addresses:
        try:
            contact_address(address)
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            for *_, where in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM):
                found.append(f"tcp://{bracketed(str(where[0]))}:{port}")
        except (AddressError, OSError) as error:
            unknown.append(str(error))
    if not found:
        raise AddressError("; ".join(unknown))
    return list(dict.fromkeys(found))
