"""Connections by the events that ZeroMQ reports: a client's states, and the limits of a server's.

``Handshakes`` has the state of a client socket's connection. ZeroMQ never connects again in a state
of FINAL. A restarted server may be NOBODY for a second.

ZeroMQ itself accepts connections until the process has no free descriptor, and stores the frames of
a message until the last frame arrives. ``Connections`` is a thread that closes the connections that
exceed a limit of a server: of their number, or of the bytes of each. It also checks the key of each
new peer, and closes the connections of revoked keys. It numbers the connections, so that a server
can bind an answer to the connection of its request.
See docs/decisions/0019-limits-for-strangers.md.
"""

import math
import resource
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from logging import getLogger
from pathlib import Path
from typing import Any

import zmq

from dist_net.wire.event_rates import EventRates
from dist_net.wire.security import ADMITTED, TRY_AGAIN, AllowList


class Contact(Enum):
    """The state of the connection to one address."""

    NOBODY = auto()  # no connection can be made to the address
    OPEN = auto()  # a process listens; the handshake is not over
    REACHED = auto()  # the server admits this key
    HUNG_UP = auto()  # it closed the connection: its own keys are others
    REFUSED = auto()  # it does not admit this key
    MISMATCH = auto()  # one side uses keys and the other does not
    STRANGER = auto()  # disconnected while open: it is not a dist-net server


FINAL = frozenset({Contact.REFUSED, Contact.MISMATCH, Contact.STRANGER})
FAILED = FINAL | {Contact.NOBODY, Contact.HUNG_UP}
SETTLED_S = 1.0
"""A server that was never reached and still hangs up, or does not listen, after this time has other
keys, or has ended."""

_STATES: Mapping[int, Contact] = {
    zmq.EVENT_CLOSED: Contact.NOBODY,
    zmq.EVENT_CONNECTED: Contact.OPEN,
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Contact.REACHED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Contact.HUNG_UP,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Contact.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Contact.MISMATCH,
}
_CLOSES = "the server closes the connection: "
_NO_SERVER = "it is not a dist-net server: the port may be wrong"
_CAUSES: Mapping[Contact | None, str] = {
    None: "its host does not answer: it is down, or the address is wrong",
    Contact.NOBODY: "no server listens on it, or its host is unreachable: the server has ended or "
    "not begun, or the address is wrong",
    Contact.OPEN: "a process listens, and does not answer: it is stopped, or no dist-net server",
    Contact.REACHED: "the server is busy or stuck: see its log",
    Contact.REFUSED: "the server refuses these keys: they were revoked, or its workers, clients or "
    "operators directory never contained this key",
    Contact.MISMATCH: "the server requires keys: pass --keys DIR",
    Contact.HUNG_UP: f"{_CLOSES}it requires keys (pass --keys DIR), or {_NO_SERVER}",
}
_CAUSES_WITH_KEYS = {
    **_CAUSES,
    Contact.MISMATCH: "the server uses no keys: start it with --keys, or this process without",
    Contact.HUNG_UP: f"{_CLOSES}its keys are not those of server.key here, it uses no keys, or "
    f"{_NO_SERVER}",
}
_EVENT = struct.Struct("=Hi")  # zmq_socket_monitor(3): the event and a descriptor
_NO_WAIT = int(zmq.NOBLOCK)


class Handshakes(AbstractContextManager["Handshakes"]):
    """Watch ``socket``, which is not connected yet, until the context is left.

    ``contacts``: the last state of each address; ``was_reached``: whether any server was.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.contacts: dict[str, Contact] = {}
        self.was_reached = False
        self._socket = socket
        socket.monitor("inproc://handshakes", sum(_STATES) | zmq.EVENT_DISCONNECTED)
        self._monitor = socket.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # an event that does not fit would block ZeroMQ
        self._monitor.connect("inproc://handshakes")

    def __exit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self._monitor.close()

    def take_in(self, timeout_s: float = 0.0) -> None:
        """Process the events so far; wait up to ``timeout_s`` for a first one."""
        if timeout_s:
            self._monitor.poll(math.ceil(timeout_s * 1000))
        with suppress(zmq.Again):
            while True:
                what, endpoint = self._monitor.recv_multipart(_NO_WAIT)
                event, address = _EVENT.unpack(what)[0], endpoint.decode()
                before = self.contacts.get(address)
                if event in _STATES:
                    self.contacts[address] = _STATES[event]
                elif before is Contact.OPEN:
                    self.contacts[address] = Contact.STRANGER
                self.was_reached |= self.contacts.get(address) is Contact.REACHED


def silence_cause(contact: Contact | None, has_keys: bool) -> str:
    """Return the likely cause of a missing reply, and the remedy."""
    # Different keys cause one or the other, depending on which side reads first.
    if contact is Contact.STRANGER:
        contact = Contact.HUNG_UP
    return (_CAUSES_WITH_KEYS if has_keys else _CAUSES)[contact]


logger = getLogger(__name__)

_ADDRESS = "inproc://connections"
_ADMISSIONS = "inproc://zeromq.zap.01"  # where ZeroMQ requests admissions (ZAP, RFC 27)
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED

MAX_HANDSHAKE_BYTES = 4096  # a peer's handshake takes less than 1000
# With keys, a server sends no more than this to a stranger: a greeting of 64 bytes, WELCOME of 170
# and ERROR of 12 (RFC 37, RFC 26). An admitted peer receives READY of 67 or more instead of ERROR.
_SENT_TO_STRANGERS = 64 + 170 + 12
# A check takes about 5 us per connection, in total at most 1 % of a core.
_CHECK_EVERY_S = 0.02
_CHECK_S_PER_CONNECTION = 0.0005
_REFRESH_KEYS_EVERY_S = 1.0
# Of the holders of one key together, or of all peers without keys. A peer that announces the id
# which ZeroMQ assigns next would end this process. It cannot know the id, and with these
# limits of attempts and connections it does not find one by chance within hours.
_ADMISSIONS_PER_S = 100.0
_ADMISSIONS_AT_ONCE = 1024
MAX_CONNECTIONS = 1024
# ZeroMQ takes 64 bytes for a frame of 2, and reports neither. So while a message is incomplete,
# this process may grow by this much, a multiple of all unread bytes, and one of the kernel's huge
# pages for each connection. With keys, encryption makes the smallest frame 35 bytes long.
MAX_GROWTH_BYTES = 64 * 2**20
_GROWTH_OF_UNREAD = 3
_HUGE_PAGE_BYTES = 2 * 2**20

_RESET = struct.pack("=ii", 1, 0)  # socket(7), SO_LINGER: close at once, and discard unsent data
_TCP_INFO = struct.Struct("<120xQQ")  # linux/tcp.h: tcpi_bytes_acked and tcpi_bytes_received


def transferred_bytes(descriptor: int) -> tuple[int, int]:
    """Return the bytes that a peer acknowledged and sent; zeros without TCP_INFO or a socket."""
    try:
        with _borrowed(descriptor) as borrowed:
            info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            return _TCP_INFO.unpack(info)
    except (AttributeError, OSError, struct.error):
        return 0, 0


def max_connections() -> int:
    """Return the number of connections that a socket may have: a quarter of the descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_CONNECTIONS, max(16, descriptors // 4))


@dataclass
class TcpConnection:
    """A TCP connection; ``sent_bytes``: queued for the peer in all, as they travel."""

    number: int
    descriptor: int
    peer: tuple[Any, ...]
    is_admitted: bool = False
    key: str = ""
    read_bytes: int = 0  # received in all at the time of the last whole message
    unread_bytes: int = 0
    sent_bytes: int = 0
    resident_bytes: int = 0  # of this process, before the message that is incomplete
    max_growth_bytes: int = 0
    is_revoked: bool = False


class Connections(threading.Thread):
    """Limit the connections of ``watched``, a socket that is not bound yet, until ``stop``.

    A connection may send ``max_unread_bytes`` ahead of the messages that the server has received,
    and all together ``max_total_bytes``: then the connection that is furthest ahead is dropped.
    If ``allow_list`` is given, a peer must have one of its keys, and may send
    ``MAX_HANDSHAKE_BYTES`` until its key is admitted.
    """

    def __init__(
        self,
        watched: zmq.Socket[bytes],
        max_unread_bytes: int,
        max_total_bytes: float,
        allow_list: AllowList | None,
    ) -> None:
        super().__init__(name="connections", daemon=True)
        self._watched = watched
        self._allow_list = allow_list
        self._max_unread_bytes = max_unread_bytes
        self._max_total_bytes = max_total_bytes
        self._max_connections = max_connections()
        self._open: dict[int, TcpConnection] = {}  # by ZeroMQ's descriptor, oldest first
        self._numbers = count(1)
        self._numbered: dict[int, TcpConnection] = {}
        self._heard: dict[int, str] = {}
        self._admission_rates = EventRates()
        self._postponed = self._strangers = 0
        self._resident_bytes = 0
        watched.monitor(_ADDRESS, _EVENTS)
        self._monitor = watched.context.socket(zmq.PAIR)
        self._monitor.connect(_ADDRESS)
        self._admissions = watched.context.socket(zmq.REP)
        self._admissions.bind(_ADMISSIONS)

    def heard(self, descriptor: int, key: str) -> int:
        """Record that a whole message arrived on a connection; called by the socket's thread.

        ``key`` is the peer's public key, "" if it needs none. Return the connection's number, which
        no other connection has; 0 for a Unix socket, and for a connection that is already closed.
        """
        self._heard[descriptor] = key
        connection = self._open.get(descriptor)
        if connection is None:
            return 0
        if not connection.sent_bytes:  # the handshake, which the peer has read by now
            connection.sent_bytes, _ = transferred_bytes(descriptor)
        return connection.number

    def find(self, number: int) -> TcpConnection | None:
        return self._numbered.get(number)

    def has_unread(self, number: int) -> bool:
        """Return whether the peer has yet to acknowledge sent bytes; False if that is unknown."""
        connection = self._numbered.get(number)
        if connection is None:
            return False
        read_bytes, _ = transferred_bytes(connection.descriptor)
        return 0 < read_bytes < connection.sent_bytes

    def stop(self) -> None:
        """End the thread; called by the socket's thread, before the socket is closed."""
        self._watched.disable_monitor()
        self.join()

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._admissions, zmq.POLLIN)
        checked_s = refreshed_s = 0.0
        with self._monitor, self._admissions:
            while True:
                pause_s = _CHECK_EVERY_S + _CHECK_S_PER_CONNECTION * len(self._open)
                ready = dict(poller.poll(math.ceil(1000 * pause_s) if self._open else None))
                # First: a peer is not admitted before its connection is known.
                if not self._take_in_events():
                    return
                if self._admissions in ready:
                    self._admit()
                now = time.monotonic()
                if now >= checked_s + pause_s:
                    self._check()
                    checked_s = now
                if now >= refreshed_s + _REFRESH_KEYS_EVERY_S:
                    self._drop_revoked()
                    refreshed_s = now

    def _take_in_events(self) -> bool:
        """Process the monitor's events; return False if the watched socket is about to close."""
        with suppress(zmq.Again):
            while True:
                what, endpoint = self._monitor.recv_multipart(_NO_WAIT)
                event, descriptor = _EVENT.unpack(what)
                if event == zmq.EVENT_MONITOR_STOPPED:
                    return False
                if endpoint.startswith(b"tcp:"):  # a Unix socket is for this host's processes
                    self._take_in(event, descriptor)
        return True

    def _take_in(self, event: int, descriptor: int) -> None:
        if event == zmq.EVENT_DISCONNECTED:
            self._forget(descriptor)
        elif event == zmq.EVENT_ACCEPTED:
            if len(self._open) >= self._max_connections:
                self._make_room()
            self._heard.pop(descriptor, None)
            with suppress(OSError), _borrowed(descriptor) as connection:
                number, peer = next(self._numbers), connection.getpeername()
                self._forget(descriptor)
                opened = TcpConnection(number, descriptor, peer, resident_bytes=_resident_bytes())
                self._open[descriptor] = self._numbered[number] = opened

    def _forget(self, descriptor: int) -> TcpConnection | None:
        connection = self._open.pop(descriptor, None)
        if connection is not None:
            del self._numbered[connection.number]
        return connection

    def _admit(self) -> None:
        version, request, _, _, _, mechanism, *credentials = self._admissions.recv_multipart()
        status, user = ADMITTED, b""
        if self._allow_list is not None:
            status, user = self._allow_list.admission(mechanism, credentials)
        limits = _ADMISSIONS_PER_S, _ADMISSIONS_AT_ONCE
        if status == ADMITTED and self._admission_rates.wait_s(user, *limits, time.monotonic()):
            self._postponed += 1
            if self._postponed.bit_count() == 1:  # 1, 2, 4, 8, as below
                count, key = self._postponed, user.decode()
                logger.warning("admissions_limited count=%d key=%s", count, key)
            status, user = TRY_AGAIN, b""
        self._admissions.send_multipart([version, request, status, b"", user, b""])

    def _make_room(self) -> None:
        """Drop the oldest connection of a stranger, or else the newest of the commonest key."""
        keys: Counter[str] = Counter()
        for victim, connection in self._open.items():
            self._received_bytes(victim, connection)
            connection.key = self._heard.get(victim, connection.key)
            keys[connection.key] += 1
            if not connection.is_admitted:
                break
        else:
            (commonest, _), *_ = keys.most_common(1)
            victim = [at for at, each in self._open.items() if each.key == commonest][-1]
        self._drop(victim, f"more than {self._max_connections} connections")

    def _check(self) -> None:
        """Drop connections with too many bytes, or too many frames, of an incomplete message."""
        for descriptor, each in self._open.items():
            received_bytes = self._received_bytes(descriptor, each)
            if (key := self._heard.pop(descriptor, None)) is not None:
                each.key, each.read_bytes = key, received_bytes
            each.unread_bytes = received_bytes - each.read_bytes
        if self._allow_list is None:
            self._measure_growth()
        for descriptor, each in list(self._open.items()):
            is_known = each.is_admitted or self._allow_list is None
            if each.unread_bytes > (self._max_unread_bytes if is_known else MAX_HANDSHAKE_BYTES):
                reason = f"it sent {each.unread_bytes} bytes of an incomplete message"
                self._drop(descriptor, reason)
            elif self._resident_bytes - each.resident_bytes > each.max_growth_bytes:
                self._drop(descriptor, "it sent too many frames of an incomplete message")
        while sum(each.unread_bytes for each in self._open.values()) > self._max_total_bytes:
            most = max(self._open, key=lambda at: self._open[at].unread_bytes)
            self._drop(most, "incomplete messages fill the memory, and its is the largest")

    def _measure_growth(self) -> None:
        """Update the growth of this process while messages are incomplete, without keys."""
        self._resident_bytes = _resident_bytes()
        unread = [each.unread_bytes for each in self._open.values()]
        growth_bytes = MAX_GROWTH_BYTES + _GROWTH_OF_UNREAD * sum(unread)
        growth_bytes += _HUGE_PAGE_BYTES * sum(count > MAX_HANDSHAKE_BYTES for count in unread)
        for each in self._open.values():
            if each.unread_bytes <= MAX_HANDSHAKE_BYTES:
                each.resident_bytes, each.max_growth_bytes = self._resident_bytes, 0
            each.max_growth_bytes = max(each.max_growth_bytes, growth_bytes)

    def _received_bytes(self, descriptor: int, connection: TcpConnection) -> int:
        """Return how many bytes arrived, and record whether the peer is admitted.

        One system call returns both: an honest peer sends messages once it has acknowledged READY.
        """
        acknowledged_bytes, received_bytes = transferred_bytes(descriptor)
        connection.is_admitted |= (
            descriptor in self._heard or acknowledged_bytes > _SENT_TO_STRANGERS
        )
        return received_bytes

    def _drop_revoked(self) -> None:
        """Drop peers whose key was revoked by the last call; until then, replies report it."""
        if self._allow_list is None:
            return
        self._allow_list.refresh()
        for descriptor, each in list(self._open.items()):
            if each.is_revoked:
                self._drop(descriptor, "its key was revoked")
            each.is_revoked = each.key != "" and not self._allow_list.roles_of(each.key)

    def _drop(self, descriptor: int, reason: str) -> None:
        """Have ZeroMQ close a connection, by a reset: a peer that still sends would wait."""
        dropped = self._forget(descriptor)
        assert dropped is not None
        with suppress(OSError), _borrowed(descriptor) as connection:
            if connection.getpeername() == dropped.peer:  # otherwise the number was reused
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.shutdown(socket.SHUT_RDWR)
        peer = "{}:{}".format(*dropped.peer)
        if dropped.is_admitted:
            logger.warning("connection_dropped peer=%s reason=%s", peer, reason)
            return
        self._strangers += 1
        if self._strangers.bit_count() == 1:  # 1, 2, 4, 8: a flood must not fill the log
            count = self._strangers
            logger.warning("strangers_dropped count=%d peer=%s reason=%s", count, peer, reason)


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Yield a socket for a descriptor that ZeroMQ owns; raise ``OSError`` if it is no socket."""
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def _resident_bytes() -> int:
    """Return the size of this process in memory; 0 without Linux's /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
