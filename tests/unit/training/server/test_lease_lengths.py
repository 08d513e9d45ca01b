"""All workers of a round return at the same time, whatever their speeds and links."""

import pytest

from dist_net.training.server.lease_lengths import (
    LeaseTimes,
    longest_round,
    measured,
    needed_round,
    round_of,
)

FAST, SLOW, FAR = LeaseTimes(0.0, 0.1), LeaseTimes(0.0, 0.4), LeaseTimes(2.0, 0.1)


def test_the_fastest_takes_the_steps_asked_for_and_nobody_more() -> None:
    seconds = round_of([FAST, SLOW, FAR], 64)
    assert [each.steps_in(seconds) for each in (FAST, SLOW, FAR)] == [64, 16, 44]


def test_an_exchange_is_a_tenth_of_the_computing() -> None:
    assert needed_round([FAST, FAR]) == pytest.approx(22.0)
    assert FAR.steps_in(22.0) == 200


def test_a_run_keeps_its_rounds() -> None:
    times = [FAST, SLOW, FAR]
    seconds = longest_round(times, 7000)
    assert sum(each.steps_in(seconds) for each in times) == pytest.approx(100, abs=1)


def test_times_that_a_worker_reports_are_bounded_by_those_that_the_server_sees() -> None:
    assert measured(5.0, 4.0, 40) == LeaseTimes(1.0, 0.1)
    assert measured(5.0, 1e9, 50) == LeaseTimes(0.0, 0.1)
    assert measured(5.0, 0.0, 1) is None
    tiny = measured(5.0, 1e-300, 1)
    assert tiny is not None
    assert tiny.steps_in(longest_round([tiny], 10**9)) < 1e9
