"""Who waits for whom where something is shared."""

from functools import partial

import pytest

from dist_net.training.planner.shared_resources import (
    CoreThread,
    SerialQueue,
    SharedCores,
    SharedLink,
)
from simulation.schedule import TracedSchedule


class Host:
    """Cores, and when what ran on them ended."""

    def __init__(self, cores: int, slice_s: float) -> None:
        self.schedule = TracedSchedule()
        self.cores = SharedCores(self.schedule, cores, slice_s)
        self.ended: dict[str, float] = {}

    def run(self, name: str, seconds: float, thread: CoreThread | None = None) -> None:
        (thread or CoreThread(self.cores)).run(seconds, partial(self._end, name))

    def _end(self, name: str) -> None:
        self.ended[name] = self.schedule.now_s


def test_threads_that_compute_take_turns_on_too_few_cores() -> None:
    host = Host(cores=1, slice_s=0.1)
    for name in ("one", "other"):
        host.run(name, 1.0)
    host.schedule.run(10.0)
    assert sorted(host.ended.values()) == pytest.approx([1.9, 2.0])
    assert host.cores.busy_s == pytest.approx(2.0)


def test_who_has_slept_goes_first() -> None:
    host = Host(cores=1, slice_s=2.0)
    host.run("long", 3.0)
    host.schedule.after(1.0, host.run, "short", 0.5)
    host.schedule.run(10.0)
    assert host.ended == {"short": 1.5, "long": 3.5}


def test_who_has_slept_does_not_go_first_for_ever() -> None:
    host = Host(cores=1, slice_s=0.1)
    host.run("worker", 5.0)
    thread = CoreThread(host.cores)

    def go_on() -> None:
        if "worker" not in host.ended:
            host.schedule.after(0.001, thread.run, 0.05, go_on)

    go_on()
    host.schedule.run(100.0)
    assert host.ended["worker"] == pytest.approx(10.0, rel=0.05)


def test_a_thread_that_goes_on_keeps_its_core_until_its_slice_ends() -> None:
    host = Host(cores=1, slice_s=0.4)
    thread, steps = CoreThread(host.cores), []

    def step() -> None:
        steps.append(host.schedule.now_s)
        if len(steps) < 6:
            thread.run(0.1, step)

    thread.run(0.1, step)
    host.run("other", 0.4)
    host.schedule.run(10.0)
    assert steps == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.9, 1.0])
    assert host.ended == {"other": pytest.approx(0.8)}


def test_cores_that_nobody_needs_speed_nobody_up() -> None:
    host = Host(cores=4, slice_s=0.1)
    for number in range(3):
        host.run(f"thread {number}", 1.0 + number)
    host.schedule.run(10.0)
    assert list(host.ended.values()) == pytest.approx([1.0, 2.0, 3.0])
    assert host.cores.busy_s == pytest.approx(6.0)


def test_what_is_under_way_shares_a_link() -> None:
    schedule = TracedSchedule()
    link = SharedLink(schedule)
    arrived: dict[str, float] = {}
    for name, moment_s, seconds in (("one", 0.0, 2.0), ("other", 0.0, 2.0), ("short", 2.0, 0.5)):
        then = partial(lambda name: arrived.update({name: schedule.now_s}), name)
        schedule.at(moment_s, link.carry, seconds, then)
    schedule.run(10.0)
    assert arrived == pytest.approx({"short": 3.5, "one": 4.5, "other": 4.5})
    assert link.busy_s == pytest.approx(4.5)


def test_a_queue_does_one_thing_at_a_time_in_turn() -> None:
    schedule = TracedSchedule()
    queue = SerialQueue(schedule, schedule.after)
    ended: list[float] = []
    for seconds in (2.0, 1.0):
        queue.submit(seconds, lambda: ended.append(schedule.now_s))
    schedule.after(5.0, queue.submit, 1.0, lambda: ended.append(schedule.now_s))
    schedule.run(10.0)
    assert ended == [2.0, 3.0, 6.0]
    assert queue.busy_s == 4.0
