"""A network in virtual time: links, connections, and their faults.

A connection behaves like ZeroMQ's: it is established in the background, keeps the order of its
messages, and reconnects after a loss as a new node of the server's. Messages sent while it is down
wait.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import count

import numpy as np

from dist_net.errors import NoAnswerError
from dist_net.wire.messages import (
    Alive,
    Follow,
    Followed,
    Heartbeat,
    Join,
    Message,
    Push,
    Refuse,
    Snapshot,
    StatusReport,
    StatusRequest,
    Stop,
    Welcome,
    Work,
)
from dist_net.wire.security import role_refusal
from simulation.schedule import TracedSchedule

HEADER_BYTES = 100

TOLD_OF: dict[type, tuple[str, ...]] = {
    Welcome: ("worker_id", "term"),
    Work: ("request_id", "lease_id", "steps"),
    Push: ("request_id", "worker_id", "lease_id"),
    Refuse: ("reason",),
    Stop: ("reason",),
}
"""The fields of messages that the trace shows."""

UNTOLD = (Alive, Follow, Followed, Heartbeat, StatusReport, StatusRequest)
"""Messages that the trace omits: there are too many."""


@dataclass(frozen=True)
class Brief:
    """Return a message as the trace shows it."""

    message: Message

    def __str__(self) -> str:
        kind = type(self.message)
        values = [f"{name}={getattr(self.message, name)}" for name in TOLD_OF.get(kind, ())]
        return f"{kind.__name__}({', '.join(values)})"


@dataclass(frozen=True)
class Link:
    """A host's link: the latency of a message in seconds, one way, and the rate each way."""

    latency_s: float = 5e-5
    bytes_per_s: float = math.inf


@dataclass(frozen=True)
class NetworkFaults:
    """Random faults; all but the last are shares of the messages.

    A ``delayed`` message and all behind it arrive up to ``delay_s`` later; an ``overtaken`` message
    alone arrives later. A ``lost`` message never arrives, a ``doubled`` message arrives twice, the
    second time later. A ``vanishing`` message ends its connection and loses all in transit.
    """

    delayed: float = 0.0
    overtaken: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    vanishing: float = 0.0
    delay_s: float = 0.0

    def draw(self, random: np.random.Generator) -> str | None:
        """Return the fault of a message, drawn at random; None: it arrives."""
        chance = random.random()
        for fault, share in self._shares:
            chance -= share
            if chance < 0:
                return fault
        return None

    @cached_property
    def _shares(self) -> list[tuple[str, float]]:
        return [(fault.name, getattr(self, fault.name)) for fault in fields(self)[:-1]]


NO_FAULTS = NetworkFaults()


@dataclass
class Direction:
    """One direction of a host's link: the time when all queued bytes will have left."""

    link: Link
    free_s: float = 0.0

    def occupy(self, from_s: float, size_bytes: int) -> float:
        """Queue this many bytes, and return the time when the last of them will have left."""
        self.free_s = max(self.free_s, from_s) + size_bytes / self.link.bytes_per_s
        return self.free_s


def size_in_bytes(message: Message) -> int:
    """Return the approximate size of a message on the wire."""
    size = HEADER_BYTES
    for value in message:
        for each in value if isinstance(value, tuple) else (value,):
            size += each.nbytes if isinstance(each, np.ndarray) else 0
            size += len(each) if isinstance(each, bytes) else 0
    return size


def copied(message: Message) -> Message:
    """Return the message with a copy of its array, which the sender may overwrite."""
    match message:
        case Work(state=array) | Push(state=array) if array is not None:
            return message._replace(state=array.copy())
        case Snapshot(weights=array):
            return message._replace(weights=array.copy())
    return message


Cut = Callable[[str, str], bool]
"""Whether no message arrives from a host at another."""


class VirtualNetwork:
    """Hosts with their links, listening servers, and connections to them; all by name."""

    def __init__(self, schedule: TracedSchedule, faults: NetworkFaults = NO_FAULTS) -> None:
        self.schedule = schedule
        self.faults = faults
        self.node_numbers = count(1)
        self._links: dict[str, tuple[Direction, Direction]] = {}
        self._cuts: list[Cut] = []
        self._held: list[Callable[[], None]] = []
        self._servers: dict[str, VirtualServerSocket] = {}
        self._clients: list[VirtualClientSocket] = []

    def set_link(self, host: str, link: Link) -> None:
        """Give a host another link than the default."""
        self._links[host] = Direction(link), Direction(link)

    def part(self, hosts: Iterable[str]) -> None:
        """Partition these hosts from all others; messages between them wait for ``join``."""
        apart = frozenset(hosts)
        self.cut(lambda source, target: (source in apart) != (target in apart))

    def cut(self, cut: "Cut") -> None:
        """Hold messages from a host to another, in addition to those held already."""
        self._cuts.append(cut)

    def join(self, cut: "Cut | None" = None) -> None:
        """End a partition; None: all of them."""
        self._cuts = [each for each in self._cuts if cut is not None and each is not cut]
        held, self._held = self._held, []
        for send in held:
            send()

    def listen(self, host: str, key: str = "") -> "VirtualServerSocket":
        """Return the socket of a server on this host, and connect the clients that wait for it."""
        server = self._servers[host] = VirtualServerSocket(self, host, key)
        for client in self._clients:
            if client.server_host == host:
                client.connect()
        return server

    def connect(
        self,
        host: str,
        server_host: str,
        owner: str = "",
        role: str = "",
        key: str = "",
        server_key: str = "",
    ) -> "VirtualClientSocket":
        """Return a client's socket; it connects as soon as a server listens.

        ``owner`` is its name in the trace, by default the host; ``role`` is its ``key``'s, ""
        without. It connects to a server with ``server_key`` only; "": with any.
        """
        names = host, server_host, owner or host, role, key, server_key
        client = VirtualClientSocket(self, *names)
        self._clients.append(client)
        client.connect()
        return client

    def lateness_of_rest_s(self) -> float | None:
        """Return the delay of messages in transit when their connection fails; None: lost."""
        random = self.schedule.random
        if self.faults is NO_FAULTS or random.random() < 0.5:
            return None
        return float(random.random())

    def server_at(self, host: str) -> "VirtualServerSocket | None":
        return self._servers.get(host)

    def closed(self, socket: "VirtualServerSocket | VirtualClientSocket") -> None:
        """Remove a socket; a server's connections are lost with it."""
        if isinstance(socket, VirtualClientSocket):
            self._clients.remove(socket)
        elif self._servers.get(socket.host) is socket:
            del self._servers[socket.host]
            for client in self._clients:
                if client.server_host == socket.host:
                    client.vanish()

    def transmit(self, way: "Way", message: Message, client: "VirtualClientSocket") -> None:
        """Carry a message over one direction of a client's connection, with all faults."""
        source, target = way.source, way.target
        if any(cut(source, target) for cut in self._cuts):
            self._held.append(lambda: self.transmit(way, message, client))
            return
        arrives_s = self._arrival_s(source, target, message)
        fault, late_s = None, 0.0
        if self.faults is not NO_FAULTS:
            random = self.schedule.random
            fault = self.faults.draw(random)
            late_s = 0.0 if fault is None else self.faults.delay_s * random.random()
        if not isinstance(message, UNTOLD):
            who, whom = way.between
            told = Brief(message), whom, "" if fault is None else f": {fault}"
            self.schedule.note(who, "sends %s to %s%s", *told)
        match fault:
            case "vanishing":
                way.deliver(arrives_s, message)
                client.vanish()
            case "overtaken":
                way.deliver_apart(arrives_s + late_s, message)
            case "delayed":
                way.deliver(arrives_s + late_s, message)
            case "doubled":
                way.deliver(arrives_s, message)
                way.deliver_apart(arrives_s + late_s, message)
            case None:
                way.deliver(arrives_s, message)

    def _arrival_s(self, source: str, target: str, message: Message) -> float:
        """Return when the last byte of a message sent now arrives, after the messages before it."""
        outwards, inwards = self._links_of(source)[0], self._links_of(target)[1]
        latency_s = outwards.link.latency_s + inwards.link.latency_s
        if outwards.link.bytes_per_s == inwards.link.bytes_per_s == math.inf:
            return self.schedule.now_s + latency_s
        size = size_in_bytes(message)
        left_s = outwards.occupy(self.schedule.now_s, size)
        first_byte_s = left_s - size / outwards.link.bytes_per_s + latency_s
        return max(left_s + latency_s, inwards.occupy(first_byte_s, size))

    def _links_of(self, host: str) -> tuple[Direction, Direction]:
        if host not in self._links:
            self.set_link(host, Link())
        return self._links[host]


class Way:
    """One direction of a connection: messages arrive in order while the connection lasts.

    ``source`` and ``target`` are hosts; ``between`` names the two ends in the trace.
    """

    def __init__(
        self,
        schedule: TracedSchedule,
        source: str,
        target: str,
        between: tuple[str, str],
        receive: Callable[[Message], None],
    ) -> None:
        self.source = source
        self.target = target
        self.between = between
        self._schedule = schedule
        self._receive = receive
        self._last_s = 0.0
        self._numbers = count()
        self._travelling: dict[int, Message] = {}

    def deliver(self, moment_s: float, message: Message) -> None:
        """Let a message arrive at this time, or right after the message before it."""
        self._last_s = max(self._last_s, moment_s)
        self.deliver_apart(self._last_s, message)

    def deliver_apart(self, moment_s: float, message: Message) -> None:
        """Let a message arrive at this time, regardless of others."""
        number = next(self._numbers)
        self._travelling[number] = message
        self._schedule.at(moment_s, self._arrive, number)

    def _arrive(self, number: int) -> None:
        if (message := self._travelling.pop(number, None)) is not None:
            self._receive(message)

    def lose(self) -> None:
        """Drop the messages in transit."""
        self._travelling.clear()

    def keep(self, late_s: float = 0.0) -> None:
        """Deliver the messages in transit later, without the connection."""
        travelling, self._travelling = self._travelling, {}
        for message in travelling.values():
            self.deliver(max(self._last_s, self._schedule.now_s) + late_s, message)


class VirtualSocket:
    """The common part of both ends. ``on_arrival`` is called when a message has arrived."""

    def __init__(self, network: VirtualNetwork) -> None:
        self.network = network
        self.on_arrival: Callable[[], None] = lambda: None


class VirtualServerSocket(VirtualSocket):
    """A server's end, like `dist_net.wire.transport.ServerSocket`, but it never waits."""

    def __init__(self, network: VirtualNetwork, host: str, key: str) -> None:
        super().__init__(network)
        self.host = host
        self.key = key
        self.on_send: Callable[[Message], None] = lambda _: None
        self._arrived: deque[tuple[bytes, Message]] = deque()
        self._clients: dict[bytes, VirtualClientSocket] = {}

    def __len__(self) -> int:
        """Return the number of messages that have arrived."""
        return len(self._arrived)

    def receive(self, timeout_s: float = 0.0) -> tuple[bytes, Message] | None:
        """Return the next message that has arrived, and the node that sent it.

        With faults, messages of different nodes arrive in any order.
        """
        if len(self._arrived) > 1 and self.network.faults is not NO_FAULTS:
            first_of_node: dict[bytes, int] = {}
            for place, (node, _) in enumerate(self._arrived):
                first_of_node.setdefault(node, place)
            places = list(first_of_node.values())
            place = places[int(self.network.schedule.random.integers(len(places)))]
            received = self._arrived[place]
            del self._arrived[place]
            return received
        return self._arrived.popleft() if self._arrived else None

    def has_peer(self, node: bytes) -> bool:
        """Return whether the node is still connected."""
        return node in self._clients

    def send(self, node: bytes, message: Message) -> None:
        """Send a message; it is dropped if the node is gone."""
        self.on_send(message)
        if node in self._clients:
            self._clients[node].answer(copied(message))

    def send_one(self, node: bytes, message: Message) -> bool:
        self.send(node, message)
        return True

    def has_unread(self, node: bytes) -> bool:
        """Return whether states are on their way to a node, at random."""
        return bool(self.network.schedule.random.random() < 0.2)

    def answer_failure(self, node: bytes, message: Message) -> None:
        """Raise the error in progress, unless a disk has failed: no message may cause another."""
        if not isinstance(sys.exception(), OSError):
            raise
        self.send(node, Refuse("handling it failed", may_rejoin=True))

    def close(self) -> None:
        self.network.closed(self)

    def connected(self, node: bytes, client: "VirtualClientSocket") -> None:
        self._clients[node] = client

    def disconnected(self, node: bytes) -> None:
        self._clients.pop(node, None)

    def arrive(self, node: bytes, message: Message) -> None:
        self._arrived.append((node, message))
        self.on_arrival()


class VirtualClientSocket(VirtualSocket):
    """A client's end, like `dist_net.wire.transport.ClientSocket`, but it never waits."""

    def __init__(
        self,
        network: VirtualNetwork,
        host: str,
        server_host: str,
        owner: str,
        role: str,
        key: str,
        server_key: str,
    ) -> None:
        super().__init__(network)
        self.host = host
        self.owner = owner
        self._roles = frozenset({role} if role else ())
        self._key = key
        self._server_key = server_key
        self.server_host = server_host
        self._arrived: deque[Message] = deque()
        self._unsent: deque[Message] = deque()
        self.is_closed = False
        self.on_message: Callable[[Message], None] = lambda _: None
        self._connection: tuple[bytes, VirtualServerSocket, Way, Way] | None = None

    def __len__(self) -> int:
        """Return the number of messages that have arrived."""
        return len(self._arrived)

    @property
    def node(self) -> bytes | None:
        """Return the server's name of this connection; None while it is down."""
        return None if self._connection is None else self._connection[0]

    def connect(self) -> None:
        """Connect, if a server listens, and send the waiting messages."""
        server = self.network.server_at(self.server_host)
        if server is None or self._server_key not in ("", server.key):
            return
        node = b"node %d" % next(self.network.node_numbers)
        schedule, own, theirs = self.network.schedule, self.host, server.host

        def arrive(message: Message) -> None:
            if isinstance(message, Join | Follow):
                message = message._replace(public_key=self._key)
            refusal = role_refusal(self._roles, type(message)) if self._roles else None
            if refusal is None:
                server.arrive(node, message)
            else:
                server.send(node, Refuse(refusal, may_rejoin=False))

        there = Way(schedule, own, theirs, (self.owner, theirs), arrive)
        back = Way(schedule, theirs, own, (theirs, self.owner), self._arrive)
        self._connection = node, server, there, back
        server.connected(node, self)
        while self._unsent:
            self.send(self._unsent.popleft())

    def vanish(self) -> None:
        """Lose the connection and the messages in transit; reconnect if a server listens."""
        self._disconnect()
        if not self.is_closed:
            self.connect()

    def send(self, message: Message) -> None:
        """Send a message as soon as the connection is up."""
        if self._connection is None:
            self._unsent.append(copied(message))
            return
        _, _, there, _ = self._connection
        self.network.transmit(there, copied(message), self)

    def answer(self, message: Message) -> None:
        """Carry an answer of the server."""
        assert self._connection is not None
        _, _, _, back = self._connection
        self.network.transmit(back, message, self)

    def receive(self, timeout_s: float = 0.0) -> Message | None:
        """Return the next message that has arrived."""
        return self._arrived.popleft() if self._arrived else None

    def abandon(self) -> None:
        """Close at once; messages in transit may still arrive."""
        self._close(lingers=False)

    def close(self) -> None:
        """Close; messages in transit arrive."""
        self._close(lingers=True)

    def _close(self, lingers: bool) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._disconnect(lingers)
            self.network.closed(self)

    def no_answer(self, waited_s: float) -> NoAnswerError:
        return NoAnswerError(f"no answer from {self.server_host} in {waited_s:g} s")

    def _disconnect(self, lingers: bool = False) -> None:
        if self._connection is not None:
            node, server, there, back = self._connection
            self._connection = None
            server.disconnected(node)
            back.lose()
            # Messages that left this host may still arrive at any time.
            if lingers:
                there.keep()
            elif (late_s := self.network.lateness_of_rest_s()) is not None:
                there.keep(late_s)
            else:
                there.lose()

    def _arrive(self, message: Message) -> None:
        if not self.is_closed:
            self.on_message(message)
        self._arrived.append(message)
        self.on_arrival()
