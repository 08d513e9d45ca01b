"""The report of a run: counters, workers, and warnings with their remedies. Pure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dist_net.ground.printable import counted
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.metrics import RECORDS_PER_EPOCH, loss_change
from dist_net.training.server.slowness import slowness_of
from dist_net.training.server.state import RunState

LOSS_RISE = 0.25
"""A loss has risen if its mean over an epoch is this share above the lowest such mean."""

WORKERS_PER_REPORT = 200  # fit into one message, however long their names are


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
        f"an exchange with {slowest.name} takes {times.exchange_s:.3g} s, a minibatch "
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
