"""Sockets that carry messages: one ``ServerSocket``, and a ``ClientSocket`` at each peer.

Thin shells over ZeroMQ (ROUTER and DEALER), which only ``dist_net.wire`` imports. Each wait has a
deadline. A socket must be used by the thread that created it.
"""

import ctypes
import errno
import logging
import math
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import zmq

from dist_net.errors import AccessRefusedError, NoAnswerError, ProtocolError
from dist_net.wire.address import (
    Address,
    contact_address,
    listen_address,
    listen_error,
    refuse_taken_path,
    require_keys,
)
from dist_net.wire.codec import MAX_ARRAY_BYTES, Frame, decode, encode
from dist_net.wire.connections import (
    FINAL,
    SETTLED_S,
    Connections,
    Contact,
    Handshakes,
    silence_cause,
)
from dist_net.wire.fields import MAX_HEADER_BYTES, MAX_PAYLOADS
from dist_net.wire.invitation import enroll
from dist_net.wire.messages import Enroll, Follow, Join, Message, Refuse
from dist_net.wire.security import (
    CURVE_OVERHEAD_BYTES,
    STANDBY,
    AllowList,
    PeerKeys,
    ServerKeys,
    role_refusal,
    secure_client,
    secure_server,
)
from dist_net.wire.standbys import Standby

logger = logging.getLogger(__name__)

# Messages queued for one peer: few, as each request has one reply. But ZeroMQ updates the number of
# sent messages only about once a millisecond, so 16 is not enough.
HIGH_WATER_MARK = 64
HANDSHAKE_TIMEOUT_MS = 10_000
STOPPED_S = 0.5  # a wait exceeds its timeout by this if the process was stopped
RECEIVE_AGAIN_S = 0.2

# The kernel probes a TCP connection, and closes it when the other host has not replied for five
# seconds. docs/decisions/0013-the-kernel-notices-who-vanished.md compares ZeroMQ's heartbeats.
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 2,
    zmq.TCP_KEEPALIVE_INTVL: 1,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 5_000,  # the same for unacknowledged data, in milliseconds
}

_DOMAIN = b"dist-net"  # with a domain, ZeroMQ lets `Connections` decide which peers may connect
_LINGER_MS = 500  # for the last messages of a closing socket
# A header, its payloads, and one more for the codec to refuse.
_FRAMES_KEPT = MAX_PAYLOADS + 2
# The frames of a longer message that are skipped at a time, in about 10 ms, so that a loop can do
# other work in between. ZeroMQ returns no other message before all are skipped.
_FRAMES_SKIPPED = 10_000

# As plain integers: an operation on ZeroMQ's enumerations costs a microsecond.
NO_WAIT = int(zmq.NOBLOCK)
_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_SOURCE = int(zmq.SRCFD)  # the descriptor of a frame's connection
_NUMBER = struct.Struct("=Q")  # of a connection, at the end of a node


def _seed_routing_ids() -> None:
    """Seed the number from which the next ROUTER names peers that announce no id.

    libzmq draws it from the C library's ``rand``, which is never seeded, and ends the process if a
    peer has announced the next number as its id.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4))))


class FramedSocket:
    """A ZeroMQ socket with its own context."""

    def __init__(self, kind: int, max_array_bytes: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        _seed_routing_ids()
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
        for option, value in _KEEPALIVE.items():
            self._socket.setsockopt(option, value)
        # ZeroMQ disconnects a peer that announces a longer frame, and reserves no memory for it.
        self._socket.setsockopt(zmq.MAXMSGSIZE, max(max_array_bytes, MAX_HEADER_BYTES))
        self._receive_timeout_ms = -1
        self._header: zmq.Frame | None = None  # of the last message, with the sender's key
        self._has_more = False  # whether frames of the last message must be skipped

    def close(self) -> None:
        """Send the last messages for at most half a second, then close."""
        self._socket.close()
        self._header = None
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return a file descriptor that becomes readable when ``has_message`` may change.

        It is edge-triggered: after it, and after each send, receive until no message is left.
        """
        return int(self._socket.getsockopt(zmq.FD))

    def has_message(self) -> bool:
        return bool(int(self._socket.getsockopt(_EVENTS)) & _POLLIN)

    def _send_frames(self, *frames: Frame | zmq.Frame) -> None:
        """Queue copies of the frames as one message. Raise ``zmq.Again`` if the queue is full."""
        for frame in frames[:-1]:
            self._socket.send(frame, _SEND_MORE)
        self._socket.send(frames[-1], NO_WAIT)

    def _set_deadline(self, timeout_s: float) -> None:
        """Bound the next receive; over ipc, RCVTIMEO costs a fifth less time than a poll."""
        timeout_ms = max(0, math.ceil(timeout_s * 1000))
        if timeout_ms != self._receive_timeout_ms:
            self._socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
            self._receive_timeout_ms = timeout_ms

    def _receive_frames(self) -> list[Frame]:
        """Return a message's frames; all but the header are borrowed. Raise ``zmq.Again``."""
        # ``more`` of the frame costs a quarter of RCVMORE of the socket.
        frame = self._socket.recv(copy=False)
        self._header = frame
        frames: list[Frame] = [frame.bytes]
        while frame.more and len(frames) < _FRAMES_KEPT:
            frame = self._socket.recv(copy=False)
            frames.append(frame.buffer)
        self._has_more = frame.more
        return frames

    def _skip_rest(self) -> bool:
        """Skip frames of a message that has too many; return whether frames are left."""
        for _ in range(_FRAMES_SKIPPED):
            if not self._socket.recv(copy=False).more:
                self._has_more = False
                break
        return self._has_more


class ServerSocket(FramedSocket):
    """The server's end: listens on one or more addresses, and identifies each peer by a node.

    A node is a connection: the id that the peer announced, which only this peer knows, and the
    number of the connection. So an answer reaches only the sender of its request. With
    ``keys`` every TCP address requires them; Unix sockets, for this host's processes, never do. A
    peer may send frames of ``max_array_bytes``; ``dist_net.wire.connections`` disconnects a peer
    that sends more, and one of those that send more than ``max_unread_bytes`` together. Peers
    connect to ``contact_addresses``, in the order of ``listen``, which contain the ports that the
    system chose. Raise ``AddressError``, and ``InsecureAddressError`` for a TCP address beyond
    loopback without keys.
    """

    def __init__(
        self,
        listen: Sequence[str],
        keys: ServerKeys | None = None,
        max_array_bytes: int = MAX_ARRAY_BYTES,
        max_unread_bytes: float = math.inf,
    ) -> None:
        addresses = [listen_address(text) for text in listen]
        for address in addresses:
            require_keys(address, keys, "listen on")
        super().__init__(zmq.ROUTER, max_array_bytes)
        self._allow_list = None if keys is None else AllowList(keys)
        self._overhead_bytes = 0 if keys is None else CURVE_OVERHEAD_BYTES
        self._socket_files: list[Path] = []
        self._leaving: dict[bytes, zmq.MessageTracker] = {}
        # Two messages: one in flight, and one in the server's queue.
        of_each = 2 * (MAX_HEADER_BYTES + max_array_bytes)
        self._connections = Connections(self._socket, of_each, max_unread_bytes, self._allow_list)
        self._connections.start()
        try:
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            # A peer that connects again need not wait until its former connection is closed.
            self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
            # Options apply to later binds: Unix sockets first, then addresses that require keys.
            bound = {address: self._bind(address) for address in addresses if not address.is_tcp}
            self._socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
            if keys is not None:
                secure_server(self._socket, keys)
            bound |= {address: self._bind(address) for address in addresses if address.is_tcp}
        except BaseException:
            self.close()
            raise
        self.contact_addresses = tuple(bound[address] for address in addresses)

    def receive(self, timeout_s: float) -> tuple[bytes, Message] | None:
        """Return the next message and the node that sent it, or None after the timeout.

        A message that is not of this protocol, or that the peer's role does not allow, is logged
        and answered with ``Refuse``; then None is returned, too. Arrays are read-only views.
        """
        if self._has_more and self._skip_rest():
            return None
        self._set_deadline(timeout_s)
        try:
            routing_id = self._socket.recv()
        except zmq.Again:
            return None
        return self._decoded(routing_id)

    def waiting(self, limit: int) -> Iterator[tuple[bytes, Message]]:
        """Yield at most ``limit`` messages, as ``receive`` returns them, without waiting."""
        for _ in range(limit):
            if self._has_more and self._skip_rest():
                return
            try:
                routing_id = self._socket.recv(NO_WAIT)
            except zmq.Again:
                return
            received = self._decoded(routing_id)
            if received is not None:
                yield received

    def _decoded(self, routing_id: bytes) -> tuple[bytes, Message] | None:
        """Decode the rest of a message, and check that its sender may send it; None if not."""
        frames = self._receive_frames()
        assert self._header is not None
        key = ""  # of a process of this host, without keys
        if self._allow_list is not None:
            with suppress(zmq.ZMQError):
                key = str(self._header.get("User-Id"))  # Z85
        connection = self._connections.heard(self._header.get(_SOURCE), key)
        if key and not connection:  # it was closed meanwhile: another peer may take its id
            return None
        node = routing_id + _NUMBER.pack(connection)
        try:
            message = decode(frames)
        except ProtocolError as error:
            logger.warning("undecodable_message node=%s error=%s", node.hex(), error)
            self.send(node, Refuse(str(error), may_rejoin=False))
            return None
        allow_list = self._allow_list if key else None
        roles = None if allow_list is None else allow_list.roles_of(key)
        refusal = None if roles is None else role_refusal(roles, type(message))
        if refusal is not None:
            logger.warning("role_refused node=%s reason=%s", node.hex(), refusal)
            self.send(node, Refuse(refusal, may_rejoin=False))
            return None
        if isinstance(message, Join | Follow):
            message = message._replace(public_key=key)
        if isinstance(message, Enroll):
            answer: Message = Refuse("this server uses no keys and serves only its own host", False)
            if allow_list is not None:
                answer = enroll(allow_list.directory, key.encode(), message, time.time())
            self.send(node, answer)
            return None
        return node, message

    def may_follow(self, key: str) -> bool:
        """Return whether a public key is a standby's; processes of this host have none, ""."""
        return not key or self._allow_list is None or STANDBY in self._allow_list.roles_of(key)

    def send(self, node: bytes, message: Message) -> bool:
        """Queue a message without waiting; arrays are copied.

        Return False if the node is gone or its queue is full. If a message cannot be encoded, log
        the error and send a ``Refuse`` instead, because the node expects a reply.
        """
        try:
            frames = encode(message)
        except ProtocolError as error:
            logger.error("unsendable_message node=%s error=%s", node.hex(), error)
            frames = encode(Refuse(str(error), may_rejoin=False))
        return self._queue(node, *frames)

    def send_one(self, node: bytes, message: Message) -> bool:
        """Queue a large message, as ``send`` does, without a copy: its arrays must not change.

        Also return False until the node has received the previous large message, so that replies to
        a peer that does not read do not accumulate.
        """
        self._leaving = {peer: last for peer, last in self._leaving.items() if not last.done}
        if node in self._leaving:
            return False
        header, *arrays = encode(message)
        frames = [zmq.Frame(array, copy=False, track=True) for array in arrays]
        if not self._queue(node, header, *frames):
            return False
        self._leaving[node] = zmq.MessageTracker(*(frame.tracker for frame in frames))
        return True

    def _queue(self, node: bytes, *frames: Frame | zmq.Frame) -> bool:
        (number,) = _NUMBER.unpack_from(node, -_NUMBER.size)
        connection = self._connections.find(number)
        if number and connection is None:
            return False
        try:
            self._send_frames(node[: -_NUMBER.size], *frames)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            return False
        if connection is not None:
            for frame in frames:
                size = len(frame) + self._overhead_bytes
                connection.sent_bytes += size + (2 if size < 256 else 9)
        return True

    def has_unread(self, node: bytes) -> bool:
        """Return whether bytes are on their way to the node's host, as far as that is known."""
        return self._connections.has_unread(*_NUMBER.unpack_from(node, -_NUMBER.size))

    def answer_failure(self, node: bytes, message: Message) -> None:
        """Log the current exception, which this message caused, and refuse the message.

        For a server's loop, which a single peer's message must not end. The failure is the
        server's own, such as too little memory, so the peer may try again.
        """
        kind = type(message).__name__
        logger.exception("message_failed node=%s kind=%s", node.hex(), kind)
        self.send(node, Refuse(f"handling {kind} failed: see the server's log", may_rejoin=True))

    def close(self) -> None:
        """Send the last messages for at most half a second, then close."""
        while self._socket_files:  # ZeroMQ leaves them behind
            self._socket_files.pop().unlink(missing_ok=True)
        self._connections.stop()
        super().close()

    def _bind(self, address: Address) -> str:
        """Listen on an address; return the address that peers connect to."""
        has_file = not address.is_tcp and not address.host.startswith("@")
        if has_file:
            refuse_taken_path(address)
        self._socket.setsockopt(zmq.IPV6, int(":" in address.host))
        try:
            self._socket.bind(address.endpoint)
        except zmq.ZMQError as error:
            raise listen_error(address, error.errno or 0) from error
        if has_file:
            self._socket_files.append(Path(address.host).absolute())
        if not address.is_tcp:
            return address.endpoint
        port = self._socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        if address.host in ("0.0.0.0", "::"):
            return f"tcp://{socket.gethostname()}:{port}"
        return f"{address.endpoint.rpartition(':')[0]}:{port}"


class ServerAccess(NamedTuple):
    """The address of a server, and a key pair that it admits; None if it requires no keys."""

    address: str
    keys: PeerKeys | None


def access_with(pair: PeerKeys | ServerKeys | None, place: Standby) -> ServerAccess:
    """Return the access to the server at a place, which admits this key pair."""
    keys = None if pair is None else PeerKeys(place.public_key.encode(), pair.public, pair.secret)
    return ServerAccess(place.address, keys)


def access_to(standby: Standby | None, server: ServerAccess) -> ServerAccess:
    """Return the access to a standby of ``server``, with the same key pair; None: to ``server``."""
    return server if standby is None else access_with(server.keys, standby)


class ServerConnection(Protocol):
    """A peer's connection to its server, such as a ``ClientSocket``."""

    def send(self, message: Message) -> None: ...
    def receive(self, timeout_s: float) -> Message | None: ...
    def abandon(self) -> None: ...
    def close(self) -> None: ...
    def no_answer(self, waited_s: float) -> NoAnswerError: ...


class ClientSocket(FramedSocket):
    """A worker's or an observer's end: connected to one server.

    It connects in the background, and again after a lost connection. Unless a server was reached,
    hang-ups are tolerated for ``hang_ups_s`` only. Raise ``AddressError``, and
    ``InsecureAddressError`` for a TCP address beyond loopback without keys.
    """

    def __init__(
        self,
        address: str,
        keys: PeerKeys | None = None,
        max_array_bytes: int = MAX_ARRAY_BYTES,
        hang_ups_s: float = SETTLED_S,
    ) -> None:
        self._address = contact_address(address)
        require_keys(self._address, keys, "connect to")
        self._has_keys = keys is not None and self._address.is_tcp
        super().__init__(zmq.DEALER, max_array_bytes)
        self._socket.setsockopt(zmq.ROUTING_ID, os.urandom(16))  # which nobody can guess
        self._socket.setsockopt(zmq.IPV6, int(":" in self._address.host))
        if keys is not None and self._address.is_tcp:
            secure_client(self._socket, keys)
        self._hang_ups_until_s = time.monotonic() + hang_ups_s
        self._handshakes = Handshakes(self._socket)
        self._socket.connect(self._address.endpoint)

    @property
    def address(self) -> str:
        """The server's address, as passed to the constructor."""
        return self._address.text

    @property
    def contact(self) -> Contact | None:
        """The state of the connection; None until it is known."""
        self._handshakes.take_in()
        return next(iter(self._handshakes.contacts.values()), None)

    def send(self, message: Message) -> None:
        """Queue a message without waiting; arrays are copied.

        Raise ``NoAnswerError`` if the queue is full, or gone after ``close``, and
        ``AccessRefusedError`` as ``receive`` does.
        """
        try:
            self._send_frames(*encode(message))
        except zmq.Again as error:
            self._require_access()
            raise NoAnswerError(
                f"the server at {self._address.text} has not read the last "
                f"{HIGH_WATER_MARK} messages: see its log"
            ) from error
        except zmq.ZMQError as error:
            raise NoAnswerError(f"the connection to {self._address.text} is closed") from error

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message, or None after the timeout. Arrays in it are read-only views.

        If this process was stopped during the wait, so was ZeroMQ's thread, which may hold a
        message: then the wait is extended by ``RECEIVE_AGAIN_S``. Raise ``AccessRefusedError`` if
        the server does not accept the connection, ``ProtocolError`` if it is another server.
        """
        stopped_s = time.monotonic() + timeout_s + STOPPED_S
        for wait_s in (timeout_s, RECEIVE_AGAIN_S):
            self._set_deadline(wait_s)
            with suppress(zmq.Again):
                return decode(self._receive_frames())
            if time.monotonic() <= stopped_s:
                break
        self._require_access()
        return None

    def _require_access(self) -> None:
        """Raise ``AccessRefusedError`` if no answer will ever arrive on this socket."""
        contact = self.contact
        is_hung_up = contact is Contact.HUNG_UP and not self._handshakes.was_reached
        if contact in FINAL or (is_hung_up and time.monotonic() > self._hang_ups_until_s):
            raise AccessRefusedError(
                f"no access to {self._address.text}: {silence_cause(contact, self._has_keys)}"
            )

    def abandon(self) -> None:
        """Close at once, and discard unsent messages."""
        if not self._socket.closed:
            self._socket.setsockopt(zmq.LINGER, 0)
        self.close()

    def close(self) -> None:
        """Send the last messages for at most half a second, then close."""
        if not self._socket.closed:
            self._handshakes.__exit__()
        super().close()

    def no_answer(self, waited_s: float) -> NoAnswerError:
        """Return the error for a server that was silent for ``waited_s``, with its likely cause."""
        until_s = time.monotonic() + SETTLED_S
        while self.contact in (None, Contact.OPEN) and (left_s := until_s - time.monotonic()) > 0:
            self._handshakes.take_in(left_s)
        cause = silence_cause(self.contact, self._has_keys)
        waited = f"{round(waited_s, 1):g} s"
        return NoAnswerError(f"no answer from {self._address.text} in {waited}; {cause}")
