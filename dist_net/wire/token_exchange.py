"""Connect by a token: find the address that answers, and exchange the token for a key."""

import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack

import zmq

from dist_net.errors import AddressError, NoAnswerError, TokenError
from dist_net.wire.address import bracketed, contact_address
from dist_net.wire.connections import FAILED, FINAL, SETTLED_S, Contact, Handshakes, silence_cause
from dist_net.wire.fields import MAX_HEADER_BYTES
from dist_net.wire.invitation import duration_text, peer_keys_of
from dist_net.wire.messages import Enroll, Enrolled, Refuse
from dist_net.wire.security import WORKER, PeerKeys, secure_client
from dist_net.wire.token import JoinToken
from dist_net.wire.transport import ClientSocket, ServerAccess

REACH_WITHIN_S = 10.0


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
    """Return the token's address that replies first to one socket. Raise as ``join_by_token``."""
    addresses = _resolved(token.addresses)
    with ExitStack() as opened:
        context = opened.enter_context(zmq.Context())
        dealer = opened.enter_context(context.socket(zmq.DEALER))
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES)
        if keys is not None:
            secure_client(dealer, keys)
        handshakes = opened.enter_context(Handshakes(dealer))
        for address in addresses:
            dealer.setsockopt(zmq.IPV6, int("[" in address))
            dealer.connect(address)
        contacts: dict[str, Contact | None] = dict.fromkeys(addresses)
        begun_s = now = time.monotonic()
        while (left_s := begun_s + timeout_s - now) > 0:
            handshakes.take_in(min(left_s, 0.1))
            contacts |= handshakes.contacts
            if reached := [each for each in addresses if contacts[each] is Contact.REACHED]:
                return reached[0]
            now = time.monotonic()
            is_settled = now > begun_s + SETTLED_S
            if all(each in (FAILED if is_settled else FINAL) for each in contacts.values()):
                break
    refused = [each for each in addresses if contacts[each] is Contact.REFUSED]
    if refused:
        over_s = time.time() - token.expires_s
        ended = f"expired {duration_text(over_s)} ago by this host's clock"
        raise TokenError(
            f"the server at {refused[0]} does not know this token: it "
            f"{ended if over_s > 0 else 'was revoked, or the run has moved to another host'}; "
            f"'dist-net keys token DIR' on the server's host creates another token"
        )
    causes = "; ".join(
        f"{each}: {silence_cause(contacts[each], keys is not None)}" for each in addresses
    )
    if Contact.HUNG_UP in contacts.values():
        raise TokenError(f"this token is of another run or server; {causes}")
    raise NoAnswerError(
        f"no server answered this token in {now - begun_s:.1f} s; {causes}. If a standby serves "
        f"the run now, 'dist-net keys token RUN_DIRECTORY' on its host creates another token"
    )


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
