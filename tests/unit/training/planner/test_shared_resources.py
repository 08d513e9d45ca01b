"""Who waits for whom where something is shared."""

from functools import partial

import pytest

from dist_net.training.planner.shared_resources import SerialQueue, SharedResource
from simulation.schedule import TracedSchedule


class Users:
    """Who uses a resource, and when they were done."""

    def __init__(self, capacity: int) -> None:
        self.schedule = TracedSchedule()
        self.resource = SharedResource(self.schedule, capacity)
        self.ended: dict[str, float] = {}

    def run(self, name: str, seconds: float) -> None:
        self.resource.run(seconds, partial(self._end, name))

    def _end(self, name: str) -> None:
        self.ended[name] = self.schedule.now_s


def test_users_share_a_resource() -> None:
    users = Users(1)
    users.run("one", 2.0)
    users.run("other", 2.0)
    users.schedule.at(2.0, users.run, "short", 0.5)
    users.schedule.run(10.0)
    assert users.ended == pytest.approx({"short": 3.5, "one": 4.5, "other": 4.5})
    assert users.resource.busy_s == pytest.approx(4.5)


def test_threads_share_too_few_cores() -> None:
    users = Users(2)
    for number in range(3):
        users.run(f"thread {number}", 2.0 + number)
    users.schedule.run(10.0)
    assert list(users.ended.values()) == pytest.approx([3.0, 4.0, 5.0])
    assert users.resource.busy_s == pytest.approx(9.0)


def test_cores_that_nobody_needs_speed_nobody_up() -> None:
    users = Users(4)
    for number in range(3):
        users.run(f"thread {number}", 1.0 + number)
    users.schedule.run(10.0)
    assert list(users.ended.values()) == pytest.approx([1.0, 2.0, 3.0])
    assert users.resource.busy_s == pytest.approx(6.0)


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
