"""A parameter server without sockets, its clock, and short words for what workers send to it."""

import json
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dist_net.ground.vector import Vector
from dist_net.training.server.journal import JournalFile
from dist_net.training.server.protocol import ParameterServer, SendToPeer, ServerCommand
from dist_net.training.server.server_files import OpenServerFiles, ServerFiles
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.wire.lateness import MAX_LOOK_S
from dist_net.wire.messages import (
    Heartbeat,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    StatusReport,
    StatusRequest,
    Welcome,
    Work,
)

SETTINGS = RunSettings(
    recipe="digits",
    recipe_digest="abc",
    layout=(("weight", (2, 2)), ("bias", (2,))),
    samples=40,
    epochs=2,
    batch_size=4,
    learning_rate=0.5,
    local_steps=2,
)
SIZE, STATE_SIZE = 6, 7
"""The lengths of the model's vector, and of the state: with plain SGD, one more for the steps."""


def vector(value: float, size: int = SIZE) -> Vector:
    return np.full(size, value, np.float32)


def opened_journal(path: Path, run: RunState, threads: int = 1) -> closing[JournalFile]:
    """Return the journal of a server that begins, or resumes, the run."""
    files = ServerFiles(path.with_name("checkpoint"), path, 60.0, threads=threads)
    return closing(OpenServerFiles(files, run).journal)


def a_run(**settings: Any) -> RunState:
    run_settings = replace(SETTINGS, **settings)
    return RunState(run_settings, vector(0.0, run_settings.vector_size))


class Desk:
    """A server; workers share memory, unless they join with ``shares_memory=False``."""

    def __init__(self, run: RunState | None = None) -> None:
        self.run = run or a_run()
        self.server = ParameterServer(self.run, 7)
        self._now = 100.0
        self.identities: dict[int, int] = {}  # by worker id
        self.requests: Counter[int] = Counter()

    @property
    def now(self) -> float:
        """The time. A server looks at it several times a second, unless it is stopped."""
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        while self._now < now:
            self._now = min(self._now + MAX_LOOK_S, now)
            self.run.members.running_s(self._now)

    @property
    def state(self) -> Vector:
        return self.run.store.state

    def commands(self, node: bytes, message: Message) -> list[ServerCommand]:
        return self.server.handle(node, message, self.now)

    def answers(self, node: bytes, message: Message) -> dict[bytes, Any]:
        """Return the messages that are sent for ``message``, by node."""
        sends = [each for each in self.commands(node, message) if isinstance(each, SendToPeer)]
        assert len({send.node for send in sends}) == len(sends)
        return {send.node: send.message for send in sends}

    def ask(self, node: bytes, message: Message) -> Any:
        """Return the answer to the sender, the only message that is sent."""
        answers = self.answers(node, message)
        assert [*answers] == [node]
        return answers[node]

    def join(self, node: bytes, **facts: Any) -> Any:
        join = Join(node.decode(), hash(node), "abc", self.run.settings.vector_size, True)
        join = join._replace(**facts)
        answer = self.ask(node, join)
        if isinstance(answer, Welcome):
            self.identities[answer.worker_id] = join.identity
            self.requests[answer.worker_id] = join.request_id
        return answer

    def numbered(self, worker_id: int) -> tuple[int, int, int]:
        """Return the first fields of the worker's next request."""
        self.requests[worker_id] += 1
        return worker_id, self.identities.get(worker_id, 0), self.requests[worker_id]

    def a_pull(self, worker_id: int) -> Pull:
        return Pull(*self.numbered(worker_id))

    def a_push(self, work: Work, change: float = 1.0, **facts: Any) -> Push:
        """Return the push of a lease that added ``change`` to each element of the base.

        Only the number of steps is the lease's.
        """
        assert work.state is not None
        state = work.state + np.float32(change)
        state[-1] = work.state[-1] + work.steps.samples / work.steps.batch_size / work.steps.parts
        loss_sum = 2.0 * work.steps.samples
        push = Push(*self.numbered(work.worker_id), work.lease_id, loss_sum, 3, 0.0, state)
        return push._replace(**facts)

    def pull(self, node: bytes, worker_id: int) -> Any:
        return self.ask(node, self.a_pull(worker_id))

    def push(self, node: bytes, work: Work, change: float = 1.0, **facts: Any) -> Any:
        return self.ask(node, self.a_push(work, change, **facts))

    def has_to_wait(self, node: bytes, message: Message) -> bool:
        return self.answers(node, message) == {}

    def beat(self, worker_id: int, sent_s: float = 0.0) -> Any:
        """Send a heartbeat, which has a socket of its own."""
        identity = self.identities.get(worker_id, 0)
        return self.answers(b"heart", Heartbeat(worker_id, sent_s, identity, sent_s))[b"heart"]

    def leave(self, node: bytes, worker_id: int) -> list[ServerCommand]:
        return self.commands(node, Leave(worker_id, self.identities[worker_id]))

    def report(self, first_record: int = 0) -> dict[str, Any]:
        status = self.answers(b"observer", StatusRequest(first_record))[b"observer"]
        assert isinstance(status, StatusReport)
        report: dict[str, Any] = json.loads(status.report)
        return report

    def trained(self, node: bytes, worker_id: int, samples_at_most: int = 10**9) -> Any:
        """Let one worker train, a tenth of a second for each push; return its last answer."""
        answer = self.pull(node, worker_id)
        while isinstance(answer, Work) and self.run.ledger.applied_samples < samples_at_most:
            self.now += 0.1
            answer = self.push(node, answer)
        return answer
