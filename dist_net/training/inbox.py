"""What the server says to a worker, from where it is to be had first."""

import platform

from dist_net.wire.messages import Message, Work
from dist_net.wire.transport import ClientSocket
from dist_net.wire.work_note import work_in

SEE_STORES_IN_ORDER = ("x86_64", "AMD64")
"""On other processors a note may be seen before the weights that it speaks of."""


class Inbox:
    """A worker's socket, and the note in which a server on its host leaves each `Work` as well.

    A message takes some 0.03 ms longer, as a thread has to wake up for it at either end. It comes
    all the same, and is then nothing new to the worker.
    """

    def __init__(self, socket: ClientSocket, note: memoryview | None) -> None:
        if note is None or platform.machine() not in SEE_STORES_IN_ORDER:
            note = memoryview(b"")
        self._note = note
        self._socket = socket
        self.forget()

    def forget(self) -> None:
        """Begin anew, with a server that may know nothing of what the last one said."""
        self._seen = bytes(self._note)
        self._news: Work | None = None
        self._newest = (0, 0)

    def has_message(self) -> bool:
        """Whether one can be received without waiting."""
        self._look()
        return self._news is not None or self._socket.has_message()

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None when none came in time."""
        self._look()
        message, self._news = self._news or self._socket.receive(timeout_s), None
        if isinstance(message, Work):
            self._newest = max(self._newest, message.progress)
        return message

    def _look(self) -> None:
        """Keep the work in the note for `receive`, if it is newer than all that was received."""
        note = bytes(self._note)
        if note != self._seen:
            self._seen, work = note, work_in(note)
            self._news = work if work is not None and work.progress > self._newest else None
