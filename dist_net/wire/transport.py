"""Sockets that carry messages: one `ServerSocket`, and a `ClientSocket` at each peer.

Thin shells over ZeroMQ (ROUTER and DEALER), which only `dist_net.wire` imports. Nothing here waits
without a deadline. A socket belongs to the thread that made it.
"""

import errno
import logging
import math
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import zmq

from dist_net.errors import NoAnswerError, ProtocolError
from dist_net.vector import Vector
from dist_net.wire.address import (
    Address,
    contact_address,
    listen_address,
    listen_error,
    refuse_taken_path,
    require_keys,
    silence_cause,
)
from dist_net.wire.codec import (
    MAX_ARRAY_BYTES,
    MAX_HEADER_BYTES,
    MAX_PAYLOADS,
    Frame,
    decode,
    encode,
)
from dist_net.wire.connections import Connections
from dist_net.wire.invitation import enrol
from dist_net.wire.messages import Enrol, Message, Refuse
from dist_net.wire.security import (
    AllowList,
    PeerKeys,
    ServerKeys,
    role_refusal,
    secure_client,
    secure_server,
)

logger = logging.getLogger(__name__)

# Messages that wait for one peer: very few, as every request has one reply; but ZeroMQ looks only
# about once a millisecond at how many have left, so 16 is too close.
HIGH_WATER_MARK = 64
HANDSHAKE_TIMEOUT_MS = 10_000
STOOD_STILL_S = 0.5  # longer than asked to wait: this process was stopped, or had no core
LOOK_AGAIN_S = 0.2

# The kernel probes a TCP connection, and closes it when the other host has answered nothing for
# five seconds. Why not ZeroMQ heartbeats: docs/decisions/0013-the-kernel-notices-who-vanished.md
_NOTICES_WHO_VANISHED = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 2,
    zmq.TCP_KEEPALIVE_INTVL: 1,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 5_000,  # the same where something is on its way, in milliseconds
}

_DOMAIN = b"dist-net"  # with one, ZeroMQ asks `Connections` who may come in
_LINGER_MS = 500  # for the last messages of a closing socket
# A header, its payloads, and one more for the codec to refuse.
_FRAMES_KEPT = MAX_PAYLOADS + 2
# Of a message with more frames, skipped at a time: 10 ms, so that a loop goes on meanwhile. Until
# they have been skipped, ZeroMQ gives no other message.
_FRAMES_SKIPPED = 10_000

# As plain integers: an operation on ZeroMQ's enumerations costs a microsecond.
NO_WAIT = int(zmq.NOBLOCK)
_SEND_LAST = NO_WAIT
_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_SOURCE = int(zmq.SRCFD)  # the descriptor of the connection that a frame came by


class FramedSocket:
    """A ZeroMQ socket in a context of its own."""

    def __init__(self, kind: int, max_array_bytes: int, high_water_mark: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, high_water_mark)
        self._socket.setsockopt(zmq.RCVHWM, high_water_mark)
        for option, value in _NOTICES_WHO_VANISHED.items():
            self._socket.setsockopt(option, value)
        # ZeroMQ drops a peer that announces a longer frame, before it reserves memory for it.
        self._socket.setsockopt(zmq.MAXMSGSIZE, max(max_array_bytes, MAX_HEADER_BYTES))
        self._receive_timeout_ms = -1
        self._header: zmq.Frame | None = None  # of the last message; it knows who sent it
        self._has_more = False  # frames of the last message, which are to be skipped
        self._lent: dict[int, tuple[Vector, zmq.Frame]] = {}

    def close(self) -> None:
        """Close; waits a moment, and no longer, for the last messages to leave."""
        self._socket.close()
        self._header = None
        self._context.term()
        self._lent.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """A file descriptor for an event loop: it becomes readable when `has_message` may change.

        It says so once: after it, and after each send, receive until there is no message.
        """
        return int(self._socket.getsockopt(zmq.FD))

    def has_message(self) -> bool:
        return bool(int(self._socket.getsockopt(_EVENTS)) & _POLLIN)

    def lend(self, vectors: Iterable[Vector]) -> None:
        """Send these from where they lie from now on, without a copy.

        Once sent, one must stay as it is until its receiver has answered. PyZMQ starts a thread
        for such memory, one for the whole process.
        """
        for vector in vectors:
            if id(vector) not in self._lent:
                self._lent[id(vector)] = vector, zmq.Frame(vector.data, copy=False)

    def _send_frames(self, *frames: Frame | zmq.Frame) -> None:
        """Queue the frames as one message, copied unless they are lent.

        Raises `zmq.Again` if there is no room.
        """
        sent = [self._lent_frame(frame) for frame in frames] if self._lent else frames
        for frame in sent[:-1]:
            self._socket.send(frame, _SEND_MORE)
        self._socket.send(sent[-1], _SEND_LAST)

    def _lent_frame(self, frame: Frame | zmq.Frame) -> Frame | zmq.Frame:
        lent = self._lent.get(id(frame.obj)) if isinstance(frame, memoryview) else None
        return frame if lent is None else lent[1]

    def _set_deadline(self, timeout_s: float) -> None:
        """Bound the next receive.

        A blocking receive with RCVTIMEO costs fewer system calls than a poll and a receive: a
        round trip over ipc takes a fifth less time.
        """
        timeout_ms = max(0, math.ceil(timeout_s * 1000))
        if timeout_ms != self._receive_timeout_ms:
            self._socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
            self._receive_timeout_ms = timeout_ms

    def _receive_frames(self) -> list[Frame]:
        """A message's frames; all but the header are borrowed from ZeroMQ. Raises `zmq.Again`."""
        # Asking the frame for `more` costs a quarter of asking the socket for RCVMORE.
        frame = self._socket.recv(copy=False)
        self._header = frame
        frames: list[Frame] = [frame.bytes]
        while frame.more and len(frames) < _FRAMES_KEPT:
            frame = self._socket.recv(copy=False)
            frames.append(frame.buffer)
        self._has_more = frame.more
        return frames

    def _skip_rest(self) -> bool:
        """Skip frames of a message that has too many; return whether there are still more."""
        for _ in range(_FRAMES_SKIPPED):
            if not self._socket.recv(copy=False).more:
                self._has_more = False
                break
        return self._has_more


class ServerSocket(FramedSocket):
    """The server's end: listens on one or more addresses, and knows its peers as nodes.

    With ``keys`` every TCP address demands them; Unix sockets are for this host's processes and
    never do. ``max_array_bytes`` bounds a frame that a peer sends, and ``most_arrays`` how many of
    that size are in a message; ``high_water_mark`` how many messages may wait for a peer. A peer
    that sends more is disconnected, see `dist_net.wire.connections`. Peers connect to one of
    ``contact_addresses``, in the order of ``listen``, with the ports that were chosen. Raises
    `AddressError`, `InsecureAddressError` for a TCP address beyond loopback without keys, and
    `ListenError`.
    """

    def __init__(
        self,
        listen: Sequence[str],
        keys: ServerKeys | None = None,
        max_array_bytes: int = MAX_ARRAY_BYTES,
        high_water_mark: int = HIGH_WATER_MARK,
        most_arrays: int = 1,
    ) -> None:
        addresses = [listen_address(text) for text in listen]
        for address in addresses:
            require_keys(address, keys, "listen on")
        super().__init__(zmq.ROUTER, max_array_bytes, high_water_mark)
        self._allow_list = None if keys is None else AllowList(keys.allow_list)
        self._socket_files: list[Path] = []
        self._leaving: dict[bytes, zmq.MessageTracker] = {}
        # Two messages: one that is on its way, and one that waits to be handled.
        most_unread_bytes = 2 * (MAX_HEADER_BYTES + most_arrays * max_array_bytes)
        self._connections = Connections(
            self._socket, most_unread_bytes, max_array_bytes, self._allow_list
        )
        self._connections.start()
        try:
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_MS)
            # Options hold for later binds: Unix sockets come first, then those that want keys.
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
        """The next message and the node that sent it; None when none came in time.

        A message that is not of this protocol, or that the peer's role does not allow, is logged
        and answered with `Refuse`; then the result is None, too. Arrays are read-only views.
        """
        if self._has_more and self._skip_rest():
            return None
        self._set_deadline(timeout_s)
        try:
            node = self._socket.recv()
        except zmq.Again:
            return None
        return self._decoded(node)

    def waiting(self, most: int) -> Iterator[tuple[bytes, Message]]:
        """The messages that can be received without waiting, ``most`` of them at most.

        As ``receive`` gives them, one after the other; for an event loop: see ``fileno``.
        """
        for _ in range(most):
            if self._has_more and self._skip_rest():
                return
            try:
                node = self._socket.recv(NO_WAIT)
            except zmq.Again:
                return
            received = self._decoded(node)
            if received is not None:
                yield received

    def _decoded(self, node: bytes) -> tuple[bytes, Message] | None:
        """The rest of a message, decoded; None if it was refused."""
        frames = self._receive_frames()
        assert self._header is not None
        key = self._key_of(self._header)
        self._connections.heard(self._header.get(_SOURCE), key)
        return self._understood(node, key, frames)

    def _understood(
        self, node: bytes, key: str, frames: Sequence[Frame]
    ) -> tuple[bytes, Message] | None:
        """Decode a message and check that ``key`` may send it; None if it was refused."""
        try:
            message = decode(frames)
        except ProtocolError as error:
            logger.warning("event=undecodable_message node=%s error=%s", node.hex(), error)
            self.send(node, Refuse(str(error), may_rejoin=False))
            return None
        refusal = self._role_refusal(key, type(message))
        if refusal is not None:
            logger.warning("event=role_refused node=%s reason=%s", node.hex(), refusal)
            self.send(node, Refuse(refusal, may_rejoin=False))
            return None
        if isinstance(message, Enrol):
            self.send(node, self._enrol(key, message))
            return None
        return node, message

    def _enrol(self, key: str, enrolling: Enrol) -> Message:
        """Let in the key of somebody who has a token; see `dist_net.wire.invitation`."""
        if self._allow_list is None or not key:
            return Refuse("this server lets everybody of its host in without keys", False)
        return enrol(self._allow_list.directory, key.encode(), enrolling, time.time())

    def _key_of(self, header: zmq.Frame) -> str:
        """The key (Z85) of who sent a message.

        "": it came by an address that demands none, and so from this host.
        """
        if self._allow_list is None:
            return ""
        try:
            return str(header.get("User-Id"))
        except zmq.ZMQError:
            return ""

    def _role_refusal(self, key: str, kind: type[Message]) -> str | None:
        """Why a peer may not send such a message; None: it may."""
        if self._allow_list is None or not key:
            return None
        return role_refusal(self._allow_list.roles_of(key), kind)

    def send(self, node: bytes, message: Message) -> bool:
        """Queue a message, never waiting; arrays are copied, unless they are lent.

        Returns False when it goes nowhere: the node is gone, or takes no more. If a message cannot
        be encoded, that is logged, and the node, which waits for an answer, is told instead.
        """
        try:
            frames = encode(message)
        except ProtocolError as error:
            logger.error("event=unsendable_message node=%s error=%s", node.hex(), error)
            frames = encode(Refuse(str(error), may_rejoin=False))
        return self._queue(node, *frames)

    def send_one(self, node: bytes, message: Message) -> bool:
        """Queue a large message, as `send` does, from where its arrays lie: they must not change.

        Also returns False while the node has yet to take the last one: what a peer asks for and
        does not read must not pile up.
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
        try:
            self._send_frames(node, *frames)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            return False
        return True

    def answer_failure(self, node: bytes, message: Message) -> None:
        """Log the exception that this message led to, and tell its sender.

        For a server's loop, which a single peer's message must not end. The failure is the
        server's own, such as too little memory, so the peer may try again.
        """
        kind = type(message).__name__
        logger.exception("event=message_failed node=%s kind=%s", node.hex(), kind)
        self.send(node, Refuse(f"handling {kind} failed: see the server's log", may_rejoin=True))

    def close(self) -> None:
        """Close; waits a moment, and no longer, for the last messages to leave."""
        while self._socket_files:  # ZeroMQ leaves them behind
            self._socket_files.pop().unlink(missing_ok=True)
        self._connections.stop()
        super().close()

    def _bind(self, address: Address) -> str:
        """Listen on an address; returns where peers connect to."""
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


class ClientSocket(FramedSocket):
    """A worker's or an observer's end: connected to one server.

    Connecting happens in the background, and again after a loss. Raises `AddressError`, and
    `InsecureAddressError` for a TCP address beyond loopback without keys.
    """

    def __init__(
        self,
        address: str,
        keys: PeerKeys | None = None,
        max_array_bytes: int = MAX_ARRAY_BYTES,
        high_water_mark: int = HIGH_WATER_MARK,
    ) -> None:
        self._address = contact_address(address)
        require_keys(self._address, keys, "connect to")
        self._has_keys = keys is not None and self._address.is_tcp
        super().__init__(zmq.DEALER, max_array_bytes, high_water_mark)
        self._high_water_mark = high_water_mark
        self._socket.setsockopt(zmq.IPV6, int(":" in self._address.host))
        if keys is not None and self._address.is_tcp:
            secure_client(self._socket, keys)
        self._socket.connect(self._address.endpoint)

    @property
    def address(self) -> str:
        """Where it connects to, as it was given."""
        return self._address.text

    def send(self, message: Message) -> None:
        """Queue a message, never waiting; arrays are copied, unless they are lent.

        Raises `NoAnswerError` when the server has long not taken any.
        """
        try:
            self._send_frames(*encode(message))
        except zmq.Again as error:
            raise NoAnswerError(
                f"the server at {self._address.text} has not taken the last "
                f"{self._high_water_mark} messages: look at its log"
            ) from error

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None when none came in time. An array in it is a read-only view.

        If this process stood still meanwhile, a message that came is still on its way through
        ZeroMQ's thread, which stood still too: then it waits ``LOOK_AGAIN_S`` more.
        Raises `ProtocolError` when the server does not speak this protocol.
        """
        began_s = time.monotonic()
        frames = self._frames_within(timeout_s)
        if frames is None and time.monotonic() - began_s > timeout_s + STOOD_STILL_S:
            frames = self._frames_within(LOOK_AGAIN_S)
        return None if frames is None else decode(frames)

    def _frames_within(self, timeout_s: float) -> list[Frame] | None:
        self._set_deadline(timeout_s)
        try:
            return self._receive_frames()
        except zmq.Again:
            return None

    def abandon(self) -> None:
        """Close at once: what has not left by now is dropped."""
        self._socket.setsockopt(zmq.LINGER, 0)
        self.close()

    def no_answer(self, waited_s: float) -> NoAnswerError:
        """The error for a server that was silent for so long; looks once, briefly, for why."""
        cause = silence_cause(self._address, self._has_keys)
        return NoAnswerError(f"no answer from {self._address.text} in {waited_s:g} s; {cause}")
