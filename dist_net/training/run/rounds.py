"""Several processes of this host take the local steps of ``fit``, in the rounds of a cluster.

``fit`` plans each round as a parameter server does, and averages the results. The processes are
forked from it, with any model and data in memory. Equal calls end with equal weights, bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

from threadpoolctl import threadpool_limits

from dist_net.errors import SegmentError, SettingError
from dist_net.processes.cores import available_cores
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.round_plan import (
    MIN_STEP_S,
    USUAL_STEPS,
    LeaseTimes,
    PlannedRun,
    divided_minibatch,
    plan_round,
)
from dist_net.training.server.state_versions import StateVersions
from dist_net.training.worker.local_steps import LocalSteps
from dist_net.training.worker.part_processes import PartProcesses, fork_hazard
from dist_net.vector import Vector
from dist_net.wire.lease_steps import MAX_PARTS, LeaseSteps, minibatches_in
from dist_net.wire.messages import StepSettings

logger = logging.getLogger(__name__)

Workers = int | Literal["auto"]

SHORTEST_STEP_S, SHORTEST_RUN_S, FEWEST_MINIBATCHES, SMALLEST_SPEEDUP = 0.005, 2.0, 100, 1.25
"""Exchanges, the start of processes and the measured steps take too large a part of less."""

LATE_FACTOR, LATE_S, STARTS, MEASURED_STEPS = 10, 60.0, 4, 2
"""Processes are lost after ``LATE_FACTOR`` times the expected time of a lease, or ``LATE_S``."""


class Rounds(LocalSteps):
    """Local steps by ``count`` forked processes with copies of ``local``.

    A step is expected to take ``step_s``. If a process ends, is late or cannot start, this process
    takes the steps of the lease: no sample and no bit is lost, and an exception is raised here.
    """

    def __init__(
        self, local: LocalSteps, settings: StepSettings, run: PlannedRun, count: int, step_s: float
    ) -> None:
        self.rule, self.rate_factor = local.rule, 1.0
        self._local = self._steps = local
        self._settings, self._run, self._count = settings, run, count
        self._late_s = max(LATE_S, LATE_FACTOR * USUAL_STEPS * step_s)
        self._store = StateVersions(local.rule, local.state[: local.rule.size])
        self._starts = STARTS
        self._blas = threadpool_limits(1)  # forked processes inherit it

    def close(self) -> None:
        """End the processes."""
        self._steps.close()
        self._blas.restore_original_limits()

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of ``lease`` in rounds; yield for each of its minibatches.

        If a round leads to no valid state, end with a loss that is no number.
        """
        self.loss_sum, self.correct = 0.0, 0
        self.state = self._store.state = base
        left = lease
        while left.samples:
            times = LeaseTimes(0.0, MIN_STEP_S, self._count)  # constant: equal leases in every run
            plan = plan_round(self._run, [times], left.samples)
            (parts,), (steps,) = plan.parts, plan.steps
            pace = max(1, plan.samples // steps)
            part = left._replace(batch_size=plan.batch_size, pace=pace, parts=parts)
            part = part.first(parts * steps)
            for _ in range(minibatches_in(part.samples, lease.batch_size)):
                yield
            if not self._store.apply(self._result(part).copy(), plan.outer):
                self.loss_sum = math.nan
                return
            self.state = self._store.state
            left = left._replace(start=part.stop, progress=left.progress + part.samples)

    def _result(self, lease: LeaseSteps) -> Vector:
        """Return the mean state of a lease's parts, and count its loss."""
        if self._steps is self._local and self._starts and fork_hazard() is None:
            self._starts -= 1
            try:
                facts = self._count, self.rule.state_size, lambda _: self._local
                self._steps = PartProcesses(*facts).steps_of(self._settings)
            except (SegmentError, OSError) as error:
                logger.warning("workers_not_started reason=%s", str(error))
        for steps in (self._steps, self._local):
            steps.rate_factor = self.rate_factor
            late_at_s = time.monotonic() + self._late_s
            try:
                for _ in steps.take(self.state, lease):
                    if time.monotonic() > late_at_s and steps is not self._local:
                        raise ChildProcessError(f"no result within {self._late_s:.0f} s")
                break
            except ChildProcessError as error:
                if steps is self._local:
                    raise
                logger.warning("worker_lost reason=%s", str(error))
                steps.close()
                self._steps = self._local
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
    size, has_statistics = epoch.batch_size, local.rule.has_statistics
    run = PlannedRun(Consistency.ROUNDS, minibatches, size, has_statistics)

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
        count, reason = divided_minibatch(run, workers).workers, "as requested"
    elif obstacle or not is_array:
        count, reason = 1, obstacle or "the samples are no array"
    else:
        count, reason = useful_workers(run, min(available_cores(), MAX_PARTS), step_s)
        if count > 1:
            notify(f"{count} workers: {reason}")
    logger.info("fit workers=%d reason=%s", count, reason)
    if count == 1:
        return local
    if obstacle:
        raise SettingError(f"workers={workers}: {obstacle}; expected workers=1")
    share_s = step_s(divided_minibatch(run, count).batch_size)  # compiles, once for all
    return Rounds(local, settings, run, count, share_s)


def useful_workers(
    run: PlannedRun, cores: int, step_s: Callable[[int, int | None], float]
) -> tuple[int, str]:
    """Return the number of processes that are worthwhile for ``run``, and the reason.

    ``step_s`` measures the seconds of a step, by the size of the minibatch and threads of BLAS.
    """
    divisions = [divided_minibatch(run, cores >> half) for half in range(cores.bit_length() - 1)]
    if run.minibatches < FEWEST_MINIBATCHES or divided_minibatch(run, cores).workers == 1:
        return 1, f"{cores} cores, {run.minibatches} minibatches of {run.batch_size}"
    alone_s = step_s(run.batch_size, None)
    reason = f"{run.minibatches} steps of {1e3 * alone_s:.3g} ms"
    if alone_s < SHORTEST_STEP_S or run.minibatches * alone_s < SHORTEST_RUN_S:
        return 1, reason
    samples_per_s = {SMALLEST_SPEEDUP * run.batch_size / alone_s: 1}
    for each in divisions:
        samples_per_s[each.workers * each.batch_size / step_s(each.batch_size, 1)] = each.workers
    return samples_per_s[max(samples_per_s)], reason
