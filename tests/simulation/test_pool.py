"""Whole inference pools in virtual time: under every fault, and under ten times their capacity."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import cycle

import numpy as np
import pytest

from dist_net.serving.pool.open_requests import OpenRequests
from dist_net.serving.pool.requests import PoolSettings, Status
from selection import few
from simulation.failures import SimulationFailedError
from simulation.pool_cluster import DRIFT_S, PoolCluster
from simulation.pool_faults import ROLLOUT_EVENTS, TROUBLES, TroubledPool
from simulation.pool_watch import LATE_S, number_in

SEEDS = 60
SEEDS_A_TEST = 20
SEED_WITH_LOSSES = 0


@pytest.mark.parametrize("first", few(range(0, SEEDS, SEEDS_A_TEST)))
def test_each_request_is_answered_once_and_nothing_stays_behind_whatever_happens(
    first: int,
) -> None:
    happened: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_A_TEST):
        pool = TroubledPool(seed)
        pool.run()
        happened += pool.happened
        answers += pool.cluster.answers
    assert all(happened[each.__name__] > 1 for each in (*TROUBLES, *ROLLOUT_EVENTS)), happened
    usual = {"OK", "UNAVAILABLE", "NOT_FOUND", "EXPIRED", "cancelled"}
    assert usual <= set(answers) <= usual | {"FAILED"}
    assert answers["OK"] > 800


@pytest.mark.thorough
def test_a_seed_gives_the_same_simulation_each_time() -> None:
    def told(seed: int) -> tuple[object, ...]:
        pool = TroubledPool(seed)
        pool.run()
        return pool.cluster.answers, pool.cluster.loop.turns, pool.schedule.trace()

    assert told(3) == told(3) != told(4)


def test_what_is_broken_is_said_with_the_seed_and_what_led_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pool that forgets what its lost workers had."""
    monkeypatch.setattr(OpenRequests, "retry", lambda *_: [])
    pool = TroubledPool(SEED_WITH_LOSSES)
    with pytest.raises(SimulationFailedError) as broken:
        pool.run()
    told = str(broken.value).splitlines()
    assert told[0].startswith(f"seed {SEED_WITH_LOSSES}: ")
    assert told[0].endswith("requests are neither queued nor computed")
    assert 10 < len(told) < 50
    assert told[1].endswith(f"python -m simulation {SEED_WITH_LOSSES} --pool")
    assert all(re.match(r" +\d+\.\d{4}  ", line) for line in told[2:])


class Visitors:
    """A caller of a cluster's model in the gateway's process; when it called, and the results."""

    def __init__(self, cluster: PoolCluster) -> None:
        self.cluster = cluster
        self.refused: list[float] = []  # after how long to try again
        self.ended: list[tuple[float, float, bool, int]] = []  # asked, ended, OK, version

    def ask(self, timeout_s: float) -> None:
        self.cluster.in_gateway(lambda: self._ask(timeout_s))

    def _ask(self, timeout_s: float) -> None:
        thread, gateway = self.cluster.thread, self.cluster.gateway
        asked_s = thread.now()
        future = gateway.infer(self.cluster.request("net", timeout_s))

        def ended(_: object) -> None:
            result = future.result()
            if result.status is Status.UNAVAILABLE:
                self.refused.append(result.retry_after_s)
            else:
                is_answered = result.status is Status.OK
                self.ended.append((asked_s, thread.now(), is_answered, result.version))

        future.add_done_callback(ended)

    def ask_again_and_again(self, timeout_s: float, pause_s: float, until_s: float) -> None:
        """Return random times with this mean interval."""
        schedule = self.cluster.schedule

        def again() -> None:
            self.ask(timeout_s)
            if schedule.now_s < until_s:
                schedule.after(float(self.cluster.random.exponential(pause_s)), again)

        again()


@pytest.mark.parametrize(("spread", "drift"), few([(0.1, 0.2), (0.05, 0.0), (0.3, 0.0)]))
@pytest.mark.parametrize("full_s", [0.1, 0.5, 1.25, 1.6])  # of a batch; 2 s are allowed
@pytest.mark.parametrize("workers", [1, 2])
def test_at_ten_times_the_capacity_answers_are_in_time_and_workers_are_busy(
    workers: int, full_s: float, spread: float, drift: float
) -> None:
    row_s = full_s / (8 + 1 / 6)
    cluster = PoolCluster(
        *(0, PoolSettings(), ("net",), workers),
        base_s=row_s / 6,
        row_s=row_s,
        spread=spread,
        drift=drift,
    )
    capacity = workers * 8 / full_s
    first, crowd = Visitors(cluster), Visitors(cluster)
    begins_s, timeout_s = 5.0, 2.0
    ends_s = begins_s + max(DRIFT_S, 20 * full_s)

    def warm_up() -> None:  # by full batches
        for _ in range(16):
            first.ask(timeout_s=60.0)
        if cluster.schedule.now_s < begins_s - 3 * full_s:
            cluster.schedule.after(16 / capacity, warm_up)

    cluster.schedule.after(1.0, warm_up)
    cluster.schedule.run(begins_s)
    crowd.ask_again_and_again(timeout_s, 0.1 / capacity, ends_s)
    cluster.schedule.run(ends_s)
    goodput = sum(ok for _, _, ok, _ in crowd.ended) / (ends_s - begins_s) / capacity
    cluster.schedule.run(ends_s + 5)
    cluster.require_rest()

    assert goodput >= 0.9
    assert all(ended <= asked + timeout_s + LATE_S for asked, ended, _, _ in crowd.ended)
    assert len(crowd.refused) > len(crowd.ended)
    assert 0 < np.median(crowd.refused) <= timeout_s


class Caller:
    """A client of a cluster's model in the gateway's process, with ``at_once`` requests open.

    They take ``costs_s``, in turn, besides the time of ordinary rows. The size of those that take
    more than others differs if it is ``stated``. ``latencies_s``: of the answers.
    """

    def __init__(
        self,
        cluster: PoolCluster,
        name: str,
        at_once: int,
        pause_s: float,
        costs_s: Sequence[float] = (0.0,),
        stated: bool = False,
    ) -> None:
        self.cluster, self.name = cluster, name
        self.pause_s, self.costs_s, self.stated = pause_s, cycle(costs_s), stated
        self.model = cluster.names[-1 if any(costs_s) else 0]
        self.latencies_s: list[float] = []
        self.errors: Counter[str] = Counter()
        for _ in range(at_once):
            self._ask_later()

    def _ask_later(self) -> None:
        pause_s = float(self.cluster.random.exponential(self.pause_s))
        self.cluster.thread.after(pause_s, self._ask)

    def _ask(self) -> None:
        thread = self.cluster.thread
        cost_s = next(self.costs_s)
        request = self.cluster.request(self.model, 10.0, rows=8 if cost_s and self.stated else 1)
        request.client = self.name
        if cost_s:
            self.cluster.costs_s[number_in(request.payload)] = cost_s
        asked_s = thread.now()

        def ended(_: object) -> None:
            if future.result().status is Status.OK:
                self.latencies_s.append(thread.now() - asked_s)
            else:
                self.errors[future.result().status.name] += 1
            self._ask_later()

        future = self.cluster.gateway.infer(request)
        future.add_done_callback(ended)


def p99_s(models: int, workers: int, costs_s: Sequence[float] = (), stated: bool = False) -> float:
    """Return the latency that honest clients see, beside a client with ``costs_s`` if any."""
    names = tuple(f"net{number}" for number in range(models))
    cluster = PoolCluster(0, PoolSettings(), names, workers, base_s=0.0008, row_s=0.0002)
    cluster.schedule.run(3.0)
    honest = [Caller(cluster, f"client {each}", 1, pause_s=1.0) for each in range(16)]
    cluster.schedule.run(6.0)
    hostile = Caller(cluster, "hostile", 64, 0.01, costs_s, stated) if costs_s else None
    cluster.schedule.run(66.0)
    assert sum((each.errors for each in honest), Counter()) == {}
    assert hostile is None or hostile.latencies_s
    return float(np.quantile([s for each in honest for s in each.latencies_s], 0.99))


undisturbed_p99_s = cache(p99_s)


@pytest.mark.parametrize(
    ("costs_s", "stated", "models", "workers"),
    few(
        [
            ([0.0, 3.0], True, 1, 2),
            ([0.0, 0.04], False, 1, 2),
            ([0.0, 3.0], True, 5, 4),
            ([0.0, 0.04], False, 5, 2),
            ([3.0], False, 1, 4),
            ([3.0], False, 5, 2),
            ([0.0] * 9 + [0.4], True, 5, 2),
            ([0.0, 0.4], False, 1, 4),
            ([0.0] * 99 + [0.4], False, 1, 2),
            ([0.0] * 99 + [0.4], False, 5, 4),
        ],
        count=2,
    ),
)
def test_a_client_of_slow_requests_is_hardly_noticed_by_the_others(
    costs_s: list[float], stated: bool, models: int, workers: int
) -> None:
    """It has 64 requests under way, some of them slow, for the others' model or another one."""
    attacked_s = p99_s(models, workers, costs_s, stated)
    assert attacked_s <= 1.5 * undisturbed_p99_s(models, workers)


def test_reloads_make_nobody_wait() -> None:
    def latencies(is_reloading: bool) -> float:
        cluster = PoolCluster(0, PoolSettings(), base_s=0.002, row_s=0.001)
        visitors = Visitors(cluster)
        cluster.schedule.run(1.0)
        visitors.ask_again_and_again(1.0, 0.01, 30.0)
        for second in range(1, 30 * is_reloading):
            cluster.schedule.at(second, cluster.in_gateway, lambda: cluster.gateway.reload("net"))
        cluster.schedule.run(32.0)
        assert len({version for *_, version in visitors.ended}) > 20 * is_reloading
        waits_s = [ended - asked for asked, ended, _, _ in visitors.ended]
        return float(np.quantile(waits_s, 0.99))

    assert latencies(True) < 1.25 * latencies(False)
