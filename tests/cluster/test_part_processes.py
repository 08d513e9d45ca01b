"""Forked processes take the parts of a lease as one process does, and are missed when they end."""

import os
import select
import signal
from contextlib import closing
from itertools import chain, count
from unittest.mock import Mock

import numpy as np
import pytest

from dist_net.errors import DatasetError
from dist_net.ground.vector import Vector
from dist_net.optim import Adam
from dist_net.training.worker import part_processes as module
from dist_net.training.worker.local_steps import (
    LocalSteps,
    Minibatch,
    MinibatchGradient,
)
from dist_net.training.worker.part_processes import PartProcesses
from dist_net.wire import lateness
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings
from naming import naming

SIZE, STEPS = 300, StepSettings(5, 2, 1, "Adam()", 0.1)
STATE_SIZE = 3 * SIZE + 1
BASE = Adam().start(SIZE).initial(np.linspace(-1, 1, SIZE, dtype=np.float32))

TESTING = os.getpid()
ENDLESS = LeaseSteps(0, 1002, 1008, 0, 1, 2, 2)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Bowl:
    """The gradient of half the squared distance to a place that seed and minibatch determine.

    Beyond sample 1,000, it never returns in a forked process.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        epoch, start, stop = minibatch
        while start > 1000 and os.getpid() != TESTING:
            signal.pause()
        gradient = weights - np.float32(self._seed + epoch + start / stop)
        return MinibatchGradient(float(np.square(gradient).sum()), gradient, 1)


def local_of(settings: StepSettings) -> LocalSteps:
    rule, rate = Adam().start(SIZE), settings.learning_rate
    return LocalSteps(Bowl(settings.seed), rule, settings.batch_size, lambda at: rate / (1 + at))


def taken(steps: LocalSteps, lease: LeaseSteps) -> tuple[bytes, float, int]:
    for _ in steps.take(BASE, lease):
        pass
    return steps.state.tobytes(), steps.loss_sum, steps.correct


def test_processes_compute_what_one_computes_bit_for_bit() -> None:
    alone = local_of(STEPS)
    with closing(PartProcesses(2, STATE_SIZE + 99, local_of)) as processes:
        processes.steps_of(STEPS)
        for parts in (1, 2, 5):  # also a lease of a host with more processes
            lease = LeaseSteps(3, 10, 33, 100, 4, 2, parts)
            assert taken(processes, lease) == taken(alone, lease)
        for changed in (STEPS._replace(seed=6), STEPS._replace(learning_rate=0.2)):
            processes.steps_of(changed)
            assert taken(processes, lease) != taken(alone, lease)
            assert taken(processes, lease) == taken(local_of(changed), lease)
        alone.rate_factor = processes.rate_factor = 0.5
        processes.steps_of(STEPS)
        assert taken(processes, lease) == taken(alone, lease)
        assert processes.learning_rate == alone.learning_rate


def require_lost(processes: PartProcesses, lease: LeaseSteps, reason: str) -> None:
    """Require that the parent takes a lease, of which the processes had no result, and they end."""
    assert taken(processes, lease) == taken(local_of(STEPS), lease)
    assert reason in processes.lost
    with pytest.raises(ChildProcessError, match=reason):
        taken(processes, lease)
    for process_id in processes.process_ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_end_of_an_idle_process_is_noticed_at_once(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the parts of others would take for ever."""
    monkeypatch.setattr(module, "POLL_S", 3600.0)
    with closing(PartProcesses(3, STATE_SIZE, local_of)) as processes:
        processes.steps_of(STEPS)
        taken(processes, LeaseSteps(0, 0, 12, 0, 1, 2, 3))
        os.kill(processes.process_ids[number], signal.SIGKILL)
        select.select([processes._channels[number]], [], [], 60)
        require_lost(processes, ENDLESS, str(processes.process_ids[number]))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_process_that_is_killed_while_others_compute_is_noticed(number: int) -> None:
    with closing(PartProcesses(3, STATE_SIZE, local_of)) as processes:
        processes.steps_of(STEPS)
        steps = processes.take(BASE, ENDLESS)
        next(steps)
        os.kill(processes.process_ids[number], signal.SIGKILL)
        for _ in steps:
            pass
        assert str(processes.process_ids[number]) in processes.lost


def test_the_parent_takes_leases_while_a_process_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes are used again when all are back, and are lost after a long time."""
    monkeypatch.setattr(lateness, "FIRST_LEASE_S", 0.1)
    lease, expected = LeaseSteps(0, 0, 12, 0, 1, 2, 2), local_of(STEPS)
    with closing(PartProcesses(2, STATE_SIZE, local_of)) as processes:
        processes.steps_of(STEPS)
        os.kill(processes.process_ids[0], signal.SIGSTOP)
        for _ in range(3):
            assert taken(processes, lease) == taken(expected, lease)
        os.kill(processes.process_ids[0], signal.SIGCONT)
        select.select([processes._channels[0]], [], [], 60)
        assert not processes.lost
        assert taken(processes, lease) == taken(expected, lease)
        assert processes.state is not processes._own.state
        monkeypatch.setattr(module, "AWAY_S", 0.0)
        assert taken(processes, ENDLESS) == taken(expected, ENDLESS)
        require_lost(processes, ENDLESS, "no result")


def test_a_lease_is_not_late_while_its_process_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps by an hour, as it does for a process that Ctrl-Z stops."""
    clock = Mock(side_effect=chain([0.0, 0.1], count(3600.0, 0.001)))
    monkeypatch.setattr(module, "time", Mock(monotonic=clock))
    monkeypatch.setattr(module, "POLL_S", 0.01)
    with closing(PartProcesses(2, STATE_SIZE, local_of)) as processes:
        processes.steps_of(STEPS)
        steps = processes.take(BASE, ENDLESS)
        for _ in range(10):
            next(steps)
        assert not processes.lost


def test_if_one_process_cannot_start_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second fork fails, as at a limit of processes; the checks after a test find the first."""
    fork, forked = os.fork, []

    def limited() -> int:
        if forked:
            raise BlockingIOError("no room")
        forked.append(fork())
        return forked[0]

    monkeypatch.setattr(os, "fork", limited)
    with pytest.raises(BlockingIOError):
        PartProcesses(3, STATE_SIZE, local_of)
    with pytest.raises(ProcessLookupError):
        os.kill(forked[0], 0)


def test_a_worker_may_leave_while_its_processes_compute() -> None:
    with closing(PartProcesses(2, STATE_SIZE, local_of)) as processes:
        processes.steps_of(STEPS)
        steps = processes.take(BASE, ENDLESS)
        for _ in range(3):  # several times a second
            next(steps)


def test_what_only_a_forked_process_cannot_do_is_an_error_with_a_remedy() -> None:
    def broken_in_processes(settings: StepSettings) -> LocalSteps:
        if os.getpid() != TESTING:
            raise ConnectionResetError("of the database")
        return local_of(settings)

    with closing(PartProcesses(2, STATE_SIZE, broken_in_processes)) as processes:
        processes.steps_of(STEPS)
        with pytest.raises(DatasetError, match=naming("of the database", "read()", "one worker")):
            taken(processes, LeaseSteps(0, 0, 12, 0, 1, 2, 2))


def test_processes_that_read_other_samples_are_an_error() -> None:
    """From the 8th lease on; that order compares digests, and each process has its own."""
    orders = count(1)

    def digest_of(minibatch: Minibatch) -> str:
        is_wrong = os.getpid() != TESTING and next(orders) > 3
        return f"{minibatch} {is_wrong}"

    def digested(settings: StepSettings) -> LocalSteps:
        steps = local_of(settings)
        steps.digest_of = digest_of
        return steps

    lease = LeaseSteps(0, 0, 12, 0, 1, 2, 2)
    with closing(PartProcesses(2, STATE_SIZE, digested)) as processes:
        processes.steps_of(STEPS)
        for _ in range(7):
            taken(processes, lease)
        with pytest.raises(DatasetError, match="other samples"):
            taken(processes, lease)
