"""Workers and a server against each other, in memory, on a clock that is a number.

The model has one parameter for each sample of each epoch, and the gradient of a minibatch is -1 at
its samples. With a learning rate of 1 the trained weights are therefore how often each sample was
applied.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_net.errors import WorkerRefusedError
from dist_net.parameter_server.consistency import Consistency
from dist_net.parameter_server.members import LONGEST_LOOK_S
from dist_net.parameter_server.run import RunState
from dist_net.parameter_server.settings import RunSettings
from dist_net.parameter_server.state import ParameterServer, SendToPeer
from dist_net.training.state import (
    Begin,
    Compute,
    Ended,
    Gather,
    Receive,
    Reconnect,
    SendToServer,
    WorkerState,
)
from dist_net.vector import Vector
from dist_net.wire.messages import (
    PIPELINE,
    Heartbeat,
    Join,
    Message,
    Pipeline,
    Push,
    SegmentAddress,
    Welcome,
    Work,
)

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
        join = Join(node.decode(), cluster.born, "abc", SIZE, 1, descriptor, b"")
        self.worker = WorkerState(join, "server", join_timeout_s=1e9, rejoin_timeout_s=1e9)
        self.is_cut_off = False
        self.requests: deque[Message] = deque()
        self.answers: deque[Message] = deque()
        self.arrived: deque[Message] = deque()
        self.heartbeat: tuple[Message, float] | None = None
        self.welcome: Welcome | None = None
        self.gathered: Gather | None = None
        self.computing: Compute | None = None
        self.is_waiting = False
        self.read: Vector | None = None
        self.done: Ended | None = None
        self.slots = [np.zeros(SIZE, np.float32) for _ in range(PIPELINE.gradients)]
        self.go_on(self.worker.start(cluster.now))

    def go_on(self, commands: list) -> None:
        """Carry out commands as the loop does, until it computes, waits, or has ended."""
        pending = deque(commands)
        while not (self.done or self.computing or self.is_waiting):
            if not pending:
                pending.extend(self.worker.next_commands(self.cluster.now))
            match command := pending.popleft():
                case SendToServer(message):
                    self.requests.append(message)
                case Reconnect():
                    self.reconnect()
                case Receive():
                    message = self.next_arrived()
                    if message is None and not self.worker.can_compute:
                        self.is_waiting = True
                    else:
                        pending.extend(self.received(message))
                case Begin(welcome):
                    self.welcome = welcome
                    self.gathered = None  # as the loop makes a new step
                case Gather():
                    self.gathered = command
                case Compute():
                    assert command[:3] == self.gathered
                    self.computing = command
                    self.read = self.weights(command).copy()
                case Ended():
                    self.done = command

    def reconnect(self) -> None:
        """Drop the connection; what was sent over it may still get to the server, at any time."""
        self.cluster.strays += [(self.node, request) for request in self.requests]
        for waiting in (self.requests, self.answers, self.arrived):
            waiting.clear()
        self.welcome = None  # its heart does not beat
        self.cluster.move(self)

    def received(self, message: Message | None) -> list:
        try:
            return self.worker.received(message, self.cluster.now, self.heartbeat)
        except WorkerRefusedError as error:
            self.kill()
            return [Ended(str(error), finished=False)]

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
        self.go_on(self.worker.computed(1.0, 1, self.slots[compute.slot], self.cluster.now))

    def deliver_request(self, times: int = 1) -> None:
        if self.requests and not self.is_cut_off:
            message = self.requests.popleft()
            for _ in range(times):
                self.cluster.server_handles(self.node, message)

    def deliver_answer(self) -> None:
        """An answer arrives; a worker that computes takes it in later."""
        if self.answers and not self.is_cut_off:
            self.arrived.append(self.answers.popleft())
        if self.arrived:
            self.wake()

    def wake(self) -> None:
        """End the worker's wait, by a message or because it lasted long enough."""
        if self.is_waiting:
            self.is_waiting = False
            self.go_on(self.received(self.next_arrived()))

    def next_arrived(self) -> Message | None:
        return self.arrived.popleft() if self.arrived else None

    def kill(self) -> None:
        self.cluster.hosts.pop(self.node, None)
        self.requests.clear()
        self.answers.clear()

    def beat(self) -> None:
        if self.welcome is not None and not self.is_cut_off:
            node, now = b"beat of " + self.node, self.cluster.now
            heartbeat = Heartbeat(self.welcome.worker_id)
            for command in self.cluster.server.handle(node, heartbeat, now):
                assert isinstance(command, SendToPeer)
                self.heartbeat = command.message, now


class Cluster:
    """A server and its workers' hosts; ``hosts`` are those that are alive."""

    def __init__(self, descriptors: list[int], settings: RunSettings = RUN_SETTINGS) -> None:
        self.now = 0.0
        self.hosts: dict[bytes, Host] = {}
        self.strays: list[tuple[bytes, Message]] = []
        self.born = 0
        self.starts = 0
        self.serve(lambda *rest: RunState(settings, np.zeros(SIZE, np.float32), *rest))
        for descriptor in descriptors:
            self.add_host(descriptor)

    def serve(self, begin: Callable[[list[Vector], int], RunState]) -> None:
        """Start a server; ``begin`` gets its buffers and its first worker's id."""
        self.starts += 1
        self.buffers = [np.zeros(SIZE, np.float32) for _ in range(2 + 3 * PIPELINE.snapshots)]
        self.server = ParameterServer(
            begin(self.buffers, 1000 * self.starts), SegmentAddress(1, 2, b"")
        )

    def add_host(self, descriptor: int) -> None:
        self.born += 1
        node = b"node %d" % self.born
        self.hosts[node] = Host(self, node, descriptor)

    def move(self, host: Host) -> None:
        """Give the host, which connects anew, a node of its own."""
        self.hosts.pop(host.node, None)
        self.born += 1
        host.node = b"node %d" % self.born
        self.hosts[host.node] = host

    def deliver_stray(self, which: int) -> None:
        """A request of a connection that was dropped gets to the server after all."""
        if self.strays:
            self.server_handles(*self.strays.pop(which % len(self.strays)))

    def server_handles(self, node: bytes, message: Message) -> None:
        for command in self.server.handle(node, message, self.now):
            if isinstance(command, SendToPeer) and command.node in self.hosts:
                self.hosts[command.node].answers.append(sent(command.message))

    def pass_time(self, seconds: float, silent: Host | None = None) -> None:
        """Let time pass, in which all but one host send heartbeats."""
        for _ in range(ceil(seconds / LONGEST_LOOK_S)):
            self.now += min(seconds, LONGEST_LOOK_S)
            for host in self.hosts.values():
                if host is not silent:
                    host.beat()
            self.server.tick(self.now)

    def stop_server(self, seconds: float) -> None:
        """Let time pass for everybody but the server, as by SIGSTOP."""
        self.now += seconds
        for host in list(self.hosts.values()):
            host.wake()

    def run(self) -> None:
        """Let everything go its way to the end of the run, without more faults."""
        for host in self.hosts.values():
            host.is_cut_off = False
        for _ in range(2000):
            self.deliver_stray(0)
            self.pass_time(0.02)
            for host in list(self.hosts.values()):
                while host.requests or host.answers or host.computing:
                    host.compute()
                    host.deliver_request()
                    host.deliver_answer()
                host.wake()
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


def test_without_a_pipeline_each_gradient_is_of_the_newest_weights() -> None:
    cluster = Cluster([9], replace(RUN_SETTINGS, pipeline=Pipeline(depth=1, grouped=1)))
    cluster.run()
    cluster.assert_each_sample_was_applied_once()
    assert cluster.server.run.metrics.staleness_buckets == [SIZE // 3]


def test_two_of_three_workers_die_and_the_other_does_what_they_held_without_a_wait() -> None:
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
    assert cluster.now < RUN_SETTINGS.heartbeat_timeout_s
    cluster.pass_time(2 * RUN_SETTINGS.heartbeat_timeout_s)
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
    cluster.serve(lambda *rest: RunState.resumed(RUN_SETTINGS, checkpoint, *rest))
    cluster.run()
    cluster.assert_each_sample_was_applied_once()


def test_workers_outlive_a_server_that_is_away_for_long_and_comes_back_as_another() -> None:
    cluster = Cluster([9, -1])
    workers = [host.worker for host in cluster.hosts.values()]
    while cluster.server.run.ledger.applied_samples < SAMPLES:
        for host in list(cluster.hosts.values()):
            host.deliver_request()
            host.deliver_answer()
            host.compute()
    checkpoint = cluster.server.run.checkpoint()
    for host in list(cluster.hosts.values()):
        host.is_cut_off = True
    for _ in range(60):
        cluster.pass_time(1.0)
        for host in list(cluster.hosts.values()):
            host.compute()
            host.wake()
    cluster.serve(lambda *rest: RunState.resumed(RUN_SETTINGS, checkpoint, *rest))
    cluster.run()
    cluster.assert_each_sample_was_applied_once()
    assert [host.worker for host in cluster.hosts.values()] == workers


def test_a_push_of_a_membership_that_ended_is_not_applied() -> None:
    """In shared memory the server would read what the worker has written there since."""
    cluster = Cluster([9])
    [host] = cluster.hosts.values()
    while not host.computing:
        host.deliver_request()
        host.deliver_answer()
    while host.computing:
        host.compute()
    cluster.stop_server(5.0)
    assert any(isinstance(message, Push) for _, message in cluster.strays)
    while not host.computing:
        host.deliver_request()
        host.deliver_answer()
    host.compute()
    cluster.deliver_stray(0)
    cluster.run()
    cluster.assert_each_sample_was_applied_once()


EVENTS = [
    "request",
    "request",
    "answer",
    "answer",
    "compute",
    "compute",
    "request twice",
    "compute poison",
    "kill",
    "silence",
    "cut off",
    "connect",
    "server stops",
    "stray",
    "time",
    "join",
    "join afar",
    "resume",
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), max_size=150),
    st.sampled_from(["async", "async", "ssp:0", "ssp:2", "bsp:1"]),
)
def test_each_sample_is_applied_once_whatever_happens(
    events: list[tuple[str, int]], consistency: str
) -> None:
    run_settings = replace(RUN_SETTINGS, consistency=Consistency.of(consistency))
    cluster = Cluster([9, 9, -1], run_settings)
    for event, which in events:
        hosts = list(cluster.hosts.values())
        host = hosts[which % len(hosts)] if hosts else None
        match event, host:
            case "join", _:
                cluster.add_host(9)
            case "join afar", _:
                cluster.add_host(-1)
            case "stray", _:
                cluster.deliver_stray(which)
            case "server stops", _:
                cluster.stop_server(5.0)
            case "time", _:
                cluster.pass_time(0.02)
            case "resume", _:
                checkpoint = cluster.server.run.checkpoint()
                cluster.serve(
                    lambda *rest, checkpoint=checkpoint: RunState.resumed(
                        run_settings, checkpoint, *rest
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
            case "compute", Host():
                host.compute()
            case "compute poison", Host():
                host.compute(poison=True)
            case "kill", Host():
                host.kill()
            case "cut off", Host():
                host.is_cut_off = True
            case "connect", Host():
                host.is_cut_off = False
            case "silence", Host():
                cluster.pass_time(2.0, silent=host)
    cluster.add_host(9)
    cluster.run()
    cluster.assert_each_sample_was_applied_once()
