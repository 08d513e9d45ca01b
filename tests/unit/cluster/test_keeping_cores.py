"""Who keeps to a core, and who stays awake on one."""

import argparse
import os
from contextlib import closing
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dist_net.cluster.entry import available_cores, kept_on_core
from dist_net.cluster.local_run import Local
from dist_net.cluster.serving_options import add_arguments
from dist_net.parameter_server.loop import TICK_S, ServerLoop
from dist_net.parameter_server.run import RunState
from dist_net.parameter_server.settings import RunSettings
from dist_net.wire.messages import Join, Message, Shutdown
from dist_net.wire.segment import Segment, available
from dist_net.wire.serving_messages import Retire
from dist_net.wire.wakefulness import Wakefulness


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [(2, 2, [4, 5]), (2, 4, [4, 5, 4, 5]), (2, 1, [None]), (8, 2, [None, None])],
)
def test_workers_of_one_thread_have_a_core_each(
    cores: int, workers: int, expected: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4, 4 + cores)))
    local = Local(workers)
    assert [local.core(index) for index in range(workers)] == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_of_two_runs_only_one_keeps_a_worker_on_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[int]] = []
    monkeypatch.setattr("os.sched_setaffinity", lambda _, cores: kept.append(cores))
    core = 10_000 + os.getpid()  # which no worker of this host can have
    with kept_on_core(core), kept_on_core(core), kept_on_core(core + 1):
        assert kept == [{core}, {core + 1}]
    with kept_on_core(core):
        assert kept[2:] == [{core}]


def test_where_the_system_keeps_no_list_of_cores_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert available_cores() == 6
    assert Local(2).threads == 2
    assert Local(6).core(0) is None
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args([]).workers == 6
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("comes_at", "taken_s", "is_told", "expected_looks"),
    [
        (3, 1e-5, True, range(3, 4)),
        (300, 1e-5, True, range(99, 102)),
        (2, 5e-4, True, range(1, 2)),
        (1, 1e-5, False, range(1)),
    ],
    ids=["it comes soon", "it comes late", "others want the core", "none is expected"],
)
def test_a_process_looks_out_for_what_comes_soon_before_it_sleeps(
    comes_at: int,
    taken_s: float,
    is_told: bool,
    expected_looks: range,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, now = 0, 5.0

    def give_way() -> None:
        nonlocal now
        now += taken_s

    def has_message() -> bool:
        nonlocal looks
        looks += 1
        return looks == comes_at

    monkeypatch.setattr("os.sched_yield", give_way)
    clock: Any = SimpleNamespace(now=lambda: now)
    message = Retire()  # which is an empty tuple, and no less a message
    socket: Any = SimpleNamespace(has_message=has_message, receive={0.2: message}.get)
    wakeful = Wakefulness[Message](socket, clock)
    if is_told:
        wakeful.stay_awake()
    assert wakeful.receive(0.2) is message
    assert looks in expected_looks


@pytest.mark.skipif(not available(), reason="needs shared memory")
@pytest.mark.parametrize(("cores", "stays_awake"), [(0, False), (1, False), (2, True)])
def test_a_server_stays_awake_where_workers_leave_it_a_core(
    cores: int, stays_awake: bool, tmp_path: Path
) -> None:
    settings = RunSettings("r", "abc", (("weight", (6,)),), samples=8, epochs=1, batch_size=4)
    with closing(Segment.create(30, 6)) as weights, closing(Segment.create(6, 6)) as gradients:
        buffers = [np.empty(6, np.float32) for _ in range(30)]
        place = (gradients.process_id, gradients.descriptor, gradients.token)
        messages: list[Message] = [Join("here", "abc", 6, *place), Shutdown("enough")]
        waited_s: list[float] = []

        def receive(timeout_s: float) -> tuple[bytes, Message] | None:
            waited_s.append(timeout_s)
            return (b"worker", messages.pop(0)) if timeout_s > 0 and messages else None

        def has_message() -> bool:
            waited_s.append(0)
            return False

        socket: Any = SimpleNamespace(
            has_message=has_message, receive=receive, send=lambda *_: True
        )
        ticks = count(step=1e-5)
        clock: Any = SimpleNamespace(now=lambda: next(ticks))
        run = RunState(settings, np.zeros(6, np.float32), buffers)
        server = ServerLoop(run, socket, tmp_path / "c", 60.0, weights, cores=cores, clock=clock)
        server.serve()
    # Once it looks whether more has arrived, before it counts workers out.
    looks = waited_s.index(TICK_S, 1) - 1
    assert looks > 20 if stays_awake else looks == 1
