"""The worker's cycle, in memory, on a clock that is a number."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from dist_net.errors import (
    JoinRefusedError,
    ProtocolError,
    ServerLostError,
    WorkerRefusedError,
)
from dist_net.training.worker.cycle import (
    FIRST_TRY_S,
    MAX_TRAVEL_S,
    MAX_TRY_S,
    MAX_WAIT_S,
    Begin,
    Compute,
    Ended,
    Phase,
    Receive,
    Reconnect,
    SendToServer,
    WorkerCommand,
    WorkerCycle,
)
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import (
    Alive,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    SegmentAddress,
    StepSettings,
    Stop,
    Welcome,
    Work,
)
from naming import naming

JOIN = Join("one", 1, "abc", 5, shares_memory=True)
STEPS = StepSettings(0, 4, 2, "SGD()", 0.5)
WELCOME = Welcome(3, 7, STEPS, 0.3, 1.5, SegmentAddress(55, 9, b"w"), 1)
STATE = np.zeros(6, np.float32)
UNKNOWN = Refuse("worker 3 is not in this run", may_rejoin=True)
STOP = Stop("every epoch is done", finished=True)
LEAVING = [SendToServer(Leave(3, 1)), Ended("every epoch is done", finished=True)]
LEASE = Compute(LeaseSteps(0, 0, 8, 16, 8, 2, 2), None)


def work(request_id: int, lease_id: int = 7) -> Work:
    return Work(3, request_id, lease_id, LEASE.lease, None)


def join(request_id: int) -> SendToServer:
    return SendToServer(JOIN._replace(request_id=request_id))


def rejoin(request_id: int) -> list[WorkerCommand]:
    return [Reconnect(), join(request_id)]


def pull(request_id: int, worker_id: int = 3) -> SendToServer:
    return SendToServer(Pull(worker_id, 1, request_id))


def push(request_id: int, computed_s: float, lease_id: int = 7) -> SendToServer:
    return SendToServer(Push(3, 1, request_id, lease_id, 0.5, 3, computed_s, None))


def joining() -> WorkerCycle:
    worker = WorkerCycle(JOIN, "tcp://server:5555")
    assert worker.start(0.0) == [join(1)]
    return worker


def requesting() -> WorkerCycle:
    """Return a worker that has just been welcomed and has requested work, at second 0."""
    worker = joining()
    assert worker.received(WELCOME, 0.0) == [Begin(WELCOME), pull(2)]
    return worker


def computing() -> WorkerCycle:
    worker = requesting()
    assert worker.received(work(2), 0.0) == []
    return worker


def ended() -> WorkerCycle:
    worker = requesting()
    assert worker.leave("enough") == [SendToServer(Leave(3, 1)), Ended("enough", finished=False)]
    return worker


@pytest.fixture
def joined() -> WorkerCycle:
    return requesting()


# The table of transitions

STATES = {
    Phase.JOINING: joining,
    Phase.REQUESTING: requesting,
    Phase.COMPUTING: computing,
    Phase.ENDED: ended,
}


@pytest.mark.parametrize("phase", Phase)
def test_a_worker_is_in_the_phase_that_its_last_event_led_to(phase: Phase) -> None:
    assert STATES[phase]().phase is phase


@pytest.mark.parametrize(
    ("phase", "event", "following", "commands"),
    [
        (Phase.JOINING, WELCOME, Phase.REQUESTING, [Begin(WELCOME), pull(2)]),
        (Phase.REQUESTING, work(2), Phase.COMPUTING, []),
        (Phase.JOINING, STOP, Phase.ENDED, LEAVING[1:]),
        (Phase.REQUESTING, STOP, Phase.ENDED, LEAVING),
        (Phase.JOINING, UNKNOWN, Phase.JOINING, rejoin(2)),
        (Phase.REQUESTING, UNKNOWN, Phase.JOINING, rejoin(3)),
        (Phase.REQUESTING, work(1), Phase.REQUESTING, []),  # late
        (Phase.REQUESTING, WELCOME, Phase.REQUESTING, []),  # delivered twice
    ],
)
def test_an_answer_leads_to_the_next_phase(
    phase: Phase, event: Message, following: Phase, commands: list[WorkerCommand]
) -> None:
    worker = STATES[phase]()
    assert worker.received(event, 1.0) == commands
    assert worker.phase is following


@pytest.mark.parametrize(
    ("phase", "event", "following", "commands"),
    [
        (Phase.REQUESTING, STOP, Phase.ENDED, LEAVING),
        (Phase.COMPUTING, STOP, Phase.ENDED, LEAVING),  # in mid-lease
        (Phase.REQUESTING, UNKNOWN, Phase.JOINING, rejoin(3)),
        (Phase.COMPUTING, UNKNOWN, Phase.JOINING, rejoin(3)),  # in mid-lease
        (Phase.REQUESTING, Alive(0.0, 1, 1), Phase.REQUESTING, [pull(2)]),  # request lost
        (Phase.REQUESTING, Alive(0.0, 2, 2), Phase.REQUESTING, [pull(3)]),  # answer lost
        (Phase.REQUESTING, Alive(0.0, 2, 1), Phase.REQUESTING, []),  # waits for others
        (Phase.COMPUTING, Alive(0.0, 2, 2), Phase.COMPUTING, []),
        (Phase.JOINING, UNKNOWN, Phase.JOINING, []),  # of the former membership
        (Phase.JOINING, STOP, Phase.JOINING, []),
    ],
)
def test_a_heartbeats_answer_leads_to_the_next_phase(
    phase: Phase, event: Message, following: Phase, commands: list[WorkerCommand]
) -> None:
    worker = STATES[phase]()
    assert worker.heartbeat_answered(event, 2.0, now=2.1) == commands
    assert worker.phase is following


@pytest.mark.parametrize(
    ("phase", "following", "commands"),
    [
        (Phase.JOINING, Phase.JOINING, rejoin(2)),
        (Phase.REQUESTING, Phase.JOINING, rejoin(3)),
        (Phase.COMPUTING, Phase.COMPUTING, []),  # a lease may take as long as it likes
        (Phase.ENDED, Phase.ENDED, []),
    ],
)
def test_a_silent_server_is_joined_again_by_a_worker_that_waits_for_it(
    phase: Phase, following: Phase, commands: list[WorkerCommand]
) -> None:
    worker = STATES[phase]()
    assert worker.tick(4.4) == []
    assert worker.tick(5.1) == commands
    assert worker.phase is following


def test_a_lease_is_computed_and_pushed_with_its_time() -> None:
    worker = computing()
    assert worker.next_commands(0.0) == [LEASE]
    assert worker.computed(0.5, 3, None, 2.5) == [push(3, 2.5)]
    assert worker.phase is Phase.REQUESTING
    assert worker.next_commands(2.5) == [Receive(MAX_WAIT_S)]
    assert worker.received(work(3, lease_id=8), 2.6) == []
    assert worker.next_commands(2.6) == [LEASE]
    assert worker.computed(0.5, 3, None, 2.7) == [push(4, pytest.approx(0.1), 8)]


def test_a_state_in_a_message_is_computed_from_and_the_result_pushed(joined: WorkerCycle) -> None:
    joined.received(work(2)._replace(state=STATE), 0.0)
    [compute] = joined.next_commands(0.0)
    assert isinstance(compute, Compute)
    assert compute.state is STATE
    [sent] = joined.computed(0.5, 3, STATE, 1.0)
    assert isinstance(sent, SendToServer)
    assert isinstance(sent.message, Push)
    assert sent.message.state is STATE


@pytest.mark.parametrize("state", [joining, requesting, ended])
def test_a_result_without_a_lease_is_a_mistake(state: Callable[[], WorkerCycle]) -> None:
    with pytest.raises(RuntimeError, match=naming("computed()", "Compute")):
        state().computed(1.0, 1, STATE, 0.2)


@pytest.mark.parametrize(
    ("state", "message"),
    [(requesting, Alive()), (computing, work(2)), (ended, work(2)), (joining, work(1))],
)
def test_an_answer_that_was_not_requested_is_an_error(
    state: Callable[[], WorkerCycle], message: Message
) -> None:
    with pytest.raises(ProtocolError, match=naming("tcp://server:5555", type(message).__name__)):
        state().received(message, 1.0)


def test_a_refusal_for_good_is_an_error_that_says_where_and_why(joined: WorkerCycle) -> None:
    with pytest.raises(WorkerRefusedError, match=naming("tcp://server:5555", "not finite")):
        joined.received(Refuse("not finite", may_rejoin=False), 1.0)
    newcomer = WorkerCycle(JOIN, "tcp://server:5555")
    newcomer.start(0.0)
    with pytest.raises(JoinRefusedError, match="another recipe"):
        newcomer.received(Refuse("another recipe", may_rejoin=False), 1.0)


def test_a_worker_that_never_joined_has_nothing_to_leave() -> None:
    worker = WorkerCycle(JOIN, "tcp://server:5555")
    worker.start(0.0)
    assert worker.leave("interrupted") == [Ended("interrupted", finished=False)]


# Waiting


def test_a_worker_waits_until_its_answer_is_overdue(joined: WorkerCycle) -> None:
    assert joined.next_commands(0.0) == [Receive(MAX_WAIT_S)]
    assert joined.next_commands(4.4) == [Receive(pytest.approx(0.1))]
    assert joined.overdue_at_s == 4.5


def test_a_worker_that_stood_still_waits_a_moment_for_what_was_sent(joined: WorkerCycle) -> None:
    assert joined.next_commands(100.0) == [Receive(MAX_WAIT_S)]
    assert joined.received(work(2), 100.1) == []
    assert joined.next_commands(100.1) == [LEASE]


def test_a_slow_answer_is_waited_for_while_heartbeats_are_answered(joined: WorkerCycle) -> None:
    assert joined.received(None, 3.3, (Alive(3.0, 2, 1), 3.0)) == []
    assert joined.overdue_at_s == 7.5
    assert joined.received(None, 7.5, (Alive(3.0, 2, 1), 3.0)) == rejoin(3)


def test_an_answer_that_waits_for_other_workers_is_waited_for(joined: WorkerCycle) -> None:
    waits = Alive(received_id=2, answered_id=1)
    for second in range(1, 1000):
        assert joined.received(None, second + 0.1, (waits, float(second))) == []
    answered = Alive(received_id=2, answered_id=2)
    assert joined.received(None, 1000.1, (answered, 1000.0)) == []  # it may be on its way
    assert joined.received(None, 1000.4, (answered, 1000.3)) == [pull(3)]


def test_a_lease_may_take_as_long_as_it_likes() -> None:
    worker = computing()
    assert worker.overdue_at_s == math.inf
    assert worker.computed(0.5, 3, None, 3600.0) == [push(3, 3600.0)]
    assert worker.received(None, 3600.2, (Alive(3599.9, 3, 2), 3599.9)) == []
    assert worker.overdue_at_s == 3600.0 + 4.5


# Requests and answers that are lost


def test_a_lost_request_is_sent_again_after_the_next_heartbeat(joined: WorkerCycle) -> None:
    unheard = Alive(received_id=1, answered_id=1)
    assert joined.heartbeat_answered(unheard, MAX_TRAVEL_S, now=1.1) == []  # on its way
    assert joined.heartbeat_answered(unheard, 1.2, now=1.3) == [pull(2)]
    assert joined.heartbeat_answered(unheard, 1.2, now=1.5) == []  # known already
    assert joined.heartbeat_answered(unheard, 2.4, now=2.5) == [pull(2)]
    assert joined.received(work(2), 2.6) == []
    assert joined.phase is Phase.COMPUTING


def test_a_lost_push_is_sent_again_as_it_was() -> None:
    worker = computing()
    sent = worker.computed(0.5, 3, STATE, 1.0)
    assert worker.heartbeat_answered(Alive(0.0, 2, 2), 2.0, now=2.1) == []  # on its way
    assert worker.heartbeat_answered(Alive(0.0, 2, 2), 2.1, now=2.2) == sent


def test_work_whose_answer_was_lost_is_requested_anew() -> None:
    worker = computing()
    worker.computed(0.5, 3, None, 1.0)
    assert worker.heartbeat_answered(Alive(0.0, 3, 3), 2.1, now=2.2) == [pull(4)]
    assert worker.received(work(3, lease_id=8), 2.3) == []  # it was late, and is not used
    assert worker.phase is Phase.REQUESTING
    assert worker.received(work(4, lease_id=8), 2.4) == []
    assert worker.computed(0.5, 3, None, 3.4) == [push(5, pytest.approx(1.0), lease_id=8)]


def test_a_message_may_take_as_long_as_its_bytes_do_on_a_network_as_slow_as_was_seen() -> None:
    size = 5_000_000
    state = np.zeros(size, np.float32)
    worker = WorkerCycle(JOIN._replace(vector_size=size), "server")
    worker.start(0.0)
    worker.received(WELCOME._replace(segment=None), 0.0)
    unheard = Alive(received_id=1, answered_id=1)
    assert worker.heartbeat_answered(unheard, 100.0, 100.0) == []  # of the network nothing is known
    worker.received(work(2)._replace(state=state), 100.0)  # which does 200 kB/s
    [lost] = worker.computed(0.5, 3, state, 101.0)
    # 40 MB in 200 s, or thrice that, and a second.
    unheard = Alive(received_id=2, answered_id=2)
    assert worker.heartbeat_answered(unheard, 101.0 + 600.0, 701.0) == []
    assert worker.heartbeat_answered(unheard, 101.0 + 602.0, 703.0) == [lost]
    # Or the network does less by now.
    assert worker.heartbeat_answered(unheard, 703.0 + 1200.0, 1903.0) == []
    assert worker.heartbeat_answered(unheard, 703.0 + 1202.0, 1905.0) == [lost]


@pytest.mark.parametrize("is_first", [True, False])
def test_one_transfer_during_a_partition_makes_no_network_slow(is_first: bool) -> None:
    state = np.zeros(1_000, np.float32)
    worker = WorkerCycle(JOIN._replace(vector_size=state.size), "server")
    worker.start(0.0)
    worker.received(WELCOME._replace(segment=None), 0.0)
    now = 0.0
    for took_s in [3.6] if is_first else [0.1, 3.6]:
        now += took_s
        request_id = worker._request.request_id
        worker.received(work(request_id)._replace(state=state), now)
        [lost] = worker.computed(0.5, 3, state, now)
    unheard = Alive(received_id=request_id, answered_id=request_id)
    assert worker.heartbeat_answered(unheard, now + 3.0, now + 3.0) == [lost]


# Joining again


def test_a_worker_that_joins_again_has_no_lease() -> None:
    worker = computing()
    assert worker.heartbeat_answered(UNKNOWN, 1.0, now=1.3) == rejoin(3)
    # That is the last answer to a heartbeat until the worker is in again.
    assert worker.heartbeat_answered(UNKNOWN, 1.0, now=1.6) == []
    welcome = WELCOME._replace(worker_id=4, request_id=3)
    assert worker.received(welcome, 1.7) == [Begin(welcome), pull(4, worker_id=4)]
    assert worker.received(welcome, 1.7) == []
    # A server that was resumed from an older checkpoint may grant the same lease again.
    assert worker.received(work(4), 3.0) == []
    assert worker.next_commands(3.0) == [LEASE]


def test_answers_to_a_membership_that_ended_are_dropped(joined: WorkerCycle) -> None:
    assert joined.tick(6.0) == rejoin(3)
    assert joined.received(work(2), 6.1) == []
    assert joined.phase is Phase.JOINING
    assert joined.overdue_at_s == 6.0 + FIRST_TRY_S


def test_a_worker_without_memory_to_map_joins_again_and_says_so(joined: WorkerCycle) -> None:
    framed = JOIN._replace(shares_memory=False, request_id=3)
    assert joined.rejoin_with_frames("cannot map", 1.0) == [Reconnect(), SendToServer(framed)]
    again = framed._replace(request_id=4)
    assert joined.tick(3.0) == [Reconnect(), SendToServer(again)]  # from now on


def test_tries_to_join_again_are_ever_further_apart_and_have_an_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = WorkerCycle(JOIN, "tcp://server:5555", rejoin_timeout_s=20.0)
    worker.start(0.0)
    worker.received(WELCOME, 0.0)
    assert worker.tick(4.6) == rejoin(3)
    now = 4.6
    for number, wait_s in enumerate((FIRST_TRY_S, 2.0, 4.0, MAX_TRY_S, 5.0), 4):
        assert worker.overdue_at_s == pytest.approx(now + wait_s)
        now += wait_s + 0.001
        assert worker.tick(now) == rejoin(number)
    with pytest.raises(ServerLostError, match=naming("tcp://server:5555", "24.6 s")):
        worker.tick(now + 3.001)
    [said] = [text for text in caplog.messages if text.startswith("rejoining")]
    assert "tcp://server:5555 reason=it has been silent for 4.6 s" in said
    assert "timeout_s=20" in said


def test_time_in_which_a_worker_stood_still_is_none_of_its_tries(joined: WorkerCycle) -> None:
    assert joined.tick(4.6) == rejoin(3)
    assert joined.received(None, 10_000.0) == rejoin(4)
    welcome = WELCOME._replace(worker_id=4, request_id=4)
    assert joined.received(welcome, 10_000.5) == [Begin(welcome), pull(5, worker_id=4)]


def test_a_worker_with_a_new_lease_has_as_much_patience_as_before(joined: WorkerCycle) -> None:
    now = 0.0
    for number in range(3, 33, 3):
        now += 5.0
        assert joined.tick(now) == rejoin(number)
        assert joined.overdue_at_s == now + FIRST_TRY_S
        joined.received(WELCOME._replace(worker_id=number, request_id=number), now)
        joined.received(work(number + 1), now)
        joined.computed(0.5, 3, None, now)


def test_a_server_that_lets_a_worker_in_and_says_no_more_is_lost_in_the_end(
    joined: WorkerCycle,
) -> None:

    def let_in_and_leave_alone() -> None:
        for times in range(1, 1000):
            joined.tick(5.0 * times)
            welcome = WELCOME._replace(worker_id=3 + times, request_id=1 + 2 * times)
            assert joined.received(welcome, 5.0 * times)[0] == Begin(welcome)

    with pytest.raises(ServerLostError):
        let_in_and_leave_alone()


def test_a_worker_leaves_while_it_tries_to_join_again(joined: WorkerCycle) -> None:
    joined.tick(4.6)
    assert joined.leave("interrupted") == [Ended("interrupted", finished=False)]
    assert joined.overdue_at_s == math.inf


def test_another_runs_server_at_the_address_refuses_a_worker_that_comes_back(
    joined: WorkerCycle,
) -> None:
    joined.tick(4.6)
    with pytest.raises(JoinRefusedError, match=naming("tcp://server:5555", "another recipe")):
        joined.received(Refuse("another recipe", may_rejoin=False), 4.7)


def test_an_address_without_a_server_is_an_error_after_the_join_timeout() -> None:
    worker = WorkerCycle(JOIN, "tcp://nowhere:1", join_timeout_s=5.0)
    worker.start(0.0)
    assert worker.tick(4.9) == []
    with pytest.raises(ServerLostError, match=naming("tcp://nowhere:1", "5.1 s")):
        worker.tick(5.1)


def test_a_first_try_to_join_that_was_lost_is_followed_by_others() -> None:
    worker = WorkerCycle(JOIN, "tcp://server:5555", join_timeout_s=11.0)
    worker.start(0.0)
    assert worker.tick(MAX_TRY_S - 0.1) == []
    assert worker.tick(MAX_TRY_S) == rejoin(2)
    assert worker.tick(10.2) == rejoin(3)
    welcome = WELCOME._replace(request_id=3)
    assert worker.received(welcome, 10.3) == [Begin(welcome), pull(4)]
