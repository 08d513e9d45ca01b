"""Leases and their results: rounds, single results, and refusals."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from desk import SETTINGS, SIZE, STATE_SIZE, Desk, a_run, vector
from dist_net.errors import CheckpointError, DistNetError, SettingError
from dist_net.optim import SGD, AdaGrad, Adam, Momentum, Optimizer
from dist_net.training.server.consistency import WHOLE, Consistency, OuterStep
from dist_net.training.server.protocol import Record, SendToPeer
from dist_net.training.server.state import RunState
from dist_net.wire.lateness import LATE_FACTOR
from dist_net.wire.messages import Heartbeat, StatusRequest, Stop, Work
from naming import naming

ROUNDS, ASYNC, BSP = Consistency


def two_workers(**settings: Any) -> tuple[Desk, Work, Work]:
    """A server and the first leases of two workers, ``a`` and ``b``."""
    desk = Desk(a_run(**settings))
    desk.join(b"a")
    desk.join(b"b")
    return desk, desk.pull(b"a", 1), desk.pull(b"b", 2)


# Rounds


@pytest.mark.parametrize("consistency", [ROUNDS, BSP])
def test_a_round_is_applied_once_all_its_results_have_arrived(consistency: Consistency) -> None:
    local_steps = None if consistency is BSP else 2
    desk, one, other = two_workers(consistency=consistency, local_steps=local_steps)
    assert one.state is other.state is desk.state
    assert (one.steps.start, one.steps.stop) == (0, other.steps.start)
    assert desk.has_to_wait(b"a", desk.a_push(one))
    assert (desk.run.store.version, desk.run.ledger.applied_samples) == (0, 0)
    record, *answers = desk.commands(b"b", desk.a_push(other, change=3.0))
    assert isinstance(record, Record)
    assert [(each.version, each.steps.start, each.together) for each in record.records] == [
        (1, one.steps.start, 2),
        (1, other.steps.start, 2),
    ]
    assert {answer.node for answer in answers} == {b"a", b"b"}
    assert all(answer.message.state is desk.state for answer in answers)
    assert (desk.state[SIZE:] == (1 if consistency is BSP else 2)).all()  # the mean of the steps
    assert desk.run.ledger.applied_samples == other.steps.stop


def test_a_synchronous_step_is_the_mean_of_one_step_of_each_worker() -> None:
    desk, one, other = two_workers(consistency=BSP, local_steps=None)
    assert [work.steps.samples for work in (one, other)] == [2, 2]
    desk.answers(b"a", desk.a_push(one, 1.0))
    desk.answers(b"b", desk.a_push(other, 3.0))
    np.testing.assert_array_equal(desk.state[:SIZE], 2.0)


@pytest.mark.parametrize("consistency", [ROUNDS, BSP])
def test_the_mean_of_a_round_is_the_same_in_any_order_of_arrival(
    consistency: Consistency,
) -> None:
    random = np.random.default_rng(0)
    states = random.standard_normal((3, STATE_SIZE)).astype(np.float32)
    states[:, -1] = 1, 1, 1.5  # steps
    found = set()
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        desk = Desk(a_run(consistency=consistency, local_steps=None, batch_size=8))
        nodes = [b"a", b"b", b"c"]
        for node in nodes:
            desk.join(node)
        works = [desk.pull(node, number) for number, node in enumerate(nodes, 1)]
        for index in order:
            desk.answers(nodes[index], desk.a_push(works[index], state=states[index]))
        assert desk.run.store.version == 1
        found.add(desk.state.tobytes())
    assert len(found) == 1


def test_the_result_of_a_worker_with_parts_weighs_as_much_as_those_of_as_many_workers() -> None:
    desk = Desk(a_run(consistency=BSP, local_steps=None, samples=48, batch_size=8))
    desk.join(b"host", parts=3)
    desk.join(b"b")
    one, other = desk.pull(b"host", 1), desk.pull(b"b", 2)
    assert (one.steps.parts, one.steps.samples, other.steps.samples) == (3, 6, 2)
    assert {(work.steps.batch_size, work.steps.pace) for work in (one, other)} == {(2, 8)}
    desk.answers(b"host", desk.a_push(one, 1.0))
    desk.answers(b"b", desk.a_push(other, 5.0))
    np.testing.assert_array_equal(desk.state[:SIZE], 2.0)


def test_all_leases_of_a_round_have_the_same_learning_rates() -> None:
    desk, one, other = two_workers()
    assert {(work.steps.progress, work.steps.pace) for work in (one, other)} == {(0, 4)}
    desk.answers(b"a", desk.a_push(one))
    following = desk.answers(b"b", desk.a_push(other))
    assert {work.steps.progress for work in following.values()} == {other.steps.stop}


@pytest.mark.parametrize("consistency", [ROUNDS, ASYNC])
def test_two_workers_share_the_minibatches_of_a_short_run(consistency: Consistency) -> None:
    desk, one, other = two_workers(consistency=consistency)
    if consistency is ASYNC:  # its first worker was alone
        one = desk.push(b"a", one)
    assert one.steps.batch_size == other.steps.batch_size == 2
    assert one.steps.samples == other.steps.samples == 2 * 2  # in two local steps
    desk.answers(b"a", desk.a_push(one))
    record, *_ = desk.commands(b"b", desk.a_push(other))
    assert isinstance(record, Record)
    assert {each.steps.batch_size for each in record.records} == {2}
    assert {each.outer for each in record.records} <= {WHOLE, OuterStep(0.5, 0.0, 0.5)}
    desk.leave(b"b", 2)
    alone = desk.trained(b"a", 1, samples_at_most=desk.run.ledger.applied_samples + 1)
    assert desk.push(b"a", alone).steps.batch_size == 4


def test_a_worker_that_computes_an_ended_lease_has_no_share_of_the_next_rounds() -> None:
    desk, one, other = two_workers(samples=400, local_steps=1)
    desk.answers(b"a", desk.a_push(one))
    desk.now += 100 * LATE_FACTOR
    again = desk.answers(b"heart", Heartbeat(1, 0.0, desk.identities[1]))[b"a"]
    assert (again.steps.start, again.steps.batch_size) == (other.steps.start, 2)
    assert desk.push(b"a", again).steps.batch_size == 4


def test_a_worker_that_joins_in_mid_round_waits_for_the_next() -> None:
    desk, one, other = two_workers(batch_size=8)
    desk.join(b"c")
    assert desk.has_to_wait(b"c", desk.a_pull(3))
    desk.answers(b"a", desk.a_push(one))
    following = desk.answers(b"b", desk.a_push(other))
    assert set(following) == {b"a", b"b", b"c"}
    assert len({work.steps.start for work in following.values()}) == 3
    desk.answers(b"a", desk.a_push(following[b"a"]))
    desk.answers(b"b", desk.a_push(following[b"b"]))
    assert desk.run.store.version == 1
    desk.answers(b"c", desk.a_push(following[b"c"]))
    assert desk.run.store.version == 2


@pytest.mark.parametrize("consistency", Consistency)
def test_a_worker_beyond_those_of_use_is_a_spare_and_replaces_one_that_leaves(
    consistency: Consistency,
) -> None:
    """Four samples have two shares of two."""
    desk, *works = two_workers(consistency=consistency, local_steps=None)
    desk.join(b"c")
    assert desk.has_to_wait(b"c", desk.a_pull(3))
    assert "1 worker of 3 compute nothing" in desk.report()["worker_warning"]
    for node, work in zip((b"a", b"b"), works, strict=True):
        assert b"c" not in desk.answers(node, desk.a_push(work))
    sends = [each for each in desk.leave(b"a", 1) if isinstance(each, SendToPeer)]
    assert [each.node for each in sends] == [b"c"]
    assert desk.report()["worker_warning"] is None


def test_the_rates_of_a_round_end_where_its_samples_do() -> None:
    """Workers of other speeds pass the same schedule, each in its own number of steps."""
    desk, one, other = two_workers(samples=4000, local_steps=None)
    for _ in range(6):
        desk.now += 1.0
        desk.has_to_wait(b"a", desk.a_push(one, computed_s=one.steps.samples * 0.01))
        following = desk.answers(b"b", desk.a_push(other, computed_s=other.steps.samples * 0.03))
        one, other = following[b"a"], following[b"b"]
    together = one.steps.samples + other.steps.samples
    assert one.steps.samples > 1.5 * other.steps.samples
    for work in (one, other):
        steps = len(work.steps.edges) - 1
        assert together - steps < work.steps.pace * steps <= together  # the pace is whole


def test_a_round_whose_workers_are_all_gone_is_completed_by_the_next_worker() -> None:
    desk, one, other = two_workers()
    desk.answers(b"a", desk.a_push(one))
    desk.leave(b"a", 1)
    desk.leave(b"b", 2)
    desk.join(b"c")
    work = desk.pull(b"c", 3)
    assert (work.steps.start, work.steps.stop) == (other.steps.start, other.steps.stop)
    assert desk.push(b"c", work).state is desk.state
    assert desk.run.ledger.applied_samples == other.steps.stop


def test_an_idle_worker_shares_a_late_lease_and_the_first_result_counts() -> None:
    desk, slow, fast = two_workers()
    desk.now += 0.2
    assert desk.has_to_wait(b"b", desk.a_push(fast))
    desk.now += 0.2 * LATE_FACTOR - 0.21
    assert desk.server.tick(desk.now) == []
    desk.now += 0.02
    [shared] = desk.server.tick(desk.now)
    assert (shared.node, shared.message[3:6]) == (b"b", slow[3:6])
    following = desk.push(b"b", shared.message)
    assert (desk.run.store.version, following.state is desk.state) == (1, True)
    # The next round is the fast worker's; the slow one takes part in the round after that.
    assert desk.has_to_wait(b"a", desk.a_push(slow))
    assert (desk.run.store.version, desk.report()["duplicates_dropped"]) == (1, 1)
    answers = desk.answers(b"b", desk.a_push(following))
    assert (desk.run.store.version, set(answers)) == (2, {b"a", b"b"})
    assert answers[b"a"].lease_id > slow.lease_id


def test_a_round_is_late_by_the_time_of_the_last_one() -> None:
    desk, one, other = two_workers()
    desk.answers(b"a", desk.a_push(one))
    desk.now += 10.0
    following = desk.answers(b"b", desk.a_push(other))
    desk.answers(b"a", desk.a_push(following[b"a"]))
    for _ in range(29):
        desk.now += 1.0
        desk.beat(1)
        desk.beat(2)
        assert desk.server.tick(desk.now) == []
    desk.now += 1.1
    shared = desk.answers(b"observer", StatusRequest(0))[b"a"]
    assert shared.steps == following[b"b"].steps


def test_a_round_whose_mean_is_not_finite_is_blamed_on_the_state() -> None:
    """Each result is below the limit of weights; the outer step goes as far again."""
    desk, one, other = two_workers(samples=20_000)
    assert one.steps.batch_size == 4
    works, change = {b"a": one, b"b": other}, 1.8e19
    while isinstance(works[b"a"], Work):
        starts = {work.steps.start for work in works.values()}
        assert min(starts) == desk.report()["samples"]  # of the samples, none is lost
        assert desk.has_to_wait(b"a", desk.a_push(works[b"a"], change))
        works = desk.answers(b"b", desk.a_push(works[b"b"], change))
        change = 0.4e19
    assert desk.run.store.version == 1
    assert all(isinstance(each, Stop) for each in works.values())
    assert "learning rate below 0.5" in desk.server.stop_reason


# Asynchronous results


def test_an_asynchronous_result_is_applied_at_once_divided_by_the_workers() -> None:
    desk, one, other = two_workers(consistency=ASYNC)
    following = desk.push(b"a", one, 1.0)
    assert (following.state is desk.state, desk.run.store.version) == (True, 1)
    np.testing.assert_array_equal(desk.state[:SIZE], 0.5)
    # The other's change of the weights counts on the weights of now; all else moves to its values.
    desk.push(b"b", other, 3.0)
    np.testing.assert_array_equal(desk.state[:SIZE], 0.5 + 3.0 / 2)
    np.testing.assert_array_equal(desk.state[SIZE:], (1 + 2) / 2)
    report = desk.report()
    assert (report["staleness_max"], report["staleness_mean"]) == (1, 0.5)
    assert report["staleness_histogram"] == [1, 1]


def test_an_asynchronous_worker_never_waits_and_shares_the_last_leases() -> None:
    desk, slow, fast = two_workers(consistency=ASYNC)
    while (fast := desk.push(b"b", fast)).steps[:3] != slow.steps[:3]:
        pass
    assert fast.lease_id != slow.lease_id
    assert desk.push(b"b", fast) == Stop("every epoch is done", finished=True)
    assert desk.push(b"a", slow) == Stop("every epoch is done", finished=True)
    report = desk.report()
    assert (report["samples"], report["duplicates_dropped"]) == (SETTINGS.samples_total, 1)


def test_one_asynchronous_step_to_a_lease_is_a_push_for_each_minibatch() -> None:
    desk = Desk(a_run(consistency=ASYNC, local_steps=1))
    desk.join(b"a")
    desk.trained(b"a", 1)
    assert desk.run.store.version == 20


# Results between hosts, and from an old base


def test_a_packed_result_changes_the_state_as_the_worker_changed_its_rounded_base() -> None:
    run = a_run(optimizer=Adam(), momenta=(0.9,))
    packing, rule = run.settings.packing, run.store.rule
    random = np.random.default_rng(0)
    run.store.apply(random.random(rule.state_size, np.float32), WHOLE)
    state = run.store.state
    base = np.empty_like(state)
    packing.unpack_base(run.store.packed_state(), out=base)
    change = np.linspace(-1, 1, rule.state_size, dtype=np.float32)
    result = run.store.result_of(packing.pack_result(base, base + change), state, is_packed=True)
    np.testing.assert_allclose(result[:4], state[:4] + change[:4], atol=1 / 127)
    np.testing.assert_array_equal(result[4:6], (base + change)[4:6])  # buffers are exact
    assert result[-1] == (base + change)[-1]
    assert result is not state


def test_a_state_is_packed_once_for_all_workers_of_a_version() -> None:
    desk = Desk()
    desk.join(b"a", shares_memory=False)
    desk.join(b"b", shares_memory=False)
    one, other = desk.pull(b"a", 1), desk.pull(b"b", 2)
    assert one.state is other.state
    assert desk.run.store.packed_state() is one.state


# Refused results


@pytest.mark.parametrize("loss_sum", [np.nan, np.inf, -np.inf, 1e200, -1e200])
@pytest.mark.parametrize("consistency", Consistency)
def test_a_huge_or_infinite_loss_is_refused_and_the_checkpoint_stays_readable(
    consistency: Consistency, loss_sum: float
) -> None:
    local_steps = None if consistency is BSP else 2
    settings = replace(SETTINGS, consistency=consistency, local_steps=local_steps)
    desk = Desk(RunState(settings, vector(0.0)))
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    for _ in range(2):
        again = desk.push(b"a", work, loss_sum=loss_sum)
        assert (again.steps.start, again.steps.stop, again.lease_id > work.lease_id) == (
            *(work.steps.start, work.steps.stop),
            True,
        )
        work = again
    desk.push(b"a", work, loss_sum=1e99)
    checkpoint = desk.run.checkpoint()
    counters = json.loads(json.dumps(checkpoint.counters, allow_nan=False))
    resumed = RunState.resumed(settings, replace(checkpoint, counters=counters))
    assert resumed.metrics.gradients_refused == 2
    assert resumed.metrics.records[-1]["loss"] == pytest.approx(1e99 / work.steps.samples)


@pytest.mark.parametrize("steps", [-1e9, -1.0, 0.0, 0.5])
def test_a_result_of_fewer_than_one_step_is_refused(steps: float) -> None:
    """Adam's next step would divide by 0, in every worker."""
    desk = Desk(a_run(optimizer=Adam()))
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    push = desk.a_push(work)
    assert push.state is not None
    push.state[-1] = steps
    again = desk.ask(b"a", push)
    assert (again.steps.start, again.state is work.state) == (work.steps.start, True)
    assert desk.report()["gradients_refused"] == 1


BATCH_NORM = (("weight", (4,)), ("norm.running_mean", (1,)), ("norm.running_var", (1,)))


@pytest.mark.parametrize(
    ("place", "value", "optimizer", "fault"),
    [
        (5, -1e-3, SGD(), "norm.running_var is negative"),
        (4, -1e-3, SGD(), None),
        (6, -1e-3, Momentum(), None),
        (6, -1e-3, AdaGrad(), "accumulator is negative"),
        (13, -1e-9, Adam(), "mean_square is negative"),
        (9, -1e-9, Adam(), None),
        (0, 2e19, SGD(), "not finite"),
        (-1, 1e6, SGD(), "number of steps"),
    ],
)
def test_each_part_of_a_result_has_its_own_limits(
    place: int, value: float, optimizer: Optimizer, fault: str | None
) -> None:
    """A mean square below 0 would make every later gradient's step nan."""
    run = a_run(layout=BATCH_NORM, momenta=(0.9, 0.9), optimizer=optimizer)
    desk = Desk(run)
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    push = desk.a_push(work)
    assert push.state is not None
    push.state[place] = value
    desk.ask(b"a", push)
    assert desk.run.store.version == (fault is None)
    assert desk.report()["gradients_refused"] == (fault is not None)
    state = work.state.copy()
    state[place] = value
    assert fault is None or fault in run.store.rule.fault_of(state, work.state, 2)


def test_a_worker_that_fails_first_waits_for_the_results_of_others() -> None:
    desk, work, other = two_workers()
    for _ in range(5):
        work = desk.push(b"a", work, np.nan)
    assert desk.has_to_wait(b"b", desk.a_push(other))
    refused = desk.answers(b"a", desk.a_push(work, np.nan))[b"a"]
    assert "those of other workers can" in refused.reason


def test_a_state_from_which_every_worker_fails_is_blamed_instead_of_them() -> None:
    desk, one, other = two_workers()
    desk.server.on_disk.checkpoint_version = 0
    works = {b"a": one, b"b": other}
    for node in (b"a", b"b", b"a", b"b", b"a"):
        works[node] = desk.push(node, works[node], np.nan) if node in works else None
    assert works[b"a"] == Stop(desk.server.stop_reason, finished=False)
    assert "version 0" in desk.server.stop_reason
    assert "dist-net replay" in desk.server.stop_reason  # the checkpoint has that state too
    assert len(desk.server.run.members) == 2


# Resuming


@pytest.mark.parametrize("consistency", Consistency)
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(consistency: Consistency) -> None:
    local_steps = None if consistency is BSP else 2
    settings = replace(
        SETTINGS,
        optimizer=Momentum(0.9),
        average_decay=0.5,
        consistency=consistency,
        local_steps=local_steps,
    )
    whole = Desk(RunState(settings, vector(0.0)))
    whole.join(b"a")
    whole.trained(b"a", 1)

    first = Desk(RunState(settings, vector(0.0)))
    first.join(b"a")
    first.trained(b"a", 1, samples_at_most=52)  # in mid-epoch
    checkpoint = first.run.checkpoint()
    first.trained(b"a", 1)
    second = Desk(RunState.resumed(settings, checkpoint))
    second.now = 7000.0
    second.join(b"a")
    second.trained(b"a", 1)

    np.testing.assert_array_equal(second.state, whole.state)
    np.testing.assert_array_equal(second.run.store.outer_momentum, whole.run.store.outer_momentum)
    expected, report = whole.report(), second.report()
    for name in ("samples", "version", "pushes_applied", "staleness_histogram", "next_record"):
        assert report[name] == expected[name]
    assert report["seconds"] == pytest.approx(expected["seconds"])
    assert report["workers_joined"] == 2


def test_collected_results_of_a_round_are_computed_again_after_a_resume() -> None:
    desk, one, other = two_workers()
    desk.answers(b"a", desk.a_push(one))
    resumed = Desk(RunState.resumed(SETTINGS, desk.run.checkpoint()))
    resumed.join(b"a")
    resumed.join(b"b")
    assert [resumed.pull(node, number).steps.start for node, number in ((b"a", 1), (b"b", 2))] == [
        one.steps.start,
        other.steps.start,
    ]


def test_other_settings_may_change_when_a_run_is_resumed() -> None:
    checkpoint = a_run().checkpoint()
    changed = replace(SETTINGS, batch_size=8, epochs=5, learning_rate=0.1, local_steps=4)
    run = RunState.resumed(changed, checkpoint)
    assert (run.settings, run.is_resumed) == (changed, True)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"samples": 41},
        {"optimizer": Momentum()},
        {"consistency": ASYNC},
        {"layout": (("weight", (2, 2)), ("bias", (1, 2)))},
    ],
)
def test_a_run_is_not_resumed_from_a_checkpoint_of_another(change: dict[str, Any]) -> None:
    checkpoint = a_run().checkpoint()
    with pytest.raises(CheckpointError, match=naming("'digits'", "expected")):
        RunState.resumed(replace(SETTINGS, **change), checkpoint)


# Settings


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 0},
        {"epochs": 0},
        {"epochs": 2.5},
        {"batch_size": -1},
        {"batch_size": 41},
        {"local_steps": 0},
        {"seed": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"clip_norm": -1.0},
        {"average_decay": 1.0},
        {"heartbeat_interval_s": 0.0},
        {"heartbeat_timeout_s": 0.5},
        {"layout": ()},
        {"layout": (("a", (1,)), ("a", (1,)))},
        {"layout": (("a", (0,)),)},
        {"layout": (("optimizer/velocity", (1,)),)},
        {"momenta": (1.1,)},
        {"momenta": (-0.1,)},
        {"momenta": (0.9, 0.9)},
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_value(change: dict[str, Any]) -> None:
    [name] = change
    with pytest.raises(SettingError, match=rf"\b{name}=") as caught:
        replace(SETTINGS, **change)
    assert isinstance(caught.value, DistNetError)
    assert caught.value.exit_code == 2


def test_synchronous_runs_have_one_local_step() -> None:
    with pytest.raises(SettingError, match=naming("local_steps=2", "bsp", "rounds")):
        replace(SETTINGS, consistency=BSP)
    assert replace(SETTINGS, consistency=BSP, local_steps=1).local_steps == 1


def test_settings_are_kept_as_json() -> None:
    kept = json.loads(json.dumps(replace(SETTINGS, optimizer=SGD()).to_json()))
    assert kept["optimizer"] == "SGD()"
    assert (kept["samples"], kept["consistency"]) == (40, "rounds")
