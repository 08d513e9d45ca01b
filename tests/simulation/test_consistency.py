"""Rounds, bsp and async among workers of different speeds, on a virtual clock."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.ground.vector import Vector
from dist_net.optim import SGD, Momentum, Optimizer
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.run_report import run_report
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.local_steps import Minibatch, MinibatchGradient
from dist_net.wire.lateness import LATE_S
from simulation.network import Link
from simulation.timed_cluster import TimedCluster

SAMPLES, EPOCHS = 124, 2
RUN_SETTINGS = RunSettings(
    recipe="line",
    recipe_digest="abc",
    layout=(("weights", (5,)),),
    samples=SAMPLES,
    epochs=EPOCHS,
    batch_size=8,
    learning_rate=0.1,
)
INPUTS = np.random.default_rng(5).normal(size=(EPOCHS, SAMPLES, 5)).astype(np.float32)
MODES = [*Consistency]
HANGS_S = 1e9


def gradient_of_line(weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
    inputs = INPUTS[minibatch.epoch, minibatch.start : minibatch.stop]
    error = inputs @ weights - inputs.sum(axis=1)
    mean: Vector = np.asarray(inputs.T @ error / len(error), np.float32)
    return MinibatchGradient(float(error @ error), mean)


def cluster_of(
    consistency: str,
    steps_s: Sequence[float],
    local_steps: int | None = None,
    links: Sequence[Link] = (),
    **changed: Any,
) -> TimedCluster:
    mode = Consistency.parse(consistency)
    run_settings = replace(RUN_SETTINGS, consistency=mode, local_steps=local_steps, **changed)
    return TimedCluster(run_settings, steps_s, gradient_of_line, links)


def weights_of_one_process() -> Vector:
    weights = np.zeros(5, np.float32)
    for epoch in range(EPOCHS):
        for start in range(0, SAMPLES, 8):
            minibatch = Minibatch(epoch, start, min(start + 8, SAMPLES))
            weights = weights - np.float32(0.1) * gradient_of_line(weights, minibatch).gradient
    return weights


@pytest.mark.parametrize("consistency", MODES)
def test_one_worker_computes_what_one_process_computes(consistency: str) -> None:
    cluster = cluster_of(consistency, [0.01])
    cluster.until_finished()
    np.testing.assert_array_equal(cluster.run.store.weights, weights_of_one_process())


@pytest.mark.parametrize("links", [(), [Link()] * 3], ids=["memory", "frames"])
@pytest.mark.parametrize("consistency", MODES)
def test_workers_of_different_speeds_fit_the_line(consistency: str, links: Sequence[Link]) -> None:
    cluster = cluster_of(consistency, [0.01, 0.02, 0.05], links=links)
    cluster.until_finished()
    assert cluster.run.ledger.applied_samples == RUN_SETTINGS.samples_total
    error = np.linalg.norm(cluster.run.store.weights - 1)
    assert error < np.linalg.norm(np.ones(5)) / 2
    assert all(each.shared is not bool(links) for each in cluster.run.members.members)


@pytest.mark.parametrize("optimizer", [SGD(), Momentum()], ids=["sgd", "momentum"])
@pytest.mark.parametrize(("consistency", "local_steps"), [("bsp", None), ("rounds", 1)])
def test_workers_that_share_each_minibatch_compute_what_one_process_computes(
    consistency: str, local_steps: int | None, optimizer: Optimizer
) -> None:
    states = []
    for steps_s in ([0.01], [0.01, 0.1]):
        cluster = cluster_of(consistency, steps_s, local_steps, optimizer=optimizer)
        while cluster.run.ledger.applied_samples < 15 * RUN_SETTINGS.batch_size:
            cluster.step()
        states.append(cluster.run.store.state)
    alone, shared = states
    assert alone[-1] == shared[-1] == 15
    np.testing.assert_allclose(alone, shared, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("consistency", ["rounds", "bsp"])
def test_a_round_has_a_lease_for_each_worker_and_no_stale_result(consistency: str) -> None:
    cluster = cluster_of(consistency, [0.01, 0.011, 0.012])
    while cluster.run.store.version < 2:
        cluster.step()
    before = cluster.run.metrics.pushes_applied
    while cluster.run.store.version < 3:
        cluster.step()
    assert cluster.run.metrics.pushes_applied - before == 3
    cluster.until_finished()
    report = run_report(cluster.run, 0, cluster.now)
    assert (report["staleness_max"], report["duplicates_dropped"]) == (0, 0)


def test_asynchronous_workers_never_wait() -> None:
    cluster = cluster_of("async", [0.01, 0.013, 0.05], local_steps=1)
    while not cluster.run.ledger.everything_is_leased:
        cluster.step()
        assert not cluster.server._waiting
    cluster.until_finished()
    assert run_report(cluster.run, 0, cluster.now)["staleness_max"] > 0


@pytest.mark.parametrize("consistency", ["rounds", "bsp"])
def test_a_late_lease_is_shared_with_a_worker_that_waits(consistency: str) -> None:
    assert cluster_of(consistency, [0.01, 30.0]).until_finished() < 30.0


@pytest.mark.parametrize("slowest", [0, 1, 2])
@pytest.mark.parametrize("consistency", MODES)
def test_no_run_waits_for_a_worker_that_lives_and_never_computes(
    consistency: str, slowest: int
) -> None:
    steps_s = [0.01, 0.012]
    steps_s.insert(slowest, HANGS_S)
    cluster = cluster_of(consistency, steps_s[:1])
    while not cluster.run.ledger.awaits_results:  # its first round has a single lease
        cluster.step()
    for number, step_s in enumerate(steps_s[1:]):
        cluster.add_worker(f"later-{number}", step_s)
    assert cluster.until_finished(at_most_s=100.0) < 30.0
    assert cluster.run.metrics.workers_lost == 0


def test_a_round_waits_for_workers_whose_leases_take_much_longer_than_heartbeats() -> None:
    cluster = cluster_of("rounds", [40.0, 44.0, 48.0])
    cluster.until_finished()
    assert cluster.run.metrics.workers_lost == 0


@pytest.mark.parametrize("consistency", MODES)
@settings(max_examples=30, deadline=None)
@given(
    steps_s=st.lists(st.sampled_from([0.01, 0.013, 0.05, 1.0]), min_size=1, max_size=4),
    changes=st.lists(st.tuples(st.integers(1, 60), st.sampled_from(["join", "kill"])), max_size=4),
    resumes_at=st.integers(0, 200),
)
def test_every_sample_is_applied_though_workers_and_servers_come_and_go(
    consistency: str, steps_s: list[float], changes: list[tuple[int, str]], resumes_at: int
) -> None:
    cluster = cluster_of(consistency, steps_s)
    for events, change in changes:
        for _ in range(events):
            cluster.step()
        if change == "join":
            cluster.add_worker(f"late-{len(cluster.workers)}-{events}", 0.02)
        elif len(cluster.workers) > 1:
            cluster.kill(next(iter(cluster.workers.values())))
    for _ in range(resumes_at):
        cluster.step()
    begin = cluster.run.checkpoint()
    resumed = TimedCluster(cluster.run.settings, [0.02, 0.03], gradient_of_line, resumed_from=begin)
    for each in (resumed, cluster):
        each.until_finished()
        assert each.run.ledger.applied_samples == RUN_SETTINGS.samples_total
        assert np.isfinite(each.run.store.state).all()


@pytest.mark.parametrize("consistency", MODES)
def test_workers_that_wait_for_others_learn_of_the_end(consistency: str) -> None:
    cluster = cluster_of(consistency, [0.01, 0.3])
    for _ in range(60):
        cluster.step()
    cluster.server.stop("interrupted")
    stopped_s = cluster.now
    while len(cluster.run.members):
        cluster.step()
    assert cluster.now - stopped_s < LATE_S + 1.0
