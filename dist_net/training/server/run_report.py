"""The report of a run: counters, workers, and warnings with their remedies. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dist_net.training.server.consistency import Consistency
from dist_net.training.server.lease_lengths import longest_round_s
from dist_net.training.server.metrics import RECORDS_PER_EPOCH, loss_change
from dist_net.training.server.run_state import RunState
from dist_net.training.server.slowness import slowness_of

LOSS_RISE = 0.25
"""A loss has risen if its mean over an epoch is this share above the lowest such mean."""

WORKERS_PER_REPORT = 200  # fit into one message, however long their names are


def run_report(run: RunState, first_record: int, now: float) -> dict[str, Any]:
    """Return the counters, the workers, and the metric records from ``first_record`` on."""
    applied_samples = run.ledger.applied_samples
    return {
        "samples": applied_samples,
        "samples_total": run.settings.samples_total,
        "epochs": run.settings.epochs,
        "version": run.store.version,
        "samples_per_update": applied_samples / max(1, run.store.version),
        **run.metrics.report(applied_samples, first_record),
        "loss_warning": loss_warning(run),
        "link_warning": link_warning(run),
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
    return [
        {
            **member.report(now),
            "speed_share": found[member.worker_id].share,
            "is_slow": found[member.worker_id].is_slow,
            "slow_because": found[member.worker_id].causes,
        }
        for member in members[:WORKERS_PER_REPORT]
    ]


def link_warning(run: RunState) -> str | None:
    """The reason why workers on other hosts do not pay off, with automatic local steps."""
    known = [each for each in run.members.members if each.lease_times is not None]
    times = [each.lease_times for each in known if each.lease_times is not None]
    if run.settings.local_steps is not None or all(each.shared for each in known):
        return None
    slowest = max(zip(times, known, strict=True), key=lambda pair: pair[0].exchange_s)
    exchange_s, minibatch_s, _ = slowest[0]
    longest_s = longest_round_s(times, run.limits)
    if (times_as_fast := 2 * exchange_s / longest_s) <= 1:
        return None
    return (
        f"an exchange with {slowest[1].name} takes {exchange_s:.3g} s, a minibatch "
        f"{minibatch_s:.3g} s, and leases of more than {slowest[0].steps_in(longest_s):,} local "
        f"steps cost accuracy: exchanges take more than half of its time, so that a worker on "
        f"this link does not pay off. It would with exchanges {times_as_fast:.1f} times as fast, "
        f"or that many times the epochs or the time of a minibatch"
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
