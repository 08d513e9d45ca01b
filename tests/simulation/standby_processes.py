"""The processes of a run with standbys: the shipped loops on hosts with disks and clocks."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_net.errors import RunDirectoryError, SegmentError
from dist_net.ground.files import replacing
from dist_net.training.server import succession
from dist_net.training.server.journal import read_journal
from dist_net.training.server.loop import (
    Machine,
    OtherHosts,
    Received,
    ServerLoop,
    opened_server,
)
from dist_net.training.server.members import NO_WORKER, VoterId
from dist_net.training.server.server_files import RunOwnership, ServerFiles
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.standby_copy import RunCopy
from dist_net.training.server.standby_loop import StandbyLoop
from dist_net.training.server.standbys import NOTHING, Remembered, RunPlace
from dist_net.wire.messages import Follow, Followed, Join, Message, Shutdown
from dist_net.wire.security import STANDBY
from dist_net.wire.standbys import Standby
from simulation.disk import VirtualDisk, checkpoint_on
from simulation.failures import require
from simulation.invariants import CHECKPOINT, JOURNAL, OWNER
from simulation.memory import VirtualMemory, VirtualSegment
from simulation.network import VirtualClientSocket, VirtualNetwork
from simulation.processes import LoopProcess, ServerOptions, VirtualWriter, host_in
from simulation.schedule import HostClock
from simulation.standby_checks import StandbyChecks

STANDBYS = Path("run/standbys")
RIVAL_S, FOUND_S = 1.0, 5.0
DISPLAYED_S, ASKED_AGAIN_S = 0.3, 2.0
"""The time in which the display of a host notices that the run is finished."""


@dataclass
class VirtualHost:
    """A host, which has one process of the run at most. ``disk`` has one run directory."""

    name: str
    disk: VirtualDisk
    memory: VirtualMemory
    clock: HostClock
    key: str

    @property
    def address(self) -> str:
        return f"tcp://{self.name}:1"

    @property
    def place(self) -> Standby:
        return Standby(self.address, self.key)


def newest_state(disk: VirtualDisk) -> tuple[int, int]:
    """Return the term and the version from which a run can be resumed; zeros: from none."""
    if not disk.exists(CHECKPOINT):
        return 0, 0
    term = [each.term for each in read_journal(JOURNAL, disk).starts()][-1]
    return term, checkpoint_on(disk, CHECKPOINT).version


class RunProcess(LoopProcess):
    """The server of a run, which begins it or resumes it from its host's disk, or a standby.

    A standby ``follows`` the server on this host; None: this is the server. ``is_over`` is called
    once it serves a run that is finished.
    """

    def __init__(
        self,
        process_id: int,
        host: VirtualHost,
        network: VirtualNetwork,
        settings: RunSettings,
        options: ServerOptions,
        checks: StandbyChecks,
        follows: str | None,
    ) -> None:
        super().__init__(
            *(f"{'run' if follows is None else 'standby'} on {host.name}", host.name, process_id),
            *(network, options.service_s, host.clock),
        )
        self._at = host
        self._settings = settings
        self._options = options
        self._checks = checks
        self.follows = follows
        self.begun_s, self.rejoin_timeout_s = 0.0, math.inf
        self._over_s: float | None = None
        self._heard_s = self._began_s = -math.inf
        self._visits_s: dict[VoterId, float] = {}
        self.standby: StandbyLoop | None = None
        self.copy: RunCopy | None = None

    @property
    def serves(self) -> bool:
        return self.is_alive and self.loop is not None

    def _start(self) -> None:
        socket, writer, disk = self._listen(self._at.key), VirtualWriter(self), self._at.disk
        known = NOTHING
        if disk.exists(STANDBYS):
            known = Remembered.from_json(disk.read(STANDBYS))
        if self.follows is None:
            after = 0 if disk.exists(OWNER) else newest_state(disk)[0]  # in a copy
            loop = self._context.enter_context(self.opened_server(known, after))
            self._drive(loop.turns(writer))
            return
        self._began_s = self.clock.now()
        self.copy = RunCopy(self._settings, CHECKPOINT, JOURNAL, disk)
        hosts = OtherHosts(RunPlace(self.host, self._at.place, known), connect=self._reach)
        server = Standby(f"tcp://{self.follows}:1")
        self.standby = StandbyLoop(server, hosts, socket, self.copy, self, self.clock)
        self._drive(self.standby.turns(writer))

    @property
    def sends_states_since_s(self) -> float:
        """When it began its term, or its run ended: the last state replaces those on their way."""
        return self.begun_s if self._over_s is None else self._over_s + DISPLAYED_S

    @property
    def finds_server(self) -> bool:
        """Whether this standby has heard a server lately."""
        return self._heard_s > self.clock.now() - FOUND_S

    def _reach(self, place: Standby) -> VirtualClientSocket:
        key, server_key = self._at.key, place.public_key
        names = self.host, host_in(place.address), self.name, STANDBY, key, server_key
        socket = self._network.connect(*names)
        socket.on_message = self._hears
        return socket

    def _hears(self, message: Message) -> None:
        known = 0 if self.standby is None else self.standby._others.term
        if isinstance(message, Followed) and message.term >= known:
            self._heard_s = max(self._heard_s, message.sent_s)

    def _resume(self, received: Received) -> None:
        match received and received[1]:
            case Join(identity=identity, public_key=key):
                self._visits_s[key, identity] = self.clock.now()
            case Follow(public_key=key, sent_s=sent_s, heard_s=heard_s):
                if sent_s - heard_s >= self._settings.takeover_after_s:
                    self._visits_s[key, NO_WORKER] = self.clock.now()
        super()._resume(received)

    def remembers(self, known: Remembered) -> None:
        try:
            with replacing(STANDBYS, self._at.disk) as partial:
                self._at.disk.write(partial, json.dumps(known).encode())
        except OSError as error:
            raise RunDirectoryError(str(error)) from error

    def takes(self, facts: dict[str, Any]) -> None:
        self.schedule.note(self.name, "has version %d", facts["version"])
        self._checks.copied(self._at.disk, facts["version"])

    @contextmanager
    def opened_server(self, remembered: Remembered, after: int) -> Iterator[ServerLoop]:
        """As ``ServedRun`` of the server's process, on the virtual disk."""
        disk, checkpoint = self._at.disk, None
        if disk.exists(CHECKPOINT):
            checkpoint = checkpoint_on(disk, CHECKPOINT)
        ownership = RunOwnership(OWNER, self.host, disk, after, self.random)
        weights = np.zeros(self._settings.vector_size, np.float32)
        assert self._socket is not None
        files = ServerFiles(
            *(CHECKPOINT, JOURNAL, self._options.checkpoint_every_s, 1, self._options.sync),
            *(STANDBYS, ownership),
        )
        others = OtherHosts(RunPlace(self.host, self._at.place, remembered), connect=self._reach)
        machine = Machine(self.clock, disk, self._share, self.random)
        begin = weights if checkpoint is None else checkpoint
        with opened_server(self._socket, self._settings, begin, files, others, machine) as loop:
            self._checks.begin(self, loop.run, loop.files.journal, disk, self._at.memory)
            self._require_silence()
            self._require_newest()
            self._require_majority()
            self.begun_s = self.schedule.now_s
            begun = "begins term %x after %x with version %d; others: %s"
            self.schedule.note(self.name, begun, loop.term, after, loop.version, remembered)
            self.loop = loop
            yield loop

    def _require_silence(self) -> None:
        """Check that a standby begins a term after the server has been silent.

        An earlier process of it may have heard the server, and promised to stay with it.
        """
        if self.standby is not None:
            if self._heard_s < self._began_s:
                self.schedule.note(self.name, "has heard no server")
            silent_s = self.clock.now() - max(self._heard_s, self._began_s)
            is_silent = silent_s > 0.99 * self._settings.takeover_after_s
            require(is_silent, f"{self.host} takes over after {silent_s:.2f} s of silence")

    def _require_newest(self) -> None:
        """Check that no standby that has just followed this one has a newer state."""
        if self.standby is None or self.copy is None:
            return
        for rival, seen_s in self.standby._succession._rivals.values():
            is_there = bool(rival.version) and seen_s > self.clock.now() - RIVAL_S
            own = self.copy.copied_term, self.copy.version
            is_newer = (rival.copied_term, rival.version) > own
            require(not (is_there and is_newer), f"{rival.host} has a newer state than {self.host}")

    def _require_majority(self) -> None:
        """Check that most voters of the run have visited a standby since it heard the server."""
        if self.standby is None:
            return
        state = self.standby._succession
        since_s = max(self._heard_s, self.clock.now() - succession.VISIT_S)
        reached = {voter for voter, visited_s in self._visits_s.items() if visited_s > since_s}
        reached.add((self._at.key, NO_WORKER))
        require(state.others.voters != (), f"{self.host} takes over without a list of voters")
        for voters in state.others.voters:
            votes = sum(each.votes for each in voters if each.voter_id in reached)
            rest = sum(each.votes for each in voters) - votes
            is_most = votes > rest or (votes == rest and voters[0].voter_id in reached)
            require(is_most, f"{self.host} takes over with {reached} of {voters}")

    def _share(self, vectors: int, size: int) -> VirtualSegment:
        try:
            return self._at.memory.share(self.process_id, vectors, size)
        except SegmentError as error:
            self.schedule.note(self.name, "shares nothing: %s", error)
            raise

    def _turned(self, loop: ServerLoop) -> None:
        if self._checks.turned(loop, self.process_id) and self._over_s is None:
            self._over_s = self.schedule.now_s
            self.after(DISPLAYED_S, self._shut_down)

    def _shut_down(self) -> None:
        """End the finished run, as the display of this host does."""
        display = self._network.connect(self.host, self.host, f"display on {self.host}")
        display.send(Shutdown("every epoch is done"))
        self.after(ASKED_AGAIN_S, self._shut_down)  # it may be lost

    def leave(self) -> None:
        """Leave the run as a standby, as after SIGTERM."""
        if self.standby is not None and self.loop is None:
            self.schedule.note(self.name, "is to leave")
            self.standby.stop("it is to leave")

    def _release(self) -> None:
        super()._release()
        if self.standby is not None:
            self.standby.close()
        self._at.memory.process_ended(self.process_id)
        self._at.disk.kill_after = None
