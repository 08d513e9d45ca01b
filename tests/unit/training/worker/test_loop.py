"""The worker's loop among connections, heartbeats and memory that are made of Python objects."""

from random import Random
from typing import Any

import numpy as np
import pytest

from dist_net.errors import NoAnswerError, ProtocolError, SegmentError
from dist_net.ground.clock import SystemClock
from dist_net.ground.vector import Vector
from dist_net.optim import SGD, UpdateRule
from dist_net.training.worker.cycle import Compute, Ended
from dist_net.training.worker.local_steps import LocalSteps, Minibatch, MinibatchGradient
from dist_net.training.worker.loop import WorkerLoop
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
from dist_net.wire.packing import StatePacking
from dist_net.wire.segment import BASE, RESULT
from dist_net.wire.standbys import Standby
from dist_net.wire.transport import ServerAccess
from naming import naming

SIZE, STATE_SIZE = 3, 4
STEPS = StepSettings(0, 2, 1, "SGD()", 0.5)
WELCOME = Welcome(1, 7, STEPS, 0.3, 1.5, SegmentAddress(55, 7, b"t"), 1)
WORK = Work(1, 2, 9, LeaseSteps(0, 0, 8, 0, 2, 2), None)
STOP = Stop("every epoch is done", finished=True)


class Memory:
    """Two states that are shared, until they are closed."""

    vectors = 2

    def __init__(self, address: SegmentAddress) -> None:
        self.address = address
        self.states = np.zeros((2, STATE_SIZE), np.float32)
        self.is_closed = False

    def vector(self, index: int) -> Vector:
        assert not self.is_closed
        vector: Vector = self.states[index]
        return vector

    def close(self) -> None:
        self.is_closed = True


class Around:
    """A connection, heartbeats and memory, and all that was attached and sent."""

    shares_memory = True

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.random = Random(0)
        self.answer: tuple[Message, float] | None = None
        self.attached: list[Memory] = []
        self.sent: list[Message] = []

    def connect(self, standby: Standby | None = None) -> "Around":
        return self

    def start_heartbeats(self, worker_id: int, identity: int, interval_s: float) -> "Around":
        self.answer = None
        return self

    def attach(self, address: SegmentAddress, size: int) -> Memory:
        assert size == STATE_SIZE
        self.attached.append(Memory(address))
        return self.attached[-1]

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def receive(self, timeout_s: float) -> Message | None:
        raise AssertionError("messages are sent into the loop")

    def stop(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    def close(self) -> None:
        pass

    def no_answer(self, waited_s: float) -> NoAnswerError:
        raise AssertionError


class Ones:
    """A gradient of ones; counts the minibatches."""

    def __init__(self) -> None:
        self.minibatches = 0

    def __call__(self, weights: Vector, minibatch: Minibatch) -> MinibatchGradient:
        self.minibatches += 1
        return MinibatchGradient(2.0, np.ones_like(weights), 1)


class Bench:
    """A worker's loop, to which a test sends the server's messages."""

    def __init__(self, around: Around | None = None) -> None:
        self.around = around or Around()
        self.step = Ones()
        server, request = ServerAccess("server", None), Join("one", 0, "abc", SIZE)
        self.loop = WorkerLoop(self.local_of, server, request, environment=self.around)
        self.turns = self.loop.turns()
        self.command: Any = next(self.turns)

    def local_of(self, steps: StepSettings) -> LocalSteps:
        rate = steps.learning_rate
        return LocalSteps(self.step, UpdateRule(SGD(), SIZE), steps.batch_size, lambda _: rate)

    def begin(self, message: Message | None) -> None:
        """Send a message, and continue to the next wait or local step."""
        self.command = self.turns.send(message)

    def answer(self, message: Message) -> Message:
        """Send a message; return the last request once the loop waits for its answer."""
        self.begin(message)
        while isinstance(self.command, Compute):
            self.begin(None)
        return self.around.sent[-1]

    def ends(self, message: Message | None) -> Ended:
        with pytest.raises(StopIteration) as end:
            self.turns.send(message)
        self.loop.close()
        ended: Ended = end.value.value
        return ended


def test_local_steps_lead_from_the_servers_state_to_the_workers_in_shared_memory() -> None:
    bench = Bench()
    assert isinstance(bench.answer(WELCOME), Pull)
    [memory] = bench.around.attached
    memory.states[BASE] = 10, 20, 30, 7
    push = bench.answer(WORK)
    assert isinstance(push, Push)
    assert (push.lease_id, push.loss_sum, push.correct, push.state) == (9, 8.0, 4, None)
    np.testing.assert_array_equal(memory.states[BASE], [10, 20, 30, 7])
    np.testing.assert_array_equal(memory.states[RESULT], [8, 18, 28, 11])
    assert bench.ends(STOP) == Ended("every epoch is done", finished=True)
    assert memory.is_closed
    assert isinstance(bench.around.sent[-1], Leave)


def test_the_loop_waits_before_each_local_step() -> None:
    bench = Bench()
    bench.answer(WELCOME)
    bench.begin(WORK)
    for minibatch in range(4):
        assert isinstance(bench.command, Compute)
        assert bench.step.minibatches == minibatch
        bench.begin(None)
    assert not isinstance(bench.command, Compute)


def test_a_worker_leaves_in_mid_lease_when_a_heartbeat_is_answered_with_stop() -> None:
    bench = Bench()
    bench.answer(WELCOME)
    bench.begin(WORK)
    bench.around.answer = Alive(), 1.0
    bench.begin(None)
    assert isinstance(bench.command, Compute)
    bench.around.answer = STOP, 2.0
    assert bench.ends(None) == Ended("every epoch is done", finished=True)
    assert bench.step.minibatches == 1
    assert [type(each) for each in bench.around.sent] == [Join, Pull, Leave]


def test_a_worker_that_the_server_does_not_know_joins_again_in_mid_lease() -> None:
    bench = Bench()
    bench.answer(WELCOME)
    bench.begin(WORK)
    bench.around.answer = Refuse("unknown", may_rejoin=True), 1.0
    bench.begin(None)
    join = bench.around.sent[-1]
    assert isinstance(join, Join)
    assert bench.step.minibatches == 0
    pull = bench.answer(WELCOME._replace(worker_id=2, request_id=join.request_id))
    assert isinstance(pull, Pull)
    assert [memory.is_closed for memory in bench.around.attached] == [True, False]
    assert isinstance(bench.answer(WORK._replace(worker_id=2, request_id=pull.request_id)), Push)


def test_a_worker_may_be_stopped_in_mid_lease_and_while_it_waits() -> None:
    for is_computing in (True, False):
        bench = Bench()
        bench.answer(WELCOME)
        if is_computing:
            bench.begin(WORK)
        bench.loop.stop("interrupted")
        assert bench.ends(None) == Ended("interrupted", finished=False)


def test_memory_of_a_server_that_is_gone_is_released_when_the_worker_is_in_again() -> None:
    bench = Bench()
    bench.answer(WELCOME)
    assert isinstance(bench.answer(WORK), Push)
    join = bench.answer(Refuse("another server", may_rejoin=True))
    assert isinstance(join, Join)
    pull = bench.answer(WELCOME._replace(worker_id=2, request_id=join.request_id))
    assert isinstance(pull, Pull)
    assert [memory.is_closed for memory in bench.around.attached] == [True, False]
    assert bench.ends(STOP) == Ended("every epoch is done", finished=True)
    assert all(memory.is_closed for memory in bench.around.attached)


def test_a_worker_that_cannot_map_the_servers_memory_joins_again_with_frames() -> None:
    class AroundTooLittleMemory(Around):
        def attach(self, address: SegmentAddress, size: int) -> Memory:
            raise SegmentError("cannot map")

    bench = Bench(AroundTooLittleMemory())
    join = bench.answer(WELCOME)
    assert isinstance(join, Join)
    assert not join.shares_memory
    pull = bench.answer(WELCOME._replace(segment=None, request_id=join.request_id))
    assert isinstance(pull, Pull)
    packing = StatePacking(*UpdateRule(SGD(), SIZE).sizes)
    state = np.array([10, 20, 30, 7], np.float32)
    framed = WORK._replace(request_id=pull.request_id, state=packing.pack_base(state))
    push = bench.answer(framed)
    assert isinstance(push, Push)
    assert push.state is not None
    packing.unpack_result(push.state, state, out=state)
    np.testing.assert_allclose(state, [8, 18, 28, 11], rtol=1e-6)
    bench.loop.close()


def test_a_lease_without_a_state_is_an_error_for_a_worker_without_memory() -> None:
    bench = Bench()
    bench.answer(WELCOME._replace(segment=None))
    with pytest.raises(ProtocolError, match=naming("state")):
        bench.begin(WORK)
    bench.loop.close()


def test_other_settings_make_other_local_steps_when_the_worker_joins_again() -> None:
    bench = Bench()
    bench.answer(WELCOME)
    bench.answer(WORK)
    for learning_rate, result in ((0.5, -2.0), (0.25, -1.0)):
        join = bench.answer(Refuse("resumed", may_rejoin=True))
        assert isinstance(join, Join)
        steps = STEPS._replace(learning_rate=learning_rate)
        pull = bench.answer(WELCOME._replace(steps=steps, request_id=join.request_id))
        assert isinstance(pull, Pull)
        bench.answer(WORK._replace(request_id=pull.request_id))
        np.testing.assert_array_equal(bench.around.attached[-1].states[RESULT][:SIZE], result)
    bench.loop.close()
