"""Forked processes take the parts of a lease as one process does, and are missed when they end."""

import os
import select
import signal
from contextlib import closing

import numpy as np
import pytest

from dist_net.optim import Adam
from dist_net.training.worker import part_processes as module
from dist_net.training.worker.local_steps import (
    LocalSteps,
    Minibatch,
    MinibatchGradient,
)
from dist_net.training.worker.part_processes import PartProcesses
from dist_net.vector import Vector
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import StepSettings

SIZE, STEPS = 300, StepSettings(5, 2, 1, "Adam()", 0.1)
STATE_SIZE = 3 * SIZE + 1
BASE = Adam().start(SIZE).initial(np.linspace(-1, 1, SIZE, dtype=np.float32))

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Bowl:
    """The gradient of half the squared distance to a place that seed and minibatch determine.

    Beyond sample 1,000, it never returns.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        epoch, start, stop = minibatch
        while start > 1000:
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


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_end_of_any_process_is_noticed_at_once_and_the_others_end_too(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it is idle, and while the parts of others would take for ever."""
    monkeypatch.setattr(module, "POLL_S", 3600.0)
    with closing(PartProcesses(3, STATE_SIZE, local_of)) as processes:
        processes.steps_of(STEPS)
        taken(processes, LeaseSteps(0, 0, 12, 0, 1, 2, 3))
        os.kill(processes.process_ids[number], signal.SIGKILL)
        select.select([processes._channels[number]], [], [], 60)
        lease = LeaseSteps(0, 1002, 1008, 0, 1, 2, 2)
        with pytest.raises(ChildProcessError, match=str(processes.process_ids[number])):
            taken(processes, lease)
    for process_id in processes.process_ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_process_that_is_killed_while_others_compute_is_noticed(number: int) -> None:
    with closing(PartProcesses(3, STATE_SIZE, local_of)) as processes:
        processes.steps_of(STEPS)
        steps = processes.take(BASE, LeaseSteps(0, 1002, 1006, 0, 1, 2, 2))
        next(steps)
        os.kill(processes.process_ids[number], signal.SIGKILL)
        with pytest.raises(ChildProcessError, match=str(processes.process_ids[number])):
            for _ in steps:
                pass


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
        steps = processes.take(BASE, LeaseSteps(0, 1002, 1008, 0, 1, 2, 2))
        for _ in range(3):  # several times a second
            next(steps)
