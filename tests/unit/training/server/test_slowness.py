"""Who is slow beside the others, and why; workers are made up."""

from typing import Any

import pytest

from dist_net.training.server.members import Member
from dist_net.training.server.metrics import RECENT_S, RecentSpeed
from dist_net.training.server.round_plan import LeaseTimes
from dist_net.training.server.run_report import Slowness, medians_of_others, slowness_of
from dist_net.wire.messages import Equipment

NOW_S = 60.0
TIMEOUT_S = 1.5
ORDINARY = Equipment("here", 8, 8, 0.0, 1, "openblas 0.3")


def a_worker(worker_id: int, samples_per_s: float, **facts: Any) -> Member:
    """One that has worked for a minute, and is heard and seen to go on just now."""
    equipment = ORDINARY._replace(**{k: facts.pop(k) for k in facts.keys() & ORDINARY._fields})
    times = {"joined_s": 0.0, "heard_s": NOW_S, "progress_s": NOW_S, "patience_s": TIMEOUT_S}
    times |= facts
    round_trip_s = times.pop("round_trip_s", 0.0003)
    pushes = times.pop("pushes", 600)
    member = Member(
        worker_id, b"", f"worker-{worker_id}", worker_id, "", **times, equipment=equipment
    )
    member.pushes = pushes
    member.lease_times = LeaseTimes(round_trip_s, 0.01)
    member.speed.has_work(0.0)
    for second in range(1, 61):
        member.speed.computed(int(samples_per_s), float(second))
    return member


def verdict_on(slow: Member) -> Slowness:
    """On one beside three ordinary workers of 1,000 samples a second."""
    others = [a_worker(each, 1000) for each in (1, 2, 3)]
    found = slowness_of([*others, slow], NOW_S)
    assert not any(found[each].is_slow for each in (1, 2, 3))
    return found[4]


def test_a_worker_is_slow_when_it_is_far_below_the_median_of_the_others() -> None:
    assert not verdict_on(a_worker(4, 700)).is_slow
    assert not verdict_on(a_worker(4, 5000)).is_slow
    slow = verdict_on(a_worker(4, 250))
    assert slow.speed_share == pytest.approx(0.25)
    assert (slow.is_slow, slow.slow_because) == (True, ())  # nothing is made up


def test_a_worker_alone_is_not_slow() -> None:
    assert slowness_of([a_worker(1, 10)], NOW_S) == {1: Slowness(None)}


def test_nobody_is_judged_who_has_only_begun_or_waits_for_others() -> None:
    fresh = Member(2, b"", "fresh", 2, "", NOW_S, NOW_S, NOW_S, TIMEOUT_S)
    fresh.speed.has_work(NOW_S - 0.5)
    assert slowness_of([a_worker(1, 1000), fresh], NOW_S)[2] == Slowness(None)


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({"heard_s": NOW_S - 1}, "silent for 1.0 s: it is stopped, or its network is cut"),
        ({"progress_s": NOW_S - 9}, "no gradient for 9 s, though it is alive"),
        ({"threads": 2, "core_quota": 1.5}, "2 threads with a quota of 1.5 cores"),
        ({"threads": 2, "cores": 1}, "2 threads on 1 core"),
        (
            {"round_trip_s": 0.05},
            "its exchanges take 50.0 ms, the others' 0.3",
        ),
        ({"blas": "mkl 2024"}, "its BLAS is mkl 2024, the others' openblas 0.3"),
        ({"blas": ""}, "its BLAS is unknown, the others' openblas 0.3"),
    ],
)
def test_what_is_seen_of_the_cause_is_named(facts: dict[str, Any], cause: str) -> None:
    assert verdict_on(a_worker(4, 100, **facts)).slow_because == (cause,)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_crowded_host_is_named_unless_all_are_there(elsewhere: bool) -> None:
    crowd = [a_worker(each, 300, host="small", host_cores=1) for each in (1, 2)]
    others = [a_worker(each, 1000, host="big" if elsewhere else "small") for each in (3, 4, 5)]
    found = slowness_of([*crowd, *others], NOW_S)
    assert found[1].is_slow
    cause = "2 threads of this run on the 1 core of small"
    assert found[1].slow_because == ((cause,) if elsewhere else ())


def test_fewer_threads_than_the_others_are_named() -> None:
    others = [a_worker(each, 1000, threads=4, host=f"host-{each}") for each in (1, 2)]
    found = slowness_of([*others, a_worker(3, 300, host="host-3")], NOW_S)
    assert found[3].slow_because == ("1 thread, the others 4",)


def test_a_silent_worker_is_named_though_it_was_fast() -> None:
    assert verdict_on(a_worker(4, 1000, heard_s=NOW_S - 1.0)).is_slow


def test_a_long_step_is_no_standstill() -> None:
    assert verdict_on(a_worker(4, 100, progress_s=NOW_S - 9, pushes=6)).slow_because == ()


def test_the_median_is_of_the_others() -> None:
    median = medians_of_others([5.0, 1.0, 3.0, 3.0])
    assert [median(each) for each in (1.0, 3.0, 5.0)] == [3.0, 3.0, 3.0]
    median = medians_of_others([1.0, 2.0, 4.0])
    assert [median(each) for each in (1.0, 2.0, 4.0)] == [3.0, 2.5, 1.5]
    assert medians_of_others([7.0])(7.0) is None
    assert medians_of_others([])(0.0) is None


def test_a_speed_is_of_the_time_with_work_and_mostly_of_the_newest() -> None:
    speed = RecentSpeed()
    assert speed.samples_per_s(5.0) == 0.0
    for second in range(0, 100, 2):
        speed.has_work(float(second))
        speed.computed(100, second + 1.0)
        speed.waits(second + 1.0)
    assert speed.samples_per_s(200.0) == pytest.approx(100.0, rel=0.06)
    assert speed.measured_s(200.0) == pytest.approx(RECENT_S, rel=0.05)
    speed.has_work(200.0)
    for second in range(201, 240):
        speed.computed(10, float(second))
    assert 9.0 < speed.samples_per_s(239.0) < 14.0
    assert speed.samples_per_s(300.0) < 0.2  # it stands still
