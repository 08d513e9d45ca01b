"""The modes, their outer steps and the limits of their rounds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net.errors import SettingError
from dist_net.training.server.consistency import (
    FEWEST_ROUNDS,
    FEWEST_SAMPLES,
    FEWEST_SHARED_ROUNDS,
    MINIBATCHES,
    USUAL_STEPS,
    WHOLE,
    Consistency,
    OuterStep,
    local_batch_size,
    outer_step,
    step_limits,
)
from naming import naming


@pytest.mark.parametrize("mode", Consistency)
def test_a_mode_is_read_and_written_by_its_name(mode: Consistency) -> None:
    assert Consistency.parse(str(mode)) is mode


@pytest.mark.parametrize("text", ["", "auto", "ssp:4", "bsp:2", "local:64", "ROUNDS", "sync"])
def test_an_unknown_mode_is_refused_with_all_modes(text: str) -> None:
    with pytest.raises(SettingError, match=naming(repr(text), "rounds", "async", "bsp")):
        Consistency.parse(text)


@pytest.mark.parametrize("mode", Consistency)
def test_one_worker_alone_computes_what_one_process_computes(mode: Consistency) -> None:
    assert outer_step(mode, 1) == WHOLE


@pytest.mark.parametrize("workers", [2, 16])
def test_an_asynchronous_result_is_divided_by_the_number_of_workers(workers: int) -> None:
    share = 1 / workers
    assert outer_step(Consistency.ASYNC, workers) == OuterStep(share, 0.0, share)


def test_synchronous_results_are_averaged() -> None:
    assert outer_step(Consistency.BSP, 16) == WHOLE
    assert step_limits(Consistency.BSP, 16, 1000) == (16, 16)  # one step for each worker


@pytest.mark.parametrize("minibatches", [1, 135, 10**6])
@pytest.mark.parametrize("workers", [1, 2, 16])
def test_each_worker_takes_a_step_in_each_round_at_least(workers: int, minibatches: int) -> None:
    fewest, most = step_limits(Consistency.ROUNDS, workers, minibatches)
    assert workers <= fewest <= most


@pytest.mark.parametrize(
    ("minibatches", "most"),
    [(240, 240 / FEWEST_SHARED_ROUNDS), (2400, 2 * USUAL_STEPS), (9600, 9600 / FEWEST_ROUNDS)],
)
def test_rounds_of_a_short_run_may_be_longer_without_momentum(
    minibatches: int, most: float
) -> None:
    shared, in_turn = (
        step_limits(Consistency.ROUNDS, 2, minibatches, turns) for turns in (1.0, 2.0)
    )
    assert shared == (in_turn.fewest, most)
    assert in_turn.most == minibatches / FEWEST_ROUNDS


@pytest.mark.parametrize("minibatches", [1, 10**6])
@pytest.mark.parametrize("mode", Consistency)
def test_one_worker_takes_whole_minibatches(mode: Consistency, minibatches: int) -> None:
    assert local_batch_size(mode, 1, minibatches, 33) == 33


@pytest.mark.parametrize("mode", [Consistency.ROUNDS, Consistency.ASYNC])
def test_two_workers_take_turns_in_long_runs_and_share_minibatches_in_short_ones(
    mode: Consistency,
) -> None:
    assert local_batch_size(mode, 2, 2 * MINIBATCHES, 32) == 32
    assert local_batch_size(mode, 2, 2 * MINIBATCHES - 1, 32) == 16


@pytest.mark.parametrize(
    ("workers", "batch_size", "share"),
    [(2, 32, 16), (3, 32, 8), (4, 32, 8), (16, 32, 2), (64, 32, 2), (2, 5, 3), (2, 3, 3)],
)
def test_all_workers_share_the_minibatches_of_a_short_run(
    workers: int, batch_size: int, share: int
) -> None:
    assert local_batch_size(Consistency.ROUNDS, workers, 1, batch_size) == share


def test_synchronous_workers_share_each_minibatch_in_any_run() -> None:
    shares = [local_batch_size(Consistency.BSP, workers, 10**6, 32) for workers in (2, 3, 16, 32)]
    assert shares == [16, 11, 2, 2]


@given(
    st.sampled_from([Consistency.ROUNDS, Consistency.ASYNC]),
    st.integers(1, 1000),
    st.integers(1, 10**7),
    st.integers(1, 1000),
)
def test_a_share_is_a_power_of_two_and_has_two_samples_where_a_minibatch_has(
    mode: Consistency, workers: int, minibatches: int, batch_size: int
) -> None:
    share = local_batch_size(mode, workers, minibatches, batch_size)
    assert share in {math.ceil(batch_size / 2**power) for power in range(11)}
    assert min(batch_size, FEWEST_SAMPLES) <= share <= batch_size
    assert local_batch_size(mode, workers + 1, minibatches, batch_size) <= share
    assert share <= local_batch_size(mode, workers, minibatches + 1, batch_size)
