"""The gateway's turns over a fake socket and a clock that the test moves."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from children import KnownChildren
from described import described
from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import PoolSettings
from dist_net.wire.messages import Heartbeat, Leave, Message
from dist_net.wire.serving_messages import (
    BatchDone,
    JoinPool,
    Loaded,
    ModelPrepared,
    PoolWelcome,
    RunBatch,
)

BEATS_A_SECOND = 5


class Socket:
    """What workers have sent and nobody has received yet; and what they were told."""

    def __init__(self) -> None:
        self.arrived: deque[tuple[bytes, Message]] = deque()
        self.sent: list[tuple[bytes, Message]] = []
        self.failed: list[tuple[bytes, Message]] = []
        self._descriptor, self._other_end = os.pipe()

    def close(self) -> None:
        os.close(self._descriptor)
        os.close(self._other_end)

    def fileno(self) -> int:
        return self._descriptor

    def has_message(self) -> bool:
        return bool(self.arrived)

    def waiting(self, most: int) -> Iterator[tuple[bytes, Message]]:
        for _ in range(min(most, len(self.arrived))):
            yield self.arrived.popleft()

    def send(self, node: bytes, message: Message) -> bool:
        self.sent.append((node, message))
        return True

    def answer_failure(self, node: bytes, message: Message) -> None:
        self.failed.append((node, message))


class Clock:
    def __init__(self) -> None:
        self.time_s = 1000.0

    def now(self) -> float:
        return self.time_s


class Host:
    """A gateway with so many workers, which send heartbeats as the clock goes on."""

    def __init__(self, workers: int) -> None:
        self.socket, self.clock = Socket(), Clock()
        self.killed: list[str] = []
        pool = Pool(PoolSettings(), ["net"], KnownChildren(), count(1), self.clock.now())
        self.read: list[object] = []
        processes = SimpleNamespace(kill=self.kill, read=self.read.append)
        others: Any = self.socket, processes, self.clock, ClientLedger(1 << 20)
        self.gateway = Gateway(pool, *others)
        for index in range(workers):
            node = f"worker {index}".encode()
            join = JoinPool(node.decode(), "host", index, credential=str(index))
            self.socket.arrived.append((node, join))

    def kill(self, credential: str, reason: str) -> None:
        self.killed.append(credential)

    async def turns(self, count: int = 10) -> None:
        for _ in range(count):
            self.gateway._want_turn()
            await asyncio.sleep(0)

    def passes(self, seconds: float, silent: int | None = None) -> None:
        """Time passes in which the workers' heartbeats arrive, but for one's."""
        ids = [each.worker_id for _, each in self.socket.sent if isinstance(each, PoolWelcome)]
        for _ in range(int(seconds * BEATS_A_SECOND)):
            for process_id, worker_id in enumerate(ids):
                if process_id != silent:
                    self.socket.arrived.append((b"heart %d" % worker_id, Heartbeat(worker_id)))
        self.clock.time_s += seconds


@contextmanager
def running(workers: int) -> Iterator[tuple[Host, Any]]:
    host = Host(workers)
    with asyncio.Runner() as runner:

        async def start() -> None:
            host.gateway.start(asyncio.get_running_loop())
            await host.turns()

        runner.run(start())
        try:
            yield host, lambda: runner.run(host.turns())
        finally:
            runner.get_loop().call_soon(host.gateway.close)
            runner.run(asyncio.sleep(0))
    host.socket.close()


def test_a_gateway_that_stood_still_gives_nobody_up() -> None:
    with running(workers=24) as (host, turns):
        for seconds in (2.5, 60.0):
            host.passes(seconds)
            turns()
            assert host.killed == []


def test_an_unload_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with running(workers=1) as (host, turns):
        host.gateway.unload("net")
        turns()
        assert host.gateway.unloads == {"net": 1}
        assert any("model=net" in each.getMessage() for each in caplog.records)


def test_nor_does_it_if_what_workers_said_comes_through_only_later() -> None:
    with running(workers=24) as (host, turns):
        host.passes(2.5)
        late, host.socket.arrived = host.socket.arrived, deque()
        turns()
        host.clock.time_s += 0.1
        host.socket.arrived = late
        turns()
        assert host.killed == []


def test_all_that_has_arrived_is_heard_before_anybody_is_given_up() -> None:
    with running(workers=200) as (host, _):
        for _ in range(5):  # a machine so busy that there is a turn every 0.4 s
            host.passes(0.4)
            host.gateway._take_turn()
        assert host.killed == []


def test_who_is_silent_afterwards_is_given_up() -> None:
    with running(workers=8) as (host, turns):
        host.passes(2.5, silent=3)
        turns()
        assert host.killed == []
        for _ in range(16):  # of which 0.1 s each count
            host.passes(0.2, silent=3)
            turns()
        assert host.killed == ["3"]


def test_a_gateway_that_a_busy_machine_delays_waits_for_silent_workers_as_much_longer() -> None:
    with running(workers=8) as (host, turns):
        host.passes(0.1)
        turns()
        for _ in range(13):  # a turn every 0.4 s: 5.2 s, of which 1.3 s count
            host.passes(0.4, silent=3)
            turns()
        assert host.killed == []
        for _ in range(4):
            host.passes(0.4, silent=3)
            turns()
        assert host.killed == ["3"]


def test_a_timer_that_fires_early_is_set_again() -> None:
    with running(workers=1) as (host, turns):
        turns()
        fired = host.gateway._timer
        fired._run()  # the clock says that its time has not come
        turns()
        assert host.gateway._timer is not fired
        assert not host.gateway._timer.cancelled()


def test_workers_that_are_silent_cannot_answer_though_no_turn_has_been_taken() -> None:
    with running(workers=1) as (host, turns):
        worker = b"worker 0"
        description = described("net", 1)
        host.gateway.pool.prepared(ModelPrepared("net", 1, description.to_json(), ""), 1000.0)
        host.socket.arrived.append((worker, Loaded("net", 1, "")))
        turns()
        (probe,) = [each for _, each in host.socket.sent if isinstance(each, RunBatch)]
        assert not host.gateway.is_ready
        host.socket.arrived.append((worker, BatchDone(probe.batch_id, b"\0", 0, 0, (bytes(12),))))
        turns()
        assert host.gateway.is_ready
        host.clock.time_s += PoolSettings().heartbeat_timeout_s
        assert not host.gateway.is_ready


def test_a_message_whose_handling_fails_is_answered_and_the_next_one_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault of our own")

    with running(workers=1) as (host, turns):
        leave = Leave(1)
        monkeypatch.setattr(Pool, "lost", fail)
        host.socket.arrived.append((b"worker 0", leave))
        host.socket.arrived.append((b"another", JoinPool("another", "host", 7)))
        turns()
        assert host.socket.failed == [(b"worker 0", leave)]
        assert isinstance(host.socket.sent[-1][1], PoolWelcome)
