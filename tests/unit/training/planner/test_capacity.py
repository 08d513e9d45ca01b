"""Clusters whose speed follows by arithmetic, and what they are bound by."""

from dataclasses import replace

import pytest

from dist_net.errors import SettingError
from dist_net.training.planner.capacity import ClusterPlan, PlannedCluster, PredictedCapacity
from dist_net.training.planner.costs import GOODPUT, ExchangeCost, Network, TransportCosts
from dist_net.training.server.consistency import ASYNC, AUTO, Consistency
from dist_net.wire.packing import packed_size
from naming import naming

NOTHING = ExchangeCost(0, 0, 0, 0)
FREE = TransportCosts(NOTHING, NOTHING, NOTHING, NOTHING, 0)
FAST = Network(bytes_per_s=1e15)
STEP_S = 0.004
BATCH_SIZE = 32
PLAN = ClusterPlan(
    1, STEP_S, BATCH_SIZE, 250_000, network=FAST, costs=FREE, cores=1, consistency=ASYNC
)


def prediction_of(plan: ClusterPlan) -> PredictedCapacity:
    return PlannedCluster(plan).predict()


def test_a_worker_that_runs_ahead_never_waits() -> None:
    plan = replace(PLAN, network=Network(1e15, latency_s=STEP_S / 4))
    predicted = prediction_of(plan)
    assert predicted.samples_per_s == pytest.approx(BATCH_SIZE / STEP_S, rel=0.02)
    assert predicted.idle < 0.01
    assert predicted.bound_by == "workers"


def test_each_of_many_workers_waits_for_the_round_trip() -> None:
    plan = replace(PLAN, workers=16, network=Network(1e15, latency_s=STEP_S / 4))
    predicted = prediction_of(plan)
    assert predicted.samples_per_s == pytest.approx(16 * BATCH_SIZE / (1.5 * STEP_S), rel=0.02)
    assert predicted.idle == pytest.approx(1 / 3, rel=0.03)
    assert predicted.bound_by == "workers"


@pytest.mark.parametrize("workers", [16, 50])
def test_while_one_of_many_equal_workers_computes_each_other_pushes_once(workers: int) -> None:
    predicted = prediction_of(replace(PLAN, workers=workers))
    assert predicted.staleness_mean == pytest.approx(workers - 1, abs=0.2)
    assert workers - 1 <= predicted.staleness_max <= 1.3 * workers


def test_in_step_gradients_are_half_as_stale_and_the_network_is_busy_one_way_at_a_time() -> None:
    plan = replace(PLAN, workers=16, consistency=AUTO, network=Network(1e9, latency_s=1e-4))
    predicted = prediction_of(plan)
    assert predicted.staleness_mean == pytest.approx(15 / 2, abs=0.2)
    transfers_s = 2 * 16 * 1e6 / (GOODPUT * 1e9)
    round_s = transfers_s + STEP_S + 2e-4
    assert predicted.samples_per_s == pytest.approx(16 * BATCH_SIZE / round_s, rel=0.1)
    assert predicted.busy["network"] == pytest.approx(transfers_s / round_s, abs=0.1)
    assert predicted.bound_by == "network"


@pytest.mark.parametrize(
    ("cost", "bound_by"),
    [
        (ExchangeCost(0, 0, 0.5, 1.5), "update"),  # 0.5 ms with 250,000 parameters
        (ExchangeCost(500, 0, 0, 0), "messages"),
        (ExchangeCost(0, 500, 0, 0), "messages"),
    ],
)
def test_the_server_takes_in_one_push_at_a_time(cost: ExchangeCost, bound_by: str) -> None:
    plan = replace(PLAN, workers=32, costs=replace(FREE, server=cost))
    predicted = prediction_of(plan)
    beats = 32 * cost.message_us * 1e-6 / 0.3
    assert predicted.samples_per_s == pytest.approx(BATCH_SIZE / 0.5e-3 * (1 - beats), rel=0.01)
    assert predicted.bound_by == bound_by
    assert predicted.busy["server"] == pytest.approx(1, abs=0.01)


def test_one_thread_of_the_server_copies_and_encrypts_for_all() -> None:
    costs = replace(FREE, server_transport=ExchangeCost(0, 0, 1, 1))
    predicted = prediction_of(replace(PLAN, workers=32, costs=costs))
    assert predicted.samples_per_s == pytest.approx(BATCH_SIZE / 0.5e-3, rel=0.01)
    assert predicted.bound_by == "messages"


def test_the_servers_network_carries_a_gradient_in_while_it_carries_weights_out() -> None:
    plan = replace(PLAN, workers=8, network=Network(1e9, latency_s=1e-4))
    predicted = prediction_of(plan)
    assert predicted.samples_per_s == pytest.approx(BATCH_SIZE * GOODPUT * 1e9 / 1e6, rel=0.01)
    assert predicted.bound_by == "network"


def test_workers_that_share_memory_share_the_cores() -> None:
    plan = replace(PLAN, workers=4, cores=2, network=Network())
    predicted = prediction_of(plan)
    assert predicted.samples_per_s == pytest.approx(2 * BATCH_SIZE / STEP_S, rel=0.02)
    assert predicted.bound_by == "cores"


def test_workers_of_a_host_share_its_cores_and_not_the_servers() -> None:
    plan = replace(PLAN, workers=8, cores=2, workers_per_host=4)
    assert prediction_of(plan).samples_per_s == pytest.approx(4 * BATCH_SIZE / STEP_S, rel=0.02)


def test_a_step_of_two_threads_needs_two_cores() -> None:
    plan = replace(PLAN, workers=2, workers_per_host=2, threads=2, cores=2)
    assert prediction_of(plan).samples_per_s == pytest.approx(BATCH_SIZE / STEP_S, rel=0.02)


@pytest.mark.parametrize("step_s", [1e-9, 1e6])
@pytest.mark.parametrize("network", [FAST, Network()])
def test_steps_of_any_length_are_predicted(step_s: float, network: Network) -> None:
    predicted = prediction_of(replace(PLAN, workers=3, step_s=step_s, network=network))
    assert predicted.samples_per_s > 0


def test_what_a_worker_needs_for_messages_it_cannot_compute_in() -> None:
    costs = replace(FREE, worker=ExchangeCost(1e6 * STEP_S, 0, 0, 0))
    plan = replace(PLAN, workers=16, costs=costs)
    predicted = prediction_of(plan)
    assert predicted.samples_per_s == pytest.approx(16 * BATCH_SIZE / (2 * STEP_S), rel=0.02)


def test_the_same_seed_predicts_the_same() -> None:
    plan = replace(PLAN, workers=3)
    assert prediction_of(plan) == prediction_of(plan)
    assert PlannedCluster(plan, seed=1).predict() != prediction_of(plan)


def test_what_is_full_first_is_known_without_a_simulation() -> None:
    fast = Network(2e9 / GOODPUT)  # 0.5 ms for a gradient
    assert replace(PLAN, network=fast).first_bound() == ("network", pytest.approx(8))
    # More than that wait for their messages too.
    slow = replace(PLAN, network=Network(1e10 / GOODPUT, latency_s=1e-3))
    assert slow.first_bound() == ("network", pytest.approx((4 + 2 * 1.1) / 0.1))
    busy = replace(PLAN, costs=replace(FREE, server=ExchangeCost(0, 0, 0, 4)))
    assert busy.first_bound() == ("update", pytest.approx(4))
    assert replace(PLAN, cores=3, network=Network()).first_bound() == ("cores", pytest.approx(3))


@pytest.mark.parametrize(
    "changed",
    [
        {"threads": 2},
        {"workers": 10_001},
        {"step_s": 1e7},
        {"batch_size": 10**10},
        {"parameters": 10**12},
    ],
)
def test_what_is_out_of_all_proportion_is_refused(changed: dict[str, int]) -> None:
    with pytest.raises(SettingError, match=next(iter(changed))):
        replace(PLAN, **changed)


def test_so_many_workers_that_heartbeats_fill_the_servers_time_are_refused() -> None:
    costs = replace(FREE, server=ExchangeCost(100, 0, 0, 0))
    replace(PLAN, workers=2900, costs=costs)
    with pytest.raises(SettingError, match=naming("workers=3000", "3,000")):
        replace(PLAN, workers=3000, costs=costs)


def test_local_steps_wait_for_one_exchange_of_packed_vectors_in_each_lease() -> None:
    network = Network(1e6, latency_s=0.01)
    plan = replace(PLAN, network=network, consistency=Consistency.parse("local:50"))
    exchange_s = 3.0157 * plan.parameters / (GOODPUT * 1e6) + 0.02
    predicted = prediction_of(plan)
    lease_s = 50 * STEP_S + exchange_s
    assert predicted.samples_per_s == pytest.approx(50 * BATCH_SIZE / lease_s, rel=0.03)
    assert (plan.push_bytes, plan.answer_bytes) == (4 * packed_size(250_000), 500_000)
    with pytest.raises(SettingError, match="local:H"):
        replace(plan, consistency=Consistency.parse("local:auto"))


def test_with_local_steps_the_workers_of_a_host_exchange_together() -> None:
    network = Network(1e6, latency_s=0.01)
    local = Consistency.parse("local:50")
    alone = replace(PLAN, workers=2, network=network, consistency=local)
    together = replace(alone, workers=8, workers_per_host=4, cores=4)
    ratio = prediction_of(together).samples_per_s / prediction_of(alone).samples_per_s
    assert ratio == pytest.approx(4, rel=0.03)
    assert together.push_bytes / together.samples_in_push == pytest.approx(
        alone.push_bytes / alone.samples_in_push / 4
    )
    gradients = prediction_of(replace(together, consistency=AUTO)).samples_per_s
    assert gradients < prediction_of(together).samples_per_s / 10
