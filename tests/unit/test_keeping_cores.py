"""Who keeps to a core, and who stays awake on one."""

from types import SimpleNamespace
from typing import Any

import pytest

from dist_net.cluster.training_run import Local
from dist_net.serving.wakefulness import STAY_AWAKE_S, Wakefulness


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


@pytest.mark.parametrize(
    ("looks", "taken_s", "is_told", "expected"),
    [
        (3, 1e-05, True, "next"),
        (300, 1e-05, True, None),
        (2, 3e-4, True, None),
        (1, 1e-05, False, None),
    ],
    ids=["it comes soon", "it comes late", "others want the core", "none is expected"],
)
def test_a_process_stays_awake_for_what_comes_soon(
    looks: int, taken_s: float, is_told: bool, expected: str | None
) -> None:
    seen: list[float] = []
    now = 5.0

    def receive(timeout_s: float) -> str | None:
        nonlocal now
        assert timeout_s == 0
        seen.append(now)
        now += taken_s
        return "next" if len(seen) == looks else None

    socket: Any = SimpleNamespace(receive=receive)
    clock: Any = SimpleNamespace(now=lambda: now)
    wakeful = Wakefulness(socket, clock)
    if is_told:
        wakeful.stay_awake()
    assert wakeful.receive_soon() == expected
    assert all(each <= 5 + STAY_AWAKE_S for each in seen)
