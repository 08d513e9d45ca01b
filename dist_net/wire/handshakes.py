"""The state of a client socket's connections, by the events that ZeroMQ reports.

ZeroMQ never connects again in a state of FINAL. A restarted server may be NOBODY for a second.
"""

import math
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from enum import Enum, auto

import zmq


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
_EVENT = struct.Struct("=Hi")  # zmq_socket_monitor(3)
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
