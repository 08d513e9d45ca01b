"""A new version on trial: its share, what ends it, and that no request is lost by it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.serving.pool.bets import LIMIT, Bets
from dist_net.serving.pool.requests import InferenceRequest, Result, Status
from dist_net.serving.pool.rollout import SLOWER, Rollout
from dist_net.serving.pool.statistics import NO_VERSION
from dist_net.serving.pool.versions import CONFIRMED
from dist_net.wire.serving_messages import Drop, RunBatch
from pool_desk import ONE, TWO, Desk
from selection import few

SHARE = 0.05


class Version:
    """How a version answers: its shares of errors and of unknown rows, and its mean latency."""

    def __init__(self, errors: float = 0.02, latency_s: float = 0.1, unknown: float = 0.1) -> None:
        self.errors, self.latency_s, self.unknown = errors, latency_s, unknown

    def answer(self, random: np.random.Generator) -> tuple[Result, float]:
        status = Status.FAILED if random.random() < self.errors else Status.OK
        best = np.array([0.2 if random.random() < self.unknown else 0.9], np.float32)
        result = Result(status, payload=best.tobytes(), unknown_below=0.5)
        return result, self.latency_s * random.lognormal(0, 0.5)


GOOD = Version()
WORSE = {
    "errors": Version(errors=0.4),
    "latency": Version(latency_s=0.3),
    "unknown": Version(unknown=0.6),
}


def rolled_out(seed: int, share: float, new: Version, requests: int) -> Iterator[Rollout]:
    """The rollout after each answer of the new version."""
    random, rollout = np.random.default_rng(seed), Rollout(2, 1, share)
    for number in range(requests):
        request = InferenceRequest("net", b"", request_id=number)
        request.is_drawn = rollout.draws(request)
        result, latency_s = (new if request.is_drawn else GOOD).answer(random)
        rollout.add(request, result, latency_s, ended_worker=False)
        if request.is_drawn:
            yield rollout


@pytest.mark.parametrize("worse", WORSE)
@pytest.mark.parametrize("seed", few(range(10), 2))
def test_a_version_that_is_worse_is_found_within_100_of_its_answers(seed: int, worse: str) -> None:
    answers = rolled_out(seed, SHARE, WORSE[worse], 100_000)
    found, reason = next((n, each.worse) for n, each in enumerate(answers, 1) if each.worse)
    assert found <= 100
    assert reason == worse


@pytest.mark.parametrize("share", [SHARE, 0.5, 0.95])
@pytest.mark.parametrize("seed", few(range(10), 1))
def test_a_version_that_is_no_worse_passes(seed: int, share: float) -> None:
    equal = Version(latency_s=0.11)
    assert not any(rollout.worse for rollout in rolled_out(seed, share, equal, 4000))


def test_the_wealth_of_a_bet_does_not_grow_on_average_while_a_version_is_no_worse() -> None:
    sums = []
    for seed in range(200):
        *_, last = rolled_out(seed, 0.5, Version(latency_s=0.1 * SLOWER), 100)
        sums.append(last._bets.sums.mean() / last._totals[1][0])
    assert np.mean(sums) < 1.5


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.2, 0.9])
def test_false_alarms_are_as_rare_as_promised(rate: float) -> None:
    random, bets, steps, many = np.random.default_rng(0), Bets(4000), 1000, 4000
    has_alarm = np.zeros(many, bool)
    for _ in range(steps):
        new, former = random.random(many) < rate, random.binomial(19, rate, many) / 19
        bets.add(new - former)
        has_alarm |= bets.sums.mean(1) >= LIMIT
    assert has_alarm.mean() <= 1.5 * steps / LIMIT  # and what chance adds


def test_one_that_ends_workers_is_found_at_once() -> None:
    rollout = Rollout(2, 1, SHARE)
    for _ in range(4):
        assert not rollout.worse
        for is_drawn in (False, True):
            request = InferenceRequest("net", b"", is_drawn=is_drawn)
            rollout.add(request, Result(Status.FAILED), 0.1, ended_worker=is_drawn)
    assert rollout.worse == "ended workers"


@given(st.text(min_size=1), st.floats(0.001, 0.999), st.integers(2, 1000))
def test_repeats_of_a_request_go_to_the_same_version(name: str, share: float, version: int) -> None:
    drawn = {
        Rollout(version, 1, share).draws(InferenceRequest("net", b"", repeat_id=name, request_id=n))
        for n in range(3)
    }
    assert len(drawn) == 1
    assert Rollout(version, 1, 1.0).draws(InferenceRequest("net", b"", repeat_id=name))


def test_the_share_is_that_of_the_requests() -> None:
    rollout = Rollout(2, 1, SHARE)
    drawn = [rollout.draws(InferenceRequest("n", b"", repeat_id=str(n))) for n in range(20_000)]
    assert np.mean(drawn) == pytest.approx(SHARE, abs=0.01)


def on_trial(share: float = 0.5, **settings: float) -> tuple[Desk, int]:
    """A pool whose version 2 gets a share, and the reload that began it."""
    desk = Desk(workers=(ONE, TWO), queue_requests=10_000, **settings)
    reload = desk.pool.reload("net", share)
    desk.prepare(2, requested=2)
    for node in (ONE, TWO):
        desk.load(node, 2)
    desk.dispatch()
    assert desk.finished()[reload].version == 2
    return desk, reload


def answer_all(desk: Desk, version: int, status: Status) -> int:
    """Let workers answer all requests, the version with this status; return its answers."""
    answered = 0
    while runs := [(node, run) for node in (ONE, TWO) for run in desk.runs(node)]:
        desk.now += 0.01
        for node, run in runs:
            is_version = run.version == version
            answered += is_version * len(run.payloads)
            desk.done(node, run, bytes([status if is_version else Status.OK]) * len(run.payloads))
    return answered


def test_both_versions_answer_until_one_is_chosen() -> None:
    desk, _ = on_trial()
    for number in range(40):
        desk.ask(repeat_id=str(number))
    answer_all(desk, 2, Status.OK)
    assert {each.version for each in desk.finished().values()} == {1, 2}
    model = desk.pool.catalogue.models["net"]
    assert (model.newest_number, *model.served().versions) == (1, 1, 2)
    desk.ask(version=2)  # a version on trial may be named
    assert answer_all(desk, 2, Status.OK) == 1


@pytest.mark.parametrize(("outcome", "last"), [(CONFIRMED, 2), ("rolled back", 1)])
def test_the_version_that_is_chosen_answers_all_and_the_other_is_dropped(
    outcome: str, last: int
) -> None:
    desk, _ = on_trial()
    for number in range(40):
        desk.ask(repeat_id=str(number))
    desk.finished()
    running = [(node, run) for node in (ONE, TWO) for run in desk.runs(node)]
    assert desk.pool.end_rollout("net", outcome) == last
    assert desk.pool.end_rollout("net", outcome) == NO_VERSION
    for node, run in running:
        desk.done(node, run)
    desk.dispatch()
    desk.finished()
    late = desk.ask()
    answer_all(desk, 2, Status.OK)
    found = desk.finished()
    assert {each.status for each in found.values()} == {Status.OK}
    assert found[late].version == last
    if last == 1:  # those that waited are answered by the version that stays, too
        assert {each.version for each in found.values()} == {1}
    assert Drop("net", 3 - last) in desk.sent(Drop, ONE)
    assert [*desk.pool.catalogue.served()["net"].versions] == [last]


@pytest.mark.parametrize("status", [Status.FAILED, Status.BAD_INPUT])
def test_a_bad_version_is_withdrawn_and_no_request_is_lost(status: Status) -> None:
    desk, _ = on_trial(SHARE)
    asked, bad = set(), 0
    for _ in range(2000):
        asked.add(desk.ask())
        bad += answer_all(desk, 2, status)
    assert 0 < bad <= 100
    found = desk.finished()
    assert found.keys() == asked
    assert {each.status for each in found.values()} == {Status.OK}
    (model,) = desk.pool.status(desk.now)["models"]
    assert model["rollout"]["outcome"] == "withdrawn: errors"
    assert model["version"] == 1


def test_an_input_that_ends_the_workers_of_a_new_version_is_answered_by_the_former_one() -> None:
    desk, _ = on_trial(0.99)
    asked = [desk.ask(repeat_id=str(n)) for n in range(2)]
    runs = {node: run for node in (ONE, TWO) for run in desk.runs(node)}
    (node,) = [node for node, run in runs.items() if run.version == 2]
    desk.crash(node)
    desk.enlist(node)
    for version in (1, 2):
        desk.load(node, version)
    desk.dispatch()
    for other, run in runs.items():
        if other != node:
            desk.done(other, run)
    answer_all(desk, 2, Status.OK)
    found = desk.finished()
    assert found.keys() == {*asked}
    assert all(each.status is Status.OK for each in found.values())
    assert 1 in {each.version for each in found.values()}


def test_a_version_that_was_rolled_back_stays_so_where_no_worker_can_load_the_former_one() -> None:
    desk, _ = on_trial()
    for node in (ONE, TWO):
        desk.crash(node)
    desk.enlist(ONE)
    desk.load(ONE, 2)
    desk.pool.end_rollout("net", "rolled back")
    desk.load(ONE, 1, reason="there is no memory for it")
    desk.dispatch()
    model = desk.pool.catalogue.models["net"]
    assert model.trial is None
    assert not model.served().versions
    assert Drop("net", 2) in desk.sent(Drop, ONE)
    desk.pool.reload("net")
    desk.prepare(3, requested=3)
    desk.load(ONE, 3)
    desk.dispatch()
    late = desk.ask()
    answer_all(desk, 2, Status.OK)
    assert desk.finished()[late].version == 3


def test_a_version_of_other_inputs_gets_no_share() -> None:
    desk = Desk()
    reload = desk.pool.reload("net", SHARE)
    desk.prepare(2, shape=(3,), requested=2)
    desk.dispatch()
    assert desk.finished()[reload].status is Status.FAILED
    assert desk.pool.catalogue.models["net"].newest_number == 1


def test_a_later_reload_replaces_both_versions() -> None:
    desk, _ = on_trial()
    desk.pool.reload("net")
    desk.prepare(3, requested=3)
    for node in (ONE, TWO):
        desk.load(node, 3)
    desk.dispatch()
    (model,) = desk.pool.status(desk.now)["models"]
    assert (model["version"], model["rollout"]["outcome"]) == (3, "replaced")
    assert [*desk.pool.catalogue.served()["net"].versions] == [3]


EVENTS = st.sampled_from(
    ["ask", "ask", "ask", "answer", "fail", "crash", "confirm", "roll back", "rollout", "reload"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=40), st.floats(0.05, 0.95))
def test_whatever_happens_each_request_ends_once_and_a_version_on_trial_fails_none(
    events: list[str], share: float
) -> None:
    desk, _ = on_trial(share)
    asked, prepared, found = set(), 2, {}
    model = desk.pool.catalogue.models["net"]

    def loaded() -> None:
        """Workers load what they were sent."""
        desk.dispatch()
        for _ in range(4):
            for node in (ONE, TWO):
                for name, version in list(desk.pool._workers.at_node(node).loading):
                    desk.load(node, version, name)
            desk.dispatch()

    for event in events:
        runs: list[tuple[bytes, RunBatch]] = []
        if event == "ask":
            asked.add(desk.ask(repeat_id=str(len(asked))))
        elif event in ("answer", "fail"):
            runs = [(node, run) for node in (ONE, TWO) for run in desk.runs(node)]
            on = model.trial.number if model.trial else None
            for node, run in runs:
                fails = event == "fail" and run.version == on
                status = Status.FAILED if fails else Status.OK
                desk.done(node, run, bytes([status]) * len(run.payloads))
        elif event == "crash":
            worker = desk.pool._workers.at_node(ONE)
            on = model.trial.number if model.trial else None
            if any(each.description.version != on for each in worker.running.values()):
                continue  # an input that ends two workers of others is not answered
            desk.crash(ONE)
            desk.sent(RunBatch, ONE)
            desk.enlist(ONE)
        elif event in ("confirm", "roll back"):
            desk.pool.end_rollout("net", CONFIRMED if event == "confirm" else event)
        else:
            prepared += 1
            desk.pool.reload("net", share if event == "rollout" else 1.0)
            desk.prepare(prepared, requested=prepared)
        loaded()
        found |= desk.finished()
    for worker in desk.pool._workers:
        for number, batch in list(worker.running.items()):
            desk.done(worker.node, batch.message())
            worker.running.pop(number, None)
    loaded()
    desk.commands = [each for each in desk.commands if not isinstance(each, RunBatch)]
    answer_all(desk, -1, Status.OK)
    found |= desk.finished()
    results = {number: each for number, each in found.items() if number in asked}
    assert results.keys() == asked
    assert {each.status for each in results.values()} <= {Status.OK}
