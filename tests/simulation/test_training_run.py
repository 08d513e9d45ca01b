"""Training runs under every fault at once: 500 seeds pass, and a failing seed names its cause."""

import logging
import re
from collections.abc import Iterator

import pytest

from dist_net.training.server.leases import LeaseLedger
from selection import few
from simulation.failures import SimulationFailedError
from simulation.training_run import FAULTS, TrainingRun

SEEDS, AT_A_TIME = 500, 50


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Disable logging, which would take a third of the time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def trace_of(seed: int) -> str:
    run = TrainingRun(seed, trace_length=None)
    run.run()
    return run.schedule.trace()


@pytest.mark.parametrize("first", few(range(0, SEEDS, AT_A_TIME), count=2))
def test_each_sample_is_applied_once_and_each_run_ends_whatever_happens(first: int) -> None:
    for seed in range(first, first + AT_A_TIME):
        TrainingRun(seed).run()


def test_the_same_seed_is_the_same_run_to_the_last_event() -> None:
    for seed in (1, 2, 3):
        assert trace_of(seed) == trace_of(seed)
    assert trace_of(1) != trace_of(2)


@pytest.mark.thorough
def test_every_fault_happens() -> None:
    told = "".join(trace_of(seed) for seed in range(40))
    signs = ["is killed", "is stopped", "fails: No space", "fails: Read-only", r"parts \['server'"]
    signs += ["is to leave", "loses its connection", "is terminated", "host       fails"]
    signs += ["continues from version [1-9]"]
    signs += ["shares memory", "server +shares nothing", "maps nothing"]
    signs += ["user +resumes with"]
    signs += [": lost", ": doubled", ": overtaken", ": delayed", ": vanishing"]
    assert [sign for sign in signs if not re.search(sign, told)] == []


def test_each_fault_is_one_of_a_run() -> None:
    assert [name for name in FAULTS if not callable(getattr(TrainingRun, f"_{name}"))] == []


def test_a_seed_that_fails_says_what_was_broken_and_what_happened_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LeaseLedger, "_return", lambda *_: None)
    first, command, settings, *trace = first_failure().splitlines()
    found = re.match(r"seed (\d+): \w+: .+", first)
    assert found is not None
    assert command.endswith(f"PYTHONPATH=tests python -m simulation {found[1]}")
    assert "ServerOptions(" in settings
    assert len(trace) == 10
    assert any(" sends " in line for line in trace)


def first_failure() -> str:
    for seed in range(100):
        try:
            TrainingRun(seed, trace_length=10).run()
        except SimulationFailedError as error:
            return str(error)
    return ""
