"""The server's answers, message by message; the clock is a number and there is no socket."""

import json
import logging
import re
from dataclasses import replace
from random import SystemRandom
from typing import Any

import numpy as np
import pytest

from desk import SETTINGS, SIZE, STATE_SIZE, Desk, a_run, vector
from dist_net.optim import SGD, Adam
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.journal import JournalLag
from dist_net.training.server.members import RETURN_S
from dist_net.training.server.metrics import RECORDS_PER_REPORT, RunMetrics
from dist_net.training.server.protocol import (
    MAX_KERNELS,
    Forget,
    Record,
    SendToPeer,
    ServerCommand,
)
from dist_net.training.server.run_report import WORKERS_PER_REPORT
from dist_net.training.server.state import RunState
from dist_net.wire.codec import encode
from dist_net.wire.fields import MAX_HEADER_BYTES
from dist_net.wire.messages import (
    UNKNOWN_EQUIPMENT,
    Alive,
    Equipment,
    Heartbeat,
    Join,
    Leave,
    Pull,
    RecipeRequest,
    Refuse,
    Shutdown,
    Snapshot,
    SnapshotRequest,
    StatusRequest,
    StepSettings,
    Stop,
    Welcome,
    Work,
)
from naming import naming

FINISHED = Stop("every epoch is done", finished=True)


@pytest.fixture
def desk() -> Desk:
    return Desk()


# Joining


def test_a_worker_is_welcomed_with_what_it_needs(desk: Desk) -> None:
    steps = StepSettings(0, 4, 2, "SGD()", 0.5)
    assert desk.join(b"a") == Welcome(1, 7, steps, 0.3, 1.5, None, 0)
    report = desk.report()
    assert (report["state"], report["term"]) == ("training", 7)


def test_a_worker_with_another_recipe_is_refused_with_both_digests(desk: Desk) -> None:
    refuse = desk.join(b"a", recipe_digest="xyz")
    assert not refuse.may_rejoin
    assert "has xyz" in refuse.reason
    assert "has abc" in refuse.reason
    refuse = desk.join(b"a", vector_size=7)
    assert not refuse.may_rejoin
    assert "7 parameters, the server's 6" in refuse.reason
    assert len(desk.server.run.members) == 0


@pytest.mark.parametrize(
    ("theirs", "named", "remedy"),
    [
        ("release 1+b; recipe c; data d", ["release 1+b", "release 1+a"], "same release"),
        ("release 1+a; recipe x; data d", ["recipe x", "recipe c"], "same recipe"),
        ("release 1+a; recipe c; data x", ["data x", "data d"], "same dataset"),
        ("release 1+a; recipe c", ["nothing", "data d"], "same dataset"),
    ],
)
def test_a_refusal_names_both_sides_and_what_differs(
    theirs: str, named: list[str], remedy: str
) -> None:
    settings = replace(SETTINGS, recipe_digest="release 1+a; recipe c; data d")
    reason = settings.refusal_of(Join("a", 1, theirs, SIZE))
    assert reason is not None
    assert all(f"has {side}" in reason for side in named)
    assert remedy in reason
    assert settings.refusal_of(Join("a", 1, settings.recipe_digest, SIZE)) is None


def test_a_state_too_long_for_a_message_stays_on_its_host() -> None:
    settings = replace(SETTINGS, layout=(("weight", (180_000_000,)),), optimizer=Adam())
    fault = naming("180,000,000", "Adam", f"{2**30:,}", "this host alone")
    assert re.search(fault, str(settings.size_fault))
    join = Join("a", 1, SETTINGS.recipe_digest, 180_000_000)
    assert "another host" in str(settings.refusal_of(join))
    assert settings.refusal_of(join._replace(shares_memory=True)) is None
    assert replace(settings, optimizer=SGD()).size_fault is None


def test_a_worker_that_joins_again_ends_its_former_membership(desk: Desk) -> None:
    """A push of the former one would be read where the worker writes a new result."""
    desk.join(b"before", identity=77)
    work = desk.pull(b"before", 1)
    again = Join("again", 77, "abc", SIZE, True, request_id=2)
    forget, welcome = desk.commands(b"after", again)
    assert forget == Forget(1)
    assert isinstance(welcome, SendToPeer)
    assert isinstance(welcome.message, Welcome)
    assert (welcome.message.worker_id, welcome.message.request_id) == (2, 2)
    desk.identities[2], desk.requests[2] = 77, 2
    assert desk.push(b"before", work).may_rejoin
    assert desk.run.store.version == 0
    assert desk.pull(b"after", 2).steps.start == work.steps.start
    assert len(desk.report()["workers"]) == 1


# Work and its results


def test_a_state_is_shared_or_travels_packed_with_the_work() -> None:
    desk = Desk(a_run(layout=(("weight", (100,)),)))
    desk.join(b"here")
    desk.join(b"afar", shares_memory=False)
    here, afar = desk.pull(b"here", 1), desk.pull(b"afar", 2)
    assert here.state is desk.state
    packing = desk.run.settings.packing
    assert afar.state.nbytes < here.state.nbytes
    assert desk.has_to_wait(b"here", desk.a_push(here, 1.25))
    base = np.empty_like(desk.state)
    packing.unpack_base(afar.state, out=base)
    pushed = packing.pack_result(base, base + np.float32(1.75))
    desk.answers(b"afar", desk.a_push(afar, state=pushed))
    assert desk.run.store.version == 1
    np.testing.assert_array_equal(desk.state[100:], (2 + 1.75) / 2)  # steps
    report = desk.report()
    assert report["bytes_received_per_sample"] == pushed.nbytes / report["samples"]
    assert report["bytes_sent_per_sample"] == 2 * afar.state.nbytes / report["samples"]


def test_a_push_is_answered_with_the_next_lease_and_the_new_state(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    assert work[:-1] == (1, 1, 1, (0, 0, 8, 0, 4, 4, 1))
    record, send = desk.commands(b"a", desk.a_push(work))
    assert isinstance(record, Record)  # before the answer
    assert isinstance(send, SendToPeer)
    following = send.message
    assert isinstance(following, Work)
    assert following[:-1] == (1, 2, 2, (0, 8, 16, 8, 4, 4, 1))
    assert following.state is desk.state
    assert (desk.state[:SIZE] == 1.0).all()


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"state": None}, "no state"),
        ({"state": vector(1.0)}, "6 elements"),
        ({"state": vector(1.0, 8)}, "8 elements"),
    ],
)
def test_a_push_without_a_whole_state_ends_its_worker(
    desk: Desk, facts: dict[str, Any], found: str
) -> None:
    desk.join(b"a")
    forget, send = desk.commands(b"a", desk.a_push(desk.pull(b"a", 1), **facts))
    assert forget == Forget(1)
    assert isinstance(send, SendToPeer)
    assert isinstance(send.message, Refuse)
    assert not send.message.may_rejoin
    assert found in send.message.reason
    assert f"{STATE_SIZE} elements" in send.message.reason
    assert (desk.run.store.version, desk.report()["pushes_rejected"]) == (0, 1)


def test_the_size_of_a_packed_state_is_that_of_results(desk: Desk) -> None:
    desk.join(b"a", shares_memory=False)
    work = desk.pull(b"a", 1)
    answer = desk.answers(b"a", desk.a_push(work, state=desk.state.copy()))[b"a"]
    assert f"{desk.run.settings.packing.result_size} elements" in answer.reason


def test_a_push_of_another_lease_is_dropped_and_counted(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    assert desk.push(b"a", work, lease_id=77) == work._replace(request_id=2)
    report = desk.report()
    assert (report["duplicates_dropped"], report["version"], report["samples"]) == (1, 0, 0)


@pytest.mark.parametrize(
    "facts", [{"state": vector(np.nan, STATE_SIZE)}, {"loss_sum": np.nan}, {"loss_sum": 1e100}]
)
def test_a_result_that_is_not_finite_is_refused_and_its_worker_named(
    desk: Desk, facts: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk.join(b"culprit")
    work = desk.pull(b"culprit", 1)
    again = desk.push(b"culprit", work, **facts)
    assert again.lease_id != work.lease_id
    assert (again.steps.start, again.steps.stop, again.state is work.state) == (
        work.steps.start,
        work.steps.stop,
        True,
    )
    assert desk.report()["gradients_refused"] == 1
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "name=culprit" in record.getMessage()


def test_three_refused_results_in_a_row_end_a_worker_and_others_compute_its_samples() -> None:
    desk = Desk(a_run(consistency=Consistency.ASYNC))
    desk.join(b"a")
    desk.join(b"b")
    work, others = desk.pull(b"a", 1), desk.pull(b"b", 2)
    for changes in ((np.nan, np.inf), (1.0,), (np.nan, np.inf)):
        for change in changes:
            work = desk.push(b"a", work, change)
    others = desk.push(b"b", others)
    forget, send = desk.commands(b"a", desk.a_push(work, np.nan))
    assert forget == Forget(1)
    assert isinstance(send, SendToPeer)
    assert isinstance(send.message, Refuse)
    assert not send.message.may_rejoin
    assert "not finite; those of other workers can" in send.message.reason
    report = desk.report()
    assert (report["gradients_refused"], report["workers_lost"]) == (5, 1)
    others = desk.push(b"b", others)
    assert (others.steps.epoch, others.steps.start) == (work.steps.epoch, work.steps.start)


# Requests that are repeated or lost


def test_requests_delivered_twice_are_answered_and_count_once(desk: Desk) -> None:
    join = Join("a", 5, "abc", SIZE, True)
    worker_id = desk.ask(b"a", join).worker_id
    pull = Pull(worker_id, 5, 1)
    push = desk.a_push(desk.ask(b"a", pull), identity=5, request_id=2)
    assert desk.ask(b"a", push).request_id == 2
    for repeated in (join, pull, push):
        assert desk.commands(b"a", repeated) == []
    report = desk.report()
    assert (report["samples"], report["version"]) == (8, 1)
    assert (report["workers_joined"], report["duplicates_dropped"]) == (1, 2)


def test_a_request_after_a_lost_one_is_dropped_until_that_is_repeated(desk: Desk) -> None:
    desk.join(b"a")
    lost, following = desk.a_pull(1), desk.a_pull(1)
    assert desk.commands(b"a", following) == []
    assert desk.beat(1) == Alive(0.0, 0, 0)
    work = desk.ask(b"a, connected again", lost)
    assert desk.ask(b"a, connected again", following) == work._replace(request_id=2)
    assert desk.beat(1) == Alive(0.0, 2, 2)


def test_a_lost_answer_is_the_answer_to_the_next_request(desk: Desk) -> None:
    desk.join(b"a")
    lost = desk.push(b"a", desk.pull(b"a", 1))
    again = desk.pull(b"a, connected again", 1)
    assert again._replace(request_id=lost.request_id) == lost


def test_a_heartbeat_shows_a_waiting_worker_that_its_push_has_arrived(desk: Desk) -> None:
    desk.join(b"a")
    desk.join(b"b")
    work, other = desk.pull(b"a", 1), desk.pull(b"b", 2)
    assert desk.has_to_wait(b"a", desk.a_push(work))
    assert desk.beat(1) == Alive(0.0, received_id=2, answered_id=1)
    answers = desk.answers(b"b", desk.a_push(other))
    assert {answer.request_id for answer in answers.values()} == {2}
    assert desk.beat(1) == Alive(0.0, 2, 2)


def test_nobody_speaks_for_another_worker(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    other = desk.identities[1] + 1
    for request in (
        desk.a_push(work, identity=other),
        Pull(1, other, 2),
        Heartbeat(1, 0, other),
    ):
        assert isinstance(desk.ask(b"somebody else", request), Refuse)
    assert desk.commands(b"somebody else", Leave(1, other)) == []
    assert desk.run.store.version == 0


def test_a_server_refuses_requests_of_a_former_term(desk: Desk) -> None:
    """By the worker's id alone: the lease may be one that it knows."""
    checkpoint = desk.run.checkpoint()
    desk.join(b"a")
    before = desk.pull(b"a", 1)
    resumed = Desk(RunState.resumed(SETTINGS, checkpoint, first_worker_id=1000))
    assert resumed.join(b"b").worker_id == 1000
    now = resumed.pull(b"b", 1000)
    assert (now.lease_id, now.steps.start) == (before.lease_id, before.steps.start)
    for node in (b"a", b"b"):
        for answer in (resumed.push(node, before), resumed.pull(node, 1), resumed.beat(1)):
            assert isinstance(answer, Refuse)
            assert answer.may_rejoin
    report = resumed.report()
    assert (report["version"], report["pushes_rejected"], report["server_starts"]) == (0, 2, 2)


def test_two_servers_never_assign_the_same_id() -> None:
    runs = [RunState.begun(SETTINGS, vector(0.0), SystemRandom()) for _ in range(20)]
    assert len({run.members.join(b"a", Join("one", 1, "", 3), 0.0).worker_id for run in runs}) == 20


# Workers that leave or fall silent


def ticks(desk: Desk, seconds: float, *beating: int) -> list[ServerCommand]:
    """Let time pass, in which these workers send heartbeats."""
    commands = []
    for _ in range(round(10 * seconds) + 1):
        desk.now += 0.1
        for worker_id in beating:
            desk.beat(worker_id)
        commands += desk.server.tick(desk.now)
    return commands


def test_a_silent_worker_is_lost_and_others_compute_its_samples(desk: Desk) -> None:
    desk.join(b"silent")
    desk.join(b"alive")
    lost = desk.pull(b"silent", 1)
    desk.now += 1.0
    assert isinstance(desk.beat(2), Alive)
    desk.now += 0.6
    assert desk.server.tick(desk.now) == []
    assert (len(desk.server.run.members), desk.report()["workers_lost"]) == (1, 1)
    work = desk.pull(b"alive", 2)
    assert work.steps[:3] == lost.steps[:3]
    assert isinstance(desk.push(b"alive", work), Work)
    assert ticks(desk, RETURN_S, 2) == [Forget(1)]
    assert desk.report()["workers_lost"] == 1


def test_the_late_result_of_a_silent_worker_counts(desk: Desk) -> None:
    """As of a gradient function that holds the interpreter's lock, and so its heartbeats."""
    desk.join(b"late")
    work = desk.pull(b"late", 1)
    assert ticks(desk, 2 * RETURN_S) == []  # nobody else has computed its lease
    assert desk.report()["state"] == "waiting"
    following = desk.push(b"late", work)
    assert (following.steps.start, desk.report()["version"]) == (work.steps.stop, 1)
    report = desk.report()
    assert (report["workers_joined"], report["workers_lost"], report["worker_count"]) == (2, 1, 1)
    ticks(desk, 2 * RETURN_S)
    assert desk.report()["workers_lost"] == 1


@pytest.mark.parametrize("first", ["silent", "rival"])
def test_the_first_result_of_a_silent_worker_and_its_rival_counts(desk: Desk, first: str) -> None:
    desk.join(b"silent")
    desk.join(b"rival")
    work, own = desk.pull(b"silent", 1), desk.pull(b"rival", 2)
    desk.now += 1.6
    desk.beat(2)
    desk.server.tick(desk.now)
    shared = desk.push(b"rival", own)
    assert shared.steps[:3] == work.steps[:3]
    pushes = {b"silent": work, b"rival": shared}
    one, other = pushes if first == "silent" else reversed(pushes)
    for node in (one, other):
        desk.answers(node, desk.a_push(pushes[node]))
    report = desk.report()
    assert (report["samples"], report["duplicates_dropped"]) == (8, 1)


def test_of_two_silent_workers_with_the_same_samples_the_last_one_keeps_them(desk: Desk) -> None:
    for node in (b"a", b"b", b"c"):
        desk.join(node)
    works = []
    for number, node in enumerate((b"a", b"b"), 1):
        works.append(desk.pull(node, number))
        ticks(desk, 1.6, *range(number + 1, 4))
    works.append(desk.pull(b"c", 3))
    assert len({work.steps.start for work in works}) == 1
    desk.answers(b"b", desk.a_push(works[1]))
    assert [desk.run.ledger.lease_of(each) for each in (1, 3)] == [None, None]


def test_a_waiting_worker_that_falls_silent_gets_work_when_it_is_back(desk: Desk) -> None:
    desk.join(b"a")
    desk.join(b"b")
    one, other = desk.pull(b"a", 1), desk.pull(b"b", 2)
    assert desk.has_to_wait(b"a", desk.a_push(one))
    desk.now += 1.6
    desk.beat(2)
    desk.server.tick(desk.now)
    following = desk.push(b"b", other)
    assert isinstance(desk.beat(1), Alive)
    answers = desk.answers(b"b", desk.a_push(following))
    assert [type(answers[node]) for node in (b"a", b"b")] == [Work, Work]


def test_a_worker_that_was_forgotten_may_join_again(desk: Desk) -> None:
    desk.join(b"late")
    assert ticks(desk, RETURN_S + 1) == [Forget(1)]
    for answer in (desk.pull(b"late", 1), desk.beat(1)):
        assert isinstance(answer, Refuse)
        assert answer.may_rejoin
    assert desk.join(b"late").worker_id == 2


def test_a_worker_that_leaves_hands_its_samples_on(desk: Desk) -> None:
    desk.join(b"a")
    desk.join(b"b")
    work = desk.pull(b"a", 1)
    assert desk.leave(b"a", 1) == [Forget(1)]
    assert desk.leave(b"a", 1) == []
    assert desk.pull(b"b", 2).steps.start == work.steps.start
    assert desk.report()["workers_lost"] == 0


@pytest.mark.parametrize("gone", ["leaves", "dismissed", "joins again"])
def test_a_waiting_worker_is_answered_when_another_is_gone(desk: Desk, gone: str) -> None:
    desk.join(b"a")
    desk.join(b"b")
    one, other = desk.pull(b"a", 1), desk.pull(b"b", 2)
    assert desk.has_to_wait(b"a", desk.a_push(one))
    match gone:
        case "leaves":
            commands = desk.leave(b"b", 2)
        case "dismissed":
            commands = desk.commands(b"b", desk.a_push(other, state=None))
        case _:
            again = Join("b", desk.identities[2], "abc", SIZE, True, request_id=9)
            commands = desk.commands(b"elsewhere", again)
    assert Forget(2) in commands
    [work] = [
        each.message for each in commands if isinstance(each, SendToPeer) and each.node == b"a"
    ]
    assert isinstance(work, Work)
    assert (work.request_id, work.steps.start, work.steps.stop) == (
        2,
        other.steps.start,
        other.steps.stop,
    )


# The end


def test_at_the_end_every_worker_is_told_and_counted_out(desk: Desk) -> None:
    desk.join(b"a")
    assert desk.trained(b"a", 1) == FINISHED
    desk.join(b"b")
    assert desk.pull(b"b", 2) == FINISHED
    assert desk.report()["state"] == "finished"
    assert len(desk.server.run.members) == 2
    desk.leave(b"a", 1)
    desk.now += 2.0
    assert desk.server.tick(desk.now) == []
    assert len(desk.server.run.members) == 0
    assert desk.report()["workers_lost"] == 0


def test_a_heartbeat_after_the_end_is_answered_with_stop(desk: Desk) -> None:
    """A worker in mid-lease leaves at once, instead of computing for minutes in vain."""
    desk.join(b"idle")
    desk.join(b"busy")
    desk.server.stop("interrupted")
    assert desk.beat(1) == Stop("interrupted", finished=False)
    desk.now += 2.0
    desk.server.tick(desk.now)
    assert desk.report()["workers_lost"] == 0  # the run is over for the worker that is silent


def test_a_worker_that_waits_is_told_of_the_end_at_once(desk: Desk) -> None:
    desk.join(b"a")
    desk.join(b"b")
    one, other = desk.pull(b"a", 1), desk.pull(b"b", 2)
    assert desk.has_to_wait(b"a", desk.a_push(one))
    answers = desk.answers(b"observer", Shutdown("interrupted"))
    assert answers[b"a"] == Stop("interrupted", finished=False)
    assert desk.push(b"b", other) == Stop("interrupted", finished=False)


def test_all_workers_of_the_last_round_are_told_that_the_run_is_finished() -> None:
    desk = Desk(a_run(samples=8, epochs=1))
    desk.join(b"a")
    desk.join(b"b")
    one, other = desk.pull(b"a", 1), desk.pull(b"b", 2)
    assert one.steps.stop == other.steps.start
    assert desk.has_to_wait(b"a", desk.a_push(one))
    assert desk.answers(b"b", desk.a_push(other)) == {b"a": FINISHED, b"b": FINISHED}


def test_a_shutdown_stops_the_workers_and_applies_nothing_more(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    status = desk.ask(b"observer", Shutdown("interrupted"))
    assert json.loads(status.report)["state"] == "stopping"
    assert desk.push(b"a", work) == Stop("interrupted", finished=False)
    report = desk.report()
    assert (report["samples"], report["pushes_rejected"]) == (0, 1)
    assert desk.server.stop_reason == "interrupted"


# Observers


def test_a_message_that_no_server_receives_is_dropped(desk: Desk) -> None:
    assert desk.commands(b"a", Alive()) == []


def test_a_server_without_a_recipe_to_offer_refuses_the_request(desk: Desk) -> None:
    assert isinstance(desk.ask(b"a", RecipeRequest()), Refuse)


def test_an_observer_receives_a_snapshot_that_never_changes(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.push(b"a", desk.pull(b"a", 1))
    snapshot = desk.ask(b"observer", SnapshotRequest())
    assert isinstance(snapshot, Snapshot)
    desk.push(b"a", work)
    assert (snapshot.version, snapshot.samples, snapshot.weights.size) == (1, 8, SIZE)
    assert (snapshot.weights == 1.0).all()


def event(number: int, what: str, reason: str = "") -> dict[str, Any]:
    facts = {"number": number, "what": what, "host": "a", "processes": 1, "reason": reason}
    return facts | {"name": "a"}


def happened(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a report without their times."""
    times = {"at_s", "s_ago"}
    return [{key: each[key] for key in each.keys() - times} for each in report["events"]]


def test_a_report_has_what_happened_to_each_member(desk: Desk) -> None:
    desk.join(b"a")
    ticks(desk, 2.0)
    desk.beat(1)
    desk.join(b"a", request_id=1)
    desk.commands(b"a", Leave(2, desk.identities[2]))
    assert happened(desk.report()) == [
        event(0, "joined"),
        event(1, "lost", "silent for 1.6 s"),
        event(2, "back"),
        event(3, "lost", "its connection was lost"),
        event(4, "back"),
        event(5, "left"),
    ]


def test_the_report_of_a_finished_run(desk: Desk) -> None:
    assert desk.report()["state"] == "waiting"
    desk.join(b"a")
    desk.trained(b"a", 1)
    desk.now += 0.25
    report = desk.report()
    records = report.pop("records")
    [worker] = report.pop("workers")
    assert happened(report) == [event(0, "joined")]
    del report["events"]
    pieces = report.pop("recent_leases")
    assert [each[1:3] for each in pieces] == [["", "a"]] * 5
    assert {name: value for name, value in report.items() if value} == {
        "recipe": "digits",
        "consistency": "rounds",
        "state": "finished",
        "term": 7,
        "term_number": 1,
        "voters": [{"name": "", "public_key": "", "votes": 5, "is_bound": True}],
        "server_starts": 1,
        "samples": 80,
        "samples_total": 80,
        "samples_per_update": 8.0,
        "epochs": 2,
        "seconds": pytest.approx(1.0),
        "samples_per_s": pytest.approx(80.0),
        "version": 10,
        "pushes_applied": 10,
        "staleness_histogram": [10],
        "workers_joined": 1,
        "worker_count": 1,
        "next_record": len(records),
        "versions_since_checkpoint": 10,
    }
    assert {name: value for name, value in worker.items() if value} == {
        "id": 1,
        "name": "a",
        "starts": 1,
        "processes": 1,
        "pushes": 10,
        "samples_per_s": pytest.approx(80.0, rel=0.1),
        "heard_s_ago": pytest.approx(0.25),
        "progress_s_ago": pytest.approx(0.25),
    }
    assert records[-1] == {
        "samples": 80,
        "epoch": 2.0,
        "version": 10,
        "loss": 2.0,
        "accuracy": 3 / 8,
        "staleness_mean": 0.0,
        "samples_per_s": pytest.approx(80.0),
        "seconds": pytest.approx(1.0),
        "learning_rate": 0.5,
    }


def test_a_round_counts_the_time_that_its_workers_wait(desk: Desk) -> None:
    desk.join(b"a")
    desk.join(b"b")
    one, other = desk.pull(b"a", 1), desk.pull(b"b", 2)
    desk.now += 1.0
    assert desk.has_to_wait(b"a", desk.a_push(one))
    desk.now += 0.5
    desk.answers(b"b", desk.a_push(other))
    assert desk.report()["waiting_share"] == pytest.approx(0.5 / 3.0)


def test_a_report_names_what_is_on_the_disk(desk: Desk) -> None:
    desk.server.on_disk.checkpoint_version, desk.server.on_disk.checkpoint_error = 7, "full"
    lag = desk.server.on_disk.journal = JournalLag(128, 1.5, 64, "full")
    report = desk.report()
    assert (report["checkpoint_version"], report["checkpoint_error"]) == (7, "full")
    assert report["journal_lag_bytes"] == 64 * report["journal_lag_records"]
    found = (report["journal_lag_bytes"], report["journal_lag_s"])
    assert (*found, report["journal_unwritten_bytes"], report["journal_error"]) == lag


def test_a_worker_that_was_started_again_is_counted_and_says_what_it_has(desk: Desk) -> None:
    desk.join(b"a", name="one", identity=1)
    desk.join(b"b", name="one", identity=1, request_id=7)  # the network was cut
    equipment = Equipment(threads=3, blas="openblas 0.3")
    desk.join(b"c", name="one", identity=2, equipment=equipment)
    report = desk.report()
    assert (report["workers_joined"], report["workers_restarted"]) == (3, 1)
    newest = report["workers"][-1]
    assert (newest["starts"], newest["threads"], newest["blas"]) == (2, 3, "openblas 0.3")


def test_a_heartbeat_returns_with_its_time(desk: Desk) -> None:
    desk.join(b"a")
    assert desk.beat(1, 7.5).sent_s == 7.5


def test_a_report_has_the_time_of_an_exchange(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    assert desk.report()["workers"][0]["round_trip_s"] == 0.0
    desk.now += 1.25
    desk.push(b"a", work, computed_s=1.0)
    assert desk.report()["workers"][0]["round_trip_s"] == 0.25


def test_a_report_fits_into_a_message_whatever_its_workers_are_called() -> None:
    desk = Desk()
    run = desk.run
    widest = "\U0001f40d"
    for number in range(WORKERS_PER_REPORT + 5):
        node = b"%d" % number
        equipment = Equipment(255 * widest, 1, threads=9, blas=128 * widest)
        desk.join(node, name=128 * widest, identity=number, equipment=equipment)
    desk.now += 1.0  # silent, so that all causes are named
    for record in range(RECORDS_PER_REPORT):
        run.metrics.window.samples = run.metrics.window.pushes = 1
        run.metrics.record(record, 40, 1, 0.1)
    [frame] = encode(desk.answers(b"observer", StatusRequest(0))[b"observer"])
    assert len(frame) < MAX_HEADER_BYTES
    report = desk.report()
    assert len(report["workers"]) == WORKERS_PER_REPORT
    assert report["worker_count"] == WORKERS_PER_REPORT + 5


def test_workers_that_round_differently_are_recorded_once_and_warned_of(desk: Desk) -> None:
    haswell = UNKNOWN_EQUIPMENT._replace(blas="openblas (Haswell)", kernels=1)
    zen = UNKNOWN_EQUIPMENT._replace(blas="openblas (Zen)", kernels=2)
    for node, equipment in ((b"a", haswell), (b"b", haswell), (b"c", UNKNOWN_EQUIPMENT)):
        desk.join(node, equipment=equipment)
        assert desk.report()["kernel_warning"] is None
    desk.join(b"d", equipment=zen)
    warning = desk.report()["kernel_warning"]
    assert "openblas (Haswell), openblas (Zen)" in warning
    assert "--bits portable" in warning
    assert RunMetrics.from_json(desk.run.metrics.to_json()).kernels == desk.run.metrics.kernels


def test_a_peer_that_joins_with_ever_new_kernels_does_not_fill_the_journal(desk: Desk) -> None:
    for kernels in range(1, 2 * MAX_KERNELS):
        desk.join(b"%d" % kernels, equipment=UNKNOWN_EQUIPMENT._replace(kernels=kernels))
    assert len(desk.run.metrics.kernels) == MAX_KERNELS
