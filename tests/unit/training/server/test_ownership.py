"""Of two servers on one run directory, the older one ends before it writes anything more."""

import errno
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.errors import FileWriteError, SupersededError
from dist_net.ground.checkpoint import write_checkpoint
from dist_net.training.server.consistency import WHOLE
from dist_net.training.server.journal_records import Applied
from dist_net.training.server.loop import Machine, OtherHosts, Received, opened_server
from dist_net.training.server.server_files import RunOwnership, ServerFiles
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.standbys import RunPlace, fingerprint
from dist_net.training.server.state import RunState
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import Follow, Followed, Message
from dist_net.wire.standbys import Standby
from simulation.disk import VirtualDisk
from simulation.network import VirtualNetwork
from simulation.schedule import TracedSchedule
from tests.unit.training.server.test_loop import SlowWriter

SETTINGS = RunSettings("line", "abc", (("weights", (3,)),), samples=4, epochs=1, batch_size=2)
OWNER, CHECKPOINT, JOURNAL = Path("owner"), Path("checkpoint"), Path("journal")
APPLIED = Applied(1, 7, LeaseSteps(0, 0, 2, 0, 2, 2), 0)


def claimed(disk: VirtualDisk, host: str = "one") -> RunOwnership:
    return RunOwnership(OWNER, host, disk)


def go_on(turns: Generator[float, Received, None], schedule: TracedSchedule) -> None:
    """Lets the loop go on until it ends."""
    for wait_s in turns:
        schedule.now_s += wait_s


def test_the_last_claim_counts() -> None:
    disk = VirtualDisk(np.random.default_rng(0))
    older = claimed(disk, "one")
    older.require()
    newer = claimed(disk, "two")
    newer.require()
    with pytest.raises(SupersededError, match=r"\d+.*two"):
        older.require()


def test_a_server_of_another_host_is_given_time_to_notice() -> None:
    disk = VirtualDisk(np.random.default_rng(0))
    hosts = ("one", "one", "two", "two")
    assert [claimed(disk, host).was_elsewhere for host in hosts] == [False, False, True, False]


def test_on_a_disk_that_cannot_be_written_the_run_goes_on_unclaimed() -> None:
    disk = VirtualDisk(np.random.default_rng(0))
    disk.failure = errno.EROFS
    claimed(disk).require()
    disk.failure = None
    claimed(disk)
    disk.failure = errno.EROFS
    claimed(disk).require()


@pytest.mark.parametrize("writes", ["a result's record", "at a tick", "a checkpoint"])
def test_the_older_server_ends_before_it_writes(writes: str) -> None:
    schedule, disk = TracedSchedule(), VirtualDisk(np.random.default_rng(0))
    socket, writer = VirtualNetwork(schedule).listen("server"), SlowWriter()
    files = ServerFiles(CHECKPOINT, JOURNAL, 0.5, ownership=claimed(disk))
    begin, machine = np.zeros(3, np.float32), Machine(schedule, disk)
    with opened_server(socket, SETTINGS, begin, files, machine=machine) as loop:
        turns = loop.turns(writer)
        schedule.now_s += next(turns)
        loop.run.store.apply(np.ones(4, np.float32), WHOLE)  # so that there is something to write
        while not writer.waiting:
            schedule.now_s += next(turns)
        before = disk.read(JOURNAL), disk.read(CHECKPOINT)
        claimed(disk, "another")
        if writes == "a checkpoint":
            writer.finish(0)
        if writes == "a result's record":
            schedule.now_s += 0.15
            with pytest.raises(SupersededError):
                loop.files.record(APPLIED)
        else:
            with pytest.raises(SupersededError):
                go_on(turns, schedule)
        assert (disk.read(JOURNAL), disk.read(CHECKPOINT)) == before


class Elsewhere:
    """A connection to a server that continues the run in a later term."""

    def __init__(self, place: Standby) -> None:
        self.answer = Followed(2**62, 0.0, 9, place.address, "[]", "", 0, 0, 0, 1.0, ())

    def send(self, message: Message) -> None:
        assert isinstance(message, Follow)
        assert message.serves

    def receive(self, _: float) -> Followed:
        return self.answer

    def abandon(self) -> None:
        """Nothing is open."""


class FollowedServer:
    """The loop of a server that a standby follows, with a checkpoint every ten seconds."""

    def __init__(self, connect: Callable[[Standby], Any]) -> None:
        self.schedule, self.disk = TracedSchedule(), VirtualDisk(np.random.default_rng(0))
        self.writer, socket = SlowWriter(), VirtualNetwork(self.schedule).listen("server")
        self._opened = opened_server(
            socket,
            SETTINGS,
            np.zeros(3, np.float32),
            ServerFiles(CHECKPOINT, JOURNAL, 10.0),
            OtherHosts(RunPlace("one", Standby("tcp://one:1", "A")), connect=connect),
            Machine(self.schedule, self.disk),
        )
        self.loop = self._opened.__enter__()
        self.turns = self.loop.turns(self.writer)
        next(self.turns)
        self._heard_s = 0.0

    def pass_s(self, seconds: float, *, is_followed: bool) -> None:
        """Let time pass, in which the standby sends requests, or none."""
        until_s = self.schedule.now_s + seconds
        while self.schedule.now_s < until_s:
            now = self.schedule.now_s = self.schedule.now_s + 0.1
            follow = Follow("two", "tcp://two:1", 0, 0, 0, 0, 0, 0, 0, 0, now, self._heard_s)
            lists = self.loop.server.standbys.remembered.voters
            follow = follow._replace(voters=fingerprint(lists[-1]), public_key="B")
            waits_s = self.turns.send((b"two", follow) if is_followed else None)
            while waits_s == 0.0:  # nothing else is queued
                waits_s = self.turns.send(None)
            self._heard_s = now if is_followed else self._heard_s

    @property
    def begun(self) -> int:
        """The number of checkpoints that are begun, and not written."""
        return len(self.writer.waiting)


def test_a_server_without_a_majority_begins_no_checkpoint() -> None:
    server = FollowedServer(Elsewhere)
    server.pass_s(9.0, is_followed=True)
    server.schedule.now_s += 60.0  # it is stopped, and a standby takes over
    server._heard_s = 0.0
    with pytest.raises(SupersededError):
        server.pass_s(5.0, is_followed=False)
    assert server.begun == 0


def test_a_server_that_was_stopped_does_not_replace_its_checkpoint() -> None:
    server = FollowedServer(Elsewhere)
    server.pass_s(10.5, is_followed=True)
    assert server.begun == 1
    before = server.disk.read(CHECKPOINT)
    server.loop.run.store.apply(np.ones(4, np.float32), WHOLE)
    server.schedule.now_s += 60.0
    server.writer.finish(0)  # before the loop has its next turn
    assert server.disk.read(CHECKPOINT) == before


def test_a_checkpoint_on_its_way_is_not_replaced_once_the_server_is_superseded() -> None:
    server = FollowedServer(Elsewhere)
    server.pass_s(10.5, is_followed=True)
    before = server.disk.read(CHECKPOINT)
    later = Follow("two", "tcp://two:1", 2**62, 0, 0, 9, 0, 0, 0, 0, 0.0, 0.0, serves=True)
    with pytest.raises(SupersededError, match="the run continues at tcp://two:1"):
        server.turns.send((b"two", later))
    server.writer.finish(0)
    assert server.disk.read(CHECKPOINT) == before


def test_a_server_without_a_majority_looks_for_another_before_its_last_checkpoint() -> None:
    server = FollowedServer(Elsewhere)
    server.pass_s(3.0, is_followed=True)
    server.schedule.now_s += 60.0
    server.loop.stop("SIGTERM received")
    with pytest.raises(SupersededError):
        go_on(server.turns, server.schedule)
    assert server.begun == 0


def test_a_checkpoint_is_not_replaced_against_an_objection() -> None:
    disk = VirtualDisk(np.random.default_rng(0))
    run = RunState(SETTINGS, np.zeros(3, np.float32))
    write_checkpoint(CHECKPOINT, run.checkpoint(), disk)
    before = disk.read(CHECKPOINT)
    run.store.apply(np.ones(4, np.float32), WHOLE)

    def objection() -> None:
        raise FileWriteError("not yours")

    with pytest.raises(FileWriteError, match="not yours"):
        write_checkpoint(CHECKPOINT, run.checkpoint(), disk, may_replace=objection)
    assert disk.read(CHECKPOINT) == before
    assert disk.names(Path()) == ["checkpoint"]
