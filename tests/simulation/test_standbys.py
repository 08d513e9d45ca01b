"""Runs with standbys under every fault at once: hosts, partitions, and clocks that differ."""

import logging
import re
from collections.abc import Iterator

import pytest

from selection import few
from simulation.standby_run import FAULTS, StandbyRun

SEEDS, SLOW_SEEDS, AT_A_TIME = 120, 10_000, 20


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Disable logging, which would take a third of the time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def trace_of(seed: int) -> str:
    run = StandbyRun(seed, trace_length=None)
    run.run()
    return run.schedule.trace()


@pytest.mark.parametrize("first", few(range(0, SEEDS, AT_A_TIME)))
def test_one_server_finishes_each_run_whatever_happens(first: int) -> None:
    for seed in range(first, first + AT_A_TIME):
        StandbyRun(seed).run()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SEEDS, SLOW_SEEDS, 50 * AT_A_TIME))
def test_ten_thousand_runs_end_with_one_server(first: int) -> None:
    for seed in range(first, min(first + 50 * AT_A_TIME, SLOW_SEEDS)):
        StandbyRun(seed).run()


def test_the_same_seed_is_the_same_run_to_the_last_event() -> None:
    assert trace_of(1) == trace_of(1)
    assert trace_of(1) != trace_of(2)


@pytest.mark.thorough
def test_every_fault_happens() -> None:
    told = "".join(trace_of(seed) for seed in range(30))
    signs = ["standby on .* is killed", "run on .* is killed", "worker-0 .* is killed"]
    signs += ["is stopped", r"has no way for \[\(", "fails", "is lost", "returns", "is to leave"]
    signs += ["is split", "has a full disk", "pool .*reads version", "claims to serve the run"]
    signs += [
        "standby on .* begins term",
        "has heard no server",
        "ends: the run continues at",
    ]
    signs += [": lost", ": doubled", ": overtaken", ": delayed", ": vanishing"]
    assert [sign for sign in signs if not re.search(sign, told)] == []


def test_each_fault_is_one_of_a_run() -> None:
    assert [name for name in FAULTS if not callable(getattr(StandbyRun, f"_{name}"))] == []
