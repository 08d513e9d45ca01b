"""The number of processes that ``fit`` starts by itself."""

from collections.abc import Callable

import pytest

from dist_net.training.run.fit_workers import useful_workers

RUN = 1000, 32, 16  # minibatches of 32 samples, in at most 16 parts

StepTime = Callable[[int, int | None], float]


def by_samples(seconds: float, fixed: float = 0.0) -> StepTime:
    """A step of ``fixed`` seconds, and ``seconds`` for each sample."""
    return lambda batch_size, _threads: fixed + batch_size * seconds


def unmeasured(_batch_size: int, _threads: int | None) -> float:
    pytest.fail("a step was measured for nothing")


@pytest.mark.parametrize(
    ("cores", "run"),
    [(1, RUN), (8, (1000, 15, 1)), (8, (99, 32, 16))],
    ids=["one core", "one part", "few minibatches"],
)
def test_nothing_is_measured_where_no_minibatch_can_be_divided(
    cores: int, run: tuple[int, int, int]
) -> None:
    assert useful_workers(*run, cores, unmeasured)[0] == 1


def test_more_cores_than_parts_are_of_no_use() -> None:
    assert useful_workers(1000, 6, 3, 8, by_samples(0.01))[0] == 3


@pytest.mark.parametrize(
    ("seconds", "workers"), [(0.004, 1), (0.0049, 1), (0.0051, 8), (1.0, 8)], ids=str
)
def test_steps_of_five_milliseconds_are_divided(seconds: float, workers: int) -> None:
    count, reason = useful_workers(*RUN, 8, by_samples(seconds / 32))
    assert count == workers
    assert reason == f"1000 steps of {1e3 * seconds:.3g} ms"


def test_a_run_of_a_second_is_not_divided() -> None:
    assert useful_workers(100, 32, 16, 8, by_samples(0.01 / 32))[0] == 1


def test_if_small_parts_take_as_long_as_large_ones_fewer_are_made() -> None:
    """16 workers have parts of 2 samples, 8 of 4: memory bounds both."""

    def step_s(batch_size: int, _threads: int | None) -> float:
        return 0.01 * max(batch_size, 4)

    assert useful_workers(*RUN, 16, step_s)[0] == 8


def test_a_division_without_a_gain_is_not_made() -> None:
    assert useful_workers(*RUN, 2, by_samples(0.001, fixed=0.01))[0] == 2
    assert useful_workers(*RUN, 2, by_samples(0.001, fixed=0.1))[0] == 1


def test_one_process_is_measured_with_its_own_threads() -> None:
    def step_s(batch_size: int, threads: int | None) -> float:
        return 0.001 * batch_size / (2 if threads is None else threads)

    assert useful_workers(*RUN, 2, step_s)[0] == 1
