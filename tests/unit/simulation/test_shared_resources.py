"""Who waits for whom where something is shared."""

from functools import partial

import pytest

from dist_net.simulation.schedule import EventSchedule
from dist_net.simulation.shared_resources import SerialQueue, SharedCores


def test_threads_on_too_few_cores_slow_each_other_down_while_they_run() -> None:
    schedule = EventSchedule()
    cores = SharedCores(schedule, 1)
    ended: dict[str, float] = {}

    def end(name: str) -> None:
        ended[name] = schedule.now_s

    cores.run(3.0, partial(end, "long"))
    schedule.after(1.0, cores.run, 1.0, partial(end, "short"))
    schedule.run(10.0)
    assert ended == {"short": pytest.approx(3.0), "long": pytest.approx(4.0)}
    assert cores.busy_s == pytest.approx(4.0)


def test_cores_that_nobody_needs_speed_nobody_up() -> None:
    schedule = EventSchedule()
    cores = SharedCores(schedule, 4)
    ended: list[float] = []
    cores.run(1.0, lambda: ended.append(schedule.now_s), threads=2)
    cores.run(2.0, lambda: ended.append(schedule.now_s))
    schedule.run(10.0)
    assert ended == [1.0, 2.0]
    assert cores.busy_s == pytest.approx(1.0 * 3 + 1.0 * 1)


def test_a_queue_does_one_thing_at_a_time_in_turn() -> None:
    schedule = EventSchedule()
    queue = SerialQueue(schedule, schedule.after)
    ended: list[float] = []
    for seconds in (2.0, 1.0):
        queue.submit(seconds, lambda: ended.append(schedule.now_s))
    schedule.after(5.0, queue.submit, 1.0, lambda: ended.append(schedule.now_s))
    schedule.run(10.0)
    assert ended == [2.0, 3.0, 6.0]
    assert queue.busy_s == 4.0
