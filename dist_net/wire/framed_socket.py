"""A ZeroMQ socket that sends and receives frames, whatever they mean; what both ends share."""

import math
from collections.abc import Iterable
from typing import Self

import zmq

from dist_net.vector import Vector
from dist_net.wire.arrays import Frame
from dist_net.wire.codec import MAX_HEADER_BYTES, MAX_PAYLOADS

_LINGER_MS = 500  # for the last messages of a closing socket
# A header, its payloads, and one more for the codec to refuse.
_FRAMES_KEPT = MAX_PAYLOADS + 2

# As plain integers: an operation on ZeroMQ's enumerations costs a microsecond.
NO_WAIT = int(zmq.NOBLOCK)
_SEND_LAST = NO_WAIT
_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


class FramedSocket:
    """A ZeroMQ socket in a context of its own."""

    def __init__(self, kind: int, max_array_bytes: int, high_water_mark: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, high_water_mark)
        self._socket.setsockopt(zmq.RCVHWM, high_water_mark)
        # ZeroMQ drops a peer that announces a longer frame, before it reserves memory for it.
        self._socket.setsockopt(zmq.MAXMSGSIZE, max(max_array_bytes, MAX_HEADER_BYTES))
        self._receive_timeout_ms = -1
        self._header: zmq.Frame | None = None  # of the last message; it knows who sent it
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
        """Whether a message can be received without waiting."""
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
        while frame.more:
            frame = self._socket.recv(copy=False)
            if len(frames) < _FRAMES_KEPT:
                frames.append(frame.buffer)
        return frames
