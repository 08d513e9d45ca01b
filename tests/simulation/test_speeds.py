"""Workers of different speeds, on a virtual clock: the cost of a slow worker."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dist_net.training.server.consistency import ASYNC, AUTO, Consistency
from dist_net.training.server.members import LATE_S
from dist_net.training.server.run_state import RunState
from dist_net.training.server.settings import RunSettings
from dist_net.training.worker.state import Compute
from dist_net.vector import Vector
from dist_net.wire.messages import PIPELINE, Pipeline
from simulation.network import Link
from simulation.timed_cluster import TimedCluster

SAMPLES, EPOCHS, STEP_S = 2_000, 2, 0.01
RUN_SETTINGS = RunSettings(
    recipe="counting",
    recipe_digest="abc",
    layout=(("applied", (EPOCHS, SAMPLES)),),
    samples=SAMPLES,
    epochs=EPOCHS,
    batch_size=4,
    learning_rate=1.0,
)


def counted(compute: Compute, _: Vector) -> tuple[float, int, Vector]:
    """Return -1 at each sample of the minibatch, so that the weights count applications."""
    gradient = np.zeros((EPOCHS, SAMPLES), np.float32)
    gradient[compute.epoch, compute.start : compute.stop] = -1
    return 1.0, 1, gradient.ravel()


def cluster_of(
    steps_s: Sequence[float], links: Sequence[Link] = (), **settings: Any
) -> TimedCluster:
    run_settings = replace(RUN_SETTINGS, **settings)
    run = RunState(run_settings, np.zeros(run_settings.vector_size, np.float32))
    return TimedCluster(run, steps_s, counted, links)


def seconds_of_run(
    steps_s: list[float], links: Sequence[Link] = (), consistency: Consistency = ASYNC
) -> float:
    cluster = cluster_of(steps_s, links, consistency=consistency)
    seconds = cluster.until_finished()
    assert cluster.run.ledger.applied_samples == RUN_SETTINGS.samples_total
    np.testing.assert_array_equal(cluster.run.store.weights, 1)
    return seconds


def test_nothing_is_rejected_where_nothing_goes_wrong() -> None:
    cluster = cluster_of([STEP_S] * 3)
    cluster.until_finished()
    cluster.schedule.run(cluster.now + 1.0)
    report = cluster.run.report(0, cluster.now)
    assert (report["workers_joined"], report["workers_lost"]) == (3, 0)
    assert report["pushes_rejected"] == 0
    assert cluster.server.worker_count == 0


def test_without_a_pipeline_each_gradient_is_of_the_newest_weights() -> None:
    cluster = cluster_of([STEP_S], pipeline=Pipeline(depth=1, grouped=1))
    cluster.until_finished()
    assert cluster.run.report(0, cluster.now)["staleness_max"] == 0


def test_what_dead_workers_held_is_done_by_the_last_one_without_a_wait() -> None:
    cluster = cluster_of([STEP_S] * 3, samples=24, lease_minibatches=2)
    while cluster.run.ledger.applied_samples < 24:
        cluster.step()
    for name in ("worker-0", "worker-1"):
        cluster.kill(cluster.workers[name])
    assert cluster.until_finished() < RUN_SETTINGS.heartbeat_timeout_s


def test_a_worker_eight_times_slower_adds_its_speed_to_three_others() -> None:
    minibatches = RUN_SETTINGS.samples_total / RUN_SETTINGS.batch_size
    at_the_sum_of_speeds_s = minibatches * STEP_S / (3 + 1 / 8)
    assert seconds_of_run([8 * STEP_S, *[STEP_S] * 3]) < at_the_sum_of_speeds_s / 0.98


def test_a_worker_that_is_far_too_slow_costs_the_others_what_it_had_begun_at_most() -> None:
    alone_s = seconds_of_run([STEP_S] * 3)
    hindered_s = seconds_of_run([1000 * STEP_S, *[STEP_S] * 3])
    assert hindered_s < alone_s + PIPELINE.gradients * STEP_S


def test_workers_in_step_do_not_wait_for_one_that_is_eight_times_slower() -> None:
    alone_s = seconds_of_run([STEP_S] * 5, consistency=AUTO)
    assert seconds_of_run([8 * STEP_S, *[STEP_S] * 5], consistency=AUTO) < 1.1 * alone_s


def test_workers_in_step_wait_only_once_for_one_that_stands_still() -> None:
    alone_s = seconds_of_run([STEP_S] * 5, consistency=AUTO)
    assert seconds_of_run([1e6, *[STEP_S] * 5], consistency=AUTO) < alone_s + 2 * LATE_S


def test_nobody_waits_until_one_that_was_left_behind_has_caught_up() -> None:
    cluster = cluster_of([*[STEP_S] * 5, 8 * STEP_S], consistency=AUTO)
    while not any(each.is_left_behind for each in cluster.run.members.members):
        cluster.step()
    while cluster.now < 1.0:
        cluster.step()
    cluster.workers["worker-5"]._seconds_of_step = lambda: STEP_S
    left = RUN_SETTINGS.samples_total - cluster.run.ledger.applied_samples
    began_s = cluster.now
    of_five_s = left / RUN_SETTINGS.batch_size * STEP_S / 5
    assert cluster.until_finished() - began_s < of_five_s


def test_a_worker_on_a_slow_link_does_not_stretch_the_run() -> None:
    alone_s = seconds_of_run([STEP_S])
    assert seconds_of_run([STEP_S] * 2, [Link(), Link(1.0)]) < alone_s + STEP_S


def samples_per_s(steps_s: list[float], consistency: str) -> float:
    cluster = cluster_of(steps_s, consistency=Consistency.parse(consistency))
    return RUN_SETTINGS.samples_total / cluster.until_finished()


def test_leases_of_local_steps_follow_the_speeds_of_the_workers() -> None:
    speeds = [STEP_S, STEP_S, 2 * STEP_S, 4 * STEP_S]
    of_each = sum(RUN_SETTINGS.batch_size / step_s for step_s in speeds)
    adapted, equal = (samples_per_s(speeds, mode) for mode in ("local:8", "local:8:4"))
    assert adapted > 0.95 * of_each
    assert equal < 0.75 * of_each


def auto_cluster(link: Link) -> TimedCluster:
    cluster = cluster_of([STEP_S] * 2, [link] * 2, consistency=Consistency.parse("local:auto"))
    while cluster.run.store.version < 8:
        cluster.step()
    return cluster


def test_automatic_leases_compute_ten_times_as_long_as_an_exchange_takes() -> None:
    cluster = auto_cluster(Link(0.002))
    lengths = {each.samples // 4 for each in cluster.run.ledger._leases.values()}
    assert lengths <= {4, 5}  # an exchange takes 4 ms
    assert cluster.run.report(0, cluster.now)["link_warning"] is None


def test_a_link_that_is_too_slow_for_the_run_is_reported_with_what_would_help() -> None:
    cluster = auto_cluster(Link(0.05))
    lengths = {each.samples // 4 for each in cluster.run.ledger._leases.values()}
    assert lengths <= {6, 7, 8}  # 1,000 minibatches, 70 rounds, two workers
    warning = cluster.run.report(0, cluster.now)["link_warning"]
    assert "does not pay off" in warning
    assert "0.1 s" in warning


def one_host(parts: int, consistency: str = "local:8") -> TimedCluster:
    """Return a run of one host with ``parts`` processes, and of one local worker."""
    cluster = cluster_of([STEP_S], consistency=Consistency.parse(consistency))
    cluster.add_worker("host", STEP_S, Link(0.002), parts)
    return cluster


def test_bytes_of_a_round_do_not_depend_on_the_number_of_a_hosts_processes() -> None:
    bytes_of_round = set()
    for parts in (1, 2, 4):
        cluster = one_host(parts)
        while cluster.run.store.version < 8:
            cluster.step()
        metrics = cluster.run.metrics
        bytes_of_round.add((metrics.bytes_received, metrics.bytes_sent))
    assert len(bytes_of_round) == 1


def test_a_hosts_processes_take_as_many_steps_as_a_worker_at_the_same_time() -> None:
    cluster = one_host(4)
    while cluster.run.store.version < 8:
        cluster.step()
    samples = {
        member.name: cluster.run.ledger._leases[member.worker_id].samples
        for member in cluster.run.members.members
    }
    assert samples == {"worker-0": 8 * 4, "host": 4 * 8 * 4}
    minibatches = RUN_SETTINGS.samples_total / RUN_SETTINGS.batch_size
    assert cluster.until_finished() < 1.2 * minibatches * STEP_S / 5


def test_automatic_lengths_count_a_hosts_processes() -> None:
    lengths = {}
    for parts in (1, 4):
        cluster = one_host(parts, "local:auto")
        while cluster.run.store.version < 8:
            cluster.step()
        host = next(each for each in cluster.run.members.members if each.name == "host")
        lengths[parts] = cluster.run.ledger._leases[host.worker_id].samples / 4 / parts
    # 1,000 minibatches of two and of five processes, in 70 rounds; an exchange takes 4 ms
    assert lengths == {1: 4, 4: 3}


@pytest.mark.parametrize(("latency_s", "bits"), [(0.001, {8}), (0.02, {4})])
def test_differences_travel_in_four_bits_where_exchanges_take_more_than_a_tenth_of_the_time(
    latency_s: float, bits: set[int]
) -> None:
    cluster = cluster_of(
        [STEP_S] * 2, [Link(latency_s)] * 2, consistency=Consistency.parse("local:16")
    )
    while cluster.run.store.version < 8:
        cluster.step()
    assert {member.packed_bits for member in cluster.run.members.members} == bits
