"""A worker adds little noise between two averages, and all of a round return at the same time."""

import math
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net.training.server.consistency import WHOLE, Consistency
from dist_net.training.server.round_plan import (
    AVERAGED_LEASES,
    COMPUTING_TO_EXCHANGE,
    FEWEST_OF_STATISTICS,
    FEWEST_ROUNDS,
    FEWEST_STEPS,
    LONGEST_WAIT_S,
    MINIBATCHES,
    NOISE,
    USUAL_STEPS,
    LeaseTimes,
    PlannedRun,
    _shortest,
    divided_minibatch,
    measured,
    outer_step,
    plan_round,
)
from dist_net.wire.lease_steps import FEWEST_SAMPLES

ROUNDS, ASYNC, BSP = Consistency
FAST, SLOW, FAR = LeaseTimes(0.0, 0.1), LeaseTimes(0.0, 0.4), LeaseTimes(2.0, 0.1)
SHORT, LONG = PlannedRun(ROUNDS, 1000, 32), PlannedRun(ROUNDS, 10 * MINIBATCHES, 32)

times = st.builds(
    LeaseTimes,
    st.floats(0, 100),
    st.just(0.0) | st.floats(1e-6, 100),
    st.integers(1, 32),
)
runs = st.builds(
    PlannedRun,
    st.sampled_from(Consistency),
    st.integers(1, 10**7),
    st.integers(1, 1000),
    st.booleans(),
    st.none(),
)


@given(runs, st.lists(times, min_size=1, max_size=8), st.integers(1, 10**6))
def test_a_worker_adds_little_noise_between_two_averages(
    run: PlannedRun, workers: list[LeaseTimes], ahead: int
) -> None:
    """The noise of a share's gradient, beyond that of a minibatch, is (s - 1) times the latter."""
    plan = plan_round(run, workers, ahead)
    excess = max(0.0, run.batch_size / plan.batch_size - 1)
    for steps in plan.steps:
        assert steps <= 1 or steps * excess <= NOISE + excess / 2
    parts = sum(plan.parts)
    together = parts * plan.batch_size / run.batch_size  # minibatches in a step of all
    if plan.outer == WHOLE:  # the run takes about as many steps as one process
        assert 0.6 < together <= 1 + 1 / 32
    elif run.consistency is ROUNDS:
        assert plan.outer.rate / (1 - plan.outer.momentum) == pytest.approx(together)
        assert 1.3 < together <= 2 + 1 / 16
        assert run.minibatches >= MINIBATCHES


@given(runs, st.lists(times, min_size=1, max_size=8), st.integers(1, 10**6))
def test_each_worker_takes_part_in_a_round_or_is_a_spare(
    run: PlannedRun, workers: list[LeaseTimes], ahead: int
) -> None:
    plan = plan_round(run, workers, ahead)
    assert len(plan.parts) == len(plan.steps) == len(workers)
    assert 0 < sum(plan.parts) <= sum(each.parts for each in workers)
    for worker, parts, steps in zip(workers, plan.parts, plan.steps, strict=True):
        assert 0 <= parts <= worker.parts
        assert (steps > 0) == (parts > 0)
    assert math.isfinite(plan.seconds)


@given(runs, st.integers(1, 1000))
def test_a_share_is_large_enough(run: PlannedRun, workers: int) -> None:
    division = divided_minibatch(run, workers)
    fewest = FEWEST_OF_STATISTICS if run.has_statistics else FEWEST_SAMPLES
    assert min(run.batch_size, fewest) <= division.batch_size <= run.batch_size
    assert 1 <= division.workers <= workers
    assert divided_minibatch(run, 1) == (1, run.batch_size, 1.0)


@pytest.mark.parametrize(
    ("batch_size", "workers", "expected"),
    [
        (32, 2, (2, 16)),
        (32, 3, (3, 11)),
        (32, 5, (5, 6)),
        (32, 16, (16, 2)),
        (32, 12, (12, 2)),
        (32, 64, (16, 2)),
        (4, 16, (2, 2)),
        (3, 2, (1, 3)),  # two shares of two samples would take a quarter fewer steps
        (1, 8, (1, 1)),
    ],
)
def test_all_workers_share_the_minibatches_of_a_short_run(
    batch_size: int, workers: int, expected: tuple[int, int]
) -> None:
    run = PlannedRun(ROUNDS, 1000, batch_size)
    assert divided_minibatch(run, workers)[:2] == expected
    assert divided_minibatch(run._replace(consistency=BSP, minibatches=10**6), workers)[:2] == (
        expected
    )


def test_a_net_that_uses_statistics_has_larger_shares() -> None:
    assert divided_minibatch(SHORT._replace(has_statistics=True), 16)[:2] == (4, 8)


@pytest.mark.parametrize("workers", [2, 3, 4, 16])
def test_two_groups_take_turns_in_long_runs(workers: int) -> None:
    division = divided_minibatch(LONG, workers)
    assert (division.workers, division.turns) == (workers, pytest.approx(2, rel=0.1))
    assert divided_minibatch(LONG._replace(minibatches=MINIBATCHES - 1), workers).turns < 1.2


@pytest.mark.parametrize("mode", [ROUNDS, BSP])
def test_one_worker_alone_computes_what_one_process_computes(mode: Consistency) -> None:
    assert outer_step(divided_minibatch(PlannedRun(mode, 10**6, 33), 1)) == WHOLE


def test_synchronous_results_are_averaged_after_one_step() -> None:
    plan = plan_round(SHORT._replace(consistency=BSP), [FAST] * 16, 10**6)
    assert (plan.outer, plan.steps) == (WHOLE, (1,) * 16)


def test_exchanges_take_a_small_part_of_a_round_if_accuracy_permits() -> None:
    near = LeaseTimes(0.1, 0.1)
    assert plan_round(LONG, [near] * 2, 10**9).steps == (USUAL_STEPS, USUAL_STEPS)
    far = LeaseTimes(0.4, 0.1)
    assert plan_round(LONG, [far] * 2, 10**9).steps == (4 * COMPUTING_TO_EXCHANGE,) * 2
    most = LONG.minibatches / 2 / FEWEST_ROUNDS
    steps = plan_round(LONG, [LeaseTimes(1.0, 0.1)] * 2, 10**9).steps
    assert steps == pytest.approx((10 * COMPUTING_TO_EXCHANGE,) * 2, rel=0.1)
    steps = plan_round(LONG, [LeaseTimes(200.0, 0.1)] * 2, 10**9).steps
    assert steps == pytest.approx((most, most), abs=1)


@pytest.mark.parametrize(("workers", "steps"), [(2, 24), (4, 8), (8, 3), (16, 2)])
def test_workers_that_share_take_fewer_steps_the_more_they_are(workers: int, steps: int) -> None:
    plan = plan_round(SHORT, [FAR] * workers, 10**9)
    assert plan.steps == (steps,) * workers
    assert plan.outer == WHOLE


def test_fixed_steps_are_those_of_the_fastest_worker() -> None:
    plan = plan_round(SHORT._replace(local_steps=64), [FAST, SLOW], 10**9)
    assert plan.steps == (64, 16)


def test_a_first_lease_is_short() -> None:
    assert plan_round(LONG, [LeaseTimes(), FAST], 10**9).steps == (8, USUAL_STEPS)
    assert plan_round(LONG, [LeaseTimes()], 10**9).steps == (FEWEST_STEPS,)
    assert plan_round(LONG._replace(local_steps=64), [LeaseTimes()], 10**9).steps == (64,)


def test_the_last_round_of_an_epoch_is_as_long_as_the_others() -> None:
    run = PlannedRun(ROUNDS, 10**6, 32, local_steps=8)
    assert plan_round(run, [FAST, FAST], 32 * 24).steps == (6, 6)  # of 8 + 4 in each


def test_a_worker_that_joins_does_not_wait_long_for_one_that_was_alone() -> None:
    assert plan_round(LONG, [LeaseTimes(0.0, 1.0)], 10**9).steps == (LONGEST_WAIT_S,)
    assert plan_round(LONG, [FAR], 10**9).steps == (20 * COMPUTING_TO_EXCHANGE,)


def test_parts_of_a_worker_beyond_those_of_use_are_spares() -> None:
    run = PlannedRun(ROUNDS, 100, 8)
    plan = plan_round(run, [FAST._replace(parts=3), FAST._replace(parts=3), FAST], 10**6)
    assert (plan.parts, plan.batch_size, plan.steps[-1]) == ((3, 1, 0), 2, 0)


@pytest.mark.parametrize("workers", [[FAST, FAST], [FAST, SLOW], [FAST, SLOW, FAR], [FAR]])
@pytest.mark.parametrize("most", [40, 16])
def test_a_round_of_whole_steps_ends_as_early_as_possible(
    workers: list[LeaseTimes], most: int
) -> None:
    def seconds_for(steps: Sequence[int]) -> float:
        return max(map(LeaseTimes.seconds_for, workers, steps))

    for minibatches in {1, 2, 23, 30, 40} & {*range(most * len(workers) + 1)}:
        found = _shortest(minibatches, workers, [most] * len(workers))
        choices = product(*[range(1, min(most, minibatches) + 1)] * len(workers))
        assert sum(found) >= minibatches
        assert seconds_for(found) == min(
            seconds_for(each) for each in choices if sum(each) >= minibatches
        )


def test_a_worker_takes_what_the_others_may_not() -> None:
    assert _shortest(30, [FAST, SLOW], [8, 40]) == [8, 22]
    assert _shortest(30, [SLOW, LeaseTimes()], [40, 8]) == [22, 8]
    assert _shortest(30, [FAST._replace(parts=4), FAST], [40, 40]) == [6, 6]


def test_times_are_averaged_over_a_few_leases() -> None:
    found = FAST
    for _ in range(30):
        found = found.averaged(FAR)
    assert found.exchange_s == pytest.approx(2.0, rel=1e-3)
    assert FAST.averaged(SLOW).step_s == pytest.approx(0.175)


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0.01, 10)), min_size=1, max_size=9))
def test_longer_leases_count_for_more(leases: list[tuple[int, float]]) -> None:
    """The mean time of a step is the mean time of a lease by its mean length."""
    first, *later = (measured(seconds, seconds, steps) or FAST for steps, seconds in leases)
    mean_s, found = first.steps * first.step_s, first
    for each in later:
        mean_s += (each.steps * each.step_s - mean_s) / AVERAGED_LEASES
        found = found.averaged(each)
    assert found.steps * found.step_s == pytest.approx(mean_s)


def test_times_that_a_worker_reports_are_bounded_by_those_that_the_server_measures() -> None:
    assert measured(5.0, 4.0, 40) == LeaseTimes(1.0, 0.1, 1, 40)
    assert measured(5.0, 1e9, 50) == LeaseTimes(0.0, 0.1, 1, 50)
    assert measured(5.0, 4.0, 40, 4) == LeaseTimes(1.0, 0.4, 4, 10)
    assert measured(5.0, 0.0, 1) is None
    assert measured(0.0, 5.0, 1) is None
    tiny = measured(5.0, 1e-300, 1)
    assert tiny is not None
    assert plan_round(LONG, [tiny], 10**12).steps[0] < 1e9
