"""Several processes of this host take the local steps of ``fit``: they share each minibatch.

The processes are forked from it, with any model and data in memory. Equal calls end with equal
weights, bit for bit.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

import numpy as np
from threadpoolctl import threadpool_limits

from dist_net.errors import SegmentError, SettingError
from dist_net.processes.cores import available_cores
from dist_net.training.worker.local_steps import LocalSteps
from dist_net.training.worker.part_processes import PartProcesses, fork_hazard
from dist_net.training.worker.shared_minibatches import SharedSteps, shared_memory, sharing
from dist_net.vector import Vector
from dist_net.wire.lease_steps import FEWEST_SAMPLES, MAX_PARTS, LeaseSteps, minibatches_in
from dist_net.wire.messages import StepSettings

logger = logging.getLogger(__name__)

Workers = int | Literal["auto"]

SHORTEST_STEP_S, SHORTEST_RUN_S, FEWEST_MINIBATCHES, SMALLEST_SPEEDUP = 0.005, 2.0, 100, 1.25
"""Exchanges, the start of processes and the measured steps take too large a part of less."""

LEASE_S, LATE_FACTOR, LATE_S, STARTS, MEASURED_STEPS = 0.5, 10, 60.0, 4, 2
"""A lease takes ``LEASE_S``. Processes are lost after ``LATE_FACTOR`` times this, or ``LATE_S``."""


class WorkerSteps(LocalSteps):
    """Local steps by ``count`` forked processes with copies of ``local``.

    A step is expected to take ``step_s``. If a process ends, is late or cannot start, this process
    takes the steps of the lease: no sample and no bit is lost, and an exception is raised here.
    """

    def __init__(
        self, local: LocalSteps, settings: StepSettings, count: int, step_s: float
    ) -> None:
        self.rule, self.rate_factor, self.learning_rate = local.rule, 1.0, 0.0
        self._settings, self._sharing = settings, (local, count)
        self._alone = SharedSteps(local, shared_memory(local, count))
        self._steps: LocalSteps = self._alone
        self._minibatches = max(1, round(LEASE_S / step_s))
        self._late_s = max(LATE_S, LATE_FACTOR * step_s * self._minibatches)
        self._starts = STARTS
        self._blas = threadpool_limits(1)  # forked processes inherit it

    def close(self) -> None:
        """End the processes."""
        self._steps.close()
        self._blas.restore_original_limits()

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of ``lease``; yield for each of its minibatches."""
        self.loss_sum, self.correct, self.state = 0.0, 0, base.copy()
        left = lease
        while left.samples:
            part = left.first(self._minibatches)
            for _ in range(minibatches_in(part.samples, part.batch_size)):
                yield
            np.copyto(self.state, self._result(part))
            left = left._replace(start=part.stop, progress=left.progress + part.samples)

    def _result(self, lease: LeaseSteps) -> Vector:
        """Return the state after a lease, and count its loss."""
        if self._steps is self._alone and self._starts and fork_hazard() is None:
            self._starts -= 1
            try:
                local, count = self._sharing
                facts = count, self.rule.state_size, lambda _: local, sharing(*self._sharing)
                self._steps = PartProcesses(*facts).steps_of(self._settings)
            except (SegmentError, OSError) as error:
                logger.warning("workers_not_started reason=%s", str(error))
        for steps in (self._steps, self._alone):
            steps.rate_factor = self.rate_factor
            late_at_s = time.monotonic() + self._late_s
            try:
                for _ in steps.take(self.state, lease):
                    if time.monotonic() > late_at_s and steps is not self._alone:
                        raise ChildProcessError(f"no result within {self._late_s:.0f} s")
                break
            except ChildProcessError as error:
                if steps is self._alone:
                    raise
                logger.warning("worker_lost reason=%s", str(error))
                steps.close()
                self._steps = self._alone
        self.loss_sum += steps.loss_sum
        self.correct += steps.correct
        self.learning_rate = steps.learning_rate
        return steps.state


def divided_steps(
    local: LocalSteps,
    state: Vector,
    settings: StepSettings,
    epoch: LeaseSteps,
    workers: Workers,
    threads: int,
    is_array: bool,
    notify: Callable[[str], object],
) -> LocalSteps:
    """Return ``local``, or the steps of ``workers`` processes from ``state``.

    "auto": as many as are worthwhile by the measured time of a few steps, if the samples are an
    array, which any number of processes can read, and if no ``threads`` share the steps. ``epoch``
    is the lease of the first epoch in one process. Raise SettingError if no process can be forked.
    """
    if workers != "auto" and not (type(workers) is int and 1 <= workers <= MAX_PARTS):
        raise SettingError(f"workers={workers!r}: expected 1 to {MAX_PARTS}, or 'auto'")
    minibatches = settings.epochs * minibatches_in(epoch.samples, epoch.batch_size)
    most = max(1, epoch.batch_size // FEWEST_SAMPLES)

    @cache
    def step_s(batch_size: int, blas_threads: int | None = 1) -> float:
        lease = epoch._replace(batch_size=batch_size, pace=batch_size).first(MEASURED_STEPS)
        with threadpool_limits(blas_threads):
            for _ in range(2):  # the first time, it compiles; other programs do not count
                began_s = time.thread_time()
                for _ in local.take(state, lease):
                    pass
        return (time.thread_time() - began_s) / minibatches_in(lease.samples, batch_size)

    obstacle = fork_hazard() if threads == 1 else f"{threads} threads share the steps"
    if workers != "auto":
        count, reason = min(workers, most), "as requested"
    elif obstacle or not is_array:
        count, reason = 1, obstacle or "the samples are no array"
    else:
        cores = min(available_cores(), MAX_PARTS)
        count, reason = useful_workers(minibatches, epoch.batch_size, most, cores, step_s)
        if count > 1:
            notify(f"{count} workers: {reason}")
    logger.info("fit workers=%d reason=%s", count, reason)
    if count == 1:
        return local
    if obstacle:
        raise SettingError(f"workers={workers}: {obstacle}; expected workers=1")
    part_s = step_s(-(-epoch.batch_size // count))  # compiles, once for all
    return WorkerSteps(local, settings, count, part_s)


def useful_workers(
    minibatches: int,
    batch_size: int,
    most: int,
    cores: int,
    step_s: Callable[[int, int | None], float],
) -> tuple[int, str]:
    """Return the number of processes that are worthwhile for a run, up to ``most``, and the reason.

    ``step_s`` measures the seconds of a step, by the size of the minibatch and threads of BLAS.
    """
    if minibatches < FEWEST_MINIBATCHES or min(cores, most) == 1:
        return 1, f"{cores} cores, {minibatches} minibatches of {batch_size}"
    alone_s = step_s(batch_size, None)
    reason = f"{minibatches} steps of {1e3 * alone_s:.3g} ms"
    if alone_s < SHORTEST_STEP_S or minibatches * alone_s < SHORTEST_RUN_S:
        return 1, reason
    seconds = {alone_s: 1}
    for half in range(cores.bit_length() - 1):
        count = min(cores >> half, most)
        seconds[SMALLEST_SPEEDUP * step_s(-(-batch_size // count), 1)] = count
    return seconds[min(seconds)], reason
