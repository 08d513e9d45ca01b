"""Reaching a server by a token: which of its addresses answers, and being let in there."""

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
from dist_net.wire.codec import MAX_HEADER_BYTES
from dist_net.wire.invitation import ago, peer_keys_of
from dist_net.wire.messages import Enrol, Enrolled, Refuse
from dist_net.wire.security import WORKER, PeerKeys, secure_client
from dist_net.wire.token import JoinToken
from dist_net.wire.transport import ClientSocket

REACH_WITHIN_S = 10.0
SURE_AFTER_S = 1.0
"""A server that keeps hanging up for so long has other keys."""

# zmq_socket_monitor(3)
_EVENT = struct.Struct("=Hi")
_HUNG_UP = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | _HUNG_UP


class LetIn(NamedTuple):
    """Where a server was reached, and a key pair that it lets in; None: it needs none."""

    address: str
    keys: PeerKeys | None


def be_let_in(token: JoinToken, role: str = WORKER, timeout_s: float = REACH_WITHIN_S) -> LetIn:
    """Reach the server of a token, and have a new key pair let in there.

    Raises `TokenError` where the server refuses the token, or is another one, and `NoAnswerError`
    where nobody answers in time.
    """
    if not token.secret:
        return LetIn(reached_of(token, None, timeout_s), None)
    carried = peer_keys_of(token)
    address = reached_of(token, carried, timeout_s)
    own = PeerKeys.new(carried.server_public)
    with ClientSocket(address, carried) as holder:
        holder.send(Enrol(socket.gethostname()[:128], role, own.public.decode()))
        answer = holder.receive(timeout_s)
        if answer is None:
            raise holder.no_answer(timeout_s)
    if isinstance(answer, Refuse):
        raise TokenError(f"the server at {address} refused this token: {answer.reason}")
    if not isinstance(answer, Enrolled):
        raise TokenError(f"{address} answered a token with {type(answer).__name__}")
    return LetIn(address, own)


def reached_of(token: JoinToken, keys: PeerKeys | None, timeout_s: float) -> str:
    """The address at which the token's server was reached first; all are tried together."""
    with ExitStack() as opened:
        context = opened.enter_context(zmq.Context())
        attempts = [_Attempt(context, each, keys) for each in _numbers(token.addresses)]
        tried = [opened.enter_context(each) for each in attempts]
        poller = zmq.Poller()
        for each in tried:
            poller.register(each.monitor, zmq.POLLIN)
        begun_s = now = time.monotonic()
        while (left_s := begun_s + timeout_s - now) > 0:
            poller.poll(int(min(left_s, 0.1) * 1000))
            for each in tried:
                each.look()
                if each.is_reached:
                    return each.address
            now = time.monotonic()
            is_sure = now > begun_s + SURE_AFTER_S
            if all(each.is_refused or (each.hung_up and is_sure) for each in tried):
                break
        if any(each.is_refused for each in tried):
            raise TokenError(_why_refused(token, next(t.address for t in tried if t.is_refused)))
        causes = [f"{each.address}: {each.cause(keys is not None)}" for each in tried]
        if all(each.hung_up for each in tried):
            raise TokenError(f"this token is of another run, or server; {'; '.join(causes)}")
    raise NoAnswerError(
        f"nobody answered for this token in {now - begun_s:.1f} s; {'; '.join(causes)}"
    )


def _numbers(addresses: Sequence[str]) -> list[str]:
    """The addresses with names resolved, all that there are; raises `AddressError` if none is."""
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


def _why_refused(token: JoinToken, address: str) -> str:
    over_s = time.time() - token.expires_s
    cause = f"expired {ago(over_s)} ago by this host's clock" if over_s > 0 else "was revoked"
    return (
        f"the server at {address} does not know this token: it {cause}; ask for "
        f"another one: 'dist-net keys token DIR' makes it on the server's host"
    )


class _Attempt:
    """A context in which one address is tried, again and again."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: PeerKeys | None
    ) -> None:
        self.address = address
        self.is_reached = self.is_refused = self.hung_up = False
        self._checked = contact_address(address)
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES)
        self._socket.setsockopt(zmq.IPV6, int(":" in self._checked.host))
        if keys is not None:
            secure_client(self._socket, keys)
        self.monitor = self._socket.get_monitor_socket(_EVENTS)
        self._socket.connect(self._checked.endpoint)

    def __enter__(self) -> _Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self.monitor.close()
        self._socket.close()

    def look(self) -> None:
        """Take in what has happened since."""
        while self.monitor.poll(0):
            event, _ = _EVENT.unpack(self.monitor.recv_multipart()[0])
            self.is_reached |= event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.is_refused |= event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            self.hung_up |= bool(event & _HUNG_UP)

    def cause(self, has_keys: bool) -> str:
        """Why it was not reached."""
        if self.hung_up:
            return "a server is there that hangs up: it has other keys, or is no dist-net server"
        return silence_cause(self._checked, has_keys)
