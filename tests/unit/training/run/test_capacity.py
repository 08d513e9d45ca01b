"""The speed of clusters that are easy to compute by hand, and how many of their workers pay."""

from dataclasses import replace

import numpy as np
import pytest

from dist_net.optim import Adam, Optimizer, optimizer_named
from dist_net.training.run.capacity import GOODPUT, WORTHWHILE, ClusterPlan, Network
from dist_net.training.server.round_plan import divided_minibatch
from dist_net.training.server.settings import RunSettings
from dist_net.wire.packing import StatePacking

FAST = Network(1e30, 0.0)


def plan(
    network: Network | None = FAST,
    step_s: float = 1e3,
    parameters: int = 1,
    cores: int = 1000,
    samples: int = 320_000,
    epochs: int = 1,
    optimizer: Optimizer | None = None,
) -> ClusterPlan:
    """Return a plan of minibatches of 32; by default exchanges take hardly any time."""
    layout = (("weights", (parameters,)),)
    settings = RunSettings("", "", layout, samples, epochs, 32, optimizer=optimizer or Adam())
    return ClusterPlan(settings, step_s, cores, network)


@pytest.mark.parametrize("workers", [1, 16])
def test_workers_that_never_wait_are_as_fast_as_their_steps(workers: int) -> None:
    predicted = plan().predict(workers)
    assert predicted.samples_per_s == pytest.approx(workers * 32 / 1e3, rel=1e-4)
    assert predicted.waiting == pytest.approx(0, abs=1e-4)


def test_a_worker_waits_for_its_exchange_after_each_lease() -> None:
    slow = plan(Network(1e6, 0.3), step_s=0.01, parameters=100_000)
    predicted = slow.predict(1)
    packing = StatePacking(*Adam().start(100_000).sizes)
    sent = 4 * (packing.result_size + packing.base_size)
    exchange_s = slow.exchange_s[1] + sent / (GOODPUT * 1e6) + 2 * 0.3
    lease_s = predicted.local_steps * 0.01
    assert predicted.samples_per_s == pytest.approx(
        32 * predicted.local_steps / (lease_s + exchange_s)
    )
    assert predicted.waiting == pytest.approx(exchange_s / (lease_s + exchange_s))
    assert predicted.limit == "network"


def test_the_server_takes_one_exchange_after_the_other() -> None:
    quick = plan(step_s=1e-4, parameters=1000)
    predicted = quick.predict(10)
    server_s, round_trip_s = quick.exchange_s
    _, batch_size, _ = divided_minibatch(quick._run, 10)
    lease_s = predicted.local_steps * 1e-4 * batch_size / 32
    round_s = lease_s + round_trip_s + 9 * server_s
    assert predicted.samples_per_s == pytest.approx(
        10 * predicted.local_steps * batch_size / round_s
    )
    assert predicted.limit == "server"


def test_an_exchange_has_the_bytes_of_the_optimizers_vectors_too() -> None:
    rule = Adam().start(1001)
    state = rule.initial(np.ones(1001, np.float32))
    packing = plan(parameters=1001).settings.packing
    sent = packing.pack_result(state, state).nbytes + packing.pack_base(state).nbytes
    assert 4 * (packing.result_size + packing.base_size) == sent
    slow = Network(1e5, 0.0)
    adam, sgd = (
        plan(slow, 1e-3, 100_000, optimizer=optimizer_named(name)).predict(4)
        for name in ("adam", "sgd")
    )
    assert sgd.samples_per_s > 2 * adam.samples_per_s


def test_workers_that_share_memory_share_the_cores() -> None:
    two, three, six = (plan(None, cores=3).predict(workers) for workers in (2, 3, 6))
    assert two.samples_per_s == pytest.approx(2 * 32 / 1e3, rel=1e-4)
    assert six.samples_per_s == pytest.approx(3 * 32 / 1e3, rel=0.05)
    assert (three.waiting < 0.01, six.waiting) == (True, pytest.approx(0.5, abs=0.05))
    assert six.limit == "cores"


def test_spares_do_not_compute() -> None:
    short = plan(samples=3200)
    useful, many = short.predict(16), short.predict(100)
    assert many._replace(workers=16, limit=useful.limit) == useful
    assert many.limit == "minibatch"


def test_no_lease_goes_beyond_an_epoch() -> None:
    predicted = plan(Network(1e30, 100.0), step_s=1e-3, samples=32 * 50, epochs=1000).predict(1)
    assert predicted.local_steps == 50


@pytest.mark.parametrize(
    ("cluster", "limit"),
    [
        (plan(None, cores=6), "cores"),
        (plan(Network(1e7, 1e-3), 0.05, 100_000), "network"),
        (plan(Network(1e12, 0.0), 0.05, 1_000_000), "server"),
        (plan(samples=3200), "minibatch"),
    ],
)
def test_workers_pay_if_they_add_half_of_the_speed_of_one(cluster: ClusterPlan, limit: str) -> None:
    most = cluster.most_that_pay()
    assert most == cluster.predict(most.workers)
    assert cluster.predict(most.workers + 1).limit == limit
    least_gain = WORTHWHILE * cluster.predict(1).samples_per_s
    for workers in range(1, most.workers + 20):
        gained = most.samples_per_s - cluster.predict(workers).samples_per_s
        assert gained >= least_gain * (most.workers - workers) - 1e-9


def test_as_many_workers_pay_as_a_host_has_cores() -> None:
    assert plan(None, cores=6).most_that_pay().workers == 6


@pytest.mark.parametrize("step_s", [1e-9, 1e9])
@pytest.mark.parametrize("network", [None, FAST])
def test_steps_of_any_length_are_predicted(step_s: float, network: Network | None) -> None:
    predicted = replace(plan(network), step_s=step_s).predict(3)
    assert predicted.samples_per_s > 0
    assert 0 <= predicted.waiting <= 1
