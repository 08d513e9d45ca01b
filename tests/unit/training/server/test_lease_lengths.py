"""All workers of a round return at the same time, whatever their speeds and links."""

from collections.abc import Sequence
from itertools import product

import pytest

from dist_net.training.server.consistency import StepLimits
from dist_net.training.server.lease_lengths import (
    COMPUTING_TO_EXCHANGE,
    LONGEST_WAIT_S,
    LeaseTimes,
    divided,
    longest_round_s,
    measured,
    needed_round_s,
    round_s,
)

FAST, SLOW, FAR = LeaseTimes(0.0, 0.1), LeaseTimes(0.0, 0.4), LeaseTimes(2.0, 0.1)
ANY = StepLimits(1, 10**9)


def test_workers_take_as_many_steps_as_a_round_leaves_time_for() -> None:
    assert [each.steps_in(6.4) for each in (FAST, SLOW, FAR)] == [64, 16, 44]
    assert FAR.steps_in(1.0) == 1


def test_exchanges_take_a_small_part_of_a_round() -> None:
    assert needed_round_s([FAST, FAR]) == pytest.approx(2.0 * (1 + COMPUTING_TO_EXCHANGE))
    assert round_s([FAST, FAR], ANY) == needed_round_s([FAST, FAR])


@pytest.mark.parametrize("times", [[FAST, FAST], [FAST, SLOW], [FAST, SLOW, FAR]])
def test_the_steps_of_a_round_stay_within_the_limits(times: list[LeaseTimes]) -> None:
    for limits in (StepLimits(5000, 9000), StepLimits(100, 200)):
        steps = sum(each.steps_in(round_s(times, limits)) for each in times)
        assert limits.fewest - len(times) <= steps <= limits.most + len(times)
    seconds = longest_round_s(times, StepLimits(1, 300))
    assert sum(each.steps_in(seconds) for each in times) == pytest.approx(300, abs=2)


@pytest.mark.parametrize("times", [[FAST, FAST], [FAST, SLOW], [FAST, SLOW, FAR], [FAR]])
@pytest.mark.parametrize("most", [40, 16])
def test_a_round_of_whole_steps_ends_as_early_as_possible(
    times: list[LeaseTimes], most: int
) -> None:
    def seconds_for(steps: Sequence[int]) -> float:
        return max(map(LeaseTimes.seconds_for, times, steps))

    for minibatches in {1, 2, 23, 30, 40} & {*range(most * len(times) + 1)}:
        found = divided(minibatches, times, [most] * len(times))
        choices = product(*[range(1, min(most, minibatches) + 1)] * len(times))
        assert sum(found) >= minibatches
        assert seconds_for(found) == min(
            seconds_for(each) for each in choices if sum(each) >= minibatches
        )


def test_a_worker_takes_what_the_others_may_not() -> None:
    assert divided(30, [FAST, SLOW], [8, 40]) == [8, 22]
    assert divided(30, [SLOW, LeaseTimes()], [40, 8]) == [22, 8]
    assert divided(30, [LeaseTimes(0.0, 0.1, parts=4), FAST], [40, 40]) == [6, 6]


def test_a_worker_that_joins_does_not_wait_long_for_one_that_was_alone() -> None:
    assert round_s([FAST], StepLimits(5000, 9000)) == pytest.approx(LONGEST_WAIT_S)
    assert round_s([FAR], StepLimits(5000, 9000)) == pytest.approx(needed_round_s([FAR]))


def test_the_steps_of_a_workers_parts_count_too() -> None:
    four = LeaseTimes(0.0, 0.1, parts=4)
    seconds = longest_round_s([four, FAST], StepLimits(1, 100))
    assert (4 * four.steps_in(seconds), FAST.steps_in(seconds)) == (80, 20)
    assert measured(5.0, 4.0, 40, 4) == LeaseTimes(1.0, 0.4, 4)


def test_times_are_averaged_over_a_few_leases() -> None:
    times = FAST
    for _ in range(30):
        times = times.averaged(FAR)
    assert times.exchange_s == pytest.approx(2.0, rel=1e-3)
    assert FAST.averaged(SLOW).step_s == pytest.approx(0.175)


def test_times_that_a_worker_reports_are_bounded_by_those_that_the_server_measures() -> None:
    assert measured(5.0, 4.0, 40) == LeaseTimes(1.0, 0.1)
    assert measured(5.0, 1e9, 50) == LeaseTimes(0.0, 0.1)
    assert measured(5.0, 0.0, 1) is None
    assert measured(0.0, 5.0, 1) is None
    tiny = measured(5.0, 1e-300, 1)
    assert tiny is not None
    assert tiny.steps_in(round_s([tiny], ANY)) < 1e9
