"""A pool that follows a run: its shipped reader waits while the simulation continues."""

from collections.abc import Callable, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

from dist_net.errors import DistNetError
from dist_net.ground.vector import Vector
from dist_net.nets import observer
from dist_net.nets.sources import followed_run
from dist_net.nets.sources.followed_run import FollowedRun
from dist_net.wire.connections import Contact
from dist_net.wire.messages import Message
from dist_net.wire.security import CLIENT
from dist_net.wire.standbys import term_number
from simulation.failures import require
from simulation.network import VirtualClientSocket, VirtualNetwork
from simulation.processes import host_in

LOOK_EVERY_S, RESTARTED = 3.0, 0.2
SHORTEST_S = 1e-3
"""The shortest wait: a shorter one may be lost in rounding."""


class RunIsOverError(Exception):
    """The simulated run is over, and a reader still waits."""


@dataclass
class FoundWeights:
    """The counting model, as it was read."""

    weights: Vector
    version: int | None = None


class ReadRun(FollowedRun):
    """A run of the counting model, which has ``size`` weights."""

    size = 0

    def _load(self, reference: str, observer: object) -> Any:
        return SimpleNamespace(recipe=SimpleNamespace(layout=SimpleNamespace(size=self.size)))


class WaitingSocket:
    """A client's end, like `dist_net.wire.transport.ClientSocket`, which waits."""

    contact = Contact.OPEN

    def __init__(self, socket: VirtualClientSocket, wait: Callable[[float, Sized], None]) -> None:
        self._socket = socket
        self._wait = wait
        self.send, self.close, self.no_answer = socket.send, socket.close, socket.no_answer

    def receive(self, timeout_s: float) -> Message | None:
        self._wait(timeout_s, self._socket)
        return self._socket.receive()


class VirtualPool:
    """A pool on ``host`` that follows a run of ``size`` weights from the server at ``address`` on.

    ``is_of_run`` returns whether a version had these weights in a term. While the pool waits, later
    events run, until ``is_over``: no other process of a simulation may wait in this way.
    """

    def __init__(
        self,
        host: str,
        address: str,
        size: int,
        network: VirtualNetwork,
        is_of_run: Callable[[int, Vector], bool],
        is_over: Callable[[], bool],
    ) -> None:
        self._host = host
        self._address = address
        self._size = size
        self._network = network
        self._schedule = network.schedule
        self._is_of_run = is_of_run
        self._is_over = is_over
        self._term, self._version, self._kept = 0, -1, ""
        self._source = self._begun("")
        self._schedule.after(LOOK_EVERY_S, self._look)

    def _begun(self, kept: str) -> FollowedRun:
        source = ReadRun(self._address, None, None, lambda *_: None)
        source.size = self._size
        if kept:
            source.resume(kept)
        return source

    def _look(self) -> None:
        """Read the run's version if it is new; sometimes, in another process than before."""
        if self._schedule.random.random() < RESTARTED:
            self._source = self._begun(self._kept)
        try:
            with self._patches():
                if self._source.version() != self._source.version_read:
                    self._has_read(self._source.read())
        except DistNetError as error:
            self._schedule.note("pool", "reads nothing: %s", error)
        except RunIsOverError:
            return
        self._schedule.after(LOOK_EVERY_S, self._look)

    def _has_read(self, found: Any) -> None:
        """Check that the version is not older than the last, unless no standby has taken over."""
        source, version = self._source, found.version
        term = source._following.places.term
        self._schedule.note("pool", "reads version %d of term %x", version, term)
        goes_back = term < self._term or version < self._version
        is_moved = term_number(max(term, self._term)) > 1
        back = f"a pool reads version {version} of {term:x} after {self._version} of {self._term:x}"
        require(not (goes_back and is_moved), back)
        require(self._is_of_run(version, found.weights), f"no server had the pool's {version}")
        self._term, self._version, self._kept = term, version, source.to_json()

    def _patches(self) -> ExitStack:
        """Let the reader wait in virtual time."""
        virtual_time = SimpleNamespace(monotonic=self._schedule.now, sleep=self._sleep)
        patches = ExitStack()
        for module, name, value in (
            (observer, "time", virtual_time),
            (observer, "ClientSocket", self._connect),
            (followed_run, "class_names_of", lambda *_: ()),
            (followed_run, "found_model", lambda _, weights, __: FoundWeights(weights)),
        ):
            patches.enter_context(mock.patch.object(module, name, value))
        return patches

    def _connect(self, address: str, *_: object) -> WaitingSocket:
        socket = self._network.connect(self._host, host_in(address), "pool", CLIENT)
        return WaitingSocket(socket, self._wait)

    def _sleep(self, seconds: float) -> None:
        self._wait(seconds, ())

    def _wait(self, seconds: float, arrived: Sized) -> None:
        until_s = self._schedule.now_s + max(seconds, SHORTEST_S)
        self._schedule.at(until_s, bool)
        while self._schedule.now_s < until_s and not len(arrived):
            if self._is_over():
                raise RunIsOverError
            self._schedule.step()
