"""The worker's loop among connections, heartbeats and memory that are made of Python objects."""

from collections.abc import Iterable
from random import Random

import numpy as np
import pytest

from dist_net.clock import SystemClock
from dist_net.errors import NoAnswerError, SegmentError
from dist_net.training.worker.loop import WorkerLoop
from dist_net.training.worker.state import Compute, Ended
from dist_net.vector import Vector
from dist_net.wire.messages import (
    Join,
    Message,
    Pull,
    Push,
    Refuse,
    SegmentAddress,
    Stop,
    Welcome,
    Work,
)

SIZE = 3
WELCOME = Welcome(1, "first", 2, 0, 0.3, 1.5, SegmentAddress(55, 7, b"t"), 1)


class Memory:
    """Vectors that are shared, until they are closed."""

    vectors = 9

    def __init__(self, address: SegmentAddress) -> None:
        self.address = address
        self.is_closed = False

    def vector(self, index: int) -> Vector:
        assert not self.is_closed
        return np.zeros(SIZE, np.float32)

    def close(self) -> None:
        self.is_closed = True


class Around:
    """A connection, heartbeats and memory, and all that was attached."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.random = Random(0)
        self.answer: tuple[Message, float] | None = None
        self.attached: list[Memory] = []
        self.sent: list[Message] = []

    def connect(self) -> "Around":
        return self

    def open_channel(self) -> None:
        """Return no second connection."""

    def start_heartbeats(self, worker_id: int, identity: int, interval_s: float) -> "Around":
        return self

    def share(self, vectors: int, size: int) -> Memory:
        return Memory(SegmentAddress(1, 2, b"w"))

    def attach(self, address: SegmentAddress, size: int) -> Memory:
        self.attached.append(Memory(address))
        return self.attached[-1]

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def lend(self, vectors: Iterable[Vector]) -> None:
        pass

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


class Step:
    """Computes nothing, and remembers the weights that it was given, as a plan does."""

    def __init__(self) -> None:
        self.bound: list[Vector] = []

    def gather(self, epoch: int, start: int, stop: int) -> None:
        pass

    def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
        self.bound.append(weights)
        return 1.0, 1

    def unbind(self) -> None:
        self.bound.clear()


def test_memory_of_a_server_that_is_gone_is_released_when_the_worker_is_in_again() -> None:
    around, step = Around(), Step()
    loop = WorkerLoop(lambda _: step, "server", "one", "abc", SIZE, environment=around)
    turns = loop.turns()

    def answered(message: Message) -> Message:
        """Return the request that the loop has sent when it waits again."""
        command = turns.send(message)
        while isinstance(command, Compute):
            command = turns.send(None)
        return around.sent[-1]

    next(turns)
    assert isinstance(answered(WELCOME), Pull)
    assert isinstance(answered(Work(2, 1, 0, 0, 2, 0, 1, 1, 0.0, 1, 8, 0, None)), Push)
    assert len(step.bound) == 1
    join = answered(Refuse("another server", may_rejoin=True))
    assert isinstance(join, Join)
    assert isinstance(answered(WELCOME._replace(worker_id=2, request_id=join.request_id)), Pull)
    assert step.bound == []
    assert [memory.is_closed for memory in around.attached] == [True, False]
    with pytest.raises(StopIteration) as end:
        turns.send(Stop("every epoch is done", finished=True))
    assert end.value.value == Ended("every epoch is done", finished=True)
    loop.close()
    assert all(memory.is_closed for memory in around.attached)


@pytest.mark.parametrize("mapped", [0, 1])
def test_a_worker_that_cannot_map_the_servers_memory_joins_again_with_frames(mapped: int) -> None:
    class Unmapped(Memory):
        def vector(self, index: int) -> Vector:
            raise SegmentError("cannot map")

    class AroundTooLittleMemory(Around):
        def attach(self, address: SegmentAddress, size: int) -> Memory:
            if not mapped:
                raise SegmentError("cannot map")
            return Unmapped(address)

    around, step = AroundTooLittleMemory(), Step()
    loop = WorkerLoop(lambda _: step, "server", "one", "abc", SIZE, environment=around)
    turns = loop.turns()
    next(turns)
    turns.send(WELCOME)
    if mapped:
        command = turns.send(Work(2, 1, 0, 0, 2, 0, 1, 1, 0.0, 1, 8, 0, None))
        while isinstance(command, Compute):
            command = turns.send(None)
    join = around.sent[-1]
    assert isinstance(join, Join)
    assert join.segment is None
    framed = WELCOME._replace(segment=None, request_id=join.request_id)
    turns.send(framed)
    pull = around.sent[-1]
    assert isinstance(pull, Pull)
    weights = np.ones(SIZE, np.float32)
    command = turns.send(Work(pull.request_id, 1, 0, 0, 2, 0, 1, 1, 0.0, 1, 8, -1, weights))
    while isinstance(command, Compute):
        command = turns.send(None)
    assert isinstance(around.sent[-1], Push)
    assert len(around.sent[-1].gradients) == 1
    loop.close()
