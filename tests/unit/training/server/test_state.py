"""The server's answers, message by message; the clock is a number and there is no socket."""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dist_net.errors import CheckpointError, DistNetError, SettingError
from dist_net.optim import SGD, Momentum, StepDecay
from dist_net.training.server import metrics as metrics_module
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.journal import JournalLag
from dist_net.training.server.loop import opened_run
from dist_net.training.server.metrics import RECORDS_PER_REPORT, RunMetrics
from dist_net.training.server.run_state import WORKERS_PER_REPORT, RunState
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import (
    RETRY_AFTER_S,
    Forget,
    ParameterServer,
    Record,
    SendToPeer,
    ServerCommand,
)
from dist_net.vector import Vector
from dist_net.wire.codec import encode
from dist_net.wire.fields import MAX_HEADER_BYTES
from dist_net.wire.messages import (
    PIPELINE,
    UNKNOWN_EQUIPMENT,
    Alive,
    Equipment,
    Heartbeat,
    Join,
    Leave,
    Message,
    Pipeline,
    Pull,
    Push,
    Refuse,
    SegmentAddress,
    Shutdown,
    Snapshot,
    SnapshotRequest,
    StatusReport,
    StatusRequest,
    Stop,
    Wait,
    Welcome,
    Work,
)
from naming import naming
from tests.listed_buffers import ListedBuffers

SETTINGS = RunSettings(
    recipe="digits",
    recipe_digest="abc",
    layout=(("weight", (2, 2)), ("bias", (2,))),
    samples=40,
    epochs=2,
    batch_size=4,
    learning_rate=0.5,
    lease_minibatches=2,
)
SIZE = 6
SEGMENT = SegmentAddress(process_id=123, descriptor=4, token=b"t")
OWN_SEGMENT = SegmentAddress(process_id=55, descriptor=9, token=b"w")


def vector(value: float) -> Vector:
    return np.full(SIZE, value, np.float32)


class Desk:
    """A server with a clock, and short words for what a worker says to it."""

    def __init__(
        self, run: RunState | None = None, shared_buffers: int = 2 + 3 * PIPELINE.snapshots
    ) -> None:
        self.buffers = [vector(np.nan) for _ in range(shared_buffers)]
        self.run = run or RunState(SETTINGS, vector(0.0), ListedBuffers(self.buffers))
        self.server = ParameterServer(self.run, SEGMENT, "b7")
        self.now = 100.0
        self.identities: dict[int, int] = {}  # by worker id
        self.requests: Counter[int] = Counter()

    def ask(self, node: bytes, message: Message) -> Any:
        """Return the one answer to a message, which goes back to its node."""
        sends = [
            c for c in self.server.handle(node, message, self.now) if isinstance(c, SendToPeer)
        ]
        assert [send.node for send in sends] == [node]
        return sends[0].message

    def join(self, node: bytes, segment: SegmentAddress | None = OWN_SEGMENT, **facts: Any) -> Any:
        join = Join(node.decode(), hash(node), "abc", SIZE, segment)
        join = join._replace(**facts)
        answer = self.ask(node, join)
        if isinstance(answer, Welcome):
            self.identities[answer.worker_id] = join.identity
            self.requests[answer.worker_id] = join.request_id
        return answer

    def numbered(self, worker_id: int) -> tuple[int, int, int]:
        """Return what the worker's next request begins with."""
        self.requests[worker_id] += 1
        return worker_id, self.identities.get(worker_id, 0), self.requests[worker_id]

    def a_pull(self, worker_id: int) -> Pull:
        return Pull(*self.numbered(worker_id))

    def a_push(self, worker_id: int, work: Work) -> Push:
        stop = min(work.start + 4, work.stop)
        return Push(
            *(*self.numbered(worker_id), work.lease_id, work.start),
            *((stop,), (work.version,), 8.0, 3, 0.0, (), (vector(-1.0),)),
        )

    def pull(self, node: bytes, worker_id: int) -> Any:
        return self.ask(node, self.a_pull(worker_id))

    def push(self, node: bytes, worker_id: int, work: Work, **facts: Any) -> Any:
        return self.ask(node, self.a_push(worker_id, work)._replace(**facts))

    def beat(self, worker_id: int, sent_s: float = 0.0, round_trip_s: float = 0.0) -> Any:
        """From a socket of its own, as the heartbeat of a process whose computation is busy."""
        identity = self.identities.get(worker_id, 0)
        return self.ask(b"heart", Heartbeat(worker_id, sent_s, round_trip_s, identity))

    def leave(self, node: bytes, worker_id: int) -> list[ServerCommand]:
        leave = Leave(worker_id, self.identities[worker_id])
        return self.server.handle(node, leave, self.now)

    def report(self, first_record: int = 0) -> dict[str, Any]:
        status = self.ask(b"observer", StatusRequest(first_record))
        assert isinstance(status, StatusReport)
        report: dict[str, Any] = json.loads(status.report)
        return report


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_worker_is_welcomed_with_what_it_needs(desk: Desk) -> None:
    assert desk.join(b"a") == Welcome(1, "b7", 4, 0, 0.3, 1.5, SEGMENT)
    report = desk.report()
    assert (report["state"], report["incarnation"]) == ("training", "b7")


def test_a_worker_with_another_recipe_is_refused_with_both_digests(desk: Desk) -> None:
    refuse = desk.join(b"a", recipe_digest="xyz")
    assert not refuse.may_rejoin
    assert "has xyz" in refuse.reason
    assert "has abc" in refuse.reason
    refuse = desk.join(b"a", vector_size=7)
    assert not refuse.may_rejoin
    assert "7 parameters, the server's 6" in refuse.reason
    assert desk.server.worker_count == 0


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
    reason = settings.refusal_of(theirs, SIZE)
    assert reason is not None
    assert all(f"has {side}" in reason for side in named)
    assert remedy in reason
    assert settings.refusal_of(settings.recipe_digest, SIZE) is None


def test_weights_are_in_shared_memory_or_travel_with_the_work(desk: Desk) -> None:
    desk.join(b"here")
    desk.join(b"afar", segment=None)
    here, afar = desk.pull(b"here", 1), desk.pull(b"afar", 2)
    assert here.weights is None
    assert (desk.buffers[here.snapshot] == 0).all()
    assert (afar.weights == 0).all()
    for _ in range(3):
        here = desk.push(b"here", 1, here)
    assert (afar.weights == 0).all()  # it may be on its way still
    assert (desk.push(b"afar", 2, afar).weights == 2.0).all()


def test_a_worker_more_than_there_are_buffers_for_is_served_by_frames() -> None:
    desk = Desk(shared_buffers=2 + 2 * PIPELINE.snapshots)
    segments = [desk.join(node).segment for node in (b"a", b"b", b"c")]
    assert segments == [SEGMENT, SEGMENT, None]
    assert desk.pull(b"c", 3).weights is not None
    assert desk.pull(b"c", 3).snapshot == -1
    assert desk.push(b"a", 1, desk.pull(b"a", 1)).version == 1
    desk.leave(b"a", 1)
    assert desk.join(b"d").segment == SEGMENT


def test_a_push_updates_the_weights_and_is_answered_with_the_next_ones(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    assert (work.epoch, work.start, work.stop, work.version) == (0, 0, 8, 0)
    following = desk.push(b"a", 1, work)
    assert (following.lease_id, following.start, following.version) == (work.lease_id, 4, 1)
    assert (desk.buffers[following.snapshot] == 0.5).all()


def test_a_snapshot_in_use_is_left_alone_until_its_worker_pushes(desk: Desk) -> None:
    desk.join(b"slow")
    desk.join(b"fast")
    slow, fast = desk.pull(b"slow", 1), desk.pull(b"fast", 2)
    for _ in range(6):
        fast = desk.push(b"fast", 2, fast)
        assert (desk.buffers[slow.snapshot] == 0).all()
    assert desk.push(b"slow", 1, slow).version == 7
    report = desk.report()
    assert report["staleness_max"] == 6
    assert report["staleness_histogram"] == [6, 0, 0, 1]
    assert report["staleness_mean"] == pytest.approx(6 / 7)


def test_a_push_far_too_stale_is_rejected_and_its_samples_are_done_again() -> None:
    desk = Desk(RunState(replace(SETTINGS, epochs=40), vector(0.0)))
    desk.join(b"slow")
    desk.join(b"fast")
    limit = desk.run.members.staleness_limit
    assert limit == 10 * 2 * PIPELINE.gradients
    slow, fast = desk.pull(b"slow", 1), desk.pull(b"fast", 2)
    while desk.run.store.version < limit:
        fast = desk.push(b"fast", 2, fast)
    slow_base = slow.version
    slow = desk.push(b"slow", 1, slow)
    assert desk.report()["staleness_max"] == limit
    fast = desk.push(b"fast", 2, fast)
    again = desk.push(b"slow", 1, slow, base_versions=(slow_base,))
    assert (again.start, again.stop, again.epoch) == (slow.start, slow.stop, slow.epoch)
    assert (again.lease_id > slow.lease_id, again.version) == (True, limit + 2)
    report = desk.report()
    assert (report["pushes_rejected"], report["staleness_max"]) == (1, limit)
    assert desk.push(b"slow", 1, again).version == limit + 3


def test_requests_delivered_twice_are_answered_and_count_once(desk: Desk) -> None:
    join = Join("a", 5, "abc", SIZE, OWN_SEGMENT)
    worker_id = desk.ask(b"a", join).worker_id
    pull = Pull(worker_id, 5, 1)
    push = desk.a_push(worker_id, desk.ask(b"a", pull))._replace(identity=5, request_id=2)
    assert desk.ask(b"a", push).request_id == 2
    for repeated in (join, pull, push):
        assert desk.server.handle(b"a", repeated, desk.now) == []
    report = desk.report()
    assert (report["samples"], report["version"]) == (4, 1)
    assert (report["workers_joined"], report["duplicates_dropped"]) == (1, 2)


def test_a_push_that_was_lost_is_missed_and_repeated_over_another_connection(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    lost = desk.a_push(1, work)
    following = desk.a_push(1, work._replace(start=4))
    assert desk.server.handle(b"a", following, desk.now) == []
    alive = desk.beat(1)
    assert (alive.received_id, alive.answered_id) == (1, 1)
    desk.ask(b"a, connected again", lost)
    assert desk.ask(b"a, connected again", following).version == 2
    alive = desk.beat(1)
    assert (alive.received_id, alive.answered_id) == (3, 3)


def test_an_answer_that_was_lost_is_given_to_the_next_request(desk: Desk) -> None:
    desk.join(b"a")
    lost = desk.push(b"a", 1, desk.pull(b"a", 1))
    again = desk.pull(b"a, connected again", 1)
    assert again._replace(request_id=lost.request_id) == lost


def test_a_heartbeat_tells_a_worker_whose_answer_has_to_wait_that_its_push_is_there() -> None:
    desk = Desk(RunState(replace(SETTINGS, consistency=Consistency.parse("ssp:0")), vector(0.0)))
    desk.join(b"a")
    desk.join(b"b")
    work = desk.pull(b"a", 1)
    other = desk.pull(b"b", 2)
    [record] = desk.server.handle(b"a", desk.a_push(1, work), desk.now)
    assert isinstance(record, Record)
    for _ in range(100):
        desk.now += 1.0
        alive = desk.beat(1)
        assert (alive.received_id, alive.answered_id) == (2, 1)
        desk.beat(2)
        desk.server.tick(desk.now)
    _, *answers = desk.server.handle(b"b", desk.a_push(2, other), desk.now)
    assert [answer.message.request_id for answer in answers] == [2, 2]
    assert desk.beat(1).answered_id == 2


def test_nobody_speaks_for_another_worker(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    other = desk.identities[1] + 1
    for request in (
        desk.a_push(1, work)._replace(identity=other),
        Pull(1, other, 2),
        Heartbeat(1, 0.0, 0.9, other),
    ):
        assert isinstance(desk.ask(b"somebody else", request), Refuse)
    assert desk.server.handle(b"somebody else", Leave(1, other), desk.now) == []
    [worker] = desk.report()["workers"]
    assert (desk.run.store.version, worker["round_trip_s"]) == (0, 0.0)


@pytest.mark.parametrize(
    "facts",
    [
        {"lease_id": 77},
        {"start": 4, "stops": (8,)},
        {"stops": (12,)},
        {"base_versions": (1,)},
        {"base_versions": (-1,)},
    ],
)
def test_a_push_that_cannot_be_is_dropped_and_counted(desk: Desk, facts: dict[str, Any]) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    assert desk.push(b"a", 1, work, **facts) == work._replace(request_id=2)
    report = desk.report()
    assert report["pushes_rejected"] + report["duplicates_dropped"] == 1
    assert (report["version"], report["samples"]) == (0, 0)


@pytest.mark.parametrize(
    "facts", [{"gradients": (vector(np.nan),)}, {"loss_sum": np.nan}, {"loss_sum": np.inf}]
)
def test_a_gradient_that_is_not_finite_is_refused_and_its_worker_named(
    desk: Desk, facts: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk.join(b"culprit")
    work = desk.pull(b"culprit", 1)
    again = desk.push(b"culprit", 1, work, **facts)
    assert again.lease_id != work.lease_id
    assert (again.start, again.stop, again.version) == (work.start, work.stop, 0)
    assert desk.report()["gradients_refused"] == 1
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "name=culprit" in record.getMessage()


def test_three_refused_gradients_in_a_row_end_a_worker_and_others_get_its_samples(
    desk: Desk,
) -> None:
    desk.join(b"a")
    desk.join(b"b")
    work = desk.pull(b"a", 1)
    for _ in range(2):
        work = desk.push(b"a", 1, work, gradients=(vector(np.nan),))
    work = desk.push(b"a", 1, work)
    for _ in range(2):
        work = desk.push(b"a", 1, work, gradients=(vector(np.inf),))
    bad = desk.a_push(1, work)._replace(gradients=(vector(np.nan),))
    forget, send = desk.server.handle(b"a", bad, desk.now)
    assert forget == Forget(1)
    assert isinstance(send, SendToPeer)
    assert isinstance(send.message, Refuse)
    assert not send.message.may_rejoin
    assert "learning rate" in send.message.reason
    report = desk.report()
    assert (report["gradients_refused"], report["workers_lost"]) == (5, 1)
    others = desk.pull(b"b", 2)
    assert (others.start, others.stop) == (4, 8)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"gradients": ()}, "shapes []"),
        ({"gradients": (np.zeros(SIZE + 1, np.float32),)}, "(7,)"),
        ({"gradients": (vector(1.0), vector(1.0)[1:])}, "(5,)"),
        ({"gradients": (vector(1.0),) * 2}, "[(6,), (6,)]"),
        ({"stops": (4, 8)}, "samples [0, 4, 8]"),
        ({"stops": ()}, "samples [0]"),
        ({"stops": (0,)}, "samples [0, 0]"),
        ({"base_versions": (0, 0)}, "versions [0, 0]"),
    ],
)
def test_a_push_that_does_not_fit_together_ends_its_worker(
    desk: Desk, facts: dict[str, Any], words: str
) -> None:
    desk.join(b"a")
    push = desk.a_push(1, desk.pull(b"a", 1))._replace(**facts)
    forget, send = desk.server.handle(b"a", push, desk.now)
    assert forget == Forget(1)
    assert isinstance(send, SendToPeer)
    assert isinstance(send.message, Refuse)
    assert not send.message.may_rejoin
    assert words in send.message.reason
    assert (desk.run.store.version, desk.report()["pushes_rejected"]) == (0, 1)


def two_minibatches(desk: Desk, worker_id: int, work: Work, **facts: Any) -> Push:
    """Of one lease, the second from weights that were one version newer."""
    one = desk.a_push(worker_id, work)
    both = {
        "stops": (work.start + 4, work.start + 8),
        "base_versions": (work.version, work.version + 1),
        "gradients": (vector(-1.0), vector(-3.0)),
    }
    return one._replace(**(both | facts))


def test_gradients_that_come_together_are_applied_in_turn_and_answered_once() -> None:
    settings = replace(
        SETTINGS, lease_minibatches=5, schedule=StepDecay(every_epochs=0.1, factor=0.5)
    )
    desk = Desk(
        RunState(
            settings,
            vector(0.0),
            ListedBuffers([vector(np.nan) for _ in range(2 + PIPELINE.snapshots)]),
        )
    )
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    work = desk.push(b"a", 1, work)
    # The learning rate halves after every fourth sample: 0.5, then 0.25 and 0.125.
    answer = desk.ask(b"a", two_minibatches(desk, 1, work, base_versions=(0, 1)))
    assert (answer.start, answer.stop, answer.version) == (12, 20, 3)
    assert desk.run.store.weights[0] == 0.5 * 1 + 0.25 * 1 + 0.125 * 3
    report = desk.report()
    assert (report["pushes_applied"], report["samples"]) == (3, 12)
    assert report["staleness_histogram"] == [1, 2]
    assert report["workers"][0]["pushes"] == 3


def test_of_gradients_that_come_together_all_are_refused_for_one(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    gradients = vector(1.0), vector(np.nan)
    bad = two_minibatches(desk, 1, work, base_versions=(0, 0), gradients=gradients)
    again = desk.ask(b"a", bad)
    assert (again.start, again.stop, again.version) == (0, 8, 0)
    assert again.lease_id != work.lease_id
    assert (desk.run.store.weights == 0).all()
    assert (desk.report()["gradients_refused"], desk.report()["samples"]) == (1, 0)
    assert desk.ask(b"a", two_minibatches(desk, 1, again, base_versions=(0, 0))).version == 2


def test_the_more_workers_there_are_the_fewer_gradients_each_has_on_their_way() -> None:
    desk = Desk(RunState(replace(SETTINGS, epochs=10), vector(0.0)))
    told = []
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    for joined in range(2, 11):
        told.append((work.depth, work.together))
        desk.join(b"%d" % joined, identity=joined)
        work = desk.push(b"a", 1, work)
    assert told == [(2, 3)] * 2 + [(2, 1)] * 6 + [(1, 1)]
    assert desk.run.members.staleness_limit == 10 * 10
    for left in range(3, 11):
        desk.leave(b"%d" % left, left)
    work = desk.push(b"a", 1, work)
    assert (work.depth, work.together) == (2, 3)


def dismissed(desk: Desk, node: bytes, worker_id: int) -> None:
    work = desk.pull(node, worker_id)
    bad = desk.a_push(worker_id, work)._replace(gradients=(vector(1.0)[1:],))
    forget, _ = desk.server.handle(node, bad, desk.now)
    assert forget == Forget(worker_id)


def overdue(desk: Desk, _: bytes, worker_id: int) -> None:
    commands: list[ServerCommand] = []
    for _ in range(5):
        desk.now += 0.4
        commands += desk.server.tick(desk.now)
    assert commands == [Forget(worker_id)]


def leaves(desk: Desk, node: bytes, worker_id: int) -> None:
    assert desk.leave(node, worker_id) == [Forget(worker_id)]


def joined_elsewhere(desk: Desk, _: bytes, worker_id: int) -> None:
    desk.join(b"again", identity=desk.identities[worker_id], request_id=1000)
    leaves(desk, b"again", worker_id + 1)


@pytest.mark.parametrize("gone", [dismissed, overdue, leaves, joined_elsewhere])
def test_snapshots_of_a_worker_that_is_gone_are_written_again(
    gone: Callable[[Desk, bytes, int], None],
) -> None:
    settings = replace(SETTINGS, epochs=1000)
    buffers = [vector(np.nan) for _ in range(2 + PIPELINE.snapshots)]
    desk = Desk(RunState(settings, vector(0.0), ListedBuffers(buffers)))
    for number in range(30):
        node = b"%d" % number
        welcome = desk.join(node)
        assert welcome.segment is not None
        first = work = desk.pull(node, welcome.worker_id)
        for _ in range(3):  # from the oldest snapshot, so that all of them stay pinned
            work = desk.push(node, welcome.worker_id, work, base_versions=(first.version,))
        gone(desk, node, welcome.worker_id)
    assert desk.run.store.version == 90


@pytest.mark.parametrize("max_ahead", [0, 1, 3])
def test_a_worker_may_be_exactly_as_many_steps_ahead_as_ssp_says(max_ahead: int) -> None:
    consistency = Consistency.parse(f"ssp:{max_ahead}")
    desk = Desk(RunState(replace(SETTINGS, epochs=10, consistency=consistency), vector(0.0)))
    desk.join(b"fast")
    desk.join(b"slow")
    fast, slow = desk.pull(b"fast", 1), desk.pull(b"slow", 2)
    for _ in range(max_ahead):
        fast = desk.push(b"fast", 1, fast)
    [record] = desk.server.handle(b"fast", desk.a_push(1, fast), desk.now)  # has to wait
    assert isinstance(record, Record)
    _, *answers = desk.server.handle(b"slow", desk.a_push(2, slow), desk.now)
    assert {answer.node for answer in answers} == {b"fast", b"slow"}


def test_a_silent_worker_is_lost_and_its_samples_go_to_others(desk: Desk) -> None:
    desk.join(b"silent")
    desk.join(b"alive")
    lost = desk.pull(b"silent", 1)
    desk.now += 1.0
    assert isinstance(desk.beat(2), Alive)
    desk.now += 0.6
    assert desk.server.tick(desk.now) == [Forget(1)]
    assert desk.server.tick(desk.now) == []
    work = desk.pull(b"alive", 2)
    assert (work.epoch, work.start, work.stop) == (lost.epoch, lost.start, lost.stop)
    assert desk.report()["workers_lost"] == 1


def test_a_lost_workers_late_push_is_rejected_and_it_may_join_again(desk: Desk) -> None:
    desk.join(b"late")
    work = desk.pull(b"late", 1)
    desk.now += 2.0
    desk.server.tick(desk.now)
    for answer in (
        desk.push(b"late", 1, work),
        desk.pull(b"late", 1),
        desk.beat(1),
    ):
        assert isinstance(answer, Refuse)
        assert answer.may_rejoin
    assert desk.report()["pushes_rejected"] == 1
    assert desk.join(b"late").worker_id == 2


def test_a_worker_that_joins_again_ends_the_membership_that_it_had(desk: Desk) -> None:
    """Its pushes that come after that would be read where the worker writes new gradients."""
    desk.join(b"before", identity=77)
    work = desk.pull(b"before", 1)
    again = Join("again", 77, "abc", SIZE, OWN_SEGMENT, request_id=2)
    forget, welcome = desk.server.handle(b"after", again, desk.now)
    assert forget == Forget(1)
    assert (welcome.message.worker_id, welcome.message.request_id) == (2, 2)
    desk.identities[2], desk.requests[2] = 77, 2
    assert desk.push(b"before", 1, work).may_rejoin
    assert desk.run.store.version == 0
    assert desk.pull(b"after", 2).start == work.start
    assert len(desk.report()["workers"]) == 1


def test_a_worker_that_leaves_hands_its_samples_on(desk: Desk) -> None:
    desk.join(b"a")
    desk.join(b"b")
    work = desk.pull(b"a", 1)
    assert desk.leave(b"a", 1) == [Forget(1)]
    assert desk.leave(b"a", 1) == []
    assert desk.pull(b"b", 2).start == work.start
    assert desk.report()["workers_lost"] == 0


def test_a_message_that_no_server_receives_is_dropped(desk: Desk) -> None:
    assert desk.server.handle(b"a", Wait(1, 1.0), desk.now) == []


def trained(desk: Desk, node: bytes, worker_id: int, samples_at_most: int = 10**9) -> Any:
    """Let one worker train, a tenth of a second for each push; its last answer."""
    answer = desk.pull(node, worker_id)
    while isinstance(answer, Work) and desk.run.ledger.applied_samples < samples_at_most:
        desk.now += 0.1
        answer = desk.push(node, worker_id, answer)
    return answer


def test_at_the_end_every_worker_is_told_and_counted_out(desk: Desk) -> None:
    desk.join(b"a")
    desk.join(b"b")
    assert trained(desk, b"a", 1) == Stop("every epoch is done", finished=True)
    assert desk.pull(b"b", 2) == Stop("every epoch is done", finished=True)
    assert desk.report()["state"] == "finished"
    assert desk.server.worker_count == 2
    desk.leave(b"a", 1)
    desk.now += 2.0
    assert desk.server.tick(desk.now) == [Forget(2)]
    assert desk.report()["workers_lost"] == 0


def test_what_a_slow_worker_holds_at_the_end_is_done_by_an_idle_one(desk: Desk) -> None:
    for node in (b"slow", b"fast", b"third"):
        desk.join(node)
    slow = desk.pull(b"slow", 1)
    fast = trained(desk, b"fast", 2, samples_at_most=SETTINGS.samples_total - 8)
    assert (fast.epoch, fast.start, fast.stop) == (slow.epoch, slow.start, slow.stop)
    assert desk.pull(b"third", 3) == Wait(1, RETRY_AFTER_S)  # two at a time are enough
    fast = desk.push(b"fast", 2, fast)
    again = desk.push(b"slow", 1, slow)
    assert (again.start, again.version) == (4, desk.run.store.version)
    assert again.lease_id > fast.lease_id
    assert desk.push(b"slow", 1, slow).lease_id == again.lease_id
    assert desk.push(b"slow", 1, again) == Stop("every epoch is done", finished=True)
    report = desk.report()
    assert (report["samples"], report["duplicates_dropped"]) == (SETTINGS.samples_total, 2)


def test_a_shutdown_stops_the_workers_and_applies_nothing_more(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    status = desk.ask(b"observer", Shutdown("interrupted"))
    assert json.loads(status.report)["state"] == "stopping"
    assert desk.push(b"a", 1, work) == Stop("interrupted", finished=False)
    report = desk.report()
    assert (report["samples"], report["pushes_rejected"]) == (0, 1)
    assert desk.server.stop_reason == "interrupted"


def test_an_observer_gets_a_snapshot_of_its_own(desk: Desk) -> None:
    desk.join(b"a")
    work = desk.push(b"a", 1, desk.pull(b"a", 1))
    snapshot = desk.ask(b"observer", SnapshotRequest())
    assert isinstance(snapshot, Snapshot)
    desk.push(b"a", 1, work)
    assert (snapshot.version, snapshot.samples) == (1, 4)
    assert (snapshot.weights == 0.5).all()


def test_the_report_of_a_finished_run(desk: Desk) -> None:
    assert desk.report()["state"] == "waiting"
    desk.join(b"a")
    trained(desk, b"a", 1)
    desk.now += 0.25
    report = desk.report()
    records = report.pop("records")
    [worker] = report.pop("workers")
    assert report == {
        "recipe": "digits",
        "consistency": "async",
        "state": "finished",
        "incarnation": "b7",
        "server_starts": 1,
        "samples": 80,
        "samples_total": 80,
        "epochs": 2,
        "seconds": pytest.approx(2.0),
        "samples_per_s": pytest.approx(40.0),
        "version": 20,
        "pushes_applied": 20,
        "pushes_rejected": 0,
        "duplicates_dropped": 0,
        "gradients_refused": 0,
        "staleness_mean": 0.0,
        "staleness_max": 0,
        "staleness_histogram": [20],
        "workers_joined": 1,
        "workers_lost": 0,
        "workers_restarted": 0,
        "worker_count": 1,
        "samples_done_again": 0,
        "checkpoints_failed": 0,
        "journal_failures": 0,
        "bytes_received_per_sample": 0.0,
        "bytes_sent_per_sample": 0.0,
        "next_record": len(records),
        "checkpoint_version": None,
        "checkpoint_error": None,
        "versions_since_checkpoint": 20,
        "journal_lag_records": 0,
        "journal_lag_bytes": 0,
        "journal_lag_s": 0.0,
        "journal_unwritten_bytes": 0,
        "journal_error": None,
        "staleness_warning": None,
        "link_warning": None,
        "resume_warnings": [],
    }
    assert worker == {
        "id": 1,
        "name": "a",
        "starts": 1,
        **UNKNOWN_EQUIPMENT._asdict(),
        "processes": 1,
        "pushes": 20,
        "samples_per_s": pytest.approx(40.0, rel=0.1),
        "staleness_mean": 0.0,
        "round_trip_s": 0.0,
        "heard_s_ago": pytest.approx(0.25),
        "progress_s_ago": pytest.approx(0.25),
        "speed_share": None,
        "is_slow": False,
        "slow_because": [],
    }
    assert records[-1] == {
        "samples": 80,
        "epoch": 2.0,
        "version": 20,
        "loss": 2.0,
        "accuracy": 0.75,
        "staleness_mean": 0.0,
        "samples_per_s": pytest.approx(40.0),
        "seconds": pytest.approx(2.0),
        "learning_rate": 0.5,
    }


def test_a_report_says_which_checkpoint_is_on_disk_and_whether_a_newer_one_failed(
    desk: Desk,
) -> None:
    desk.server.checkpoint_written(7)
    desk.server.checkpoint_failed("no space left")
    report = desk.report()
    assert (report["checkpoint_version"], report["checkpoint_error"]) == (7, "no space left")
    desk.server.checkpoint_written(9)
    report = desk.report()
    assert (report["checkpoint_version"], report["checkpoint_error"]) == (9, None)
    assert report["checkpoints_failed"] == 1


def test_a_report_says_how_far_the_disk_is_behind_the_journal_and_how_often_that_failed(
    desk: Desk,
) -> None:
    for lag in (JournalLag(128, 1.5, 64, "full"), JournalLag(192, 2.5, 128, "full"), JournalLag()):
        desk.server.journal_lags(lag)
        report = desk.report()
        assert report["journal_lag_bytes"] == 64 * report["journal_lag_records"]
        told = (report["journal_lag_bytes"], report["journal_lag_s"])
        assert (*told, report["journal_unwritten_bytes"], report["journal_error"]) == lag
    assert report["journal_failures"] == 1


def test_a_worker_that_was_started_again_is_counted_and_says_what_it_has(desk: Desk) -> None:
    desk.join(b"a", name="one", identity=1)
    desk.join(b"b", name="one", identity=1, request_id=7)  # the network was cut
    equipment = Equipment(threads=3, blas="openblas 0.3")
    desk.join(b"c", name="one", identity=2, equipment=equipment)
    report = desk.report()
    assert (report["workers_joined"], report["workers_restarted"]) == (3, 1)
    newest = report["workers"][-1]
    assert (newest["starts"], newest["threads"], newest["blas"]) == (2, 3, "openblas 0.3")


def test_a_heartbeat_comes_back_with_its_time_and_tells_how_long_the_last_one_took(
    desk: Desk,
) -> None:
    desk.join(b"a")
    assert desk.beat(1, 7.5).sent_s == 7.5
    assert desk.report()["workers"][0]["round_trip_s"] == 0.0
    desk.beat(1, 8.5, 0.05)
    assert desk.report()["workers"][0]["round_trip_s"] == 0.05


def test_a_report_fits_into_a_message_whatever_its_workers_are_called() -> None:
    run = RunState(SETTINGS, vector(0.0), ListedBuffers([vector(0.0)] * 3))
    desk = Desk(run)
    widest = "\U0001f40d"
    for number in range(WORKERS_PER_REPORT + 5):
        node = b"%d" % number
        equipment = Equipment(255 * widest, 1, threads=9, blas=128 * widest)
        desk.join(node, None, name=128 * widest, identity=number, equipment=equipment)
    desk.now += 1.0  # silent, so that all causes are named
    for record in range(RECORDS_PER_REPORT):
        run.metrics.window.samples = run.metrics.window.pushes = 1
        run.metrics.record(record, 40, 1, 0.1)
    [frame] = encode(desk.ask(b"observer", StatusRequest(0)))
    assert len(frame) < MAX_HEADER_BYTES
    report = desk.report()
    assert len(report["workers"]) == WORKERS_PER_REPORT
    assert report["worker_count"] == WORKERS_PER_REPORT + 5


def test_staleness_is_counted_in_so_many_buckets_at_most() -> None:
    metrics = RunMetrics()
    for staleness in (0, 1, 2, 3, 4, 7, 8, 2**14 - 1, 2**14, 2**40):
        metrics.push_applied(1, 0.0, 0, [staleness], 0.0)
    assert metrics.staleness_buckets == [1, 1, 2, 2, 1, *[0] * 9, 1, 2]


def test_short_epochs_have_few_records() -> None:
    metrics = RunMetrics()
    metrics.lease_granted(0.0)
    for push in range(1, 100_001):  # each of them an epoch
        metrics.push_applied(32, 1.0, 0, [0], 0.006 * push)
        if metrics.record_due(32 * push, 32):
            metrics.record(32 * push, 32, push, 0.1)
    assert metrics.records[-1]["seconds"] > 0.99 * 600
    assert 3000 < metrics.next_record < 6000
    assert [each["version"] for each in metrics.records][:3] == [1, 2, 3]


def test_counters_go_on_from_those_of_another_release() -> None:
    state = RunMetrics(pushes_applied=7).to_json()
    del state["journal_failures"]
    metrics = RunMetrics.from_json(state | {"unknown_counter": 1})
    assert (metrics.pushes_applied, metrics.journal_failures) == (7, 0)


def test_there_are_twenty_records_an_epoch_and_an_observer_asks_for_the_new_ones() -> None:
    desk = Desk(RunState(replace(SETTINGS, samples=4000, batch_size=4), vector(0.0)))
    desk.join(b"a")
    trained(desk, b"a", 1)
    report = desk.report()
    assert report["next_record"] == 40
    assert [record["samples"] for record in report["records"]] == list(range(200, 8001, 200))
    assert len(desk.report(first_record=38)["records"]) == 2
    assert desk.report(first_record=40)["records"] == []


def test_a_checkpoint_stays_small_however_long_the_run_and_its_records_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_module, "RECORD_SHARE", 0.0)
    settings = replace(SETTINGS, samples=20, batch_size=1, epochs=600, lease_minibatches=1)
    desk = Desk(RunState(settings, vector(0.0)))
    desk.join(b"a")
    trained(desk, b"a", 1, samples_at_most=100 * 20)
    sizes = [len(json.dumps(desk.run.checkpoint().counters))]
    trained(desk, b"a", 1)
    sizes.append(len(json.dumps(desk.run.checkpoint().counters)))
    assert sizes[1] < 1.1 * sizes[0]
    assert desk.report()["records"][0]["samples"] == 2001  # 10,000 are in memory
    assert desk.report(first_record=11_990)["next_record"] == 12_000

    resumed = Desk(RunState.resumed(settings, desk.run.checkpoint()))
    report = resumed.report(first_record=11_999)
    assert [record["samples"] for record in report["records"]] == [12_000]
    assert resumed.report()["records"][0]["samples"] == 11_001  # 1,000 are in the checkpoint
    assert resumed.report(first_record=12_000)["records"] == []


def test_the_learning_rate_follows_the_schedule() -> None:
    settings = replace(SETTINGS, schedule=StepDecay(every_epochs=1, factor=0.1))
    desk = Desk(RunState(settings, vector(0.0)))
    desk.join(b"a")
    trained(desk, b"a", 1)
    rates = [record["learning_rate"] for record in desk.report()["records"]]
    assert rates[0] == 0.5
    assert rates[-1] == pytest.approx(0.05)
    np.testing.assert_allclose(desk.run.store.weights, 10 * 0.5 + 10 * 0.05, rtol=1e-6)


def test_a_resumed_run_ends_as_one_that_was_never_interrupted() -> None:
    settings = replace(SETTINGS, optimizer=Momentum(0.9))
    whole = Desk(RunState(settings, vector(0.0)))
    whole.join(b"a")
    trained(whole, b"a", 1)

    first = Desk(RunState(settings, vector(0.0)))
    first.join(b"a")
    # In mid-lease, in mid-epoch.
    trained(first, b"a", 1, samples_at_most=52)
    checkpoint = first.run.checkpoint()
    trained(first, b"a", 1)
    second = Desk(RunState.resumed(settings, checkpoint))
    second.now = 7000.0
    second.join(b"a")
    trained(second, b"a", 1)

    np.testing.assert_array_equal(second.run.store.weights, whole.run.store.weights)
    expected, report = whole.report(), second.report()
    for name in ("samples", "version", "pushes_applied", "staleness_histogram", "next_record"):
        assert report[name] == expected[name]
    assert report["seconds"] == pytest.approx(expected["seconds"])
    assert report["workers_joined"] == 2


def test_a_server_refuses_what_is_meant_for_a_former_incarnation(desk: Desk) -> None:
    """By the worker's id alone: the lease and the version may be ones that it knows."""
    checkpoint = desk.run.checkpoint()
    desk.join(b"a")
    before = desk.pull(b"a", 1)
    resumed = Desk(RunState.resumed(SETTINGS, checkpoint, first_worker_id=1000))
    assert resumed.join(b"b").worker_id == 1000
    now = resumed.pull(b"b", 1000)
    assert (now.lease_id, now.start, now.version) == (before.lease_id, before.start, before.version)
    for node in (b"a", b"b"):
        for answer in (
            resumed.push(node, 1, before),
            resumed.pull(node, 1),
            resumed.beat(1),
        ):
            assert isinstance(answer, Refuse)
            assert answer.may_rejoin
    report = resumed.report()
    assert (report["version"], report["pushes_rejected"], report["server_starts"]) == (0, 2, 2)


def test_two_servers_never_give_the_same_id() -> None:
    ids = set()
    for _ in range(20):
        with opened_run(SETTINGS, lambda: vector(0.0), None) as (run, _):
            ids.add(run.members.join(b"a", "one", 1, 0.0).worker_id)
    assert len(ids) == 20


def test_the_last_arrays_of_a_layout_may_be_averages() -> None:
    """A push brings what was observed where they lie, and a resumed run goes on with them."""
    settings = replace(SETTINGS, optimizer=Momentum(0.9), momenta=(0.75,))
    assert (settings.vector_size, settings.parameter_count) == (6, 4)
    desk = Desk(RunState(settings, vector(0.0)))
    desk.join(b"a")
    gradient = np.array([1, 1, 1, 1, 8, -4], np.float32)
    work = desk.pull(b"a", 1)
    desk.push(b"a", 1, work, gradients=(gradient,))
    expected = np.array([-0.5, -0.5, -0.5, -0.5, 2, -1], np.float32)
    np.testing.assert_array_equal(desk.run.store.weights, expected)

    checkpoint = desk.run.checkpoint()
    assert checkpoint.optimizer_state["velocity"].shape == (4,)
    other = Desk(RunState.resumed(settings, checkpoint))
    other.join(b"a")
    other.push(b"a", 1, other.pull(b"a", 1), gradients=(gradient,))
    np.testing.assert_array_equal(other.run.store.weights[4:], [2 + 0.25 * 6, -1 - 0.25 * 3])
    np.testing.assert_allclose(other.run.store.weights[:4], -0.5 - 0.5 * 1.9)


def test_a_gradient_alone_is_too_short_for_a_model_with_averages() -> None:
    desk = Desk(RunState(replace(SETTINGS, momenta=(0.75,)), vector(0.0)))
    assert desk.join(b"b", vector_size=4).reason.startswith("the worker's model has 4 parameters")
    desk.join(b"a")
    answer = desk.server.handle(
        b"a", desk.a_push(1, desk.pull(b"a", 1))._replace(gradients=(vector(1.0)[:4],)), desk.now
    )
    assert re.search(naming("shapes [(4,)]", "shape (6,)"), answer[-1].message.reason)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_push_with_an_observation_that_is_not_finite_is_refused(bad: float) -> None:
    desk = Desk(RunState(replace(SETTINGS, momenta=(0.75,)), vector(0.0)))
    desk.join(b"a")
    gradient = vector(1.0)
    gradient[-1] = bad
    desk.push(b"a", 1, desk.pull(b"a", 1), gradients=(gradient,))
    assert (desk.run.store.weights == 0).all()
    assert desk.report()["gradients_refused"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"samples": 41},
        {"optimizer": Momentum()},
        {"layout": (("weight", (2, 2)), ("bias", (1, 2)))},
    ],
)
def test_a_run_is_not_resumed_from_a_checkpoint_of_another(change: dict[str, Any]) -> None:
    checkpoint = RunState(SETTINGS, vector(0.0)).checkpoint()
    with pytest.raises(CheckpointError, match=naming("'digits'", "expected")):
        RunState.resumed(replace(SETTINGS, **change), checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 0},
        {"epochs": 0},
        {"epochs": 2.5},
        {"batch_size": -1},
        {"lease_minibatches": 0},
        {"seed": -1},
        {"pipeline": Pipeline(depth=0)},
        {"pipeline": Pipeline(grouped=4)},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"heartbeat_interval_s": 0.0},
        {"heartbeat_timeout_s": 0.5},
        {"layout": ()},
        {"layout": (("a", (1,)), ("a", (1,)))},
        {"layout": (("a", (0,)),)},
        {"layout": (("optimizer/velocity", (1,)),)},
        {"momenta": (1.0,)},
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


def test_settings_are_kept_as_json() -> None:
    kept = json.loads(json.dumps(replace(SETTINGS, optimizer=SGD()).to_json()))
    assert kept["optimizer"] == "SGD()"
    assert kept["samples"] == 40


def test_a_gradient_that_is_not_finite_is_refused_before_it_gets_into_a_round() -> None:
    run_settings = replace(SETTINGS, consistency=Consistency.parse("bsp:2"))
    desk = Desk(RunState(run_settings, vector(0.0)))
    desk.join(b"good")
    desk.join(b"bad")
    good, bad = desk.pull(b"good", 1), desk.pull(b"bad", 2)
    assert desk.server.handle(b"good", desk.a_push(1, good), desk.now) == []
    again = desk.push(b"bad", 2, bad, gradients=(vector(np.nan),))
    assert (again.start, again.version) == (bad.start, 0)
    record, *answers = desk.server.handle(b"bad", desk.a_push(2, again), desk.now)
    assert isinstance(record, Record)
    assert [(each.version, each.start, each.averaged) for each in record.applied] == [
        (1, good.start, True),
        (1, bad.start, True),
    ]
    assert [answer.message.version for answer in answers] == [1, 1]
    report = desk.report()
    assert (report["gradients_refused"], report["samples"], report["pushes_applied"]) == (1, 8, 2)


def test_a_difference_from_other_weights_never_enters_the_momentum() -> None:
    run_settings = replace(SETTINGS, consistency=Consistency.parse("local:1:1"))
    desk = Desk(
        RunState(run_settings, vector(0.0), ListedBuffers([vector(np.nan) for _ in range(20)]))
    )
    desk.join(b"a")
    first = desk.pull(b"a", 1)
    second = desk.push(b"a", 1, first, gradients=(vector(1.0),))
    assert second.version == 1
    weights = desk.run.store.weights.copy()
    again = desk.push(b"a", 1, second, gradients=(vector(1.0),), base_versions=(0,))
    assert (again.lease_id, again.version) == (second.lease_id, 1)
    np.testing.assert_array_equal(desk.run.store.weights, weights)
    assert desk.report()["pushes_rejected"] == 1


def test_a_round_that_leaves_no_finite_weights_is_done_again_until_workers_are_told_why() -> None:
    run_settings = replace(SETTINGS, consistency=Consistency.parse("bsp:2"), learning_rate=1e38)
    desk = Desk(RunState(run_settings, vector(0.0)))
    desk.join(b"a")
    answer = desk.pull(b"a", 1)
    pushes = 0
    while isinstance(answer, Work):
        answer = desk.push(b"a", 1, answer, gradients=(vector(-1e5),))
        pushes += 1
    assert pushes == 2 * 3
    assert isinstance(answer, Refuse)
    assert "diverges" in answer.reason
    assert desk.run.store.version == desk.report()["samples"] == 0


def test_a_run_warns_while_staleness_costs_accuracy_and_says_what_to_do() -> None:
    desk = Desk(RunState(replace(SETTINGS, epochs=10), vector(0.0)))
    desk.join(b"a")
    work = desk.pull(b"a", 1)
    while desk.run.store.version < 13:
        assert desk.report()["staleness_warning"] is None
        work = desk.push(b"a", 1, work, base_versions=(0,))
    work = desk.push(b"a", 1, work, base_versions=(0,))
    warning = desk.report()["staleness_warning"]
    assert "13 updates old" in warning
    assert "--consistency auto" in warning
    desk.push(b"a", 1, work)
    assert desk.report()["staleness_warning"] is None


def test_a_run_of_rounds_goes_on_with_rounds_as_large() -> None:
    rounds = {
        text: replace(SETTINGS, consistency=Consistency.parse(text)) for text in ("bsp:2", "bsp:3")
    }
    checkpoint = RunState(rounds["bsp:2"], vector(0.0)).checkpoint()
    RunState.resumed(rounds["bsp:2"], checkpoint)
    for other in (rounds["bsp:3"], SETTINGS):
        with pytest.raises(CheckpointError, match=naming("bsp:2")):
            RunState.resumed(other, checkpoint)
    checkpoint = RunState(SETTINGS, vector(0.0)).checkpoint()
    RunState.resumed(replace(SETTINGS, consistency=Consistency.parse("ssp:4")), checkpoint)
    with pytest.raises(CheckpointError, match=naming("consistency=bsp:2", "async")):
        RunState.resumed(rounds["bsp:2"], checkpoint)
