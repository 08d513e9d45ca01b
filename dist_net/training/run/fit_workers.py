"""Several processes of this host take the local steps of ``fit``: they share each minibatch.

The processes are forked from it, with any model and data in memory. Each computes the gradient of a
part of the samples, averages a part of all gradients, and updates a part of the state. Batch norm
has the statistics of all parts, so that the mean is the gradient of the minibatch: any number of
processes takes the steps of one, up to rounding. Equal calls end with equal weights, bit for bit.
"""

import logging
import math
import mmap
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise, repeat
from multiprocessing import get_context
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dist_net.errors import SegmentError, SettingError
from dist_net.ground.vector import Vector
from dist_net.processes.equipment import available_cores
from dist_net.processes.supervisor import RestartBudget
from dist_net.training.worker.local_steps import (
    LocalSteps,
    Minibatch,
    MinibatchGradient,
    TrainingStep,
)
from dist_net.training.worker.part_processes import PartProcesses, fork_hazard
from dist_net.wire.lease_steps import FEWEST_SAMPLES, MAX_PARTS, LeaseSteps, minibatches_in
from dist_net.wire.messages import StepSettings

logger = logging.getLogger(__name__)

Workers = int | Literal["auto"]

SHORTEST_STEP_S, SHORTEST_RUN_S, FEWEST_MINIBATCHES, SMALLEST_SPEEDUP = 0.005, 2.0, 100, 1.25
"""Exchanges, the start of processes and the measured steps take too large a part of less."""

LEASE_S, MEASURED_STEPS = 0.5, 2


class WorkerSteps(LocalSteps):
    """Local steps by ``count`` forked processes with copies of ``local``, in leases of ``LEASE_S``.

    Lost processes are replaced, at once or after a pause: see ``RestartBudget``. Meanwhile, this
    process takes the steps: no sample and no bit is lost, and an exception is raised here.
    """

    def __init__(self, local: LocalSteps, settings: StepSettings, count: int) -> None:
        self.rule, self.rate_factor, self.learning_rate = local.rule, 1.0, 0.0
        self._settings, self._sharing = settings, (local, count)
        self._alone = SharedSteps(local, shared_memory(local, count))
        self._processes: PartProcesses | None = None
        self._minibatches = 1  # of the next lease
        self._budget, self._start_at_s = RestartBudget(math.inf), 0.0
        self._blas = threadpool_limits(1)  # forked processes inherit it

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()
        self._blas.restore_original_limits()

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of ``lease``; yield for each of its minibatches."""
        self.loss_sum, self.correct, self.state = 0.0, 0, base.copy()
        left = lease
        while left.samples:
            part = left.first(self._minibatches)
            minibatches = minibatches_in(part.samples, part.batch_size)
            for _ in range(minibatches):
                yield
            began_s = time.monotonic()
            np.copyto(self.state, self._result(part))
            fitting = round(minibatches * LEASE_S / (time.monotonic() - began_s))
            self._minibatches = min(max(fitting, minibatches // 2, 1), 2 * minibatches)
            left = left._replace(start=part.stop, progress=left.progress + part.samples)

    def _result(self, lease: LeaseSteps) -> Vector:
        """Return the state after a lease, and count its loss."""
        self._start()
        steps = self._processes or self._alone
        steps.rate_factor = self.rate_factor
        for _ in steps.take(self.state, lease):
            pass
        if self._processes is not None and self._processes.lost:
            self._lose(self._processes.lost, time.monotonic() - self._started_s)
        self.loss_sum += steps.loss_sum
        self.correct += steps.correct
        self.learning_rate = steps.learning_rate
        return steps.state

    def _start(self) -> None:
        """Start the processes if they do not run, unless it is too early, or not possible."""
        is_early = time.monotonic() < self._start_at_s
        if self._processes or is_early or fork_hazard() is not None:
            return
        try:
            count, size = self._sharing[1], self.rule.state_size
            facts = count, size, lambda _: self._alone, sharing(*self._sharing)
            self._processes = PartProcesses(*facts)
            self._processes.steps_of(self._settings)
        except (SegmentError, OSError) as error:
            self._lose(str(error), 0.0)
        self._started_s = time.monotonic()

    def _lose(self, reason: str, lived_s: float) -> None:
        pause_s = self._budget.pause_s(lived_s) or 0.0
        logger.warning("workers_lost reason=%s restart_s=%.1f", reason, pause_s)
        self._processes, self._start_at_s = None, time.monotonic() + pause_s


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
    step_s(-(-epoch.batch_size // count))  # compiles, once for all
    return WorkerSteps(local, settings, count)


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


SPINS = 2000  # 40 us, about what it takes to sleep and to be woken


def shared_memory(local: LocalSteps, count: int) -> NDArray[np.float32]:
    """Return what ``count`` processes share: states, sums, a mean, gradients, statistics twice."""
    width = (max(local.rule.state_size, 4 * count) + 15) // 16 * 16  # whole cache lines
    memory = mmap.mmap(-1, 4 * (4 + 3 * count) * width)  # allocated where it is written
    return np.frombuffer(memory, np.float32).reshape(-1, width, copy=False)


class SharedSteps(LocalSteps):
    """The steps of ``local``, which has a ``TrainingStep``, with minibatches in parts.

    ``memory`` has room for each part. Process ``number`` computes one part and must ``wait``
    for the others; without a number, this process computes all parts, to the same bits.
    """

    def __init__(
        self,
        local: LocalSteps,
        memory: NDArray[np.float32],
        number: int | None = None,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        rule, step, count = local.rule, local.gradient_at, len(memory[4:]) // 3
        assert isinstance(step, TrainingStep)  # as in ``fit``
        facts = local.batch_size, local.learning_rate_at, local.digest_of
        super().__init__(self._mean_gradient, rule, *facts)
        self._wait = wait
        self._states = [(each[: rule.state_size], each[: rule.size]) for each in memory[:2]]
        self._sums = memory[2, : 4 * count].view(np.float64).reshape(count, 2, copy=False)
        self._average, self._gradients = memory[3, : rule.size], memory[4 : 4 + count, : rule.size]
        # Two sets, in turn: other processes may still read the last.
        self._statistics = memory[4 + count :].view(np.float64).reshape(2, count, -1, copy=False)
        if number is not None:
            rule.keep_part(number, count)
        numbers = range(count) if number is None else [number]
        self._steps = {each: step.of_part(self._gradients[each]) for each in numbers}

    def take(self, base: Vector, lease: LeaseSteps) -> Iterator[None]:
        """Take the steps of a lease of one part; see ``LocalSteps.take``."""
        self._latest, self._other = self._states
        yield from super().take(base, lease)
        self._wait()

    def _mean_gradient(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        """Return the mean gradient; its norm and the part that this process updates are valid."""
        epoch, first, last = minibatch
        count, samples = len(self._gradients), last - first
        used = count if samples >= FEWEST_SAMPLES * count else 1
        edges = [first + samples * part // used for part in range(used + 1)]
        parts = [Minibatch(epoch, *each) for each in pairwise(edges)]
        shares = np.diff(edges) / samples
        self._wait()  # for the weights
        plans = {n: step.bound(weights, parts[n]) for n, step in self._steps.items() if n < used}
        with np.errstate(all="ignore"):
            stages = zip(*(plan.stages() for plan in plans.values()), strict=True)
            for turn, stage in enumerate(stages):
                (mean, *_), values = zip(*stage, strict=True)
                shared = self._statistics[turn % 2, :used, : len(values[0])]
                for number, value in zip(plans, values, strict=True):
                    shared[number] = value
                if used > 1:
                    self._wait()  # for those of the others
                for value in values:
                    value[:] = mean.of(shared, shares)
        for number, plan in plans.items():
            self._sums[number] = plan.outputs[:2]
        self._wait()
        place = self.rule.part
        gradients = shares.astype(np.float32), self._gradients[:used, place]
        np.einsum("i,ij->j", *gradients, out=self._average[place])
        if self.rule.clip_norm:
            self._wait()  # for the whole mean: its norm decides
        loss, right = self._sums[:used].T
        return MinibatchGradient(samples * float(shares @ loss), self._average, float(right.sum()))


def sharing(local: LocalSteps, count: int) -> Callable[[int, StepSettings], LocalSteps]:
    """Return what ``count`` forked processes call with their numbers, to share their steps."""
    memory, fork = shared_memory(local, count), get_context("fork")
    semaphores = [fork.Semaphore(0) for _ in range(count)]

    def wait(number: int) -> None:
        """Return when all processes have called this."""
        for semaphore in (*semaphores[:number], *semaphores[number + 1 :]):
            semaphore.release()
        for _ in semaphores[1:]:
            if not any(map(semaphores[number].acquire, repeat(False, SPINS))):
                semaphores[number].acquire()

    return lambda number, _: SharedSteps(local, memory, number, partial(wait, number))
