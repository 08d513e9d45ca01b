"""A server's note to a worker on its host: one end real, the other played by the test."""

import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from dist_net.parameter_server.loop import ServerLoop
from dist_net.parameter_server.run import RunState
from dist_net.parameter_server.settings import RunSettings
from dist_net.parameter_server.store import PINS_PER_READER
from dist_net.training.inbox import SEE_STORES_IN_ORDER
from dist_net.training.loop import WorkerLoop
from dist_net.vector import Vector
from dist_net.wire.messages import Join, Leave, Message, Pull, Push, Welcome, Work
from dist_net.wire.segment import Segment, available
from dist_net.wire.transport import ClientSocket, ServerSocket
from dist_net.wire.work_note import noted, work_in

pytestmark = pytest.mark.skipif(not available(), reason="needs shared memory")

SIZE = 6
LISTEN = ["tcp://127.0.0.1:0"]
Answer = TypeVar("Answer", bound=Message)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, "dist-net") as threads:
        yield threads


def test_a_server_notes_what_it_answers(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    settings = RunSettings("r", "abc", (("weight", (SIZE,)),), samples=8, epochs=9, batch_size=4)
    with (
        closing(Segment.create(vectors=2 + PINS_PER_READER, size=SIZE)) as weights,
        closing(Segment.create(vectors=1, size=SIZE)) as own,
        ServerSocket(LISTEN) as socket,
        ClientSocket(socket.contact_addresses[0]) as client,
        ExitStack() as at_the_end,
    ):
        buffers = [weights.vector(index) for index in range(weights.vectors)]
        run = RunState(settings, np.zeros(SIZE, np.float32), buffers)
        server = ServerLoop(run, socket, tmp_path / "c", 60.0, weights)
        at_the_end.callback(threads.submit(server.serve).result, 10.0)
        at_the_end.callback(server.stop, "the test is over")

        def answer(message: Message, kind: type[Answer]) -> Answer:
            client.send(message)
            received = client.receive(10.0)
            assert isinstance(received, kind)
            return received

        place = own.process_id, own.descriptor, own.token
        worker_id = answer(Join("here", "abc", SIZE, *place), Welcome).worker_id
        work = answer(Pull(worker_id), Work)
        for start in (0, 4):
            push = Push(
                worker_id, work.lease_id, start, (start + 4,), (start // 4,), 1.0, 1, (0,), ()
            )
            work = answer(push, Work)
            assert work_in(bytes(own.note)) == work
        assert work.version == 2
        client.send(Leave(worker_id))


@pytest.mark.skipif(platform.machine() not in SEE_STORES_IN_ORDER, reason="only messages count")
def test_a_worker_goes_on_with_what_is_noted(threads: ThreadPoolExecutor) -> None:
    read: list[float] = []

    class Step:
        def gather(self, *_: int) -> None:
            pass

        def run(self, weights: Vector, gradient: Vector) -> tuple[float, int]:
            read.append(float(weights[0]))
            gradient[:] = 1
            return 1.0, 1

    with (
        closing(Segment.create(vectors=2, size=SIZE)) as weights,
        ServerSocket(LISTEN) as server,
        WorkerLoop(
            lambda _: Step(), server.contact_addresses[0], "here", "abc", SIZE, shares_memory=True
        ) as worker,
        ExitStack() as at_the_end,
    ):
        node = b""

        def next_request(kind: type[Answer]) -> Answer:
            nonlocal node
            while True:
                received = server.receive(10.0)
                assert received is not None
                if isinstance(received[1], kind):  # and not a heartbeat, of another node
                    node, request = received
                    return request

        at_the_end.callback(threads.submit(worker.train).result, 10.0)
        at_the_end.callback(worker.stop, "the test is over")
        join = next_request(Join)
        place = weights.process_id, weights.descriptor, weights.token
        server.send(node, Welcome(1, 4, 0, 1000.0, 5000.0, *place))
        next_request(Pull)
        server.send(node, Work(1, 0, 0, 8, 0, 1, 0, None))
        for start in (0, 4):
            assert next_request(Push).start == start

        gradients = Segment.attach(
            join.process_id, join.gradient_descriptor, join.segment_token, SIZE
        )
        weights.vector(1)[:] = 7
        gradients.note[:] = noted(Work(2, 0, 8, 12, 2, 1, 1, None))
        push = next_request(Push)  # although no message came
        assert (push.lease_id, push.start, push.base_versions) == (2, 8, (2,))
        assert read == [0, 0, 7]
        gradients.close()
