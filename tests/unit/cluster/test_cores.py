"""How many cores there are, and who stays awake on one."""

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from dist_net.cluster.entry import available_cores
from dist_net.cluster.local_run import Local
from dist_net.cluster.serving_options import add_arguments
from dist_net.wire.messages import Message
from dist_net.wire.serving_messages import Retire
from dist_net.wire.wakefulness import Wakefulness


def test_where_the_system_keeps_no_list_of_cores_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert available_cores() == 6
    assert Local(2).threads == 2
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
