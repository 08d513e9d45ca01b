"""SSP, BSP and local steps among workers of different speeds, on a virtual clock."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.training.server.consistency import Consistency
from dist_net.training.server.run_state import RunState
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.state import Compute
from dist_net.vector import Vector
from simulation.timed_cluster import TimedCluster

SAMPLES, EPOCHS = 62, 2
RUN_SETTINGS = RunSettings(
    recipe="line",
    recipe_digest="abc",
    layout=(("weights", (5,)),),
    samples=SAMPLES,
    epochs=EPOCHS,
    batch_size=4,
    learning_rate=0.1,
)
INPUTS = np.random.default_rng(5).normal(size=(EPOCHS, SAMPLES, 5)).astype(np.float32)


def gradient_of_line(compute: Compute, weights: Vector) -> tuple[float, int, Vector]:
    inputs = INPUTS[compute.epoch, compute.start : compute.stop]
    error = inputs @ weights - inputs.sum(axis=1)
    return float(error @ error), 0, inputs.T @ error / len(error)


def cluster_of(consistency: str, steps_s: Sequence[float]) -> TimedCluster:
    run_settings = replace(RUN_SETTINGS, consistency=Consistency.parse(consistency))
    return TimedCluster(RunState(run_settings, np.zeros(5, np.float32)), steps_s, gradient_of_line)


def weights_of_run(consistency: str, steps_s: Sequence[float]) -> bytes:
    cluster = cluster_of(consistency, steps_s)
    cluster.until_finished()
    assert cluster.run.ledger.applied_samples == RUN_SETTINGS.samples_total
    return cluster.run.store.weights.tobytes()


@pytest.mark.parametrize("rounds", ["bsp:3", "local:2:3"])
def test_rounds_give_the_same_weights_whatever_the_number_and_speeds_of_workers(
    rounds: str,
) -> None:
    expected = weights_of_run(rounds, [0.01, 0.01, 0.01])
    for steps_s in ([0.01, 0.02, 0.05], [0.05, 0.01, 0.013], [0.02], [0.01] * 5, [2.0, 0.01]):
        assert weights_of_run(rounds, steps_s) == expected


def test_a_round_of_local_steps_is_one_nesterov_step_along_the_mean_difference() -> None:
    cluster = cluster_of("local:2:2", [0.01, 0.02])
    while cluster.run.store.version == 0:
        cluster.step()
    ends = []
    for first in (0, 8):
        weights = np.zeros(5, np.float32)
        for start in (first, first + 4):
            compute = Compute(0, start, start + 4, 0, None, 0)
            weights = weights - 0.1 * gradient_of_line(compute, weights)[2]
        ends.append(weights)
    expected = 0.7 * (1 + 0.9) * np.mean(ends, axis=0)
    np.testing.assert_allclose(cluster.run.store.weights, expected, rtol=1e-2)
    report = cluster.run.report(0, cluster.now)
    assert (report["samples"], report["pushes_applied"], report["staleness_max"]) == (16, 2, 0)


def test_without_a_number_of_leases_a_round_has_one_for_each_worker() -> None:
    cluster = cluster_of("local:2", [0.01, 0.011, 0.012])
    while cluster.run.store.version < 2:
        cluster.step()
    before = cluster.run.ledger.applied_samples
    while cluster.run.store.version < 3:
        cluster.step()
    assert cluster.run.ledger.applied_samples - before == 3 * 2 * RUN_SETTINGS.batch_size
    cluster.until_finished()
    assert cluster.run.metrics.duplicates_dropped == 0


def test_a_round_is_one_update_by_the_mean_of_its_gradients() -> None:
    cluster = cluster_of("bsp:3", [0.01, 0.02, 0.03])
    while cluster.run.store.version == 0:
        cluster.step()
    _, _, mean = gradient_of_line(Compute(0, 0, 12, 0, None, 0), np.zeros(5, np.float32))
    np.testing.assert_allclose(cluster.run.store.weights, -0.1 * mean, rtol=1e-5)
    report = cluster.run.report(0, cluster.now)
    assert (report["samples"], report["pushes_applied"], report["staleness_max"]) == (12, 3, 0)


def test_what_a_late_worker_holds_of_a_round_is_done_by_one_that_waits() -> None:
    assert cluster_of("bsp:2", [0.01, 3.0]).until_finished() < 3.0


def test_nothing_of_a_round_is_done_twice_while_nobody_is_late() -> None:
    cluster = cluster_of("bsp:2", [0.1, 0.11, 0.12])
    cluster.until_finished()
    assert cluster.run.metrics.duplicates_dropped == 0


@pytest.mark.parametrize("rounds", ["bsp:3", "local:2:3"])
@settings(max_examples=40, deadline=None)
@given(
    steps_s=st.lists(st.sampled_from([0.01, 0.013, 0.05, 1.0]), min_size=1, max_size=4),
    changes=st.lists(st.tuples(st.integers(1, 60), st.sampled_from(["join", "kill"])), max_size=4),
    resumes_at=st.integers(0, 200),
)
def test_rounds_give_the_same_weights_though_workers_come_and_go_and_the_server_too(
    rounds: str, steps_s: list[float], changes: list[tuple[int, str]], resumes_at: int
) -> None:
    cluster = cluster_of(rounds, steps_s)
    for events, change in changes:
        for _ in range(events):
            cluster.step()
        if change == "join":
            cluster.add_worker(f"late-{len(cluster.workers)}-{events}", 0.02)
        elif len(cluster.workers) > 1:
            cluster.kill(next(iter(cluster.workers.values())))
    for _ in range(resumes_at):
        cluster.step()
    run = RunState.resumed(cluster.run.settings, cluster.run.checkpoint(), None, 1000)
    resumed = TimedCluster(run, [0.02, 0.03], gradient_of_line)
    resumed.until_finished()
    assert resumed.run.store.weights.tobytes() == weights_of_run(rounds, [0.01])
    cluster.until_finished()
    assert cluster.run.store.weights.tobytes() == weights_of_run(rounds, [0.01])


@pytest.mark.parametrize("max_ahead", [0, 2])
def test_no_worker_is_more_steps_ahead_of_the_slowest_than_ssp_allows(max_ahead: int) -> None:
    cluster = cluster_of(f"ssp:{max_ahead}", [0.01, 0.01, 0.08])
    furthest = 0
    while not cluster.run.ledger.finished:
        cluster.step()
        members = cluster.run.members.members
        clocks = [each.clock for each in members if cluster.run.ledger.holds_lease(each.worker_id)]
        furthest = max(furthest, max(clocks, default=0) - min(clocks, default=0))
    assert furthest == max_ahead + 1
    assert cluster.run.report(0, cluster.now)["staleness_max"] <= 2 * (max_ahead + 1)


def test_by_default_up_to_four_workers_run_ahead_and_more_go_in_step() -> None:
    cluster = cluster_of("auto", [0.01, 0.011, 0.012, 0.013])
    for _ in range(100):
        cluster.step()
    assert cluster.run.members.pipeline.gradients > 1
    assert len({member.clock for member in cluster.run.members.members}) == 1  # it does not count
    cluster.add_worker("fifth", 0.014)
    cluster.until_finished()
    assert cluster.run.members.pipeline.gradients == 1


def test_ssp_waits_neither_for_the_dead_nor_for_what_a_new_worker_has_missed() -> None:
    cluster = cluster_of("ssp:1", [0.01, 0.01, 0.02])
    for _ in range(60):
        cluster.step()
    cluster.kill(cluster.workers["worker-2"])
    cluster.add_worker("late", 0.02)
    heartbeat_timeout_s = RUN_SETTINGS.heartbeat_timeout_s
    assert cluster.until_finished() < heartbeat_timeout_s + 0.5


def cluster_with_timeout(
    consistency: str, steps_s: Sequence[float], progress_timeout_s: float
) -> TimedCluster:
    run_settings = replace(
        RUN_SETTINGS,
        consistency=Consistency.parse(consistency),
        progress_timeout_s=progress_timeout_s,
    )
    return TimedCluster(RunState(run_settings, np.zeros(5, np.float32)), steps_s, gradient_of_line)


@pytest.mark.parametrize("consistency", ["ssp:1", "bsp:3", "local:2", "auto", "async"])
def test_no_run_waits_for_ever_for_a_worker_that_lives_and_never_computes(
    consistency: str,
) -> None:
    cluster = cluster_with_timeout(consistency, [0.01, 0.012, 1e9], progress_timeout_s=20.0)
    assert cluster.until_finished(at_most_s=100.0) < 30.0
    assert cluster.run.metrics.workers_lost == (consistency == "ssp:1")


@pytest.mark.parametrize("consistency", ["ssp:1", "bsp:3", "local:2:3"])
def test_slow_workers_are_waited_for_though_every_step_outlasts_the_progress_timeout(
    consistency: str,
) -> None:
    cluster = cluster_with_timeout(consistency, [40.0, 90.0, 100.0], progress_timeout_s=20.0)
    cluster.until_finished()
    assert cluster.run.metrics.workers_lost == 0


def test_time_in_which_the_server_stood_still_is_no_lack_of_progress() -> None:
    cluster = cluster_with_timeout("ssp:0", [0.1, 0.5], progress_timeout_s=20.0)
    members = cluster.run.members.members
    while not any(each.under_way_s(cluster.now) > 0.3 for each in members):
        cluster.step()
        members = cluster.run.members.members
    assert not cluster.run.members.expired(cluster.now + 3600.0)
    assert not cluster.run.members.stalled(cluster.now + 3600.0)


def test_workers_that_wait_for_others_are_told_of_the_end() -> None:
    for consistency in ("bsp:2", "ssp:0", "local:2"):
        cluster = cluster_of(consistency, [0.01, 0.3])
        for _ in range(60):
            cluster.step()
        cluster.server.stop("interrupted")
        waited_s = cluster.now
        while cluster.server.worker_count:
            cluster.step()
        assert cluster.now - waited_s < 1.0
