"""Channels of one host: a server and the workers that share its memory exchange headers directly.

Arrays stay in shared memory, so each message is a single header. ZeroMQ passes it through a thread
at either end, which costs a tenth of a training step on two cores. A channel is a Unix socket that
preserves packets (``SOCK_SEQPACKET``, Linux only); the kernel wakes the receiving loop directly.
See docs/decisions/0018-channels-of-one-host.md.

A worker joins through ZeroMQ, and opens a channel once it shares memory with the server. If that
fails, ZeroMQ carries all messages.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import zmq

from dist_net.errors import NoAnswerError
from dist_net.vector import Vector
from dist_net.wire.address import contact_address
from dist_net.wire.codec import MAX_ARRAY_BYTES, Frame, decode, encode
from dist_net.wire.messages import Message, Refuse
from dist_net.wire.security import ServerKeys
from dist_net.wire.transport import ServerSocket

logger = logging.getLogger(__name__)

MAX_PACKET_BYTES = 16_384
"""A longer packet is truncated, and then refused as undecodable."""

MAX_CHANNELS = 1024
CONNECT_TIMEOUT_S = 1.0
PAUSE_S = 0.01  # without a free descriptor for another channel

_SUFFIX = ".channel"
_NODE = b"channel-"  # ZeroMQ's nodes begin with a zero


class LocalChannel:
    """A worker's end of a channel: a ``ServerConnection`` for messages without arrays.

    Raise ``OSError`` if no server listens beside the ``ipc`` address.
    """

    def __init__(self, address: str) -> None:
        where = contact_address(address)
        if where.is_tcp:
            raise FileNotFoundError(f"{address} is not the address of a Unix socket")
        self._address = address
        self._socket = _new_socket()
        try:
            self._socket.settimeout(CONNECT_TIMEOUT_S)  # a stopped server accepts no connection
            self._socket.connect(f"{where.host}{_SUFFIX}")
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def send(self, message: Message) -> None:
        """Send without waiting. Raise ``NoAnswerError`` if the server reads no messages.

        If the server is gone the message is discarded, and ``receive`` reports the loss.
        """
        (header,) = encode(message)
        try:
            self._socket.send(header)
        except BlockingIOError as error:
            raise NoAnswerError(
                f"the server at {self._address} reads no messages of this worker; see its log"
            ) from error
        except OSError:
            logger.debug("channel_closed address=%s", self._address)

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message, or None after the timeout.

        Return a ``Refuse`` with ``may_rejoin`` if the server has closed the channel.
        """
        if timeout_s > 0:
            self._poll.poll(timeout_s * 1000)
        try:
            header = self._socket.recv(MAX_PACKET_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            header = b""
        return decode([header]) if header else Refuse("it closed the connection", may_rejoin=True)

    def lend(self, vectors: Iterable[Vector]) -> None:
        """Do nothing: a channel carries no arrays."""

    def close(self) -> None:
        self._socket.close()

    abandon = close

    def no_answer(self, waited_s: float) -> NoAnswerError:
        return NoAnswerError(f"no answer from {self._address} in {waited_s:g} s")


class LocalServerSocket(ServerSocket):
    """A ``ServerSocket`` with channels beside its ``ipc`` addresses; each channel is a node."""

    def __init__(
        self,
        listen: Sequence[str],
        keys: ServerKeys | None = None,
        max_array_bytes: int = MAX_ARRAY_BYTES,
        max_arrays: int = 1,
    ) -> None:
        self._opened = 0
        self._channels: dict[bytes, socket.socket] = {}
        self._nodes: dict[int, bytes] = {}  # of the channels, by descriptor
        self._listeners: dict[int, socket.socket] = {}
        self._ready: deque[int] = deque()
        self._poll = select.epoll()
        super().__init__(listen, keys, max_array_bytes, max_arrays=max_arrays)
        self._poll.register(self.fileno(), select.EPOLLIN)
        for path in tuple(self._socket_files):
            self._listen(Path(f"{path}{_SUFFIX}"))

    def receive(self, timeout_s: float) -> tuple[bytes, Message] | None:
        received = self._arrived()
        if received is None and timeout_s > 0:
            self._ready.extend(descriptor for descriptor, _ in self._poll.poll(timeout_s))
            received = self._arrived()
        return received

    def close(self) -> None:
        super().close()
        for each in (*self._channels.values(), *self._listeners.values()):
            each.close()
        self._poll.close()

    def _arrived(self) -> tuple[bytes, Message] | None:
        """Return the next message of a ready channel, or else of ZeroMQ."""
        while self._ready:
            descriptor = self._ready.popleft()
            node = self._nodes.get(descriptor)
            if node is not None:
                header = self._read(node)
                if header:
                    return self._understood(node, "", [header])
                self._end(descriptor)
            elif descriptor in self._listeners:
                self._accept(self._listeners[descriptor])
        if not self.has_message():
            return None
        # Channels take the next turn, even if ZeroMQ has more messages.
        self._ready.extend(descriptor for descriptor, _ in self._poll.poll(0))
        return next(self.waiting(1), None)

    def _read(self, node: bytes) -> bytes:
        """Return the channel's next packet, b"" at its end."""
        try:
            return self._channels[node].recv(MAX_PACKET_BYTES)
        except OSError:
            return b""

    def _queue(self, node: bytes, *frames: Frame | zmq.Frame) -> bool:
        channel = self._channels.get(node)
        if channel is None:
            return super()._queue(node, *frames)
        header, *arrays = frames
        if arrays or not isinstance(header, bytes):
            return False  # a worker with a channel requests no arrays
        with suppress(OSError):
            channel.send(header)
            return True
        return False

    def _listen(self, path: Path) -> None:
        listener = _new_socket()
        try:
            path.unlink(missing_ok=True)  # the file of a killed server
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            logger.warning("channels_unavailable path=%s error=%s", path, error)
            return
        self._socket_files.append(path)
        self._listeners[listener.fileno()] = listener
        self._poll.register(listener, select.EPOLLIN)

    def _accept(self, listener: socket.socket) -> None:
        try:
            channel, _ = listener.accept()
        except OSError as error:
            logger.warning("channel_refused error=%s", error)
            time.sleep(PAUSE_S)  # the listener stays ready, which would keep the loop busy
            return
        if len(self._channels) >= MAX_CHANNELS:
            channel.close()
            return
        channel.setblocking(False)
        self._opened += 1
        node = _NODE + b"%d" % self._opened
        self._channels[node] = channel
        self._nodes[channel.fileno()] = node
        self._poll.register(channel, select.EPOLLIN)

    def _end(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._channels.pop(self._nodes.pop(descriptor)).close()


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
