"""The worker's cycle, in memory, on a clock that is a number."""

import numpy as np
import pytest

from dist_net.errors import (
    JoinRefusedError,
    ProtocolError,
    ServerLostError,
    WorkerRefusedError,
)
from dist_net.training.worker.local_steps import LeaseSteps
from dist_net.training.worker.state import (
    FIRST_TRY_S,
    MAX_TRAVEL_S,
    MAX_TRY_S,
    MAX_WAIT_S,
    Begin,
    Compute,
    Ended,
    Gather,
    Receive,
    Reconnect,
    SendToServer,
    WorkerCommand,
    WorkerState,
)
from dist_net.vector import Vector
from dist_net.wire.messages import (
    Alive,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    SegmentAddress,
    Stop,
    Wait,
    Welcome,
    Work,
)
from naming import naming

JOIN = Join("one", 1, "abc", 5, SegmentAddress(55, 9, b"w"))
WELCOME = Welcome(3, "b7", 4, 0, 0.3, 1.5, None, 1)
GRADIENT = np.zeros(5, np.float32)
UNKNOWN = Refuse("worker 3 is not in this run", may_rejoin=True)


def work(
    request_id: int, lease_id: int, start: int, stop: int, version: int = 0, together: int = 2
) -> Work:
    return Work(request_id, lease_id, 0, start, stop, version, 2, together, 0.0, 1, 8, 2, None)


def join(request_id: int) -> SendToServer:
    return SendToServer(JOIN._replace(request_id=request_id))


def rejoin(request_id: int) -> list[WorkerCommand]:
    return [Reconnect(), join(request_id)]


def pull(request_id: int, worker_id: int = 3) -> SendToServer:
    return SendToServer(Pull(worker_id, 1, request_id))


@pytest.fixture
def joined() -> WorkerState:
    """A worker that has just been welcomed and has asked for work, at second 0."""
    worker = WorkerState(JOIN, "tcp://server:5555")
    assert worker.start(0.0) == [join(1)]
    assert worker.received(WELCOME, 0.0) == [Begin(WELCOME), pull(2)]
    return worker


def push(request_id: int, start: int, stop: int, version: int, slot: int) -> Push:
    """What is sent of one minibatch."""
    return Push(3, 1, request_id, 7, start, (stop,), (version,), 0.5, 3, 0.0, (slot,), ())


def test_the_next_minibatch_is_computed_while_a_push_is_acknowledged(joined: WorkerState) -> None:
    assert joined.received(work(2, 7, 0, 22), 0.0) == []
    assert compute(joined) == [Gather(0, 0, 4), Compute(0, 0, 4, 2, None, 0)]
    assert joined.computed(0.5, 3, None, 0.1) == [
        SendToServer(push(3, 0, 4, 0, 0)),
        Gather(0, 4, 8),
    ]
    for slot, now in ((1, 0.3), (2, 0.4), (3, 0.5)):
        assert joined.can_compute
        start, stop = 4 * slot, 4 * slot + 4
        assert compute(joined) == [Compute(0, start, stop, 2, None, slot)]
        assert joined.computed(0.5, 3, None, now) == [
            SendToServer(push(3 + slot, start, stop, 0, slot)),
            Gather(0, stop, min(stop + 4, 22)),
        ]
    # The server wants two at a time, and twice as many are on their way.
    assert not joined.can_compute
    assert joined.received(work(3, 7, 4, 22, version=1), 0.5) == []
    # In the first slot, as what lay there is taken up.
    assert compute(joined) == [Compute(0, 16, 20, 2, None, 0)]
    # The rest of the lease is shorter than a minibatch.
    assert joined.computed(0.5, 3, None, 0.6) == [
        SendToServer(push(7, 16, 20, 1, 0)),
        Gather(0, 20, 22),
    ]
    assert joined.received(work(6, 7, 16, 22, version=4), 0.7) == []
    assert compute(joined) == [Compute(0, 20, 22, 2, None, 1)]
    assert joined.computed(0.5, 3, None, 0.8) == [SendToServer(push(8, 20, 22, 4, 1))]
    assert not joined.can_compute


def compute(worker: WorkerState) -> list[WorkerCommand]:
    """What the next minibatch needs, if no message arrives before it."""
    commands = worker.next_commands(0.0)
    if commands == [Receive(0)]:
        assert worker.received(None, 0.0) == []
        commands = worker.next_commands(0.0)
    return commands


def next_pushed(worker: WorkerState, now: float, gradient: Vector | None = None) -> list[Message]:
    compute(worker)
    commands = worker.computed(0.5, 3, gradient, now)
    return [each.message for each in commands if isinstance(each, SendToServer)]


def test_gradients_that_follow_each_other_closely_go_in_one_push(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 22), 0.0)
    assert next_pushed(joined, 1.0) == [push(3, 0, 4, 0, 0)]
    assert next_pushed(joined, 1.001) == []
    joined.received(work(3, 7, 4, 22, version=1), 1.001)
    assert next_pushed(joined, 1.002) == [
        Push(3, 1, 4, 7, 4, (8, 12), (0, 1), 1.0, 6, 0.0, (1, 0), ())
    ]
    assert next_pushed(joined, 1.003) == []
    # There is no room for another one, or none is left: then none is waited for.
    assert next_pushed(joined, 1.004) == [
        Push(3, 1, 5, 7, 12, (16, 20), (1, 1), 1.0, 6, 0.0, (2, 3), ())
    ]
    assert not joined.can_compute
    joined.received(work(4, 7, 12, 22, version=3), 1.004)
    assert next_pushed(joined, 1.005) == [push(6, 20, 22, 3, 0)]


def test_a_worker_without_work_waits_until_something_is_due(joined: WorkerState) -> None:
    assert joined.next_commands(0.0) == [Receive(MAX_WAIT_S)]
    assert joined.next_commands(4.4) == [Receive(pytest.approx(0.1))]
    assert joined.received(Wait(2, 0.1), 4.4) == []
    assert joined.next_commands(4.4) == [Receive(pytest.approx(0.1))]
    assert joined.received(None, 4.5) == [pull(3)]


def test_a_worker_that_stood_still_waits_a_moment_for_what_was_sent(joined: WorkerState) -> None:
    assert joined.next_commands(100.0) == [Receive(MAX_WAIT_S)]
    assert joined.received(work(2, 7, 0, 8), 100.1) == []
    assert joined.can_compute


def test_a_worker_joins_again_at_the_end_of_a_wait_for_a_server_that_is_silent(
    joined: WorkerState,
) -> None:
    assert joined.received(None, 4.6, heartbeat=(Alive(2.0, 2, 1), 2.0)) == []
    assert joined.received(None, 6.6, heartbeat=(Alive(2.0, 2, 1), 2.0)) == rejoin(3)


def test_a_worker_looks_for_messages_between_two_minibatches(joined: WorkerState) -> None:
    assert joined.received(work(2, 7, 0, 12), 0.0) == []
    assert joined.next_commands(0.0) == [Gather(0, 0, 4), Compute(0, 0, 4, 2, None, 0)]
    joined.computed(0.5, 3, None, 0.1)
    assert joined.next_commands(0.1) == [Receive(0)]
    assert joined.received(None, 0.1) == []
    assert joined.next_commands(0.1) == [Compute(0, 4, 8, 2, None, 1)]


def test_answers_that_are_there_are_taken_in_before_the_next_minibatch(
    joined: WorkerState,
) -> None:
    joined.received(work(2, 7, 0, 22), 0.0)
    for now in (0.1, 0.2):
        compute(joined)
        joined.computed(0.5, 3, None, now)
    assert joined.received(work(3, 7, 4, 22, version=1), 0.3) == []
    assert joined.next_commands(0.3) == [Compute(0, 8, 12, 2, None, 0)]
    joined.computed(0.5, 3, None, 0.4)
    assert joined.received(work(3, 7, 4, 22, version=1), 0.4) == []
    assert joined.next_commands(0.4) == [Receive(0)]  # the newest weights may be here, too
    assert joined.received(work(5, 7, 12, 22, version=3), 0.4) == []
    assert joined.next_commands(0.4)[0].start == 12


def test_as_many_go_together_as_the_server_says(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 40, together=3), 0.0)
    pushed = [next_pushed(joined, now) for now in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert [[each.stops for each in pushes] for pushes in pushed] == [
        [(4,)], [], [], [(8, 12, 16)], [], [(20, 24)]
    ]  # fmt: skip
    assert not joined.can_compute  # each slot holds a gradient that the server has yet to read
    joined.received(work(5, 7, 24, 40, version=6, together=1), 1.0)
    assert [each.stops for each in next_pushed(joined, 1.0)] == [(28,)]


def test_gradients_that_travel_go_together_too(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 20), 0.0)
    next_pushed(joined, 1.0, GRADIENT)
    next_pushed(joined, 1.0, GRADIENT)
    (both,) = next_pushed(joined, 1.0, GRADIENT + 1)
    assert both.slots == (1, 2)  # the first one is on its way, and stays as it is
    np.testing.assert_array_equal(both.gradients, [GRADIENT, GRADIENT + 1])


@pytest.mark.parametrize(("stop", "depth"), [(8, 2), (22, 1)])
def test_what_is_held_back_is_pushed_once_no_other_may_follow(
    joined: WorkerState, stop: int, depth: int
) -> None:
    joined.received(work(2, 7, 0, 22), 0.0)
    assert next_pushed(joined, 1.0) == [push(3, 0, 4, 0, 0)]
    assert next_pushed(joined, 1.001) == []
    # The rest of the lease was shared, or more workers have joined.
    answer = work(3, 7, 4, stop, version=1, together=depth)._replace(depth=depth)
    assert joined.received(answer, 1.01) == []
    assert joined.next_commands(1.01) == [SendToServer(push(4, 4, 8, 0, 1))]
    assert joined.next_commands(1.01) == [Receive(MAX_WAIT_S)]


def test_what_is_held_back_for_a_lost_lease_is_not_pushed(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 12), 0.0)
    compute(joined)
    joined.computed(np.nan, 0, None, 1.0)
    compute(joined)
    assert joined.computed(0.5, 3, None, 1.001) == [Gather(0, 8, 12)]
    joined.received(work(3, 8, 12, 20, version=1), 1.001)  # the first one was refused
    compute(joined)
    pushes = [each for each in joined.computed(0.5, 3, None, 1.5) if isinstance(each, SendToServer)]
    assert pushes == [SendToServer(Push(3, 1, 4, 8, 12, (16,), (1,), 0.5, 3, 0.0, (0,), ()))]


def test_what_was_prepared_in_vain_is_prepared_anew(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 0.0)
    compute(joined)
    joined.computed(np.nan, 0, GRADIENT, 0.1)
    joined.received(work(3, 8, 0, 8), 0.2)
    assert compute(joined) == [Gather(0, 0, 4), Compute(0, 0, 4, 2, None, 0)]


def test_each_computation_is_pushed_once(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 0.0)
    compute(joined)
    joined.computed(1.0, 1, GRADIENT, 0.1)
    with pytest.raises(RuntimeError, match=naming("computed()", "Compute")):
        joined.computed(1.0, 1, GRADIENT, 0.2)


def test_a_worker_told_to_wait_asks_again_when_it_is_time(joined: WorkerState) -> None:
    assert joined.received(Wait(2, 0.5), 1.0) == []
    assert joined.wakes_at_s == 1.5
    assert joined.tick(1.4) == []
    assert joined.tick(1.5) == [pull(3)]
    assert joined.tick(1.6) == []


def test_a_worker_told_to_stop_leaves_and_does_no_more(joined: WorkerState) -> None:
    assert joined.received(Stop("every epoch is done", finished=True), 1.0) == [
        SendToServer(Leave(3, 1)),
        Ended("every epoch is done", finished=True),
    ]
    assert joined.received(work(2, 7, 0, 8), 1.0) == []
    assert not joined.can_compute
    assert joined.wakes_at_s is None
    assert joined.tick(1000.0) == []


def test_a_worker_may_leave_of_its_own_accord_while_it_computes(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 1.0)
    compute(joined)
    assert joined.leave("interrupted") == [
        SendToServer(Leave(3, 1)),
        Ended("interrupted", finished=False),
    ]
    with pytest.raises(RuntimeError, match=naming("computed()", "Compute")):
        joined.computed(1.0, 1, GRADIENT, 2.0)


def test_a_worker_that_never_joined_has_nothing_to_leave() -> None:
    worker = WorkerState(JOIN, "tcp://server:5555")
    worker.start(0.0)
    assert worker.leave("interrupted") == [Ended("interrupted", finished=False)]


def test_a_worker_that_was_counted_out_joins_again(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 1.0)
    compute(joined)
    joined.computed(1.0, 1, GRADIENT, 2.0)
    assert joined.received(Refuse("silent for too long", may_rejoin=True), 3.0) == rejoin(4)
    welcome = WELCOME._replace(worker_id=4, request_id=4)
    assert joined.received(welcome, 3.0) == [Begin(welcome), pull(5, worker_id=4)]
    # A server that was resumed from an older checkpoint may grant the same lease again.
    joined.received(work(5, 7, 0, 8), 3.0)
    assert compute(joined) == [Gather(0, 0, 4), Compute(0, 0, 4, 2, None, 0)]


def test_what_was_prepared_before_a_worker_joins_again_is_prepared_anew(
    joined: WorkerState,
) -> None:
    joined.received(work(2, 7, 0, 8), 1.0)
    compute(joined)
    assert joined.computed(1.0, 1, GRADIENT, 2.0)[-1] == Gather(0, 4, 8)
    joined.received(Refuse("silent for too long", may_rejoin=True), 3.0)
    # The seed may be another one then.
    joined.received(WELCOME._replace(worker_id=4, request_id=4), 3.0)
    joined.received(work(5, 8, 4, 8), 3.0)
    assert compute(joined) == [Gather(0, 4, 8), Compute(0, 4, 8, 2, None, 0)]


def test_a_refusal_for_good_is_an_error_that_says_where_and_why(joined: WorkerState) -> None:
    with pytest.raises(WorkerRefusedError, match=naming("tcp://server:5555", "not finite")):
        joined.received(Refuse("not finite", may_rejoin=False), 1.0)
    newcomer = WorkerState(JOIN, "tcp://server:5555")
    newcomer.start(0.0)
    with pytest.raises(JoinRefusedError, match="another recipe"):
        newcomer.received(Refuse("another recipe", may_rejoin=False), 1.0)


def test_a_server_that_does_not_answer_is_silent_after_three_timeouts(joined: WorkerState) -> None:
    assert joined.wakes_at_s == 4.5
    assert joined.tick(4.4) == []
    assert joined.tick(4.5) == rejoin(3)


def test_a_slow_answer_is_waited_for_while_heartbeats_are_answered(joined: WorkerState) -> None:
    assert joined.heartbeat_answered(Alive(3.0, 2, 1), 3.0, now=3.3) == []
    assert not joined.is_overdue(7.4)
    assert joined.wakes_at_s == 7.5
    assert joined.tick(7.5) == rejoin(3)


def test_a_request_that_was_lost_is_sent_again_after_the_next_heartbeat(
    joined: WorkerState,
) -> None:
    unheard = Alive(received_id=1, answered_id=1)
    assert joined.heartbeat_answered(unheard, MAX_TRAVEL_S, now=1.1) == []  # on its way
    assert joined.heartbeat_answered(unheard, 1.2, now=1.3) == [pull(2)]
    assert joined.heartbeat_answered(unheard, 1.2, now=1.5) == []  # known already
    assert joined.heartbeat_answered(unheard, 2.4, now=2.5) == [pull(2)]
    assert joined.received(work(2, 7, 0, 8), 2.6) == []
    assert joined.can_compute


def test_pushes_that_were_lost_are_sent_again_in_their_order_as_they_were(
    joined: WorkerState,
) -> None:
    joined.received(work(2, 7, 0, 40), 0.0)
    pushes = [push for now in (0.1, 0.2, 0.3, 0.4) for push in next_pushed(joined, now)]
    assert not joined.can_compute
    repeated = joined.heartbeat_answered(Alive(1.5, received_id=4, answered_id=4), 1.5, now=1.6)
    assert repeated == [SendToServer(push) for push in pushes[2:]]
    assert not joined.can_compute  # the server reads their slots
    joined.received(work(6, 7, 16, 40, version=4), 1.7)
    assert next_pushed(joined, 2.0) == [push(7, 16, 20, 4, 0)]


def test_work_whose_answer_was_lost_is_asked_for_anew(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 0.0)
    assert next_pushed(joined, 0.1) == [push(3, 0, 4, 0, 0)]
    assert next_pushed(joined, 0.2) == [push(4, 4, 8, 0, 1)]
    answered = Alive(1.5, received_id=4, answered_id=4)
    assert joined.heartbeat_answered(answered, 1.5, now=1.6) == [pull(5)]
    assert joined.received(work(4, 8, 20, 28, version=2), 1.7) == []  # it was late, and is not used
    assert not joined.can_compute
    assert joined.received(work(5, 8, 20, 28, version=2), 1.8) == []
    assert compute(joined)[-1].start == 20


def test_an_answer_that_waits_for_other_workers_is_waited_for(joined: WorkerState) -> None:
    waits = Alive(received_id=2, answered_id=1)
    for second in range(1, 1000):
        assert joined.received(None, second + 0.1, (waits, float(second))) == []
    answered = Alive(received_id=2, answered_id=2)
    assert joined.received(None, 1000.1, (answered, 1000.0)) == []  # it may be on its way
    assert joined.received(None, 1000.4, (answered, 1000.3)) == [pull(3)]


def test_tries_to_join_again_are_ever_further_apart_and_have_an_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = WorkerState(JOIN, "tcp://server:5555", rejoin_timeout_s=20.0)
    worker.start(0.0)
    worker.received(WELCOME, 0.0)
    assert worker.tick(4.6) == rejoin(3)
    now = 4.6
    for number, wait_s in enumerate((FIRST_TRY_S, 2.0, 4.0, MAX_TRY_S, 5.0), 4):
        assert worker.wakes_at_s == pytest.approx(now + wait_s)
        now += wait_s + 0.001
        assert worker.tick(now) == rejoin(number)
    with pytest.raises(ServerLostError, match=naming("tcp://server:5555", "24.6 s")):
        worker.tick(now + 3.001)
    [said] = [text for text in caplog.messages if text.startswith("rejoining")]
    assert "tcp://server:5555 reason=it has been silent for 4.6 s" in said
    assert "timeout_s=20" in said


def test_time_in_which_a_worker_stood_still_is_none_of_its_tries(joined: WorkerState) -> None:
    assert joined.tick(4.6) == rejoin(3)
    assert joined.received(None, 10_000.0) == rejoin(4)
    welcome = WELCOME._replace(worker_id=4, request_id=4)
    assert joined.received(welcome, 10_000.5) == [Begin(welcome), pull(5, worker_id=4)]


def test_a_worker_that_is_in_again_has_as_much_patience_as_before(joined: WorkerState) -> None:
    now = 0.0
    for number in range(3, 33, 3):
        now += 5.0
        assert joined.tick(now) == rejoin(number)
        assert joined.wakes_at_s == now + FIRST_TRY_S
        joined.received(WELCOME._replace(worker_id=number, request_id=number), now)
        joined.received(Wait(number + 1, 0.0), now)
        assert joined.tick(now) == [pull(number + 2, worker_id=number)]


def test_a_server_that_lets_a_worker_in_and_says_no_more_is_lost_in_the_end(
    joined: WorkerState,
) -> None:

    def let_in_and_leave_alone() -> None:
        for times in range(1, 1000):
            joined.tick(5.0 * times)
            welcome = WELCOME._replace(worker_id=3 + times, request_id=1 + 2 * times)
            assert joined.received(welcome, 5.0 * times)[0] == Begin(welcome)

    with pytest.raises(ServerLostError):
        let_in_and_leave_alone()


def test_answers_to_a_membership_that_ended_are_dropped(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 1.0)
    next_pushed(joined, 1.0)
    next_pushed(joined, 1.1)
    assert joined.tick(6.0) == rejoin(5)
    assert not joined.can_compute
    assert joined.received(work(3, 7, 4, 8, version=1), 6.1) == []
    assert joined.received(Wait(4, 0.1), 6.1) == []
    assert not joined.can_compute
    assert joined.wakes_at_s == 6.0 + FIRST_TRY_S


def test_a_worker_leaves_while_it_tries_to_join_again(joined: WorkerState) -> None:
    joined.tick(4.6)
    assert joined.leave("interrupted") == [Ended("interrupted", finished=False)]
    assert joined.wakes_at_s is None


def test_another_runs_server_at_the_address_refuses_a_worker_that_comes_back(
    joined: WorkerState,
) -> None:
    joined.tick(4.6)
    with pytest.raises(JoinRefusedError, match=naming("tcp://server:5555", "another recipe")):
        joined.received(Refuse("another recipe", may_rejoin=False), 4.7)


def test_a_step_may_take_as_long_as_it_likes(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 0.0)
    compute(joined)
    joined.computed(0.5, 3, None, 1.0)
    compute(joined)  # it takes an hour, in which the answer to the push arrives
    joined.computed(0.5, 3, None, 3600.0)
    beat = (Alive(3599.9, 3, 3), 3599.9)
    assert joined.next_commands(3600.0) == [Receive(MAX_WAIT_S)]
    assert joined.received(work(3, 7, 4, 8, version=1), 3600.0, beat) == []
    assert joined.received(None, 3600.2, beat) == []
    assert joined.wakes_at_s == 3600.0 + 4.5


def test_a_worker_that_a_restarted_server_does_not_know_joins_again(joined: WorkerState) -> None:
    assert joined.heartbeat_answered(UNKNOWN, 1.0, now=1.3) == rejoin(3)
    # That is the last answer to a heartbeat until the worker is in again.
    assert joined.heartbeat_answered(UNKNOWN, 1.0, now=1.6) == []
    welcome = WELCOME._replace(worker_id=4, request_id=3)
    assert joined.received(welcome, 1.7) == [Begin(welcome), pull(4, worker_id=4)]
    assert joined.received(welcome, 1.7) == []


def test_a_heartbeat_that_is_refused_is_no_matter_during_a_step(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 1.0)
    compute(joined)
    assert joined.heartbeat_answered(UNKNOWN, 1.0, now=1.3) == []
    push = Push(3, 1, 3, 7, 0, (4,), (0,), 1.0, 1, 0.0, (0,), ())
    assert joined.computed(1.0, 1, None, 2.0) == [SendToServer(push), Gather(0, 4, 8)]


def test_an_address_without_a_server_is_an_error_after_the_join_timeout() -> None:
    worker = WorkerState(JOIN, "tcp://nowhere:1", join_timeout_s=5.0)
    worker.start(0.0)
    assert worker.tick(4.9) == []
    with pytest.raises(ServerLostError, match=naming("tcp://nowhere:1", "5.1 s")):
        worker.tick(5.1)


def test_a_first_try_to_join_that_was_lost_is_followed_by_others() -> None:
    worker = WorkerState(JOIN, "tcp://server:5555", join_timeout_s=11.0)
    worker.start(0.0)
    assert worker.tick(MAX_TRY_S - 0.1) == []
    assert worker.tick(MAX_TRY_S) == rejoin(2)
    assert worker.tick(10.2) == rejoin(3)
    welcome = WELCOME._replace(request_id=3)
    assert worker.received(welcome, 10.3) == [Begin(welcome), pull(4)]


def test_nobody_is_missed_while_nothing_is_asked(joined: WorkerState) -> None:
    joined.received(work(2, 7, 0, 8), 1.0)
    assert joined.wakes_at_s is None
    assert joined.tick(1000.0) == []


def test_answers_that_come_twice_are_dropped(joined: WorkerState) -> None:
    assert joined.received(WELCOME, 0.0) == []
    first, second = work(2, 7, 0, 12), work(3, 7, 4, 12, version=1)
    third = work(4, 8, 12, 16, version=2)
    joined.received(first, 1.0)
    compute(joined)
    joined.computed(1.0, 1, GRADIENT, 2.0)
    joined.received(first, 2.0)
    assert joined.wakes_at_s == 6.5  # the push is still unanswered
    joined.received(second, 2.0)
    assert joined.wakes_at_s is None
    compute(joined)
    joined.computed(1.0, 1, GRADIENT, 3.0)
    joined.received(third, 3.0)
    joined.received(second, 3.0)
    assert compute(joined) == [Gather(0, 12, 16), Compute(0, 12, 16, 2, None, 0)]


def test_an_answer_that_no_parameter_server_gives_is_an_error(joined: WorkerState) -> None:
    with pytest.raises(ProtocolError, match=naming("tcp://server:5555", "Alive")):
        joined.received(Alive(), 1.0)


def test_a_message_may_take_as_long_as_its_bytes_do_on_a_network_as_slow_as_was_seen() -> None:
    size = 5_000_000
    gradient = np.zeros(size, np.float32)
    worker = WorkerState(JOIN._replace(vector_size=size, segment=None), "server")
    worker.start(0.0)
    worker.received(WELCOME, 0.0)
    unheard = Alive(received_id=1, answered_id=1)
    assert worker.heartbeat_answered(unheard, 100.0, 100.0) == []  # of the network nothing is known
    worker.received(work(2, 7, 0, 8)._replace(weights=gradient), 100.0)  # which does 200 kB/s
    [lost] = next_pushed(worker, 101.0, gradient)
    # 40 MB in 200 s, or thrice that, and a second.
    unheard = Alive(received_id=2, answered_id=2)
    assert worker.heartbeat_answered(unheard, 101.0 + 600.0, 701.0) == []
    assert worker.heartbeat_answered(unheard, 101.0 + 602.0, 703.0) == [SendToServer(lost)]
    # Or the network does less by now.
    assert worker.heartbeat_answered(unheard, 703.0 + 1200.0, 1903.0) == []
    assert worker.heartbeat_answered(unheard, 703.0 + 1202.0, 1905.0) == [SendToServer(lost)]


def test_a_worker_that_waits_for_work_joins_again_when_its_connection_ends(
    joined: WorkerState,
) -> None:
    joined.received(Wait(2, 0.01), 0.0)
    ended = Refuse("it closed the connection", may_rejoin=True)
    assert joined.received(ended, 0.005) == [Reconnect(), join(3)]


def test_local_steps_are_pushed_as_one_difference_after_all_of_the_lease() -> None:
    worker = WorkerState(JOIN, "tcp://server:5555")
    worker.start(0.0)
    worker.received(WELCOME._replace(optimizer="SGD()"), 0.0)
    lease = work(2, 7, 0, 10, version=4)._replace(depth=1, together=1, learning_rate=0.5)
    worker.received(lease, 0.0)
    (taken,) = compute(worker)
    assert isinstance(taken, Compute)
    assert (taken.start, taken.stop, taken.local) == (0, 10, LeaseSteps(0, 0, 10, 0.5))
    (sent,) = worker.computed(3.0, 6, GRADIENT, 2.5)
    assert isinstance(sent, SendToServer)
    assert isinstance(sent.message, Push)
    assert sent.message[3:] == (7, 0, (10,), (4,), 3.0, 6, 2.5, (0,), (GRADIENT,))
    assert not worker.can_compute
