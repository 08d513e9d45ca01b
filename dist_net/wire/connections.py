"""A server's connections: who may come in, how many, how much each may send, and why one ended.

By itself ZeroMQ accepts connections until the process has no descriptor left, and keeps the frames
of a message whose last frame never comes. So a thread watches those that come by TCP. It holds a
second descriptor of each: with that it asks the kernel how much was received, can shut the
connection, and sees which side ended it. It also answers ZeroMQ's question who may come in, and
only after it has taken in which connections there are: nobody comes in who is not watched. It shuts
those whose key is not let in any more.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import socket
import struct
import threading
import time

import zmq

from dist_net.wire.security import ADMITTED, AllowList

logger = logging.getLogger(__name__)

_ADDRESS = "inproc://connections"
_ADMISSIONS = "inproc://zeromq.zap.01"  # where ZeroMQ asks (ZAP, RFC 27)
_NO_WAIT = int(zmq.NOBLOCK)
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_EVENTS = (
    zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED | _HANDSHAKE_FAILED
)

# The handshake of a peer that has the right keys is longer.
_HANDSHAKE_BYTES = 512
# A look takes some 5 us for each connection. One may bring a megabyte in a millisecond.
_LOOK_EVERY_S = 0.02
_LOOK_AGAIN_AFTER_S = 0.002
_LOOK_S_PER_CONNECTION = 0.0005
_STRANGERS_LOGGED_EVERY_S = 10.0
_KEYS_LOOKED_AT_EVERY_S = 0.5
TOLD_WITHIN_S = 1.0
"""For somebody whose key is revoked to be told so, before the connection is shut."""

# zmq_socket_monitor(3): what happened, and to which descriptor
_EVENT = struct.Struct("=Hi")
_EVENTS_AT_ONCE = 1000  # a flood of them must not keep the thread from its looks
# socket(7): close at once, and throw away what was not sent
_RESET = struct.pack("=ii", 1, 0)
# linux/tcp.h: tcpi_bytes_received of struct tcp_info
_BYTES_RECEIVED = struct.Struct("<128xQ")


def most_connections() -> int:
    """How many a socket may hold: with two descriptors each, a quarter of the process's."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(4096, max(16, descriptors // 8))


class Connections(threading.Thread):
    """Watches the connections of ``watched``, a socket that is not bound yet, until `stop`.

    A connection may send ``most_unread_bytes`` without completing a message. Those that have never
    completed one may send four times as many together; workers, whose gradients arrive all at once,
    have completed one when they joined. ZeroMQ keeps up to 32 bytes for each byte: 64 for a frame,
    of which the shortest has 2. ``longest_frame_bytes`` is the limit that it enforces, for the log.
    ``allow_list`` says whose key is let in; None: nobody needs one.
    """

    def __init__(
        self,
        watched: zmq.Socket[bytes],
        most_unread_bytes: int,
        longest_frame_bytes: int,
        allow_list: AllowList | None = None,
    ) -> None:
        super().__init__(name="connections", daemon=True)
        self._watched = watched
        self._allow_list = allow_list
        self._most_unread_bytes = most_unread_bytes
        self._longest_frame_bytes = longest_frame_bytes
        self._most = most_connections()
        self._open: dict[int, _Connection] = {}
        self._heard: dict[int, str] = {}
        self._keys_looked_at_s = 0.0
        self._is_close_to_limit = False
        self._handshake_failed = False
        self._strangers = 0
        self._strangers_logged_s = -_STRANGERS_LOGGED_EVERY_S
        watched.monitor(_ADDRESS, _EVENTS)
        self._monitor = watched.context.socket(zmq.PAIR)
        self._monitor.connect(_ADDRESS)
        self._admissions = watched.context.socket(zmq.REP)
        self._admissions.bind(_ADMISSIONS)

    def heard(self, descriptor: int, key: str) -> None:
        """A whole message was received of this connection; called by the socket's thread.

        ``key`` is the peer's, "" if it needs none.
        """
        self._heard[descriptor] = key

    def stop(self) -> None:
        """End the thread; called by the socket's thread, before the socket is closed."""
        self._watched.disable_monitor()
        self.join()

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._admissions, zmq.POLLIN)
        looked_s = 0.0
        with self._monitor, self._admissions:
            while True:
                pause_s = self._pause_s()
                ready = dict(poller.poll(None if pause_s is None else math.ceil(1000 * pause_s)))
                if not self._take_in_events():
                    break
                if self._admissions in ready:
                    self._admit()
                now = time.monotonic()
                if pause_s is not None and now >= looked_s + pause_s:
                    self._look()
                    looked_s = now
                if now >= self._keys_looked_at_s + _KEYS_LOOKED_AT_EVERY_S:
                    self._keys_looked_at_s = now
                    self._shut_out(now)
        for connection in self._open.values():
            connection.close()

    def _pause_s(self) -> float | None:
        """The time between two looks; None: there is nothing to look at."""
        if not self._open:
            return None
        every_s = _LOOK_AGAIN_AFTER_S if self._is_close_to_limit else _LOOK_EVERY_S
        return every_s + _LOOK_S_PER_CONNECTION * len(self._open)

    def _take_in_events(self) -> bool:
        """Take in what has happened; False: the watched socket is about to be closed."""
        for _ in range(_EVENTS_AT_ONCE):
            try:
                what, endpoint = self._monitor.recv_multipart(_NO_WAIT)
            except zmq.Again:
                break
            event, descriptor = _EVENT.unpack(what)
            if event == zmq.EVENT_MONITOR_STOPPED:
                return False
            if endpoint.startswith(b"tcp:"):  # only processes of this host come in otherwise
                self._take_in(event, descriptor)
        return True

    def _take_in(self, event: int, descriptor: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            if len(self._open) >= self._most:
                self._make_room()
            self._heard.pop(descriptor, None)
            with contextlib.suppress(OSError):  # it has ended already
                self._open[descriptor] = _Connection(descriptor)
        elif event == zmq.EVENT_DISCONNECTED:
            self._take_in_heard()
            connection = self._open.pop(descriptor, None)
            if connection is not None:
                self._ended(connection)
                connection.close()
            self._handshake_failed = False
        elif event & _HANDSHAKE_FAILED:
            self._handshake_failed = True  # of the connection that is then disconnected

    def _take_in_heard(self) -> None:
        for descriptor in list(self._heard):
            key = self._heard.pop(descriptor)
            if (connection := self._open.get(descriptor)) is not None:
                connection.key, connection.was_heard = key, True
                connection.heard_bytes = connection.received_bytes()

    def _admit(self) -> None:
        """Answer whether a peer that is in its handshake may come in."""
        version, request, _, _, _, mechanism, *credentials = self._admissions.recv_multipart()
        status, user = ADMITTED, b""
        if self._allow_list is not None:
            status, user = self._allow_list.admission(mechanism, credentials)
        self._admissions.send_multipart([version, request, status, b"", user, b""])

    def _make_room(self) -> None:
        """Shut the oldest that has not finished its handshake, or else the newest, for another."""
        self._take_in_heard()
        there = [each for each in self._open.values() if not each.is_shut]
        victim = next((each for each in there if each.is_stranger()), there[-1] if there else None)
        if victim is not None:
            self._shut(victim, f"more than {self._most} connections")

    def _look(self) -> None:
        """Shut those that have sent too much that is no whole message."""
        self._take_in_heard()
        there = [each for each in self._open.values() if not each.is_shut]
        unread = [(each.received_bytes() - each.heard_bytes, each) for each in there]
        most, of_strangers, longest = self._most_unread_bytes, 0, 0
        for count, connection in sorted(unread, key=lambda each: each[0]):
            of_strangers += 0 if connection.was_heard else count
            if count > most or (of_strangers > 4 * most and not connection.was_heard):
                self._shut(connection, f"it sent {count} bytes that are no whole message")
            else:
                longest = count
        self._is_close_to_limit = 4 * max(of_strangers, longest) > 3 * most

    def _shut_out(self, now: float) -> None:
        """Shut those whose key was revoked, a moment later: an answer tells them why first."""
        if self._allow_list is None:
            return
        self._allow_list.refresh()
        for connection in self._open.values():
            if not connection.key or self._allow_list.roles_of(connection.key):
                continue
            if connection.revoked_s is None:
                connection.revoked_s = now
            elif now >= connection.revoked_s + TOLD_WITHIN_S and not connection.is_shut:
                self._shut(connection, "its key is not let in any more")

    def _shut(self, connection: _Connection, reason: str) -> None:
        connection.shut()
        self._log(connection, reason)

    def _ended(self, connection: _Connection) -> None:
        if connection.is_shut or connection.was_closed_by_peer():
            return
        if self._handshake_failed or connection.is_stranger():
            self._log(connection, "its handshake failed, or took too long")
        else:
            limit = self._longest_frame_bytes
            self._log(connection, f"it sent a frame of more than {limit} bytes, or no frame at all")

    def _log(self, connection: _Connection, reason: str) -> None:
        """Each connection of a peer that was let in; of others, a line now and then."""
        if not self._handshake_failed and not connection.is_stranger():
            logger.warning("event=connection_dropped peer=%s reason=%s", connection.peer, reason)
            return
        self._strangers += 1
        now = time.monotonic()
        if now >= self._strangers_logged_s + _STRANGERS_LOGGED_EVERY_S:
            logger.warning(
                "event=strangers_dropped count=%d last_peer=%s reason=%s",
                *(self._strangers, connection.peer, reason),
            )
            self._strangers, self._strangers_logged_s = 0, now


class _Connection:
    """A second descriptor of a connection. Raises `OSError` if the first is closed already."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self.is_shut = False
        self.was_heard = False
        self.heard_bytes = 0
        self.key = ""
        self.revoked_s: float | None = None
        host, port = self._socket.getpeername()[:2]
        self.peer = f"{host}:{port}"

    def is_stranger(self) -> bool:
        """Whether it has yet to finish its handshake, as far as can be seen."""
        return not self.was_heard and self.received_bytes() < _HANDSHAKE_BYTES

    def received_bytes(self) -> int:
        """How many bytes came since it was opened; 0 where the system does not say."""
        if not hasattr(socket, "TCP_INFO"):
            return 0
        try:
            size = _BYTES_RECEIVED.size
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        except OSError:
            return 0
        return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == size else 0

    def was_closed_by_peer(self) -> bool:
        """Whether the peer ended it; else this process did. ZeroMQ reads all before it closes."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def shut(self) -> None:
        """Make ZeroMQ close it, by a reset: a peer that still sends would wait for room."""
        self.is_shut = True
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
