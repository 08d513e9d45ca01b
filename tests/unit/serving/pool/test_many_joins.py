"""Ten thousand inference workers come and go; the pool holds no more than after two thousand."""

import logging
from itertools import count

import pytest

from children import KnownChildren
from described import described
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import InferenceRequest, PoolSettings
from dist_net.wire.messages import Heartbeat, Leave
from dist_net.wire.serving_messages import JoinPool, Loaded, ModelPrepared
from reachable import reachable_objects


@pytest.mark.thorough
def test_a_pool_remembers_nothing_of_workers_that_left_fell_silent_or_died(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    pool = Pool(PoolSettings(), ["m"], KnownChildren(), count(1))
    text = described("m", 1, input_shape=(1,)).to_json()
    pool.prepared(ModelPrepared("m", 1, text, ""), 0.0)
    now = 0.0

    def come_and_go(number: int) -> None:
        nonlocal now
        now += 0.5
        node = b"%d" % number
        child = str(number) if number % 3 == 1 else ""
        pool.receive(node, JoinPool(node.decode(), "host", number, "", child), now)
        pool.receive(b"heart", Heartbeat(number + 1), now)
        if number % 4:
            pool.receive(node, Loaded("m", 1, ""), now)
            pool.admit(InferenceRequest("m", bytes(4), timeout_s=0.4), now)
        pool.dispatch(now)
        if number % 3 == 0:
            pool.receive(node, Leave(number + 1), now)
        elif number % 3 == 1:
            pool.child_ended(child, "killed", True, now)

    def come_and_go_until_all_are_gone(numbers: range) -> int:
        nonlocal now
        for number in numbers:
            come_and_go(number)
        for _ in range(20):
            now += 0.5
            pool.dispatch(now)
        assert pool.status(now)["workers"] == []
        return reachable_objects(pool)

    at_first = come_and_go_until_all_are_gone(range(1500))
    assert come_and_go_until_all_are_gone(range(1500, 4000)) <= at_first + 10
