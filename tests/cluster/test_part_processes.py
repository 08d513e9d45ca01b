"""Forked processes take the parts of a lease as one process does, and are missed when they end."""

import os
import signal

import numpy as np
import pytest

from dist_net.optim import Adam
from dist_net.training.worker.local_steps import LeaseSteps, LocalSteps
from dist_net.training.worker.part_processes import PartProcesses
from dist_net.vector import Vector
from dist_net.wire.messages import Welcome

SIZE, RUN = 300, Welcome(1, "first", 2, 5, 0.3, 1.5, optimizer="Adam()")
BASE = np.linspace(-1, 1, SIZE, dtype=np.float32)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Bowl:
    """The gradient of half the squared distance to a place that seed and minibatch determine."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._place = 0.0

    def gather(self, epoch: int, start: int, stop: int) -> None:
        self._place = self._seed + epoch + start / stop

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        np.subtract(weights, np.float32(self._place), out=gradient)
        return float(np.square(gradient).sum()), 1

    def unbind(self) -> None:
        """It holds nothing."""


def local_of(seed: int, _: str, __: float, batch_size: int) -> LocalSteps:
    return LocalSteps(Bowl(seed), Adam().start(SIZE), batch_size)


def taken(steps: LocalSteps | PartProcesses, lease: LeaseSteps) -> tuple[bytes, float, int]:
    difference = np.empty(SIZE, np.float32)
    for _ in steps.take(BASE, lease, difference):
        pass
    return difference.tobytes(), steps.loss_sum, steps.correct


def test_processes_compute_what_one_computes_bit_for_bit() -> None:
    alone = local_of(5, "Adam()", 0.0, 2)
    with PartProcesses(2, SIZE, local_of) as processes:
        processes.begin(RUN)
        for parts in (1, 2, 5):  # also a lease of a host with more processes
            lease = LeaseSteps(3, 10, 33, 0.1, parts)
            assert taken(processes, lease) == taken(alone, lease)
        processes.begin(RUN._replace(seed=6))
        assert taken(processes, lease) != taken(alone, lease)


def test_a_process_that_was_killed_is_missed_and_the_others_end_too() -> None:
    with PartProcesses(3, SIZE, local_of) as processes:
        processes.begin(RUN)
        os.kill(processes.process_ids[1], signal.SIGKILL)
        with pytest.raises(ChildProcessError, match=str(processes.process_ids[1])):
            taken(processes, LeaseSteps(0, 0, 12, 0.1, 3))
    for process_id in processes.process_ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)
