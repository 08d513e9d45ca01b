"""The server's loop on a disk that refuses things at the worst moment."""

import errno
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np

from dist_net.errors import DistNetError
from dist_net.files import AppendedFile
from dist_net.training.server.journal import Journal, read_journal
from dist_net.training.server.loop import ServerLoop, opened_journal
from dist_net.training.server.run_state import RunState
from dist_net.training.server.settings import RunSettings
from simulation.disk import VirtualDisk, checkpoint_on
from simulation.network import VirtualNetwork
from simulation.schedule import TracedSchedule

SETTINGS = RunSettings("line", "abc", (("weights", (3,)),), samples=4, epochs=1, batch_size=2)
CHECKPOINT, JOURNAL = Path("checkpoint"), Path("journal")


class WriterOfADiskThatIsReadOnlyAfterwards(Executor):
    """Writes at once; after the checkpoint of that number nothing can be written."""

    def __init__(self, disk: VirtualDisk, number: int) -> None:
        self._disk = disk
        self._number = number

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **_: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments))
        except DistNetError as error:
            future.set_exception(error)
        self._number -= 1
        self._disk.failure = errno.EROFS if self._number == 0 else None
        return future


def journal_of_a_run(refuses_for_s: float) -> Journal:
    """That of a run that is stopped, while the disk becomes read-only after its last checkpoint."""
    schedule, disk = TracedSchedule(), VirtualDisk(np.random.default_rng(0))
    run = RunState(SETTINGS, np.zeros(3, np.float32))
    with opened_journal(JOURNAL, run, disk=disk) as journal:
        socket = VirtualNetwork(schedule).listen("server")
        loop = ServerLoop(run, socket, CHECKPOINT, 60.0, journal, schedule, disk)
        loop.stop("enough")
        for wait_s in loop.turns(WriterOfADiskThatIsReadOnlyAfterwards(disk, 1)):
            schedule.now_s += wait_s
            if schedule.now_s > refuses_for_s:
                disk.failure = None
    return read_journal(JOURNAL, disk)


def test_the_journal_is_told_of_the_last_checkpoint_as_soon_as_it_can_be() -> None:
    journal = journal_of_a_run(refuses_for_s=0.5)
    assert (journal.fault, list(journal.checkpoints)) == (None, [0])
    assert len(list(journal.records())) == 3


def test_a_run_ends_though_its_journal_cannot_be_told() -> None:
    assert len(list(journal_of_a_run(refuses_for_s=60.0).records())) == 2


def test_a_server_resumes_on_a_full_disk() -> None:
    schedule, disk = TracedSchedule(), VirtualDisk(np.random.default_rng(0))
    first = RunState(SETTINGS, np.zeros(3, np.float32))
    with opened_journal(JOURNAL, first, disk=disk) as journal:
        socket = VirtualNetwork(schedule).listen("server")
        loop = ServerLoop(first, socket, CHECKPOINT, 60.0, journal, schedule, disk)
        next(loop.turns(WriterOfADiskThatIsReadOnlyAfterwards(disk, 0)))
    checkpoint = checkpoint_on(disk, CHECKPOINT)
    run = RunState.resumed(SETTINGS, checkpoint)
    disk.failure = errno.EROFS
    with opened_journal(JOURNAL, run, disk=DiskThatOpens(disk)) as journal:
        loop = ServerLoop(run, socket, CHECKPOINT, 60.0, journal, schedule, disk)
        started: list[str] = []
        next(loop.turns(WriterOfADiskThatIsReadOnlyAfterwards(disk, 0), lambda: started.append("")))
        assert started
        assert journal.error is not None
        disk.failure = None
        journal.append()
    assert list(read_journal(JOURNAL, disk).checkpoints) == [0]
    assert [each.version for each in read_journal(JOURNAL, disk).starts()] == [0, 0]


class DiskThatOpens(VirtualDisk):
    """Opens files to append to whatever fails: a full disk has room for that."""

    def __init__(self, disk: VirtualDisk) -> None:
        self.__dict__ = disk.__dict__

    def append_to(self, path: Path, kept_bytes: int) -> AppendedFile:
        failure, self.failure = self.failure, None
        file = super().append_to(path, kept_bytes)
        self.failure = failure
        return file


class SlowWriter(Executor):
    """Does what is submitted only when ``finish`` is called."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.max_waiting = 0

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **_: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: call(*arguments)))
        self.max_waiting = max(self.max_waiting, len(self.waiting))
        return future

    def finish(self, index: int) -> None:
        future, call = self.waiting.pop(index)
        try:
            future.set_result(call())
        except DistNetError as error:
            future.set_exception(error)


def test_one_sync_is_under_way_at_a_time_and_the_last_checkpoint_does_not_wait_for_it() -> None:
    schedule, disk = TracedSchedule(), VirtualDisk(np.random.default_rng(0))
    run, writer = RunState(SETTINGS, np.zeros(3, np.float32)), SlowWriter()
    with opened_journal(JOURNAL, run, sync="0.1", disk=disk) as journal:
        socket = VirtualNetwork(schedule).listen("server")
        loop = ServerLoop(run, socket, CHECKPOINT, 60.0, journal, schedule, disk)
        turns = loop.turns(writer)
        while schedule.now_s < 5.0:
            schedule.now_s += next(turns)
        assert writer.max_waiting == 1
        loop.stop("enough")
        while len(writer.waiting) < 2:  # the last checkpoint is begun meanwhile
            schedule.now_s += next(turns)
        writer.finish(1)
        for wait_s in turns:
            schedule.now_s += wait_s
    assert disk.exists(CHECKPOINT)
