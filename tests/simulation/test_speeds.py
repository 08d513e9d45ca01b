"""Workers of different speeds, on a virtual clock: the cost of a slow worker or a slow link."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dist_net.ground.vector import Vector
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.round_plan import PlannedRun, divided_minibatch
from dist_net.training.server.run_report import run_report
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.local_steps import Minibatch, MinibatchGradient
from dist_net.wire.lateness import LATE_S
from simulation.network import Link
from simulation.timed_cluster import TimedCluster

SAMPLES, EPOCHS, STEP_S = 2_000, 2, 0.01
RUN_SETTINGS = RunSettings(
    recipe="counting",
    recipe_digest="abc",
    layout=(("applied", (EPOCHS, SAMPLES)),),
    samples=SAMPLES,
    epochs=EPOCHS,
    batch_size=8,
    learning_rate=1.0,
)
BETWEEN_HOSTS = Link(0.02, 100e6 / 8)
"""20 ms one way, 100 Mbit/s."""


def counted(_: Vector, minibatch: Minibatch) -> MinibatchGradient:
    """Return -1 at each sample of the minibatch; every other epoch has the same parameters."""
    gradient = np.zeros((EPOCHS, SAMPLES), np.float32)
    gradient[minibatch.epoch % EPOCHS, minibatch.start : minibatch.stop] = -1
    return MinibatchGradient(1.0, gradient.ravel(), 1)


def cluster_of(
    steps_s: Sequence[float], links: Sequence[Link] = (), **settings: Any
) -> TimedCluster:
    run_settings = replace(RUN_SETTINGS, **settings)
    return TimedCluster(run_settings, steps_s, counted, links)


def share_of_speeds(cluster: TimedCluster, steps_s: Sequence[float]) -> float:
    """Return the local steps per second as a share of the sum of its workers' speeds."""
    settings = cluster.run.settings
    facts = settings.consistency, settings.minibatches, settings.batch_size
    batch_size = divided_minibatch(PlannedRun(*facts), len(steps_s)).batch_size
    steps_per_s = settings.samples_total / batch_size / cluster.until_finished()
    assert cluster.run.ledger.applied_samples == settings.samples_total
    return steps_per_s / sum(1 / step_s for step_s in steps_s)


@pytest.mark.parametrize("consistency", [Consistency.ROUNDS, Consistency.ASYNC])
def test_workers_of_different_speeds_add_up(consistency: Consistency) -> None:
    steps_s = [STEP_S, STEP_S, 2 * STEP_S, 4 * STEP_S]
    cluster = cluster_of(steps_s, consistency=consistency, epochs=20)
    assert share_of_speeds(cluster, steps_s) > 0.95


def test_rounds_of_single_steps_wait_for_the_slowest_worker() -> None:
    steps_s = [STEP_S, STEP_S, 2 * STEP_S, 4 * STEP_S]
    assert share_of_speeds(cluster_of(steps_s, consistency=Consistency.BSP), steps_s) < 0.5


@pytest.mark.parametrize("consistency", [Consistency.ROUNDS, Consistency.ASYNC])
def test_two_hosts_far_apart_add_up(consistency: Consistency) -> None:
    steps_s, links = [5 * STEP_S] * 2, [Link(), BETWEEN_HOSTS]
    cluster = cluster_of(steps_s, links, consistency=consistency, epochs=20)
    assert share_of_speeds(cluster, steps_s) > 0.95


@pytest.mark.parametrize("consistency", [*Consistency])
def test_a_worker_that_is_far_too_slow_costs_the_others_its_first_lease(
    consistency: Consistency,
) -> None:
    alone_s = cluster_of([STEP_S] * 3, consistency=consistency).until_finished()
    hindered = cluster_of([1000 * STEP_S, *[STEP_S] * 3], consistency=consistency)
    assert hindered.until_finished() < 1.1 * alone_s + LATE_S


def test_a_link_that_is_too_slow_for_the_run_is_reported_with_what_would_help() -> None:
    warnings = []
    for latency_s in (0.0005, 0.5):
        cluster = cluster_of([STEP_S] * 2, [Link(latency_s)] * 2, epochs=1)
        while cluster.run.store.version < 3:
            cluster.step()
        warnings.append(run_report(cluster.run, 0, cluster.now)["worker_warning"])
    assert warnings[0] is None
    assert "does not pay off" in warnings[1]


def host_with(parts: int) -> TimedCluster:
    """Return a run of one host with ``parts`` processes, and of one local worker, at version 8."""
    cluster = cluster_of([STEP_S], local_steps=8)
    cluster.add_worker("host", STEP_S, Link(0.002), parts)
    while cluster.run.store.version < 8:
        cluster.step()
    return cluster


def test_bytes_of_a_round_do_not_depend_on_the_number_of_a_hosts_processes() -> None:
    metrics = [host_with(parts).run.metrics for parts in (1, 2, 4)]
    assert len({(each.bytes_received, each.bytes_sent) for each in metrics}) == 1


def test_a_hosts_processes_take_as_many_steps_as_a_worker_at_the_same_time() -> None:
    cluster = host_with(4)
    leases = cluster.run.ledger._leases
    minibatches = {
        each.name: leases[each.worker_id].range.samples / 4 for each in cluster.run.members.members
    }
    assert minibatches["host"] == pytest.approx(4 * minibatches["worker-0"], rel=0.2)
    assert share_of_speeds(cluster, [STEP_S] * 5) > 0.8
