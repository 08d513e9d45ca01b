"""The report of a run: counters, workers, warnings with their remedies. Pure; time is passed in.

The cause of a slow worker is named only if the workers' reported equipment or the timing of their
messages shows it.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dist_net.ground.printable import counted
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.members import Member
from dist_net.training.server.metrics import RECORDS_PER_EPOCH, loss_change
from dist_net.training.server.state import RunState

LOSS_RISE = 0.25
"""A loss has risen if its mean over an epoch is this share above the lowest such mean."""

WORKERS_PER_REPORT = 200  # fit into one message, however long their names are

SLOW_SHARE = 0.6
"""A worker is slow below this share of the other workers' median speed."""

MEASURED_S = 3.0
"""A worker's speed is known after it has had work for this time."""

STALLED_S = 5.0
STALLED_PUSHES = 5
"""A worker is stalled after ``STALLED_PUSHES`` times its time per push, at least ``STALLED_S``."""

SLOW_LINK_S = 0.02
SLOW_LINK_FACTOR = 3
"""A link is slow above ``SLOW_LINK_FACTOR`` times the others' median round trip, at least
``SLOW_LINK_S``: a busy host seldom delays messages by more."""


def run_report(run: RunState, first_record: int, now: float) -> dict[str, Any]:
    """Return the counters, the workers, and the metric records from ``first_record`` on."""
    applied_samples = run.ledger.applied_samples
    return {
        "samples": applied_samples,
        "samples_under_way": run.samples_under_way(now),
        "samples_total": run.settings.samples_total,
        "epochs": run.settings.epochs,
        "version": run.store.version,
        "samples_per_update": applied_samples / max(1, run.store.version),
        **run.metrics.report(applied_samples, first_record),
        "loss_warning": loss_warning(run),
        "worker_warning": worker_warning(run),
        "kernel_warning": kernel_warning(run),
        "resume_warnings": run.resume_warnings,
        "worker_count": len(run.members),
        "workers": _worker_reports(run, now),
        "recent_leases": run.recent_leases.report(now),
    }


def _worker_reports(run: RunState, now: float) -> list[dict[str, Any]]:
    """Return a report of each worker, up to ``WORKERS_PER_REPORT``, slow workers first."""
    members = run.members.members
    found = slowness_of(members, now)
    if len(members) > WORKERS_PER_REPORT:
        members = tuple(sorted(members, key=lambda each: not found[each.worker_id].is_slow))
    shown = members[:WORKERS_PER_REPORT]
    return [each.report(now) | found[each.worker_id]._asdict() for each in shown]


def worker_warning(run: RunState) -> str | None:
    """Why some workers do not pay off: they are spares, or their links are slow."""
    members = run.members.members
    if not members:
        return None
    plan = run.strategy.plan_of(members)
    if spares := sum(each.parts for each in members) - sum(plan.parts):
        return (
            f"{counted(spares, 'worker')} of {run.members.parts} compute nothing and replace those "
            f"that are lost: a minibatch of {run.settings.batch_size} is shared by "
            f"{sum(plan.parts)} without loss of accuracy. More would compute with a larger "
            f"batch_size"
        )
    known = [each for each in members if each.lease_times.step_s and not each.shared]
    if run.settings.local_steps is not None or not known:
        return None
    slowest = max(known, key=lambda each: each.lease_times.exchange_s)
    times = slowest.lease_times
    if (times_as_fast := 2 * times.exchange_s / plan.longest_s) <= 1:
        return None
    longest = times.steps_in(plan.longest_s, math.inf)
    return (
        f"an exchange with {slowest.label} takes {times.exchange_s:.3g} s, a minibatch "
        f"{times.step_s:.3g} s, and leases of more than {longest:,} local steps cost accuracy, of "
        f"twice as many up to a tenth of the loss: exchanges take more than half of its time, so "
        f"that a worker on this link does not pay off. It would with exchanges "
        f"{times_as_fast:.1f} times as fast, a larger batch_size or slower minibatches"
    )


def kernel_warning(run: RunState) -> str | None:
    """Why no single machine can replay the run: its workers do not round alike."""
    if len(run.metrics.kernels) < 2:
        return None
    return (
        f"the workers round differently, since their processors have different kernels "
        f"({', '.join(sorted(set(run.metrics.kernels.values())))}): no single machine can replay "
        f"this run. With --bits portable, any can"
    )


def loss_warning(run: RunState) -> str | None:
    """A remedy for a training loss that has risen since the learning rate was highest, or None."""
    rates = [each["learning_rate"] or 0.0 for each in run.metrics.records]
    # A schedule may raise the rate first, and the loss with it.
    records = list(run.metrics.records)[rates.index(max(rates)) if rates else 0 :]
    means = epoch_means([each["loss"] or 0.0 for each in records])
    if not means:
        return None
    lowest = min(range(len(means)), key=means.__getitem__)
    if loss_change(means[lowest], means[-1], means[0]) < LOSS_RISE:
        return None
    remedy = "" if run.settings.consistency is Consistency.ROUNDS else ", --consistency rounds"
    return (
        f"the training loss has risen from {means[lowest]:.4g} at epoch "
        f"{records[lowest + RECORDS_PER_EPOCH - 1]['epoch']:.1f} to {means[-1]:.4g}; use a "
        f"learning rate below {run.settings.learning_rate:g}{remedy} or fewer workers"
    )


def epoch_means(losses: Sequence[float]) -> list[float]:
    """Return the mean of every ``RECORDS_PER_EPOCH`` consecutive records; none for fewer."""
    sums = np.cumsum([0.0, *losses])
    return list((sums[RECORDS_PER_EPOCH:] - sums[:-RECORDS_PER_EPOCH]) / RECORDS_PER_EPOCH)


class Slowness(NamedTuple):
    """A worker's speed, for each of its processes, as a share of the other workers' median.

    ``speed_share`` is None if either is unknown; ``slow_because`` are phrases for the user.
    """

    speed_share: float | None
    is_slow: bool = False
    slow_because: tuple[str, ...] = ()


def slowness_of(members: Sequence[Member], now: float) -> dict[int, Slowness]:
    """Compare each worker with the others, by worker id."""
    rates = {
        each.worker_id: each.speed.samples_per_s(now) / each.parts
        for each in members
        if each.speed.measured_s(now) >= MEASURED_S
    }
    median_rate = medians_of_others(rates.values())
    causes = _Causes(members)
    found = {}
    for member in members:
        rate = rates.get(member.worker_id)
        median = rate if rate is None else median_rate(rate)
        share = rate / median if rate is not None and median else None
        silence = list(_silence(member, now))
        is_slow = bool(silence) or (share is not None and share < SLOW_SHARE)
        seen = (*silence, *causes.seen_at(member)) if is_slow else ()
        found[member.worker_id] = Slowness(share, is_slow, seen)
    return found


def medians_of_others(values: Iterable[float]) -> Callable[[float], float | None]:
    """Return a function of a value: the median of the others, or None."""
    ordered = sorted(values)
    rest = len(ordered) - 1

    def median(own: float) -> float | None:
        if rest < 1:
            return None
        place = bisect_left(ordered, own)
        low, high = (ordered[each + (each >= place)] for each in ((rest - 1) // 2, rest // 2))
        return (low + high) / 2

    return median


def _silence(member: Member, now: float) -> Iterator[str]:
    silent_s, still_s = now - member.heard_s, now - member.progress_s
    long_s = STALLED_PUSHES * (now - member.joined_s) / max(1, member.pushes)
    if silent_s > member.patience_s / 2:
        yield f"silent for {silent_s:.1f} s: it is stopped, or its network is cut"
    elif member.speed.is_measuring and still_s > max(STALLED_S, long_s):
        yield f"no gradient for {still_s:.0f} s, though it is alive"


class _Causes:
    """The differences between workers that make some of them slow."""

    def __init__(self, members: Sequence[Member]) -> None:
        everybody = [each.equipment for each in members]
        self._median_threads = medians_of_others(each.threads for each in everybody)
        self._median_exchange_s = medians_of_others(each.lease_times.exchange_s for each in members)
        self._threads_on: Counter[str] = Counter()
        for each in everybody:
            self._threads_on[each.host] += each.threads
        [(self._blas, count)] = Counter(each.blas for each in everybody).most_common(1) or [("", 0)]
        self._is_usual_blas = 2 * count > len(everybody)

    def seen_at(self, member: Member) -> Iterator[str]:
        own = member.equipment
        together = self._threads_on[own.host]
        if 0 < own.core_quota < own.threads:
            yield f"{counted(own.threads, 'thread')} with a quota of {own.core_quota:g} cores"
        if 0 < own.cores < own.threads:
            yield f"{counted(own.threads, 'thread')} on {counted(own.cores, 'core')}"
        elif 0 < own.host_cores < together < self._threads_on.total():  # other hosts take part
            cores = counted(own.host_cores, "core")
            yield f"{together} threads of this run on the {cores} of {own.host}"
        median_threads = self._median_threads(own.threads)
        if median_threads and 0 < own.threads < median_threads:
            yield f"{counted(own.threads, 'thread')}, the others {median_threads:g}"
        exchange_s = member.lease_times.exchange_s
        median_s = self._median_exchange_s(exchange_s) or 0.0
        if exchange_s > max(SLOW_LINK_S, SLOW_LINK_FACTOR * median_s):
            others_ms = f"the others' {median_s * 1e3:.1f}"
            yield f"its exchanges take {exchange_s * 1e3:.1f} ms, {others_ms}"
        if self._is_usual_blas and own.blas != self._blas:
            yield f"its BLAS is {own.blas or 'unknown'}, the others' {self._blas or 'unknown'}"
