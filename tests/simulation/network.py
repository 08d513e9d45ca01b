"""A network in virtual time: links, connections, and what goes wrong with them.

A connection behaves as one of ZeroMQ's: it is made in the background, keeps the order of what it
carries, and is made again after a loss, as another node of the server's. What is sent while it is
down waits.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from dist_net.errors import NoAnswerError
from dist_net.vector import Vector
from dist_net.wire.messages import (
    Alive,
    Heartbeat,
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
from simulation.schedule import TracedSchedule

HEADER_BYTES = 100

TOLD_OF: dict[type, tuple[str, ...]] = {
    Welcome: ("worker_id", "incarnation"),
    Work: ("request_id", "lease_id", "epoch", "start", "stop", "version"),
    Push: ("request_id", "worker_id", "lease_id", "start", "stops", "base_versions"),
    Refuse: ("reason",),
    Stop: ("reason",),
}
"""What a trace tells of a message."""

UNTOLD = (Alive, Heartbeat, StatusReport, StatusRequest)
"""There are too many of them in a trace."""


@dataclass(frozen=True)
class Brief:
    """A message as a trace tells of it."""

    message: Message

    def __str__(self) -> str:
        kind = type(self.message)
        values = [f"{name}={getattr(self.message, name)}" for name in TOLD_OF.get(kind, ())]
        return f"{kind.__name__}({', '.join(values)})"


@dataclass(frozen=True)
class Link:
    """A host's way to the others: seconds for a message, one way, and its speed each way."""

    latency_s: float = 5e-5
    bytes_per_s: float = math.inf


@dataclass(frozen=True)
class NetworkFaults:
    """What goes wrong at random; all but the last are shares of the messages.

    ``delayed`` ones and those behind them come up to ``delay_s`` later; ``overtaken`` ones too, but
    not those behind them. ``lost`` ones never arrive, ``doubled`` ones do so twice, the second time
    later. With a ``vanishing`` one its connection is gone, and what was on its way.
    """

    delayed: float = 0.0
    overtaken: float = 0.0
    lost: float = 0.0
    doubled: float = 0.0
    vanishing: float = 0.0
    delay_s: float = 0.0

    def draw(self, random: np.random.Generator) -> str | None:
        """Which of them befalls a message; None: it arrives as it should."""
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
    """One way of a host's link: when what was put on it will have left."""

    link: Link
    free_s: float = 0.0

    def occupy(self, from_s: float, size_bytes: int) -> float:
        """Put so many bytes on it, behind what is there; when the last of them is through."""
        self.free_s = max(self.free_s, from_s) + size_bytes / self.link.bytes_per_s
        return self.free_s


def size_in_bytes(message: Message) -> int:
    """About what a message takes on the wire."""
    size = HEADER_BYTES
    for value in message:
        for each in value if isinstance(value, tuple) else (value,):
            size += each.nbytes if isinstance(each, np.ndarray) else 0
            size += len(each) if isinstance(each, bytes) else 0
    return size


def with_arrays(message: Message, of: Callable[[Any], Any]) -> Message:
    """The message with ``of(array)`` in the place of each of its arrays."""
    match message:
        case Work(weights=weights) if weights is not None:
            return message._replace(weights=of(weights))
        case Snapshot(weights=weights):
            return message._replace(weights=of(weights))
        case Push(gradients=gradients) if gradients:
            return message._replace(gradients=tuple(of(gradient) for gradient in gradients))
    return message


class VirtualNetwork:
    """Hosts with their links, servers that listen, and connections to them; all by names."""

    def __init__(self, schedule: TracedSchedule, faults: NetworkFaults = NO_FAULTS) -> None:
        self.schedule = schedule
        self.faults = faults
        self.node_numbers = count(1)
        self._links: dict[str, tuple[Direction, Direction]] = {}
        self._apart: frozenset[str] = frozenset()
        self._held: list[Callable[[], None]] = []
        self._servers: dict[str, VirtualServerSocket] = {}
        self._clients: list[VirtualClientSocket] = []

    def set_link(self, host: str, link: Link) -> None:
        """Give a host another link than the default one."""
        self._links[host] = Direction(link), Direction(link)

    def part(self, hosts: Iterable[str]) -> None:
        """Part these hosts from all others; what is sent meanwhile waits for ``join``."""
        self._apart = frozenset(hosts)

    def join(self) -> None:
        """End the partition."""
        self._apart = frozenset()
        held, self._held = self._held, []
        for send in held:
            send()

    def listen(self, host: str) -> "VirtualServerSocket":
        """The socket of a server on this host; clients that wait for it are connected."""
        server = self._servers[host] = VirtualServerSocket(self, host)
        for client in self._clients:
            if client.server_host == host:
                client.connect()
        return server

    def connect(self, host: str, server_host: str, owner: str = "") -> "VirtualClientSocket":
        """A client's socket; it is connected as soon as a server listens there.

        ``owner`` is what a trace calls it by; the host, if nothing else is said.
        """
        client = VirtualClientSocket(self, host, server_host, owner or host)
        self._clients.append(client)
        client.connect()
        return client

    def lateness_of_rest_s(self) -> float | None:
        """How much later arrives what is on its way when its connection is lost; None: never."""
        random = self.schedule.random
        if self.faults is NO_FAULTS or random.random() < 0.5:
            return None
        return float(random.random())

    def server_at(self, host: str) -> "VirtualServerSocket | None":
        return self._servers.get(host)

    def closed(self, socket: "VirtualServerSocket | VirtualClientSocket") -> None:
        """Forget a socket; a server's connections are gone with it."""
        if isinstance(socket, VirtualClientSocket):
            self._clients.remove(socket)
        elif self._servers.get(socket.host) is socket:
            del self._servers[socket.host]
            for client in self._clients:
                if client.server_host == socket.host:
                    client.vanish()

    def transmit(self, way: "Way", message: Message, client: "VirtualClientSocket") -> None:
        """Carry a message over one way of a client's connection, through all that may go wrong."""
        source, target = way.source, way.target
        if (source in self._apart) != (target in self._apart):
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
        """When the last byte of a message that is sent now arrives, behind those before it."""
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
    """One way of a connection: what is on it arrives in order, while the connection lasts.

    ``source`` and ``target`` are hosts; ``between`` whom it goes is for a trace.
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
        """Have a message arrive then, or right behind the one before it."""
        self._last_s = max(self._last_s, moment_s)
        self.deliver_apart(self._last_s, message)

    def deliver_apart(self, moment_s: float, message: Message) -> None:
        """Have a message arrive then, before or behind others."""
        number = next(self._numbers)
        self._travelling[number] = message
        self._schedule.at(moment_s, self._arrive, number)

    def _arrive(self, number: int) -> None:
        if (message := self._travelling.pop(number, None)) is not None:
            self._receive(with_arrays(message, np.copy))

    def lose(self) -> None:
        """Lose what is on its way."""
        self._travelling.clear()

    def keep(self, late_s: float = 0.0) -> None:
        """Have what is on its way arrive as it is now, so much later, though its way is gone."""
        travelling, self._travelling = self._travelling, {}
        for message in travelling.values():
            kept = with_arrays(message, np.copy)
            self.deliver(max(self._last_s, self._schedule.now_s) + late_s, kept)


class LendingSocket:
    """What both ends have in common. ``on_arrival`` is called when a message has arrived.

    Arrays are copied as they are sent; those that are lent, as late as they may be.
    """

    def __init__(self, network: VirtualNetwork) -> None:
        self.network = network
        self.on_arrival: Callable[[], None] = lambda: None
        self._lent: dict[int, Vector] = {}

    def lend(self, vectors: Iterable[Vector]) -> None:
        """Send these from where they lie from now on."""
        self._lent |= {id(vector): vector for vector in vectors}

    def _sent(self, message: Message) -> Message:
        return with_arrays(
            message, lambda array: array if id(array) in self._lent else array.copy()
        )


class VirtualServerSocket(LendingSocket):
    """A server's end, as `dist_net.wire.transport.ServerSocket`, but nothing here waits."""

    def __init__(self, network: VirtualNetwork, host: str) -> None:
        super().__init__(network)
        self.host = host
        self.on_send: Callable[[Message], None] = lambda _: None
        self._arrived: deque[tuple[bytes, Message]] = deque()
        self._clients: dict[bytes, VirtualClientSocket] = {}

    def __len__(self) -> int:
        """How many messages have arrived."""
        return len(self._arrived)

    def receive(self, timeout_s: float = 0.0) -> tuple[bytes, Message] | None:
        """The next message that has arrived, and the node that sent it.

        Messages of different nodes come in any order, if the network has faults.
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
        """Whether the connection is there by which the node was known."""
        return node in self._clients

    def send(self, node: bytes, message: Message) -> None:
        """Send a message; it is dropped if the node is gone."""
        self.on_send(message)
        if node in self._clients:
            self._clients[node].answer(self._sent(message))

    def send_one(self, node: bytes, message: Message) -> bool:
        self.send(node, message)
        return True

    def answer_failure(self, node: bytes, message: Message) -> None:
        """In a simulation no message may fail: raises what is being handled."""
        raise

    def close(self) -> None:
        self.network.closed(self)

    def connected(self, node: bytes, client: "VirtualClientSocket") -> None:
        self._clients[node] = client

    def disconnected(self, node: bytes) -> None:
        self._clients.pop(node, None)

    def arrive(self, node: bytes, message: Message) -> None:
        self._arrived.append((node, message))
        self.on_arrival()


class VirtualClientSocket(LendingSocket):
    """A client's end, as `dist_net.wire.transport.ClientSocket`, but nothing here waits."""

    def __init__(self, network: VirtualNetwork, host: str, server_host: str, owner: str) -> None:
        super().__init__(network)
        self.host = host
        self.owner = owner
        self.server_host = server_host
        self._arrived: deque[Message] = deque()
        self._unsent: deque[Message] = deque()
        self.is_closed = False
        self._connection: tuple[bytes, VirtualServerSocket, Way, Way] | None = None

    def __len__(self) -> int:
        """How many messages have arrived."""
        return len(self._arrived)

    @property
    def node(self) -> bytes | None:
        """What the server knows this connection by; None: there is none."""
        return None if self._connection is None else self._connection[0]

    def connect(self) -> None:
        """Connect, if a server listens, and send what has waited."""
        server = self.network.server_at(self.server_host)
        if server is None:
            return
        node = b"node %d" % next(self.network.node_numbers)
        schedule, own, theirs = self.network.schedule, self.host, server.host

        def arrive(message: Message) -> None:
            server.arrive(node, message)

        there = Way(schedule, own, theirs, (self.owner, theirs), arrive)
        back = Way(schedule, theirs, own, (theirs, self.owner), self._arrive)
        self._connection = node, server, there, back
        server.connected(node, self)
        while self._unsent:
            self.send(self._unsent.popleft())

    def vanish(self) -> None:
        """Lose the connection and what is on its way; it is made anew if a server listens."""
        self._disconnect()
        if not self.is_closed:
            self.connect()

    def send(self, message: Message) -> None:
        """Send a message, as soon as there is a connection."""
        if self._connection is None:
            self._unsent.append(self._sent(message))
            return
        _, _, there, _ = self._connection
        self.network.transmit(there, self._sent(message), self)

    def answer(self, message: Message) -> None:
        """Carry an answer of the server's."""
        assert self._connection is not None
        _, _, _, back = self._connection
        self.network.transmit(back, message, self)

    def receive(self, timeout_s: float = 0.0) -> Message | None:
        """The next message that has arrived."""
        return self._arrived.popleft() if self._arrived else None

    def abandon(self) -> None:
        """Close at once; what is on its way may still arrive."""
        self._close(lingers=False)

    def close(self) -> None:
        """Close; what is on its way arrives."""
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
            # What has left this host may still get there, at any time.
            if lingers:
                there.keep()
            elif (late_s := self.network.lateness_of_rest_s()) is not None:
                there.keep(late_s)
            else:
                there.lose()

    def _arrive(self, message: Message) -> None:
        self._arrived.append(message)
        self.on_arrival()
