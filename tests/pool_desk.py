"""A pool for tests of its decisions: the clock is a number and there is no socket."""

from __future__ import annotations

from itertools import count
from typing import Any, TypeVar

from children import KnownChildren
from described import described
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import (
    EndRequest,
    EvictWorker,
    InferenceRequest,
    PoolCommand,
    PoolSettings,
    Result,
    SendToNode,
    Status,
)
from dist_net.wire.messages import Alive, Heartbeat
from dist_net.wire.serving_messages import (
    BatchDone,
    Drop,
    JoinPool,
    Load,
    Loaded,
    ModelPrepared,
    PoolWelcome,
    RunBatch,
)

ROW = b"\x00" * 8  # two floats in, one out
OUT = b"\x00" * 4
ROW_S = 0.01  # what a worker takes for a request of the pool itself
ONE, TWO = b"node 1", b"node 2"
Sent = TypeVar("Sent", RunBatch, Load, Drop, PoolWelcome)


def describe(version: int, name: str = "net", shape: tuple[int, ...] = (2,)) -> ModelDescription:
    labels = (f"class of version {version}",)
    return described(
        name,
        version,
        input_shape=shape,
        classes=1,
        labels=labels,
        takes_images=True,
        unknown_below=version / 8,
    )


class Desk:
    """A pool with a clock, the commands that it gave, and short words for what happens."""

    def __init__(self, *names: str, workers: tuple[bytes, ...] = (ONE,), **settings: Any) -> None:
        self.now = 100.0
        self.commands: list[PoolCommand] = []
        self.ids: dict[bytes, int] = {}
        self.answers_probes = True
        self.children = KnownChildren()
        self.pool = Pool(
            PoolSettings(**settings), names or ("net",), self.children, count(1), self.now
        )
        for name in names or ("net",):
            self.prepare(1, name)
        for node in workers:
            self.enlist(node)
            for name in names or ("net",):
                self.load(node, 1, name)
        self.dispatch()
        self.commands.clear()

    def prepare(
        self, version: int, name: str = "net", shape: tuple[int, ...] = (2,), requested: int = 0
    ) -> None:
        text = describe(version, name, shape).to_json()
        prepared = ModelPrepared(name, version, text, "", requested)
        self.take(self.pool.prepared(prepared, self.now))

    def enlist(self, node: bytes, child: str | None = None) -> None:
        """A child of the gateway joins; a remote worker has no credential."""
        credential = node.decode() if child is None else child
        join = JoinPool(node.decode(), "host", 7, credential=credential)
        commands = self.pool.receive(node, join, self.now)
        for command in commands:
            if isinstance(command, SendToNode) and isinstance(command.message, PoolWelcome):
                self.ids[node] = command.message.worker_id
        self.take(commands)

    def heard(self, node: bytes) -> bool:
        """A worker's heartbeat, which has a node of its own; whether the pool knows the worker."""
        beat = Heartbeat(self.ids.get(node, 0))
        answer, *_ = self.pool.receive(b"heart", beat, self.now)
        return isinstance(answer, SendToNode) and isinstance(answer.message, Alive)

    def came_and_done(self) -> tuple[int, int]:
        model = self.pool.catalogue.models["net"]
        return model.came, model.done

    def load(self, node: bytes, version: int, name: str = "net", reason: str = "") -> None:
        self.take(self.pool.receive(node, Loaded(name, version, reason), self.now))

    def ask(self, payload: bytes = ROW, model: str = "net", **fields: Any) -> int:
        answer = self.refused(payload, model, **fields)
        assert isinstance(answer, int), answer
        return answer

    def refused(self, payload: bytes = ROW, model: str = "net", **fields: Any) -> Any:
        return self.pool.admit(InferenceRequest(model, payload, **fields), self.now)

    def done(self, node: bytes, run: RunBatch, statuses: bytes | None = None) -> None:
        if statuses is None:
            statuses = bytes(len(run.payloads))
        payloads = tuple(
            OUT * (len(payload) // len(ROW) or 1) if status == Status.OK else b"why"
            for payload, status in zip(run.payloads, statuses, strict=True)
        )
        self.take(
            self.pool.receive(
                node, BatchDone(run.batch_id, statuses, 0.25, 0.5, payloads), self.now
            )
        )

    def lose(self, node: bytes) -> None:
        self.take(self.pool.lost(node, "killed", self.now))
        self.dispatch()

    def crash(self, node: bytes) -> None:
        """The process of a child is ended by a signal."""
        self.take(self.pool.child_ended(node.decode(), "killed", True, self.now))
        self.dispatch()

    def dispatch(self) -> None:
        """Let the pool act; workers answer its own requests at once, unless ``answers_probes``."""
        for command in self.pool.dispatch(self.now):
            probe = self.probe_in(command)
            if probe is None or not self.answers_probes:
                self.commands.append(command)
            else:
                self.now += ROW_S
                self.done(*probe)

    def probe_in(self, command: PoolCommand) -> tuple[bytes, RunBatch] | None:
        """A request of the pool itself, with the node of its worker."""
        if not isinstance(command, SendToNode) or not isinstance(command.message, RunBatch):
            return None
        worker = self.pool._workers.at_node(command.node)
        assert worker is not None
        batch = worker.running[command.message.batch_id]
        return (command.node, command.message) if batch.is_probe else None

    def take(self, commands: list[PoolCommand]) -> None:
        self.commands += commands

    def runs(self, node: bytes = ONE) -> list[RunBatch]:
        """What was dispatched to a worker, after a dispatch; each is given once."""
        self.dispatch()
        return self.sent(RunBatch, node)

    def sent(self, kind: type[Sent], node: bytes) -> list[Sent]:
        found = [
            command.message
            for command in self.commands
            if isinstance(command, SendToNode)
            and command.node == node
            and isinstance(command.message, kind)
        ]
        self.commands = [
            command
            for command in self.commands
            if not (
                isinstance(command, SendToNode)
                and command.node == node
                and isinstance(command.message, kind)
            )
        ]
        return found

    def finished(self) -> dict[int, Result]:
        """Every end since it was asked last; no request may end twice."""
        ends = [command for command in self.commands if isinstance(command, EndRequest)]
        self.commands = [
            command for command in self.commands if not isinstance(command, EndRequest)
        ]
        results = {end.request_id: end.result for end in ends}
        assert len(results) == len(ends)
        return results

    def evicted(self) -> list[EvictWorker]:
        return [command for command in self.commands if isinstance(command, EvictWorker)]
