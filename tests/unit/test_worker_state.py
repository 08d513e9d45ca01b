"""The worker's cycle, alone and against the server's; both in memory, on a clock that is a number.

In the cluster of these tests the model has one parameter for each sample of each epoch, and the
gradient of a minibatch is -1 at its samples. With a learning rate of 1 the trained weights are
therefore how often each sample was applied.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.errors import (
    JoinRefusedError,
    ProtocolError,
    ServerLostError,
    WorkerRefusedError,
)
from dist_net.parameter_server.run import Run
from dist_net.parameter_server.settings import RunSettings
from dist_net.parameter_server.state import ParameterServer, WeightsSegment
from dist_net.parameter_server.state import Send as ServerSend
from dist_net.parameter_server.store import PINS_PER_READER
from dist_net.training.commands import Begin, Compute, Done, Prepare, Send
from dist_net.training.inbox import Inbox
from dist_net.training.state import GRADIENT_SLOTS, WorkerState
from dist_net.wire.messages import (
    Alive,
    Heartbeat,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    Refuse,
    Stop,
    Vector,
    Wait,
    Welcome,
    Work,
)
from dist_net.wire.segment import NOTE_BYTES
from dist_net.wire.work_note import noted

JOIN = Join("one", "abc", 5, 55, 9, b"w")
WELCOME = Welcome(3, 4, 0, 0.3, 1.5, 0, -1, b"")
GRADIENT = np.zeros(5, np.float32)


def work(lease_id: int, start: int, stop: int, version: int = 0, together: int = 2) -> Work:
    return Work(lease_id, 0, start, stop, version, together, 2, None)


@pytest.fixture
def joined() -> WorkerState:
    """A worker that has just been welcomed and has asked for work, at second 0."""
    worker = WorkerState(JOIN, "tcp://server:5555")
    assert worker.start(0.0) == [Send(JOIN)]
    assert worker.handle(WELCOME, 0.0) == [Begin(WELCOME), Send(Pull(3))]
    return worker


def push(start: int, stop: int, version: int, slot: int) -> Push:
    """What is sent of one minibatch."""
    return Push(3, 7, start, (stop,), (version,), 0.5, 3, (slot,), ())


def test_the_next_minibatch_is_computed_while_a_push_is_acknowledged(joined: WorkerState) -> None:
    assert joined.handle(work(7, 0, 22), 0.0) == []
    assert joined.compute() == [Prepare(0, 0, 4), Compute(0, 0, 4, 2, None, 0)]
    assert joined.computed(0.5, 3, None, 0.1) == [Send(push(0, 4, 0, 0)), Prepare(0, 4, 8)]
    for slot, now in ((1, 0.3), (2, 0.4), (3, 0.5)):
        assert joined.can_compute
        start, stop = 4 * slot, 4 * slot + 4
        assert joined.compute() == [Compute(0, start, stop, 2, None, slot)]
        assert joined.computed(0.5, 3, None, now) == [
            Send(push(start, stop, 0, slot)),
            Prepare(0, stop, min(stop + 4, 22)),
        ]
        assert joined.awaits_older_answer
    # The server wants two at a time, and twice as many are on their way.
    assert not joined.can_compute
    assert joined.handle(work(7, 4, 22, version=1), 0.5) == []
    # In the first slot, as what lay there is taken up.
    assert joined.compute() == [Compute(0, 16, 20, 2, None, 0)]
    # The rest of the lease is shorter than a minibatch.
    assert joined.computed(0.5, 3, None, 0.6) == [Send(push(16, 20, 1, 0)), Prepare(0, 20, 22)]
    assert joined.handle(work(7, 16, 22, version=4), 0.7) == []
    assert not joined.awaits_older_answer
    assert joined.compute() == [Compute(0, 20, 22, 2, None, 1)]
    assert joined.computed(0.5, 3, None, 0.8) == [Send(push(20, 22, 4, 1))]
    assert not joined.can_compute


def next_pushed(worker: WorkerState, now: float, gradient: Vector | None = None) -> list[Message]:
    worker.compute()
    commands = worker.computed(0.5, 3, gradient, now)
    return [each.message for each in commands if isinstance(each, Send)]


def test_gradients_that_follow_each_other_closely_go_in_one_push(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 22), 0.0)
    assert next_pushed(joined, 1.0) == [push(0, 4, 0, 0)]
    assert next_pushed(joined, 1.001) == []
    joined.handle(work(7, 4, 22, version=1), 1.001)
    assert next_pushed(joined, 1.002) == [Push(3, 7, 4, (8, 12), (0, 1), 1.0, 6, (1, 0), ())]
    assert next_pushed(joined, 1.003) == []
    # There is no room for another one, or none is left: then none is waited for.
    assert next_pushed(joined, 1.004) == [Push(3, 7, 12, (16, 20), (1, 1), 1.0, 6, (2, 3), ())]
    assert not joined.can_compute
    joined.handle(work(7, 12, 22, version=3), 1.004)
    assert next_pushed(joined, 1.005) == [push(20, 22, 3, 0)]


def test_as_many_go_together_as_the_server_says(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 40, together=3), 0.0)
    pushed = [next_pushed(joined, now) for now in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    assert [[each.stops for each in pushes] for pushes in pushed] == [
        [(4,)], [], [], [(8, 12, 16)], [], [(20, 24)]
    ]  # fmt: skip
    assert not joined.can_compute  # each slot holds a gradient that the server has yet to read
    joined.handle(work(7, 24, 40, version=6, together=1), 1.0)
    assert [each.stops for each in next_pushed(joined, 1.0)] == [(28,)]


def test_gradients_that_travel_go_together_too(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 20), 0.0)
    next_pushed(joined, 1.0, GRADIENT)
    next_pushed(joined, 1.0, GRADIENT)
    (both,) = next_pushed(joined, 1.0, GRADIENT + 1)
    assert both.slots == (1, 2)  # the first one is on its way, and stays as it is
    np.testing.assert_array_equal(both.gradients, [GRADIENT, GRADIENT + 1])


def test_what_is_held_back_for_a_lost_lease_is_not_pushed(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 12), 0.0)
    joined.compute()
    joined.computed(np.nan, 0, None, 1.0)
    joined.compute()
    assert joined.computed(0.5, 3, None, 1.001) == [Prepare(0, 8, 12)]
    joined.handle(work(8, 12, 20, version=1), 1.001)  # the first one was refused
    joined.compute()
    pushes = [each for each in joined.computed(0.5, 3, None, 1.5) if isinstance(each, Send)]
    assert pushes == [Send(Push(3, 8, 12, (16,), (1,), 0.5, 3, (0,), ()))]


def test_what_was_prepared_in_vain_is_prepared_anew(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 8), 0.0)
    joined.compute()
    joined.computed(np.nan, 0, GRADIENT, 0.1)
    joined.handle(work(8, 0, 8), 0.2)
    assert joined.compute() == [Prepare(0, 0, 4), Compute(0, 0, 4, 2, None, 0)]


def test_each_computation_is_pushed_once(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 8), 0.0)
    joined.compute()
    joined.computed(1.0, 1, GRADIENT, 0.1)
    with pytest.raises(RuntimeError, match="without a Compute"):
        joined.computed(1.0, 1, GRADIENT, 0.2)


def test_a_worker_told_to_wait_asks_again_when_it_is_time(joined: WorkerState) -> None:
    assert joined.handle(Wait(0.5), 1.0) == []
    assert joined.wakes_at_s == 1.5
    assert joined.tick(1.4) == []
    assert joined.tick(1.5) == [Send(Pull(3))]
    assert joined.tick(1.6) == []


def test_a_worker_told_to_stop_leaves_and_does_no_more(joined: WorkerState) -> None:
    assert joined.handle(Stop("every epoch is done", finished=True), 1.0) == [
        Send(Leave(3)),
        Done("every epoch is done", finished=True),
    ]
    assert joined.handle(work(7, 0, 8), 1.0) == []
    assert not joined.can_compute
    assert joined.wakes_at_s is None
    assert joined.tick(1000.0) == []


def test_a_worker_may_leave_of_its_own_accord_while_it_computes(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 8), 1.0)
    joined.compute()
    assert joined.leave("interrupted") == [Send(Leave(3)), Done("interrupted", finished=False)]
    with pytest.raises(RuntimeError, match="without a Compute"):
        joined.computed(1.0, 1, GRADIENT, 2.0)


def test_a_worker_that_never_joined_has_nothing_to_leave() -> None:
    worker = WorkerState(JOIN, "tcp://server:5555")
    worker.start(0.0)
    assert worker.leave("interrupted") == [Done("interrupted", finished=False)]


def test_a_worker_that_was_counted_out_joins_again(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 8), 1.0)
    joined.compute()
    joined.computed(1.0, 1, GRADIENT, 2.0)
    assert joined.handle(Refuse("silent for too long", may_rejoin=True), 3.0) == [Send(JOIN)]
    welcome = WELCOME._replace(worker_id=4)
    assert joined.handle(welcome, 3.0) == [Begin(welcome), Send(Pull(4))]
    # A server that was resumed from an older checkpoint may grant the same lease again.
    joined.handle(work(7, 0, 8), 3.0)
    assert joined.compute() == [Prepare(0, 0, 4), Compute(0, 0, 4, 2, None, 0)]


def test_a_refusal_for_good_is_an_error_that_says_where_and_why(joined: WorkerState) -> None:
    with pytest.raises(WorkerRefusedError, match=r"tcp://server:5555.*not finite"):
        joined.handle(Refuse("not finite", may_rejoin=False), 1.0)
    newcomer = WorkerState(JOIN, "tcp://server:5555")
    newcomer.start(0.0)
    with pytest.raises(JoinRefusedError, match="another recipe"):
        newcomer.handle(Refuse("another recipe", may_rejoin=False), 1.0)


def test_a_server_that_does_not_answer_is_lost_after_three_timeouts(joined: WorkerState) -> None:
    assert joined.wakes_at_s == 4.5
    assert joined.tick(4.5) == []
    with pytest.raises(ServerLostError, match=r"tcp://server:5555 has been silent for 4\.6 s"):
        joined.tick(4.6)


def test_a_slow_answer_is_waited_for_while_heartbeats_are_answered(joined: WorkerState) -> None:
    assert joined.heartbeat_answered(Alive(), 3.0, now=3.3) == []
    assert not joined.is_overdue(7.5)
    assert joined.wakes_at_s == 7.5
    assert joined.is_overdue(7.6)
    with pytest.raises(ServerLostError, match=r"silent for 4\.6 s"):
        joined.tick(7.6)


def test_an_answer_does_not_come_for_ever_so_late(joined: WorkerState) -> None:
    joined.heartbeat_answered(Alive(), 59.0, now=59.3)
    assert not joined.is_overdue(60.0)
    assert joined.is_overdue(60.1)


def test_a_worker_that_a_restarted_server_does_not_know_joins_again(joined: WorkerState) -> None:
    unknown = Refuse("worker 3 is not in this run", may_rejoin=True)
    assert joined.heartbeat_answered(unknown, 1.0, now=1.3) == [Send(JOIN)]
    # The heart goes on with the old number until the worker is in again.
    assert joined.heartbeat_answered(unknown, 1.3, now=1.6) == []
    # The request that was under way is refused as well.
    assert joined.handle(unknown, 1.6) == [Send(JOIN)]
    welcome = WELCOME._replace(worker_id=4)
    assert joined.handle(welcome, 1.7) == [Begin(welcome), Send(Pull(4))]
    assert joined.handle(welcome, 1.7) == []


def test_a_heartbeat_that_is_refused_is_no_matter_during_a_step(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 8), 1.0)
    joined.compute()
    unknown = Refuse("worker 3 is not in this run", may_rejoin=True)
    assert joined.heartbeat_answered(unknown, 1.0, now=1.3) == []
    push = Push(3, 7, 0, (4,), (0,), 1.0, 1, (0,), ())
    assert joined.computed(1.0, 1, None, 2.0) == [Send(push), Prepare(0, 4, 8)]


def test_an_address_without_a_server_is_an_error_after_the_join_timeout() -> None:
    worker = WorkerState(JOIN, "tcp://nowhere:1", join_timeout_s=5.0)
    worker.start(0.0)
    assert worker.tick(4.9) == []
    with pytest.raises(ServerLostError, match=r"no parameter server answered at tcp://nowhere:1"):
        worker.tick(5.1)


def test_nobody_is_missed_while_nothing_is_asked(joined: WorkerState) -> None:
    joined.handle(work(7, 0, 8), 1.0)
    assert joined.wakes_at_s is None
    assert joined.tick(1000.0) == []


def test_answers_that_come_twice_are_dropped(joined: WorkerState) -> None:
    assert joined.handle(WELCOME, 0.0) == []
    first, second, third = work(7, 0, 12), work(7, 4, 12, version=1), work(8, 12, 16, version=2)
    joined.handle(first, 1.0)
    joined.compute()
    joined.computed(1.0, 1, GRADIENT, 2.0)
    joined.handle(first, 2.0)
    assert joined.wakes_at_s == 6.5  # the push is still unanswered
    joined.handle(second, 2.0)
    assert joined.wakes_at_s is None
    joined.compute()
    joined.computed(1.0, 1, GRADIENT, 3.0)
    joined.handle(third, 3.0)
    joined.handle(second, 3.0)
    assert joined.compute() == [Prepare(0, 12, 16), Compute(0, 12, 16, 2, None, 0)]


def test_an_answer_that_no_parameter_server_gives_is_an_error(joined: WorkerState) -> None:
    with pytest.raises(ProtocolError, match="answered with Alive"):
        joined.handle(Alive(), 1.0)


SAMPLES, EPOCHS = 24, 2
SIZE = SAMPLES * EPOCHS
RUN_SETTINGS = RunSettings(
    recipe="counting",
    recipe_digest="abc",
    layout=(("applied", (EPOCHS, SAMPLES)),),
    samples=SAMPLES,
    epochs=EPOCHS,
    batch_size=3,
    learning_rate=1.0,
    lease_minibatches=3,
)


def sent(message: Message) -> Message:
    """The message as a socket sends it: with a copy of its array, which is only borrowed."""
    if isinstance(message, Work) and message.weights is not None:
        return message._replace(weights=message.weights.copy())
    return message


class Host:
    """One worker, the messages on their way to and from it, and its thread of computation."""

    def __init__(self, cluster: "Cluster", node: bytes, descriptor: int) -> None:
        self.cluster = cluster
        self.node = node
        self.worker = WorkerState(Join(node.decode(), "abc", SIZE, 1, descriptor, b""), "server")
        self.requests: deque[Message] = deque()
        self.answers: deque[Message] = deque()
        self.note = bytearray(NOTE_BYTES)
        self.inbox = Inbox(self, memoryview(self.note))
        self.welcome: Welcome | None = None
        self.prepared: Prepare | None = None
        self.computing: Compute | None = None
        self.read: Vector | None = None
        self.done: Done | None = None
        self.slots = [np.zeros(SIZE, np.float32) for _ in range(GRADIENT_SLOTS)]
        self.perform(self.worker.start(cluster.now))

    def perform(self, commands: list) -> None:
        for command in commands:
            match command:
                case Send(message):
                    self.requests.append(message)
                case Begin(welcome):
                    self.welcome = welcome
                    self.inbox.forget()
                case Prepare():
                    self.prepared = command
                case Compute():
                    assert command[:3] == self.prepared
                    self.computing = command
                    self.read = self.weights(command).copy()
                case Done():
                    self.done = command

    def weights(self, compute: Compute) -> Vector:
        if compute.weights is not None:
            return compute.weights
        return self.cluster.buffers[compute.snapshot]

    def compute(self, poison: bool = False) -> None:
        """Finish the computation, and push."""
        compute = self.computing
        if compute is None:
            return
        self.computing = None
        gradient = np.zeros((EPOCHS, SAMPLES), np.float32)
        gradient[compute.epoch, compute.start : compute.stop] = -1
        if poison:
            gradient[0, 0] = np.nan
        elif not np.array_equal(self.weights(compute), self.read):
            # A torn snapshot; if its gradient were applied, the count would be far off.
            gradient -= 1000
        # As in shared memory: the server reads what is in the slot when the push gets there.
        self.slots[compute.slot][:] = gradient.ravel()
        self.perform(self.worker.computed(1.0, 1, self.slots[compute.slot], self.cluster.now))
        self.begin_computing()

    def begin_computing(self) -> None:
        if self.computing is None and self.worker.can_compute:
            self.perform(self.worker.compute())

    def deliver_request(self, times: int = 1) -> None:
        if self.requests:
            message = self.requests.popleft()
            for _ in range(times):
                self.cluster.server_handles(self.node, message)

    def deliver_answer(self) -> None:
        """Take in an answer, but not during a computation: a process does one at a time."""
        if self.computing is None and (answer := self.inbox.receive(0)) is not None:
            try:
                self.perform(self.worker.handle(answer, self.cluster.now))
            except WorkerRefusedError:
                self.kill()
            self.begin_computing()

    def receive(self, timeout_s: float) -> Message | None:
        """What its inbox does with its socket."""
        return self.answers.popleft() if self.answers else None

    def kill(self) -> None:
        self.cluster.hosts.pop(self.node, None)
        self.requests.clear()
        self.answers.clear()

    def beat(self) -> None:
        if self.welcome is not None:
            heartbeat = Heartbeat(self.welcome.worker_id)
            self.cluster.server.handle(b"beat of " + self.node, heartbeat, self.cluster.now)


class Cluster:
    """A server and its workers' hosts; ``hosts`` are those that are alive."""

    def __init__(self, descriptors: list[int]) -> None:
        self.now = 0.0
        self.hosts: dict[bytes, Host] = {}
        self.born = 0
        self.serve(lambda buffers: Run(RUN_SETTINGS, np.zeros(SIZE, np.float32), buffers))
        for descriptor in descriptors:
            self.add_host(descriptor)

    def serve(self, begin: Callable[[list[Vector]], Run]) -> None:
        self.buffers = [np.zeros(SIZE, np.float32) for _ in range(2 + 3 * PINS_PER_READER)]
        self.server = ParameterServer(begin(self.buffers), WeightsSegment(1, 2, b""))

    def add_host(self, descriptor: int) -> None:
        self.born += 1
        node = b"node %d" % self.born
        self.hosts[node] = Host(self, node, descriptor)

    def server_handles(self, node: bytes, message: Message) -> None:
        for command in self.server.handle(node, message, self.now):
            if isinstance(command, ServerSend) and command.node in self.hosts:
                host, answer = self.hosts[command.node], sent(command.message)
                host.answers.append(answer)
                if isinstance(answer, Work) and answer.weights is None:
                    host.note[:] = noted(answer)

    def pass_time(self, seconds: float, silent: Host | None = None) -> None:
        """Let time pass, in which all but one host send heartbeats."""
        self.now += seconds
        for host in self.hosts.values():
            if host is not silent:
                host.beat()
        self.server.tick(self.now)

    def run(self) -> None:
        """Let everything go its way to the end of the run."""
        for _ in range(2000):
            self.pass_time(0.02)
            for host in list(self.hosts.values()):
                while host.requests or host.answers or host.computing:
                    host.compute()
                    host.deliver_request()
                    host.deliver_answer()
                host.perform(host.worker.tick(self.now))
            if all(host.done and not host.requests for host in self.hosts.values()):
                return
        pytest.fail("the cluster makes no progress")

    def assert_each_sample_was_applied_once(self) -> None:
        assert self.server.state == "finished"
        assert all(host.done and host.done.finished for host in self.hosts.values())
        assert self.server.run.ledger.applied_samples == SIZE
        np.testing.assert_array_equal(self.server.run.store.weights, np.ones(SIZE, np.float32))


def test_three_workers_train_and_each_sample_is_applied_once() -> None:
    cluster = Cluster([9, 9, -1])
    cluster.run()
    cluster.assert_each_sample_was_applied_once()
    report = cluster.server.run.report(0, cluster.now)
    assert (report["workers_joined"], report["workers_lost"]) == (3, 0)
    assert (report["pushes_rejected"], report["duplicates_dropped"]) == (0, 0)
    assert cluster.server.worker_count == 0


def test_two_of_three_workers_die_and_each_sample_is_applied_once() -> None:
    cluster = Cluster([9, 9, 9])
    for host in cluster.hosts.values():
        for _ in range(3):
            host.deliver_request()
            host.deliver_answer()
    dying = [node for node, host in cluster.hosts.items() if host.computing][:2]
    assert len(dying) == 2
    for node in dying:
        cluster.hosts[node].kill()
    cluster.run()
    cluster.assert_each_sample_was_applied_once()
    assert cluster.server.run.metrics.workers_lost == 2


def test_a_snapshot_lasts_for_as_long_as_it_is_computed_from() -> None:
    cluster = Cluster([9, 9])
    slow, fast = cluster.hosts.values()
    for host in (slow, fast):
        for _ in range(2):
            host.deliver_request()
            host.deliver_answer()
    slow.compute()
    assert slow.computing is not None  # from the same snapshot as before
    slow.deliver_request()
    for _ in range(6):
        fast.compute()
        fast.deliver_request()
        fast.deliver_answer()
    cluster.run()
    cluster.assert_each_sample_was_applied_once()


def test_a_server_resumed_from_a_checkpoint_applies_each_sample_once() -> None:
    cluster = Cluster([9, 9])
    while cluster.server.run.ledger.applied_samples < SAMPLES:
        for host in cluster.hosts.values():
            host.deliver_request()
            host.deliver_answer()
            host.compute()
    checkpoint = cluster.server.run.checkpoint()
    # The workers outlive the server here, so it is sent pushes of leases that it never granted.
    cluster.serve(lambda buffers: Run.resumed(RUN_SETTINGS, checkpoint, buffers))
    cluster.run()
    cluster.assert_each_sample_was_applied_once()


EVENTS = [
    "request",
    "request",
    "answer",
    "answer",
    "note is half written",
    "compute",
    "compute",
    "request twice",
    "compute poison",
    "kill",
    "silence",
    "time",
    "join",
    "join afar",
    "resume",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), max_size=150))
def test_each_sample_is_applied_once_whatever_happens(events: list[tuple[str, int]]) -> None:
    cluster = Cluster([9, 9, -1])
    for event, which in events:
        hosts = list(cluster.hosts.values())
        host = hosts[which % len(hosts)] if hosts else None
        match event, host:
            case "join", _:
                cluster.add_host(9)
            case "join afar", _:
                cluster.add_host(-1)
            case "time", _:
                cluster.pass_time(0.02)
            case "resume", _:
                checkpoint = cluster.server.run.checkpoint()
                cluster.serve(
                    lambda buffers, checkpoint=checkpoint: Run.resumed(
                        RUN_SETTINGS, checkpoint, buffers
                    )
                )
            case _, None:
                pass
            case "request", Host():
                host.deliver_request()
            case "request twice", Host():
                host.deliver_request(times=2)
            case "answer", Host():
                host.deliver_answer()
            case "note is half written", Host():
                host.note[20:40] = bytes(20)
            case "compute", Host():
                host.compute()
            case "compute poison", Host():
                host.compute(poison=True)
            case "kill", Host():
                host.kill()
            case "silence", Host():
                cluster.pass_time(2.0, silent=host)
    cluster.add_host(9)
    cluster.run()
    cluster.assert_each_sample_was_applied_once()
