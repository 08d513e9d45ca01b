"""Of two servers on one run directory, the older one ends before it writes anything more."""

import errno
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from dist_net.errors import FileWriteError, SupersededError
from dist_net.ground.checkpoint import write_checkpoint
from dist_net.training.server.consistency import WHOLE
from dist_net.training.server.journal_records import Applied
from dist_net.training.server.loop import Received, ServerFiles, ServerLoop, opened_journal
from dist_net.training.server.ownership import RunOwnership
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.lease_steps import LeaseSteps
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
    run, writer = RunState(SETTINGS, np.zeros(3, np.float32)), SlowWriter()
    ownership = claimed(disk)
    with opened_journal(JOURNAL, run, disk=disk) as journal:
        socket = VirtualNetwork(schedule).listen("server")
        files = ServerFiles(CHECKPOINT, JOURNAL, 0.5)
        loop = ServerLoop(run, socket, files, journal, schedule, disk, ownership=ownership)
        turns = loop.turns(writer)
        schedule.now_s += next(turns)
        run.store.apply(np.ones(4, np.float32), WHOLE)  # so that there is something to write
        while not writer.waiting:
            schedule.now_s += next(turns)
        before = disk.read(JOURNAL), disk.read(CHECKPOINT)
        claimed(disk, "another")
        if writes == "a checkpoint":
            writer.finish(0)
        if writes == "a result's record":
            schedule.now_s += 0.15
            with pytest.raises(SupersededError):
                loop._record(APPLIED)
        else:
            with pytest.raises(SupersededError):
                go_on(turns, schedule)
        assert (disk.read(JOURNAL), disk.read(CHECKPOINT)) == before


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
