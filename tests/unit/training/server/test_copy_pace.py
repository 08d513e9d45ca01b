"""Copies use the link that there is, and are named if that is not enough."""

import heapq
from itertools import count

import numpy as np
import pytest

from dist_net.training.server.copy_pace import (
    BUSY_SHARE,
    KEEPS_UP_S,
    MIN_WINDOW_BYTES,
    QUEUE_S,
    CopyProgress,
    CopyWindow,
)
from dist_net.wire.messages import Follow

FOLLOW = Follow("standby", "tcp://10.0.0.2:5", 7, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
POLL_S = 0.005


def copied(bytes_per_s: float, round_trip_s: float, share: float) -> tuple[float, float]:
    """Copy over a link for a while; return the bytes per second, and the longest queue, seconds."""
    window, arriving, numbers = CopyWindow(), [], count()
    until_s = 20.0 + 100 * round_trip_s + 50 * MIN_WINDOW_BYTES / bytes_per_s / share
    now = free_s = longest_s = 0.0
    arrived = half = 0
    while now < until_s:
        while arriving and arriving[0][0] <= now:
            _, _, size = heapq.heappop(arriving)
            window.arrived(size, share, now)
            arrived += size
            half = arrived if now < until_s / 2 else half
        while size := window.next_part(1 << 40, now):
            window.requested(size, now)
            free_s = max(free_s, now) + size / bytes_per_s
            longest_s = max(longest_s, free_s - now)
            heapq.heappush(arriving, (free_s + round_trip_s, next(numbers), size))
        now += POLL_S
    return (arrived - half) / (until_s / 2), longest_s


@pytest.mark.parametrize("seed", range(12))
def test_a_copy_takes_the_whole_link_and_keeps_its_queue_short(seed: int) -> None:
    random = np.random.default_rng(seed)
    bytes_per_s, round_trip_s = 10 ** random.uniform(4.5, 8), 10 ** random.uniform(-3.5, -0.7)
    found, longest_s = copied(bytes_per_s, round_trip_s, share=1.0)
    assert found > 0.9 * bytes_per_s
    assert longest_s < 3 * QUEUE_S + MIN_WINDOW_BYTES / bytes_per_s


@pytest.mark.parametrize("seed", range(12))
def test_a_copy_takes_its_share_of_the_link_while_states_travel_to_workers(seed: int) -> None:
    random = np.random.default_rng(seed)
    bytes_per_s, round_trip_s = 10 ** random.uniform(4.5, 8), 10 ** random.uniform(-3.5, -0.7)
    found, _ = copied(bytes_per_s, round_trip_s, share=BUSY_SHARE)
    assert found < 1.25 * BUSY_SHARE * bytes_per_s
    if round_trip_s < 0.02:
        assert found > 0.5 * BUSY_SHARE * bytes_per_s


class State:
    """A state on its way."""

    def __init__(self, version: int) -> None:
        self.version, self.size = version, 1000


def test_a_copy_is_behind_since_its_version_was_replaced() -> None:
    copy = CopyProgress()
    copy.follows(FOLLOW, 7, 3, 0.0)
    copy.sends(State(3), 0.5)
    copy.follows(FOLLOW._replace(state_version=3, state_bytes=500), 7, 3, 2.0)
    assert copy.arrived_share == 0.5
    copy.follows(FOLLOW._replace(state_version=3, state_bytes=1000), 7, 4, 3.0)
    has = FOLLOW._replace(copied_term=7, version=3)
    copy.follows(has, 7, 4, 4.0)
    assert copy.behind_s(4.0) == 2.0  # it was still the newest at 2.0
    copy.sends(State(4), 4.0)
    copy.follows(has._replace(version=4), 7, 4, 5.0)
    assert copy.behind_s(6.0) == 0.0
    copy.follows(has._replace(copied_term=6, version=5), 7, 5, 7.0)  # of an earlier term
    assert copy.version is None
    assert copy.behind_s(7.0) > 0


def test_a_copy_is_named_that_is_missing_or_behind_for_long() -> None:
    copy = CopyProgress()
    copy.follows(FOLLOW, 7, 0, 0.0)
    assert copy.warning(KEEPS_UP_S - 1) is None
    copy.follows(FOLLOW, 7, 1, KEEPS_UP_S + 2)
    assert "no copy" in str(copy.warning(KEEPS_UP_S + 2))
    for version in range(1, 4):  # each state takes long
        now = version * 2 * KEEPS_UP_S
        copy.sends(State(version), now)
        copy.follows(FOLLOW._replace(copied_term=7, version=version - 1), 7, version, now)
        now += 1.5 * KEEPS_UP_S
        copy.follows(FOLLOW._replace(copied_term=7, version=version), 7, version, now)
    assert "20 s behind" in str(copy.warning(now))  # also while it is up to date
    for version in range(4, 6):  # and now it does not
        copy.sends(State(version), now)
        copy.follows(FOLLOW._replace(copied_term=7, version=version - 1), 7, version, now)
        now += 1.0
        copy.follows(FOLLOW._replace(copied_term=7, version=version), 7, version, now)
    assert copy.warning(now) is None
