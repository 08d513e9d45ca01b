"""The pool's decisions, event by event; the clock is a number and there is no socket."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from children import KnownChildren
from dist_net.errors import SettingError
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import (
    InferenceRequest,
    PoolSettings,
    Result,
    SendToNode,
    Status,
)
from dist_net.serving.pool.statistics import NO_VERSION
from dist_net.wire.messages import Alive, Heartbeat, Leave, Refuse
from dist_net.wire.serving_messages import (
    BatchDone,
    Drop,
    JoinPool,
    Load,
    ModelPrepared,
    PoolWelcome,
    RunBatch,
)
from pool_desk import ONE, OUT, ROW, ROW_S, TWO, Desk, describe


def test_an_answer_has_the_labels_and_the_threshold_of_the_version_that_gave_it() -> None:
    desk = Desk(workers=(ONE, TWO))
    desk.prepare(2)
    request = desk.ask()
    (run,) = desk.runs(TWO)
    desk.load(ONE, 2)
    desk.load(TWO, 2)
    assert desk.pool.catalogue.served()["net"].description == describe(2)
    desk.done(TWO, run)
    result, expected = desk.finished()[request], describe(1)
    assert (result.labels, result.unknown_below) == (expected.labels, expected.unknown_below)
    assert run.version == 1


def test_a_lone_request_goes_at_once_and_its_answer_says_how_long_everything_took() -> None:
    desk = Desk()
    request = desk.ask(rows=2, payload=2 * ROW)
    desk.now += 0.125
    (run,) = desk.runs()
    assert run == RunBatch(run.batch_id, "net", 1, False, (2 * ROW,))
    desk.now += 1
    desk.done(ONE, run)
    times, told = (0.125, 0.25, 0.5, 2), (describe(1).labels, 0.125)
    assert desk.finished() == {request: Result(Status.OK, 1, 2 * OUT, "", 0.0, *times, *told)}
    assert not desk.pool.is_drained
    desk.pool.drain()
    assert desk.pool.is_drained


def test_requests_share_a_batch_up_to_its_rows_and_in_order() -> None:
    desk = Desk(max_batch_size=4)
    payloads = [ROW, 2 * ROW, 2 * ROW, ROW]
    for payload in payloads:
        desk.ask(payload, rows=len(payload) // 8)
    (first,) = desk.runs()
    assert first.payloads == (ROW, 2 * ROW)
    desk.now += 3 * ROW_S
    desk.done(ONE, first)
    (second,) = desk.runs()
    assert second.payloads == (2 * ROW, ROW)


def test_images_and_tensors_and_models_do_not_share_a_batch_and_the_oldest_is_first() -> None:
    desk = Desk("net", "other")
    wanted = [("other", False), ("net", True), ("net", False)]
    for name, is_image in wanted:
        desk.ask(ROW, name, is_image=is_image)
        desk.now += 0.01
    desk.ask(ROW, "other")
    got = []
    for _ in wanted:
        (run,) = desk.runs()
        got.append((run.model, run.is_image))
        desk.done(ONE, run)
    assert got == wanted


def test_models_have_equal_time_whatever_a_batch_of_theirs_takes() -> None:
    desk = Desk("slow", "fast", max_batch_size=1)
    took_s = {"slow": 0.4, "fast": 0.1}
    got = []
    for _ in range(60):
        for name in took_s:
            desk.ask(model=name, timeout_s=60.0)
        (run,) = desk.runs()
        desk.now += took_s[run.model]
        desk.heard(ONE)
        desk.done(ONE, run)
        got.append(run.model)
    assert 3 < got[20:].count("fast") / got[20:].count("slow") < 5


def flood(desk: Desk, model: str, requests: int = 100) -> int:
    """Ask a model again and again; return how many requests were admitted."""
    return sum(isinstance(desk.refused(model=model), int) for _ in range(requests))


@pytest.mark.parametrize("workers", [2, 3, 4, 7])
@pytest.mark.parametrize("models", [2, 3])
def test_a_flood_of_one_model_leaves_each_other_model_its_share_of_the_workers(
    workers: int, models: int
) -> None:
    nodes = tuple(b"node %d" % each for each in range(workers))
    names = tuple(f"net{each}" for each in range(models))
    desk = Desk(*names, workers=nodes, max_batch_size=1)
    share, idle = max(1, workers // models), workers
    for place, name in enumerate(names):
        flood(desk, name)
        started = sum(len(desk.runs(node)) for node in nodes)
        assert started == min(idle, max(share, idle - share * (models - place - 1)))
        idle -= started


def test_batches_that_take_no_time_use_all_workers() -> None:
    desk = Desk("net", "other", workers=(ONE, TWO), max_batch_size=1)
    measured(desk, ONE, 0.001)
    flood(desk, "net")
    assert len(desk.runs(ONE)) == len(desk.runs(TWO)) == 2


def test_a_flood_of_a_slow_model_refuses_no_request_for_a_fast_one() -> None:
    desk = Desk("net", "other", workers=(ONE, TWO), queue_requests=50)
    measured(desk, ONE, 1.0, rows=8)
    assert 0 < flood(desk, "net") < 100
    desk.runs(ONE)
    for _ in range(20):
        request = desk.ask(model="other", timeout_s=0.5)
        (run,) = desk.runs(TWO)
        desk.now += 0.01
        for node in (ONE, TWO):
            desk.heard(node)
        desk.done(TWO, run)
        assert desk.finished()[request].status is Status.OK


def test_the_time_that_a_request_may_name_is_capped() -> None:
    desk = Desk(max_batch_size=1)
    desk.ask()
    desk.runs()
    late = desk.ask(timeout_s=1e9)
    for _ in range(60):
        desk.now += 1.0
        desk.heard(ONE)
        desk.dispatch()
    assert desk.finished()[late].status is Status.EXPIRED


def measured(desk: Desk, node: bytes, seconds: float, batches: int = 24, rows: int = 1) -> None:
    """Let a worker answer some batches of as many rows, each in this time."""
    for _ in range(batches):
        desk.ask(rows * ROW, rows=rows)
        (run,) = desk.runs(node)
        desk.now += seconds
        desk.done(node, run)
        desk.heard(TWO)
    desk.finished()


@pytest.mark.parametrize(("seconds", "batches"), [(0.001, 2), (0.02, 1)])
def test_a_second_batch_is_on_its_way_only_to_a_quick_worker(seconds: float, batches: int) -> None:
    desk = Desk(max_batch_size=1)
    measured(desk, ONE, seconds)
    for _ in range(3):
        desk.ask()
    assert len(desk.runs()) == batches


@pytest.mark.parametrize(
    ("inference", "status", "reason"),
    [
        (InferenceRequest("net", ROW, version=4), Status.NOT_FOUND, "has no version 4"),
        (InferenceRequest("net", ROW, rows=9), Status.BAD_INPUT, "9 rows; expected at most 8"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    inference: InferenceRequest, status: Status, reason: str
) -> None:
    desk = Desk()
    result = desk.pool.admit(inference, desk.now)
    assert isinstance(result, Result)
    assert (result.status, result.payload) == (status, b"")
    assert reason in result.reason
    assert not desk.runs()


def test_without_a_worker_or_while_draining_nothing_is_let_in() -> None:
    desk = Desk(workers=())
    assert not desk.pool.is_ready(desk.now)
    assert desk.refused().status is Status.UNAVAILABLE
    assert desk.refused().retry_after_s > 0
    desk.enlist(ONE)
    assert desk.refused().status is Status.UNAVAILABLE  # it has loaded nothing yet
    desk.load(ONE, 1)
    desk.dispatch()
    assert desk.pool.is_ready(desk.now)
    desk.ask()
    desk.pool.drain()
    assert desk.refused().status is Status.UNAVAILABLE
    assert not desk.pool.is_ready(desk.now)
    assert not desk.pool.is_drained
    (run,) = desk.runs()
    desk.done(ONE, run)
    assert desk.pool.is_drained


def test_the_queue_is_bounded_by_requests_that_wait() -> None:
    desk = Desk(queue_requests=2, max_batch_size=1)
    desk.ask()
    desk.runs()
    first = desk.ask()
    desk.ask()
    assert desk.refused().status is Status.UNAVAILABLE
    desk.pool.cancel(first)
    desk.ask()


def test_a_slow_request_refuses_nobody_while_a_worker_is_idle() -> None:
    desk = Desk(workers=(ONE, TWO))
    for _ in range(6):
        measured(desk, ONE, 3.0, batches=1)
    for client in ("slow", "other"):
        request = desk.ask(timeout_s=0.1, client=client)
        (run,) = desk.runs()
        desk.done(ONE, run)
        assert desk.finished()[request].status is Status.OK


def test_a_client_with_a_full_queue_is_told_when_to_come_again_and_others_are_admitted() -> None:
    desk = Desk(queue_requests=4, max_batch_size=1)
    for _ in range(12):
        desk.refused(client="crowd")
        for run in desk.runs():
            desk.now += 0.5
            desk.heard(ONE)
            desk.done(ONE, run)
            desk.refused(client="crowd")
    desk.dispatch()
    while isinstance(refusal := desk.refused(client="crowd"), int):
        pass
    assert refusal.status is Status.UNAVAILABLE
    assert 1.0 < refusal.retry_after_s <= 2.0  # for 4 requests, each of half a second
    assert isinstance(desk.refused(client="other"), int)
    assert isinstance(desk.refused(model="net", client="third"), int)


def test_a_queue_that_has_been_too_slow_for_its_deadlines_takes_no_more() -> None:
    desk = Desk(max_batch_size=1)
    desk.ask(timeout_s=60.0)
    desk.runs()
    desk.ask(timeout_s=2.0)
    desk.now += 1.0
    desk.heard(ONE)
    for _ in range(2):
        desk.ask(timeout_s=2.0)
    desk.now += 0.1
    assert "half of its time" in desk.refused(timeout_s=2.0).reason
    desk.ask(timeout_s=2.0, client="other")


def test_in_a_queue_that_is_too_slow_the_newest_request_is_first() -> None:
    desk = Desk(max_batch_size=1)
    desk.ask(timeout_s=60.0)
    (run,) = desk.runs()
    late = desk.ask(timeout_s=2.0)
    desk.now += 1.1
    desk.heard(ONE)
    desk.finished()
    new = desk.ask(struct.pack("2f", 1, 0), timeout_s=2.0, client="")
    desk.done(ONE, run)
    (run,) = desk.runs()
    assert run.payloads == (struct.pack("2f", 1, 0),)
    desk.done(ONE, run)
    (run,) = desk.runs()
    desk.done(ONE, run)
    assert {*desk.finished()} >= {late, new}


def test_clients_take_turns_whatever_the_length_of_their_queues() -> None:
    desk = Desk(max_batch_size=2)
    for client in ("crowd", "client 1", "client 2"):  # a first batch is not shared
        desk.ask(client=client)
        (run,) = desk.runs()
        desk.now += ROW_S
        desk.done(ONE, run)
    for number in range(6):
        desk.ask(struct.pack("2f", 0, number), client="crowd")
    for client in (1, 2):
        desk.ask(struct.pack("2f", client, 0), client=f"client {client}")
    got = []
    for _ in range(4):
        (run,) = desk.runs()
        desk.now += ROW_S
        desk.done(ONE, run)
        got.append([struct.unpack("2f", payload) for payload in run.payloads])
    assert got == [[(0, 0), (1, 0)], [(2, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4), (0, 5)]]


def test_clients_have_equal_time_whatever_their_requests_take() -> None:
    desk = Desk(max_batch_size=1)
    took_s = {b"slow....": 0.4, b"quick...": 0.1}
    got = []
    for _ in range(60):
        for payload in took_s:
            if isinstance(desk.refused(payload, timeout_s=60.0, client=payload.decode()), int):
                pass
        (run,) = desk.runs()
        desk.now += took_s[bytes(run.payloads[0])]
        desk.heard(ONE)
        desk.done(ONE, run)
        got.append(run.payloads[0])
    assert 3 < got[20:].count(b"quick...") / got[20:].count(b"slow....") < 5


def test_a_client_has_at_most_half_of_the_workers_while_others_are_active() -> None:
    desk = Desk(workers=(ONE, TWO), max_batch_size=1)
    measured(desk, ONE, 3.0, batches=2)
    for node in (ONE, TWO):
        desk.heard(node)
    for _ in range(3):
        desk.ask()
    desk.ask(client="other")
    assert [len(desk.runs(node)) for node in (ONE, TWO)] == [1, 1]
    desk = Desk(workers=(ONE, TWO), max_batch_size=1)
    other = desk.ask(client="other")
    (run,) = desk.runs(ONE)
    desk.done(ONE, run)
    assert other in desk.finished()
    for _ in range(3):
        desk.ask()
    assert [len(desk.runs(node)) for node in (ONE, TWO)] == [1, 0]
    desk.now += 1.1
    for node in (ONE, TWO):
        desk.heard(node)
    assert [len(desk.runs(node)) for node in (ONE, TWO)] == [0, 1]


def test_what_expires_in_the_queue_is_never_run() -> None:
    desk = Desk(max_batch_size=1)
    desk.ask(timeout_s=50.0)
    (run,) = desk.runs()
    late = desk.ask(timeout_s=0.5)
    assert desk.pool.next_wakeup() == desk.now + 0.5
    desk.now += 0.5
    assert not desk.runs()
    assert desk.finished()[late].status is Status.EXPIRED
    desk.done(ONE, run)
    assert not desk.runs()


def test_a_request_that_runs_ends_at_its_deadline_too() -> None:
    desk = Desk()
    late, other = desk.ask(timeout_s=0.5), desk.ask(timeout_s=2.0)
    (run,) = desk.runs()
    assert desk.pool.next_wakeup() == desk.now + 0.5
    desk.now += 0.5
    desk.dispatch()
    ((ended, result),) = desk.finished().items()
    assert (ended, result.status) == (late, Status.EXPIRED)
    assert "0.5 s" in result.reason
    desk.pool.cancel(late)
    desk.done(ONE, run)
    assert {request: end.status for request, end in desk.finished().items()} == {other: Status.OK}
    counted = desk.pool.catalogue.models["net"].statistics[1]
    assert (counted.admitted, counted.answered, counted.expired, counted.cancelled) == (2, 1, 1, 0)


def test_an_input_that_hangs_workers_is_quarantined_though_nobody_waits_for_it() -> None:
    """Its clients go at their deadlines, long before a worker counts as lost."""
    desk = Desk(workers=(ONE, TWO), max_batch_s=3.0)
    desk.children.running |= {ONE.decode(), TWO.decode(), *(f"again {each}" for each in range(3))}
    bad, good = b"hangs!!!", ROW
    for attempt in range(3):
        node = b"again %d" % attempt
        for payload in (bad, good) if attempt == 0 else (bad,):
            desk.ask(payload, timeout_s=0.5)
        desk.dispatch()
        for _ in range(4):
            desk.now += 1.0
            desk.heard(TWO)
            for each in desk.ids:
                desk.heard(each)
            desk.dispatch()
        assert {end.status for end in desk.finished().values()} == {Status.EXPIRED}
        desk.enlist(node)
        desk.load(node, 1)
    assert desk.refused(bad).status is Status.FAILED
    desk.ask(good)


def test_an_input_that_was_answered_is_no_longer_suspected() -> None:
    desk = Desk()
    for number in range(4):
        node = b"worker %d" % number
        desk.lose(ONE if number == 0 else b"worker %d" % (number - 1))
        desk.enlist(node)
        desk.load(node, 1)
        request = desk.ask()
        assert desk.runs(node)
        desk.lose(node)
        desk.enlist(node)
        desk.load(node, 1)
        (run,) = desk.runs(node)
        desk.done(node, run)
        assert desk.finished()[request].status is Status.OK


def test_what_is_cancelled_is_not_run_and_has_no_end() -> None:
    desk = Desk()
    runs, queued = desk.ask(), desk.ask()
    desk.pool.cancel(queued)
    (run,) = desk.runs()
    assert len(run.payloads) == 1
    desk.pool.cancel(runs)
    desk.pool.cancel(runs)
    desk.done(ONE, run)
    desk.pool.cancel(runs)
    assert desk.finished() == {}
    assert desk.pool.status(desk.now)["queue"]["requests"] == 0
    assert desk.pool.catalogue.models["net"].statistics[1].cancelled == 2


def test_a_lost_workers_requests_are_retried_first_and_each_alone() -> None:
    desk = Desk(workers=(ONE, TWO), max_batch_size=2)
    requests = [desk.ask(struct.pack("2f", number, 0)) for number in range(5)]
    (run,) = desk.runs(ONE)
    (other,) = desk.runs(TWO)
    desk.pool.cancel(requests[0])
    desk.crash(ONE)
    desk.done(TWO, other)
    (rest,) = desk.runs(TWO)  # the suspects wait for another worker
    assert rest.payloads == (struct.pack("2f", 4, 0),)
    desk.enlist(b"3")
    desk.load(b"3", 1)
    (again,) = desk.runs(b"3")
    assert again.payloads == run.payloads[1:]  # the first one was cancelled
    desk.done(ONE, run)  # too late
    assert requests[1] not in desk.finished()
    desk.done(b"3", again)
    assert list(desk.finished()) == [requests[1]]
    assert desk.pool.catalogue.models["net"].statistics[1].retried == 1  # the cancelled one was not
    assert desk.pool.status(desk.now)["models"][0]["retried"] == 1


def test_a_request_that_ends_two_workers_alone_is_put_aside() -> None:
    desk = Desk()
    bad, good = desk.ask(b"killer!!"), desk.ask(ROW)
    assert desk.runs()[0].payloads == (b"killer!!", ROW)
    desk.crash(ONE)
    for node in (b"2", b"3"):
        desk.enlist(node)
        desk.load(node, 1)
        assert desk.runs(node)[0].payloads == (b"killer!!",)
        assert not desk.finished()
        desk.crash(node)
    result = desk.finished()[bad]
    assert result.status is Status.FAILED
    assert "ended 2 workers" in result.reason
    desk.enlist(TWO)
    desk.load(TWO, 1)
    (run,) = desk.runs(TWO)
    desk.done(TWO, run)
    assert desk.finished()[good].status is Status.OK
    assert desk.refused(b"killer!!").status is Status.FAILED
    desk.prepare(2)
    desk.load(TWO, 2)
    desk.ask(b"killer!!")  # the other version may stand it


def test_what_only_waited_behind_a_batch_is_not_blamed_for_the_loss() -> None:
    desk = Desk(max_batch_size=1)
    measured(desk, ONE, 0.001)
    blamed, waiting = desk.ask(b"killer!!"), desk.ask()
    for node in (ONE, b"2"):
        if node != ONE:
            desk.enlist(node)
            desk.load(node, 1)
        assert len(desk.runs(node)) == 2
        assert not desk.finished()
        desk.crash(node)
    assert desk.finished()[blamed].status is Status.FAILED
    desk.enlist(b"3")
    desk.load(b"3", 1)
    (run,) = desk.runs(b"3")
    desk.done(b"3", run)
    assert desk.finished()[waiting].status is Status.OK


def beside_a_remote_worker(**settings: Any) -> Desk:
    """A pool with the child ONE and the remote worker TWO."""
    desk = Desk(max_batch_size=1, **settings)
    desk.enlist(TWO, child="")
    desk.load(TWO, 1)
    desk.dispatch()
    return desk


@pytest.mark.parametrize("statuses", [b"\5", b"\1", None])
def test_a_remote_worker_that_leaves_or_fails_proves_nothing(statuses: bytes | None) -> None:
    """FAILED, BAD_INPUT, or it leaves; whatever it does, a child answers."""
    desk = beside_a_remote_worker()
    for _ in range(5):
        first, second = desk.ask(), desk.ask()
        (run,) = desk.runs(ONE)
        (lent,) = desk.runs(TWO)
        if statuses is None:
            desk.take(desk.pool.receive(TWO, Leave(desk.ids[TWO]), desk.now))
            desk.enlist(TWO, child="")
            desk.load(TWO, 1)
        else:
            desk.done(TWO, lent, statuses)
        assert not desk.runs(TWO)  # it is not lent again
        desk.now += ROW_S
        desk.done(ONE, run)
        assert list(desk.finished()) == [first]
        (run,) = desk.runs(ONE)
        desk.now += ROW_S
        desk.done(ONE, run)
        assert desk.finished()[second].status is Status.OK
    assert not desk.pool._requests.quarantine._losses


def test_a_remote_worker_that_never_answers_delays_nothing() -> None:
    desk = beside_a_remote_worker()
    order = [desk.ask(client=client) for client in "abcabc"]
    ended = []
    while len(ended) < len(order):
        desk.runs(TWO)
        (run,) = desk.runs(ONE)
        desk.now += ROW_S
        for node in (ONE, TWO):
            desk.heard(node)
        desk.done(ONE, run)
        ended += desk.finished()
    assert ended == order


def test_the_first_answer_counts_whether_a_child_or_a_remote_worker_has_it() -> None:
    desk = beside_a_remote_worker()
    first, second = desk.ask(), desk.ask()
    (run,) = desk.runs(ONE)
    (lent,) = desk.runs(TWO)
    desk.done(TWO, lent)
    assert list(desk.finished()) == [second]
    third = desk.ask()
    (lent,) = desk.runs(TWO)
    desk.now += ROW_S
    desk.done(ONE, run)
    assert list(desk.finished()) == [first]
    (run,) = desk.runs(ONE)  # the same request, in its turn
    desk.done(TWO, lent)
    desk.done(ONE, run)
    assert list(desk.finished()) == [third]
    assert desk.pool.status(desk.now)["queue"]["requests"] == 0


def test_a_remote_worker_that_claims_to_be_a_child_has_none_killed() -> None:
    """Its name, host and process id are those of the child; its credential is a guess."""
    desk = beside_a_remote_worker()
    desk.children.known = {ONE.decode()}
    join = JoinPool(ONE.decode(), "host", 7, "", "a guess")
    desk.take(desk.pool.receive(b"liar", join, desk.now))
    desk.load(b"liar", 1)
    desk.ask(), desk.ask(), desk.ask()
    desk.dispatch()
    (run,) = desk.sent(RunBatch, b"liar")
    desk.take(desk.pool.receive(b"liar", BatchDone(run.batch_id, b"", 0, 0, ()), desk.now))
    desk.now += 5.0
    desk.heard(ONE)
    desk.dispatch()
    assert desk.evicted() == []
    assert [each["name"] for each in desk.pool.status(desk.now)["workers"]] == [ONE.decode()]
    assert not desk.pool.is_member("a guess")


def test_a_child_that_leaves_or_is_stopped_proves_nothing_about_its_batch() -> None:
    desk = Desk(workers=(ONE, TWO), max_batch_size=1)
    desk.ask(client="a"), desk.ask(client="b")
    desk.dispatch()
    desk.take(desk.pool.receive(ONE, Leave(desk.ids[ONE]), desk.now))
    desk.now += 1.5  # nothing is heard of the other
    desk.dispatch()
    assert [each.child for each in desk.evicted()] == [TWO.decode()]
    assert not desk.pool._requests.quarantine._losses


def test_a_remote_worker_keeps_no_reload_from_settling() -> None:
    """It never loads the next version, and comes and goes."""
    desk = beside_a_remote_worker()
    desk.prepare(2)
    desk.load(ONE, 2)
    assert desk.came_and_done() == (2, 2)
    for version in (3, 4):
        desk.prepare(version)
        desk.lose(TWO)
        desk.enlist(TWO, child="")
        desk.load(TWO, version + 1)  # which nobody asked for
        desk.load(ONE, version)
        assert desk.came_and_done() == (version, version)
        assert desk.pool.catalogue.models["net"].newest_number == version


def test_a_pool_without_children_trusts_those_that_join() -> None:
    desk = Desk(workers=())
    for node in (ONE, TWO):
        desk.enlist(node, child="")
        desk.load(node, 1)
    desk.dispatch()
    request = desk.ask()
    (run,) = desk.runs(ONE)
    desk.lose(ONE)
    (run,) = desk.runs(TWO)
    desk.done(TWO, run, bytes([Status.BAD_INPUT]))
    assert desk.finished()[request].status is Status.BAD_INPUT


def test_a_silent_worker_is_given_up_and_what_it_had_goes_to_another() -> None:
    desk = Desk(workers=(ONE, TWO), max_batch_size=1)
    request = desk.ask()
    (run,) = desk.runs(ONE)
    desk.now += 1.5
    desk.heard(TWO)
    (again,) = desk.runs(TWO)
    assert again.payloads == run.payloads
    (evict,) = desk.evicted()
    assert evict.child == ONE.decode()
    assert "silent" in evict.reason
    assert not desk.heard(ONE)
    desk.done(TWO, again)
    assert desk.finished()[request].status is Status.OK


def test_a_heartbeat_is_answered_where_the_worker_works_too_so_that_a_lost_way_is_noticed() -> None:
    desk = Desk()
    answers = desk.pool.receive(b"heart", Heartbeat(desk.ids[ONE], 3.0), desk.now)
    assert answers == [SendToNode(b"heart", Alive(3.0)), SendToNode(ONE, Alive(3.0))]


def test_who_has_joined_again_is_not_killed_for_the_connection_that_is_gone() -> None:
    desk = Desk(workers=(ONE,))
    desk.enlist(TWO, child=ONE.decode())
    desk.now += 1.5
    desk.heard(TWO)
    desk.runs()
    assert not desk.evicted()
    assert not desk.heard(ONE)
    assert desk.heard(TWO)


def test_a_quiet_worker_gets_nothing_until_it_is_heard() -> None:
    desk = Desk()
    desk.now += 0.8
    desk.ask()
    assert not desk.runs()
    assert not desk.pool.is_ready(desk.now)
    desk.heard(ONE)
    assert len(desk.runs()) == 1
    assert desk.pool.is_ready(desk.now)


def test_a_worker_that_hangs_on_a_batch_is_given_up() -> None:
    desk = Desk(max_batch_s=3.0)
    desk.ask()
    desk.runs()
    for _ in range(3):
        desk.now += 1
        assert not desk.evicted()
        desk.heard(ONE)
        desk.dispatch()
    assert "busy with 1 rows" in desk.evicted()[0].reason


def test_a_process_that_runs_may_be_silent_while_it_loads_or_computes_within_its_limit() -> None:
    desk = Desk(max_batch_s=10.0)
    desk.children.running.add(ONE.decode())
    request = desk.ask(timeout_s=20.0)
    (run,) = desk.runs()
    for _ in range(9):
        desk.now += 1.0
        desk.dispatch()
    assert not desk.evicted()
    desk.done(ONE, run)
    assert desk.finished()[request].status is Status.OK
    desk.now += 1.5  # idle, so it has no reason to be silent
    desk.dispatch()
    assert "silent" in desk.evicted()[0].reason


def test_a_process_that_is_stopped_while_it_computes_is_replaced() -> None:
    desk = Desk(workers=(ONE, TWO))
    desk.children.running.add(ONE.decode())
    request = desk.ask()
    desk.runs(ONE)
    for _ in range(3):
        desk.now += 1.0
        desk.heard(TWO)
        desk.dispatch()
    assert not desk.evicted()
    desk.children.running.clear()
    desk.now += 1.5
    desk.heard(TWO)
    (again,) = desk.runs(TWO)
    assert "silent" in desk.evicted()[0].reason
    desk.done(TWO, again)
    assert desk.finished()[request].status is Status.OK


def test_a_model_is_ready_while_workers_answer_requests_of_the_pool_itself() -> None:
    desk = Desk()
    desk.answers_probes = False
    assert desk.pool.is_ready(desk.now)
    desk.now += 5.0
    desk.heard(ONE)
    (probe,) = desk.runs()
    assert probe.payloads == (ROW,)
    assert not desk.runs()  # one at a time
    for _ in range(10):
        assert desk.pool.is_ready(desk.now)
        assert desk.pool.catalogue.served()["net"].is_ready
        desk.now += 1.0
        desk.heard(ONE)
        desk.dispatch()
    assert not desk.pool.is_ready(desk.now)
    served = desk.pool.catalogue.served()["net"]
    assert (served.is_ready, served.reason) == (False, "no worker has answered for it recently")
    desk.done(ONE, probe)
    assert desk.pool.is_ready(desk.now)
    assert desk.pool.catalogue.served()["net"].is_ready
    assert desk.pool.status(desk.now)["models"][0]["admitted"] == 0


def test_the_pool_sends_no_request_of_its_own_while_others_are_answered() -> None:
    desk = Desk()
    desk.answers_probes = False
    for _ in range(20):
        desk.now += 1.0
        desk.heard(ONE)
        desk.ask()
        (run,) = desk.runs()
        desk.done(ONE, run)


def test_a_request_of_the_pool_itself_that_ends_workers_is_not_repeated() -> None:
    desk = Desk(workers=())
    desk.answers_probes = False
    for node in (b"1", b"2"):
        desk.enlist(node)
        desk.load(node, 1)
        assert len(desk.runs(node)) == 1
        desk.crash(node)
    desk.enlist(b"3")
    desk.load(b"3", 1)
    assert not desk.runs(b"3")
    assert not desk.pool.is_ready(desk.now)


def test_a_version_that_different_inputs_crash_pauses_and_other_models_go_on() -> None:
    desk = Desk("net", "other")
    node = ONE
    for number in range(3):
        bad = desk.ask(struct.pack("2f", 1, number), client="hostile")
        for attempt in range(2):
            assert len(desk.runs(node)) == 1
            if (number, attempt) == (2, 1):
                waiting = desk.ask(client="honest", timeout_s=60.0)
            desk.crash(node)
            node = b"%d of %d" % (attempt, number)
            desk.enlist(node)
            for name in ("net", "other"):
                desk.load(node, 1, name)
        result = desk.finished()[bad]
        assert result.status is (Status.FAILED if number < 2 else Status.UNAVAILABLE)
    desk.dispatch()
    assert desk.finished()[waiting].status is Status.UNAVAILABLE
    refusal = desk.refused(client="honest")
    assert refusal.status is Status.UNAVAILABLE
    assert "version 1 of net is paused: 3 inputs ended the workers" in refusal.reason
    assert 0 < refusal.retry_after_s <= 60.0
    request = desk.ask(model="other")
    (run,) = [each for each in desk.runs(node) if each.model == "other"]
    desk.done(node, run)
    assert desk.finished()[request].status is Status.OK


def test_next_wakeup_tells_when_a_worker_would_be_lost() -> None:
    desk = Desk()
    heard_s = desk.now
    while not desk.evicted():
        wakeup = desk.pool.next_wakeup()
        assert wakeup is not None
        assert wakeup > desk.now
        desk.now = wakeup
        desk.dispatch()
    assert desk.now == pytest.approx(heard_s + 1.5)
    assert desk.pool.next_wakeup() is None


@pytest.mark.parametrize(
    "done",
    [
        BatchDone(1, b"\0\0", 0, 0, (OUT, OUT)),
        BatchDone(1, b"\0", 0, 0, ()),
        BatchDone(1, b"\0", 0, 0, (b"",)),
        BatchDone(1, b"\3", 0, 0, (OUT,)),
        BatchDone(1, b"\0", -1.0, 0, (OUT,)),
        BatchDone(1, b"\0", 0, float("nan"), (OUT,)),
    ],
)
def test_a_worker_that_answers_nonsense_is_given_up_and_its_request_retried(
    done: BatchDone,
) -> None:
    desk = Desk(workers=(ONE, TWO))
    request = desk.ask()
    (run,) = desk.runs()
    desk.take(desk.pool.receive(ONE, done._replace(batch_id=run.batch_id), desk.now))
    assert "answered" in desk.evicted()[0].reason
    (again,) = desk.runs(TWO)
    desk.done(TWO, again)
    assert desk.finished()[request].status is Status.OK


def test_one_bad_image_fails_alone() -> None:
    desk = Desk()
    good, bad, infinite = (desk.ask(is_image=True) for _ in range(3))
    (run,) = desk.runs()
    desk.done(ONE, run, bytes([Status.OK, Status.BAD_INPUT, Status.FAILED]))
    ends = desk.finished()
    assert [ends[one].status for one in (good, bad, infinite)] == [
        Status.OK,
        Status.BAD_INPUT,
        Status.FAILED,
    ]
    assert ends[bad].reason == "why"


def test_only_images_that_were_decoded_count_as_inferences() -> None:
    desk = Desk()
    for statuses in ([Status.OK, Status.BAD_INPUT, Status.OK], [Status.BAD_INPUT]):
        for _ in statuses:
            desk.ask(is_image=True)
        (run,) = desk.runs()
        desk.done(ONE, run, bytes(statuses))
    counted = desk.pool.catalogue.models["net"].statistics[1]
    assert (counted.inference_count, counted.execution_count) == (2, 1)
    assert (counted.success.count, counted.fail.count) == (2, 2)


def test_a_worker_that_enlists_twice_is_told_the_same() -> None:
    desk = Desk(workers=())
    for _ in range(2):
        desk.enlist(ONE)
    first, second = desk.sent(PoolWelcome, ONE)
    assert first == second
    assert len(desk.sent(Load, ONE)) == 1


def test_a_new_version_is_loaded_by_one_worker_after_the_other_and_the_old_one_dropped() -> None:
    desk = Desk(workers=(ONE, TWO))
    desk.prepare(2)
    assert desk.sent(Load, ONE)[0].version == 2
    assert not desk.sent(Load, TWO)
    desk.ask()
    (run,) = desk.runs(TWO)  # the other one loads
    assert run.version == 1
    desk.load(ONE, 2)
    assert desk.sent(Load, TWO)[0].version == 2
    assert desk.pool.catalogue.served()["net"].versions.keys() == {1, 2}
    assert desk.came_and_done() == (2, 1)
    desk.ask()
    (newer,) = desk.runs(ONE)
    assert newer.version == 2
    desk.load(TWO, 2)
    assert [desk.sent(Drop, node) for node in (ONE, TWO)] == [[Drop("net", 1)], [Drop("net", 1)]]
    desk.done(TWO, run)  # it ran while its version was dropped
    assert next(iter(desk.finished().values())).version == 1
    assert desk.came_and_done() == (2, 2)
    served = desk.pool.catalogue.served()["net"]
    assert ([*served.versions], served.is_ready, served.reason) == ([2], True, "")


def test_versions_that_come_faster_than_workers_load_are_done_with_one_by_one() -> None:
    desk = Desk(workers=(ONE, TWO))
    for version in (2, 3, 4):
        desk.prepare(version)
    desk.load(ONE, 2)
    assert desk.came_and_done()[1] == 1
    desk.prepare(5)
    desk.load(TWO, 2)
    assert desk.came_and_done() == (5, 2)
    desk.load(ONE, 5)
    desk.load(TWO, 5)
    assert desk.came_and_done()[1] == 5  # 3 and 4 were overtaken
    desk.prepare(6)
    desk.pool.unload("net")
    assert desk.came_and_done()[1] == 6


def test_a_loading_worker_serves_when_no_other_one_is_free() -> None:
    desk = Desk(workers=(ONE, TWO), max_batch_size=1)
    desk.prepare(2)
    desk.ask()
    desk.ask()
    assert [len(desk.runs(node)) for node in (TWO, ONE)] == [1, 1]


def test_a_version_that_could_not_be_loaded_leaves_the_old_one() -> None:
    desk = Desk(workers=(ONE, TWO))
    desk.prepare(2)
    desk.load(ONE, 2, reason="no memory")
    desk.load(TWO, 2, reason="no memory")
    desk.dispatch()
    served = desk.pool.catalogue.served()["net"]
    assert ([*served.versions], served.is_ready) == ([1], True)
    assert "no memory" in served.reason
    assert desk.came_and_done() == (2, 2)
    desk.enlist(b"3")
    assert [load.version for load in desk.sent(Load, b"3")] == [1]
    desk.load(b"3", 1)
    desk.prepare(3)
    desk.load(ONE, 3)
    assert desk.pool.catalogue.served()["net"].reason == ""


def test_a_version_that_ends_those_who_load_it_is_given_up_and_the_old_one_loaded_again() -> None:
    desk = Desk()
    desk.prepare(2)
    for _ in range(3):
        assert [load.version for load in desk.sent(Load, ONE)] == [2]
        desk.crash(ONE)
        desk.enlist(ONE)
    assert [load.version for load in desk.sent(Load, ONE)] == [1]
    assert desk.came_and_done() == (2, 2)
    served = desk.pool.catalogue.served()["net"]
    assert "loading version 2 ended 3 workers, the last time with 'killed'" in served.reason
    desk.load(ONE, 1)
    assert [*desk.pool.catalogue.served()["net"].versions] == [1]
    desk.ask()
    assert desk.runs()[0].version == 1


def test_a_first_version_that_ends_those_who_load_it_cannot_be_served() -> None:
    desk = Desk(workers=())
    for _ in range(3):
        desk.enlist(ONE)
        assert desk.pool.failures() == []
        desk.crash(ONE)
    desk.enlist(ONE)
    assert not desk.sent(Load, ONE)[3:]
    (failure,) = desk.pool.failures()
    assert "loading version 1 ended 3 workers, the last time with 'killed'" in str(failure)


def test_a_version_is_not_blamed_for_lost_connections_and_for_workers_that_leave() -> None:
    desk = Desk()
    desk.prepare(2)
    for _ in range(5):
        assert [load.version for load in desk.sent(Load, ONE)] == [2]
        desk.lose(ONE)
        desk.enlist(ONE)


def test_while_some_workers_could_not_load_a_version_the_others_come_first() -> None:
    desk = Desk(workers=(ONE, TWO))
    desk.prepare(2)
    desk.load(ONE, 2, reason="no memory")
    desk.load(TWO, 2)
    assert desk.pool.catalogue.served()["net"].versions.keys() == {1, 2}
    named = desk.ask(version=1)
    (run,) = desk.runs(ONE)
    desk.done(ONE, run)
    assert desk.finished()[named].version == 1
    desk.ask()
    assert desk.runs(TWO)[0].version == 2


def test_a_version_may_be_named_until_workers_have_replaced_it() -> None:
    desk = Desk(workers=(ONE, TWO))
    desk.prepare(2)
    desk.prepare(3)  # it waits
    assert [*desk.pool.catalogue.served()["net"].versions] == [1]
    desk.ask(version=1)
    desk.load(ONE, 2, reason="no memory")
    desk.load(TWO, 2)
    (run,) = desk.runs(TWO)
    assert [load.version for load in desk.sent(Load, ONE)] == [2, 3]
    desk.ask(version=1)
    desk.load(ONE, 3)
    desk.ask(version=2)
    desk.load(TWO, 3)
    assert [desk.refused(version=each).status for each in (1, 2)] == 2 * [Status.NOT_FOUND]
    desk.done(TWO, run)
    assert [*desk.pool.catalogue.served()["net"].versions] == [3]


def test_a_version_waits_until_the_closing_versions_are_dropped() -> None:
    desk = Desk(max_batch_size=1)
    desk.ask(version=1)
    (run,) = desk.runs()
    desk.prepare(2)
    desk.load(ONE, 2)
    desk.prepare(3)
    assert [load.version for load in desk.sent(Load, ONE)] == [2]
    desk.done(ONE, run)
    desk.dispatch()
    assert desk.sent(Drop, ONE) == [Drop("net", 1)]
    assert [load.version for load in desk.sent(Load, ONE)] == [3]


def test_a_closing_version_serves_again_if_workers_cannot_load_the_version_after_it() -> None:
    desk = Desk()
    desk.ask(version=1)
    desk.runs()
    desk.prepare(2)
    desk.load(ONE, 2)
    desk.lose(ONE)
    desk.enlist(TWO)
    desk.load(TWO, 1)
    desk.load(TWO, 2, reason="no memory")
    (run,) = desk.runs(TWO)
    desk.done(TWO, run)
    served = desk.pool.catalogue.served()["net"]
    assert ([*served.versions], served.is_ready) == ([1], True)


def test_a_version_is_kept_while_a_request_names_it_and_no_longer() -> None:
    desk = Desk(max_batch_size=1)
    named = [desk.ask(version=1) for _ in range(2)]
    (run,) = desk.runs()
    desk.prepare(2)
    desk.load(ONE, 2)
    assert not desk.sent(Drop, ONE)
    assert desk.refused(version=1).status is Status.NOT_FOUND
    desk.done(ONE, run)
    (run,) = desk.runs()
    assert run.version == 1
    desk.done(ONE, run)
    assert {end.version for end in desk.finished().values()} == {1}
    assert len(named) == 2
    wakeup = desk.pool.next_wakeup()
    assert wakeup is not None
    assert wakeup <= desk.now
    desk.dispatch()
    assert desk.sent(Drop, ONE) == [Drop("net", 1)]


def test_requests_are_answered_by_a_version_that_takes_their_input() -> None:
    desk = Desk(workers=(ONE, TWO), max_batch_size=1)
    ids = [desk.ask() for _ in range(4)]
    running = {node: desk.runs(node)[0] for node in (ONE, TWO)}
    desk.prepare(2, shape=(3,))
    desk.load(ONE, 2)
    longer = desk.ask(ROW + OUT)
    desk.lose(TWO)  # which had one that fits version 1 alone
    node, run = ONE, running[ONE]
    ends = {}
    while True:
        desk.now += ROW_S
        desk.done(node, run)
        ends |= desk.finished()
        runs = desk.runs(node)
        if not runs:
            break
        (run,) = runs
    assert {ends[one].version for one in ids} == {1}
    assert ends[longer].version == 2
    assert desk.sent(Drop, ONE) == [Drop("net", 1)]


def test_a_request_for_classes_is_not_answered_by_a_version_that_predicts_numbers() -> None:
    desk = Desk(max_batch_size=1)
    running, waiting = desk.ask(is_image=True), desk.ask(is_image=True)
    (run,) = desk.runs()
    text = replace(describe(2), has_classes=False).to_json()
    desk.take(desk.pool.prepared(ModelPrepared("net", 2, text, ""), desk.now))
    desk.load(ONE, 2)
    desk.done(ONE, run)
    (run,) = desk.runs()
    desk.done(ONE, run)
    ends = desk.finished()
    assert (ends[running].version, ends[waiting].version) == (1, 1)


def test_an_unloaded_model_answers_what_came_in_and_is_dropped() -> None:
    desk = Desk()
    request = desk.ask()
    desk.pool.unload("net")
    result = desk.refused()
    assert result.status is Status.NOT_FOUND
    assert "it was unloaded" in result.reason
    (run,) = desk.runs()
    assert not desk.sent(Drop, ONE)
    desk.done(ONE, run)
    assert desk.finished()[request].status is Status.OK
    desk.dispatch()
    assert desk.sent(Drop, ONE) == [Drop("net", 1)]
    served = desk.pool.catalogue.served()["net"]
    assert (served.description, served.versions, served.is_ready) == (None, {}, False)
    assert not desk.pool.is_ready(desk.now)
    desk.pool.reload("net")
    assert not desk.pool.is_ready(desk.now)
    desk.prepare(2)
    desk.load(ONE, 2)
    assert desk.pool.is_ready(desk.now)
    desk.ask()


def test_a_failed_reload_says_why_and_changes_nothing() -> None:
    desk = Desk()
    desk.take(desk.pool.prepared(ModelPrepared("net", 2, "", "the file is gone"), desk.now))
    desk.take(desk.pool.prepared(ModelPrepared("nought", 2, "", ""), desk.now))
    assert desk.pool.catalogue.served()["net"].reason == "the file is gone"
    desk.take(desk.pool.prepared(ModelPrepared("net", 2, "{", ""), desk.now))
    assert "description of a model" in desk.pool.catalogue.served()["net"].reason
    assert not desk.sent(Load, ONE)
    desk.ask()


def test_a_worker_that_comes_after_the_others_died_loads_what_requests_name() -> None:
    desk = Desk()
    named = desk.ask(version=1)
    desk.runs()
    desk.prepare(2)
    desk.load(ONE, 2)
    desk.lose(ONE)
    desk.enlist(TWO)
    assert sorted(load.version for load in desk.sent(Load, TWO)) == [1, 2]
    desk.load(TWO, 1)
    (run,) = desk.runs(TWO)
    desk.done(TWO, run)
    assert desk.finished()[named].version == 1


def test_a_replaced_version_that_is_loaded_again_answers_only_those_who_name_it() -> None:
    desk = Desk()
    named = desk.ask(version=1)
    desk.runs()
    desk.prepare(2)
    desk.load(ONE, 2)
    unnamed = desk.ask()
    desk.lose(ONE)
    desk.enlist(TWO)
    desk.load(TWO, 1)
    assert desk.refused().status is Status.UNAVAILABLE  # until it has loaded version 2
    (run,) = desk.runs(TWO)
    desk.done(TWO, run)
    assert not desk.runs(TWO)
    desk.load(TWO, 2)
    (run,) = desk.runs(TWO)
    desk.done(TWO, run)
    assert {request: end.version for request, end in desk.finished().items()} == {
        named: 1,
        unnamed: 2,
    }


def test_nor_does_it_say_again_what_a_question_must_fit() -> None:
    desk = Desk()
    desk.ask(version=1)
    desk.runs()
    desk.prepare(2, shape=(3,))
    desk.load(ONE, 2)
    desk.lose(ONE)
    desk.enlist(TWO)
    desk.load(TWO, 1)
    served = desk.pool.catalogue.served()["net"]
    assert served.description == describe(2, shape=(3,))


def test_versions_that_come_while_no_worker_is_there_do_not_pile_up() -> None:
    desk = Desk(workers=())
    for version in range(2, 20):
        desk.prepare(version)
        desk.dispatch()
    assert list(desk.pool.catalogue.models["net"].versions) == [19]
    desk.enlist(ONE)
    desk.load(ONE, 19)
    request = desk.ask()
    (run,) = desk.runs()
    desk.done(ONE, run)
    assert desk.finished()[request].version == 19


def test_statistics_balance_and_outlive_their_version() -> None:
    desk = Desk(max_batch_size=2)
    for _ in range(3):
        desk.ask()
    (run,) = desk.runs()
    desk.now += 1
    desk.done(ONE, run)
    counted = desk.pool.catalogue.models["net"].statistics[1]
    assert (counted.admitted, counted.answered, counted.inference_count) == (3, 2, 2)
    assert (counted.execution_count, counted.last_inference_s) == (1, desk.now)
    assert (counted.success.count, counted.success.seconds) == (2, 2.0)
    assert (counted.compute_input.seconds, counted.compute_infer.seconds) == (0.5, 1.0)
    assert counted.compute_output.seconds == 0.5
    assert counted.batches[2].count == 1
    desk.refused(rows=3)
    desk.prepare(2)
    desk.load(ONE, 2)
    assert set(desk.pool.catalogue.models["net"].statistics) == {NO_VERSION}
    report = desk.pool.status(desk.now)["models"][0]
    assert (report["admitted"], report["answered"], report["refused"]) == (3, 2, 1)
    assert report["latency_ms"]["p50"] == pytest.approx(1000, rel=0.03)
    assert report["batch_rows"] == {"2": 1}
    assert report["requests_per_s"] == 0.2


@pytest.mark.parametrize(
    "setting",
    [
        {"max_batch_size": 0},
        {"queue_requests": 1.5},
        {"max_batch_s": 0.0},
        {"default_timeout_s": float("nan")},
        {"heartbeat_timeout_s": 0.3},
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(setting))):
        PoolSettings(**setting)


def test_a_worker_of_another_release_is_refused() -> None:
    pool = Pool(PoolSettings(), ("net",), KnownChildren(), count(1), release="1+aa")
    [refused] = pool.receive(b"old", JoinPool("old", "host", 7, "1+bb"), 0.0)
    assert isinstance(refused, SendToNode)
    assert isinstance(refused.message, Refuse)
    assert not refused.message.may_rejoin
    assert "1+aa" in refused.message.reason
    assert "1+bb" in refused.message.reason
    [accepted, *_] = pool.receive(b"new", JoinPool("new", "host", 8, "1+aa"), 0.0)
    assert isinstance(accepted, SendToNode)
    assert isinstance(accepted.message, PoolWelcome)


def test_a_model_that_does_not_compute_rows_computes_one_request_at_a_time() -> None:
    desk = Desk()
    text = replace(describe(2), is_batched=False).to_json()
    desk.take(desk.pool.prepared(ModelPrepared("net", 2, text, ""), desk.now))
    desk.load(ONE, 2)
    for _ in range(2):
        desk.ask(b"tensors of any size")
    (first,) = desk.runs()
    assert len(first.payloads) == 1
    statuses, payloads = bytes(1), (b"outputs of any size",)
    done = BatchDone(first.batch_id, statuses, 0.25, 0.5, payloads)
    desk.take(desk.pool.receive(ONE, done, desk.now))
    (second,) = desk.runs()
    assert len(second.payloads) == 1
    assert desk.refused(rows=2).status is Status.BAD_INPUT
