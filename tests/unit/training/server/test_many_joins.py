"""Ten thousand workers come and go; the server holds no more than after two thousand."""

import logging

import numpy as np
import pytest

from dist_net.training.server.protocol import ParameterServer
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.messages import Heartbeat, Join, Leave, Pull, StatusRequest
from reachable import reachable_objects

SETTINGS = RunSettings(
    recipe="digits",
    recipe_digest="abc",
    layout=(("weight", (2,)),),
    samples=1000,
    epochs=2,
    batch_size=4,
    learning_rate=0.5,
)


@pytest.mark.thorough
def test_a_server_remembers_nothing_of_workers_that_left_or_fell_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    server = ParameterServer(RunState(SETTINGS, np.zeros(2, np.float32)))
    now = 0.0

    def come_and_go(number: int) -> None:
        """Every third one leaves, and the others fall silent, with a lease or without."""
        nonlocal now
        now += 0.5
        node = b"%d" % number
        join = Join(node.decode(), number, "abc", 2, shares_memory=number % 2 == 1)
        server.handle(node, join, now)
        (member,) = [each for each in server.run.members.members if each.node == node]
        server.handle(b"heart", Heartbeat(member.worker_id, identity=number), now)
        if number % 4:
            server.handle(node, Pull(member.worker_id, number, 1), now)
        if number % 3 == 0:
            server.handle(node, Leave(member.worker_id, number), now)
        server.handle(b"observer", StatusRequest(server.run.metrics.next_record), now)
        server.tick(now)

    def come_and_go_until_all_are_gone(numbers: range) -> int:
        nonlocal now
        for number in numbers:
            come_and_go(number)
        for _ in range(10):
            now += 0.5
            server.tick(now)
        assert len(server.run.members) == 0
        return reachable_objects(server)

    at_first = come_and_go_until_all_are_gone(range(1500))
    assert come_and_go_until_all_are_gone(range(1500, 4000)) <= at_first + 10
    assert server.run.metrics.workers_joined == 4000
