"""The server's loop on a disk that refuses things at the worst moment."""

import errno
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.errors import DistNetError, SegmentError
from dist_net.ground.files import AppendedFile
from dist_net.ground.vector import Vector
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import Journal
from dist_net.training.server.loop import Machine, opened_server
from dist_net.training.server.protocol import ParameterServer
from dist_net.training.server.server_files import ServerFiles
from dist_net.training.server.settings import RunSettings
from dist_net.wire.messages import (
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    SegmentAddress,
    Welcome,
    Work,
)
from simulation.disk import VirtualDisk, checkpoint_on
from simulation.network import VirtualNetwork
from simulation.schedule import TracedSchedule

SETTINGS = RunSettings("line", "abc", (("weights", (3,)),), samples=4, epochs=1, batch_size=2)
CHECKPOINT, JOURNAL = Path("checkpoint"), Path("journal")
FILES = ServerFiles(CHECKPOINT, JOURNAL, 60.0)
ZEROS = np.zeros(3, np.float32)


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
    socket, machine = VirtualNetwork(schedule).listen("server"), Machine(schedule, disk)
    with opened_server(socket, SETTINGS, ZEROS, FILES, machine=machine) as loop:
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


def test_a_checkpoint_that_failed_during_the_run_is_reported_until_the_next_is_written() -> None:
    schedule, disk = TracedSchedule(), VirtualDisk(np.random.default_rng(0))
    socket, machine = VirtualNetwork(schedule).listen("server"), Machine(schedule, disk)
    files = replace(FILES, checkpoint_every_s=1.0)
    with opened_server(socket, SETTINGS, ZEROS, files, machine=machine) as loop:
        turns, errors = loop.turns(WriterOfADiskThatIsReadOnlyAfterwards(disk, 1)), []
        while schedule.now_s < 4.0:
            schedule.now_s += next(turns)
            errors.append(loop.files.on_disk.checkpoint_error is not None)
        assert [is_error for is_error, _ in groupby(errors)] == [False, True, False]
        assert loop.run.metrics.checkpoints_failed == 1


def test_a_server_resumes_on_a_full_disk() -> None:
    schedule, disk = TracedSchedule(), VirtualDisk(np.random.default_rng(0))
    socket, machine = VirtualNetwork(schedule).listen("server"), Machine(schedule, disk)
    with opened_server(socket, SETTINGS, ZEROS, FILES, machine=machine) as loop:
        next(loop.turns(WriterOfADiskThatIsReadOnlyAfterwards(disk, 0)))
    checkpoint = checkpoint_on(disk, CHECKPOINT)
    disk.failure = errno.EROFS
    machine = Machine(schedule, DiskThatOpens(disk))
    with opened_server(socket, SETTINGS, checkpoint, FILES, machine=machine) as loop:
        started: list[str] = []
        next(loop.turns(WriterOfADiskThatIsReadOnlyAfterwards(disk, 0), lambda: started.append("")))
        assert started
        assert loop.files.journal.error is not None
        disk.failure = None
        loop.files.journal.append()
    assert list(read_journal(JOURNAL, disk).checkpoints) == [0]
    assert [each.version for each in read_journal(JOURNAL, disk).starts()] == [0, 0]


def test_a_resumed_server_continues_the_counters_of_workers_and_the_age_of_its_journal() -> None:
    """A server is killed after a worker has joined, long before the next checkpoint."""
    bench = ServerBench()
    assert isinstance(bench.join(), Welcome)
    for _ in range(200):  # without a heartbeat
        bench.schedule.now_s += next(bench.turns) or 0.01
    bench.turns.close()
    checkpoint = checkpoint_on(bench.disk, CHECKPOINT)
    counters = checkpoint.counters["metrics"]
    assert (counters["workers_joined"], counters["workers_lost"]) == (0, 0)
    clock = TracedSchedule()
    clock.now_s = 1e6  # of a host that has run for days
    machine = Machine(clock, bench.disk)
    settings = bench.run.settings
    with opened_server(bench.socket, settings, checkpoint, FILES, machine=machine) as loop:
        metrics = loop.run.metrics
        assert (metrics.workers_joined, metrics.workers_lost) == (1, 1)
        assert loop.files.journal.lag(clock.now_s + 2.0).lag_s == 2.0


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
    socket, machine = VirtualNetwork(schedule).listen("server"), Machine(schedule, disk)
    files, writer = replace(FILES, sync="0.1"), SlowWriter()
    with opened_server(socket, SETTINGS, ZEROS, files, machine=machine) as loop:
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


# Memory that workers share


class Memory:
    """Two states in memory, until they are closed."""

    vectors = 2

    def __init__(self, size: int) -> None:
        self.address = SegmentAddress(1, id(self), b"t")
        self.states = np.zeros((2, size), np.float32)
        self.is_closed = False

    def vector(self, index: int) -> Vector:
        assert not self.is_closed
        vector: Vector = self.states[index]
        return vector

    def close(self) -> None:
        self.is_closed = True


class Socket:
    """Keeps what is sent; a test sends messages into the loop."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.failed: list[Message] = []

    def receive(self, timeout_s: float) -> tuple[bytes, Message] | None:
        raise AssertionError("messages are sent into the loop")

    def send(self, node: bytes, message: Message) -> None:
        self.sent.append(message)

    def send_one(self, node: bytes, message: Message) -> bool:
        self.sent.append(message)
        return True

    def answer_failure(self, node: bytes, message: Message) -> None:
        self.failed.append(message)


class ServerBench:
    """A server's loop, and the memory that it has created."""

    def __init__(self, *, is_short_of_memory: bool = False) -> None:
        self.memory: list[Memory] = []
        self.socket = Socket()
        self.schedule, self.disk = TracedSchedule(), VirtualDisk(np.random.default_rng(0))

        def share(vectors: int, size: int) -> Memory:
            assert (vectors, size) == (2, 4)
            if is_short_of_memory:
                raise SegmentError("too little memory")
            self.memory.append(Memory(size))
            return self.memory[-1]

        settings, ones = replace(SETTINGS, local_steps=1), np.ones(3, np.float32)
        machine = Machine(self.schedule, self.disk, share)
        self._opened = opened_server(self.socket, settings, ones, FILES, machine=machine)
        self.loop = self._opened.__enter__()
        self.run = self.loop.run
        self.turns = self.loop.turns(SlowWriter())
        next(self.turns)

    def ask(self, message: Message) -> Message:
        self.turns.send((b"node", message))
        return self.socket.sent[-1]

    def join(self, identity: int = 7, **facts: Any) -> Message:
        return self.ask(Join("one", identity, "abc", 3, True)._replace(**facts))


def test_a_worker_of_this_host_exchanges_states_in_memory_of_its_own() -> None:
    bench = ServerBench()
    welcome = bench.join()
    assert isinstance(welcome, Welcome)
    [memory] = bench.memory
    assert welcome.segment == memory.address
    work = bench.ask(Pull(welcome.worker_id, 7, 1))
    assert isinstance(work, Work)
    assert work.state is None
    np.testing.assert_array_equal(memory.states, [[1, 1, 1, 0], [0, 0, 0, 0]])
    memory.states[1] = 5, 6, 7, 1
    following = bench.ask(Push(welcome.worker_id, 7, 2, work.lease_id, 1.0, 1, 0.1, None))
    assert isinstance(following, Work)
    np.testing.assert_array_equal(bench.run.store.state, [5, 6, 7, 1])
    np.testing.assert_array_equal(memory.states[0], [5, 6, 7, 1])
    memory.states[:] = np.nan  # the worker's, and no longer the server's
    np.testing.assert_array_equal(bench.run.store.state, [5, 6, 7, 1])


def test_memory_is_released_with_its_worker_and_at_the_end() -> None:
    bench = ServerBench()
    first = bench.join()
    assert isinstance(first, Welcome)
    bench.join(request_id=1)  # the same worker, again
    assert [memory.is_closed for memory in bench.memory] == [True, False]
    second = bench.socket.sent[-1]
    assert isinstance(second, Welcome)
    bench.turns.send((b"node", Leave(second.worker_id, 7)))
    bench.join(8)
    assert [memory.is_closed for memory in bench.memory] == [True, True, False]
    bench.turns.close()
    assert all(memory.is_closed for memory in bench.memory)


def test_memory_for_a_worker_that_is_refused_is_released() -> None:
    bench = ServerBench()
    assert isinstance(bench.join(recipe_digest="another"), Refuse)
    assert [memory.is_closed for memory in bench.memory] == [True]


def test_a_join_that_is_repeated_keeps_its_memory() -> None:
    bench = ServerBench()
    bench.join()
    bench.turns.send((b"node", Join("one", 7, "abc", 3, True)))
    assert [memory.is_closed for memory in bench.memory] == [False, True]


@pytest.mark.parametrize("shares_memory", [True, False])
def test_without_shared_memory_states_travel_as_frames(shares_memory: bool) -> None:
    bench = ServerBench(is_short_of_memory=shares_memory)
    welcome = bench.join(shares_memory=shares_memory)
    assert isinstance(welcome, Welcome)
    assert welcome.segment is None
    assert bench.memory == []
    work = bench.ask(Pull(welcome.worker_id, 7, 1))
    assert isinstance(work, Work)
    assert work.state is bench.run.store.packed_state()


def test_a_join_whose_handling_fails_is_answered_and_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = ServerBench()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(ParameterServer, "_join", fail)
        bench.turns.send((b"node", Join("one", 7, "abc", 3, True)))
    assert len(bench.socket.failed) == 1
    assert isinstance(bench.join(), Welcome)
