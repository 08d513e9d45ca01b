"""The speed and the bottleneck of clusters that are easy to compute by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dist_net.errors import SettingError
from dist_net.optim import Adam
from dist_net.training.planner.capacity import GOODPUT, ClusterPlan, saturation
from dist_net.training.planner.costs import ClusterCosts, ExchangeCost, Network
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.round_plan import (
    COMPUTING_TO_EXCHANGE,
    USUAL_STEPS,
    PlannedRun,
    divided_minibatch,
)
from dist_net.wire.packing import StatePacking

STEP_S = 0.004
FREE = ExchangeCost(0, 0, 0, 0)
COSTS = ClusterCosts(
    parameters=250_000,
    state_vectors=3,
    batch_size=32,
    minibatches=10**9,
    epochs=1,
    threads=1,
    step_ms=1e3 * STEP_S,
    shared_memory=FREE,
    tcp=FREE,
)
SHORT = replace(COSTS, minibatches=10_000)
FAST = Network(bytes_per_s=1e30)
PLAN = ClusterPlan(1, COSTS, FAST, cores=1, local_steps=10)
ASYNC = replace(PLAN, consistency=Consistency.ASYNC)


def ten_local_steps(workers: int) -> tuple[float, float]:
    """Return the samples and the seconds of a lease of ``PLAN``, with shared minibatches."""
    run = PlannedRun(PLAN.consistency, COSTS.minibatches, COSTS.batch_size)
    _, batch_size, _ = divided_minibatch(run, workers)
    return 10 * batch_size, 10 * STEP_S * batch_size / COSTS.batch_size


def with_cost(plan: ClusterPlan, *cost: float) -> ClusterPlan:
    return replace(plan, costs=replace(plan.costs, tcp=ExchangeCost(*cost)))


@pytest.mark.parametrize("plan", [PLAN, ASYNC])
@pytest.mark.parametrize("workers", [1, 16])
def test_workers_that_never_wait_are_as_fast_as_their_steps(
    plan: ClusterPlan, workers: int
) -> None:
    predicted = replace(plan, workers=workers).predict()
    assert predicted.samples_per_s == pytest.approx(workers * 32 / STEP_S)
    assert predicted.waiting == pytest.approx(0)
    assert predicted.bottleneck == "workers"


def test_a_worker_waits_for_its_exchange_after_each_lease() -> None:
    plan = replace(PLAN, network=Network(1e30, latency_s=0.03))
    predicted = with_cost(plan, 0, 0, 5000, 20).predict()
    exchange_s = 2 * 0.03 + 0.005 + 20e-9 * 750_001
    assert predicted.waiting == pytest.approx(exchange_s / (10 * STEP_S + exchange_s))
    assert predicted.samples_per_s == pytest.approx(320 / (10 * STEP_S + exchange_s))
    assert predicted.bottleneck == "exchange"


def test_in_rounds_the_server_takes_one_exchange_after_the_other() -> None:
    plan = with_cost(replace(PLAN, workers=11), 2000, 0, 2000, 0)
    predicted = plan.predict()
    samples, lease_s = ten_local_steps(11)
    assert predicted.samples_per_s == pytest.approx(11 * samples / (lease_s + 11 * 0.002))
    assert predicted.load["server"] == pytest.approx(11 * 0.002 / (lease_s + 0.002))
    assert predicted.staleness == 0


def test_asynchronous_exchanges_overlap_with_steps_until_the_server_is_always_busy() -> None:
    plan = with_cost(ASYNC, 2000, 0, 2000, 0)
    some, many = (replace(plan, workers=workers).predict() for workers in (5, 32))
    samples, lease_s = ten_local_steps(5)
    assert some.samples_per_s == pytest.approx(5 * samples / (lease_s + 0.002))
    assert many.samples_per_s == pytest.approx(ten_local_steps(32)[0] / 0.002)
    assert (some.bottleneck, many.bottleneck) == ("workers", "server")
    assert (some.staleness, many.staleness) == (4, 31)


def test_the_network_carries_a_rounds_results_and_then_its_bases() -> None:
    plan = replace(PLAN, workers=8, network=Network(1e8))
    received, sent = plan.exchange_bytes
    transfer_s = (received + sent) / (GOODPUT * 1e8)
    predicted = plan.predict()
    samples, lease_s = ten_local_steps(8)
    assert predicted.samples_per_s == pytest.approx(8 * samples / (lease_s + 8 * transfer_s))
    asynchronous = replace(plan, workers=8, consistency=Consistency.ASYNC).predict()
    one_way_s = max(received, sent) / (GOODPUT * 1e8)
    assert asynchronous.load["network"] * transfer_s == pytest.approx(
        predicted.load["network"] * one_way_s
    )


def test_an_exchange_has_the_bytes_of_packed_states() -> None:
    rule = Adam().start(1001)
    packing = StatePacking(*rule.sizes)
    state = rule.initial(np.ones(1001, np.float32))
    plan = replace(PLAN, costs=replace(COSTS, parameters=1001))
    result, base = packing.pack_result(state, state), packing.pack_base(state)
    assert plan.state_size == rule.state_size
    assert plan.exchange_bytes == (result.nbytes, base.nbytes)
    assert replace(plan, network=Network()).exchange_bytes == (0, 0)


@pytest.mark.parametrize("plan", [PLAN, ASYNC])
def test_workers_that_share_memory_share_the_cores(plan: ClusterPlan) -> None:
    shared = replace(plan, network=Network(), cores=3)
    two, three, six = (replace(shared, workers=workers).predict() for workers in (2, 3, 6))
    assert two.samples_per_s == pytest.approx(2 * 32 / STEP_S)
    assert six.samples_per_s == pytest.approx(3 * 32 / STEP_S)
    assert [each.bottleneck for each in (two, three, six)] == ["workers", "cores", "cores"]


def test_the_workers_of_a_host_exchange_together_and_share_its_cores() -> None:
    plan = with_cost(replace(PLAN, workers=8, workers_per_host=4, cores=2), 2000, 0, 2000, 0)
    predicted = plan.predict()
    assert plan.exchanges == 2
    samples, lease_s = ten_local_steps(8)
    assert predicted.samples_per_s == pytest.approx(8 * samples / (2 * lease_s + 2 * 0.002))


def test_a_step_of_two_threads_needs_two_cores() -> None:
    plan = replace(PLAN, costs=replace(COSTS, threads=2), workers=2, workers_per_host=2, cores=2)
    assert plan.predict().samples_per_s == pytest.approx(32 / STEP_S)


@pytest.mark.parametrize("plan", [PLAN, ASYNC])
def test_leases_are_as_long_as_exchanges_need_within_the_servers_limits(plan: ClusterPlan) -> None:
    automatic = replace(plan, local_steps=None, costs=SHORT)
    fewest, most = USUAL_STEPS, SHORT.minibatches
    between = (fewest + most) / 2
    needed_us = 1e6 * between * STEP_S / COMPUTING_TO_EXCHANGE
    for cost_us, steps in ((0, fewest), (needed_us, between), (1e9, most)):
        predicted = with_cost(automatic, 0, 0, cost_us, 0).predict()
        assert predicted.local_steps == pytest.approx(steps, rel=0.01, abs=1)


def test_spares_do_not_compute() -> None:
    plan = replace(PLAN, costs=replace(SHORT, batch_size=8, minibatches=100))
    four, hundred = (replace(plan, workers=workers).predict() for workers in (4, 100))
    assert hundred._replace(workers=4) == four


def test_bulk_synchronous_workers_take_single_steps() -> None:
    plan = replace(PLAN, workers=4, local_steps=None, consistency=Consistency.BSP)
    assert plan.predict().local_steps == 1
    with pytest.raises(SettingError, match="local_steps=10"):
        replace(plan, local_steps=10)


def test_no_lease_goes_beyond_an_epoch() -> None:
    costs = replace(COSTS, minibatches=100, epochs=4)  # which all four workers share
    plan = replace(PLAN, costs=costs, workers=4, local_steps=20)
    assert plan.predict().local_steps == round(100 / 2 / 4)
    asynchronous = replace(plan, consistency=Consistency.ASYNC, local_steps=70)
    assert asynchronous.predict().local_steps == 25
    assert replace(plan, local_steps=10**400).predict().local_steps == 25


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"network": Network(1e8)}, "network"),
        ({"network": Network(1e8), "consistency": Consistency.ASYNC}, "network"),
        ({"network": Network(), "cores": 6}, "cores"),
        ({"costs": replace(COSTS, tcp=ExchangeCost(3000, 1, 3000, 2))}, "server"),
        ({"local_steps": None, "costs": replace(SHORT, tcp=ExchangeCost(9, 2, 9, 2))}, "server"),
    ],
)
@pytest.mark.parametrize("workers", [1, 7, 300])
def test_the_first_resource_to_saturate_never_contradicts_the_prediction(
    changed: dict[str, Any], expected: str, workers: int
) -> None:
    plan = replace(PLAN, workers=workers, **changed)
    first, now = saturation(plan), plan.predict()
    assert first is not None
    assert first.bottleneck == expected
    assert now.is_saturated == (first.workers <= workers)
    assert first.workers > 1
    assert not replace(plan, workers=first.workers - 1).predict().is_saturated


def test_nothing_saturates_a_cluster_whose_exchanges_are_free() -> None:
    assert saturation(replace(PLAN, workers=7)) is None


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(SettingError, match=r"workers=1001\b.*1,000"):
        replace(PLAN, workers=1001)


@pytest.mark.parametrize("step_ms", [1e-6, 1e12])
@pytest.mark.parametrize("plan", [PLAN, ASYNC, replace(PLAN, network=Network())])
def test_steps_of_any_length_are_predicted(step_ms: float, plan: ClusterPlan) -> None:
    costs = replace(COSTS, step_ms=step_ms)
    predicted = replace(plan, workers=3, costs=costs, local_steps=None).predict()
    assert predicted.samples_per_s > 0
    assert 0 <= predicted.waiting <= 1
