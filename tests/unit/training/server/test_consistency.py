"""The modes, their outer steps and the limits of their rounds."""

import pytest

from dist_net.errors import SettingError
from dist_net.training.server.consistency import (
    WHOLE,
    Consistency,
    OuterStep,
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
