"""The gateway: the pool's state machine on an event loop, between those who ask and the workers.

    ask ─▶ Pool.admit ─▶ (turn) Pool.dispatch ─Run─▶ worker ─Done─▶ Pool.done ─▶ the asker's future

What arrives within one turn of the loop is dispatched together, so that batches form by themselves
when there is much to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from dist_net.clock import Clock
from dist_net.serving.gateway.asked import Asked
from dist_net.serving.gateway.children import Children
from dist_net.serving.pool.array_pieces import piece_of
from dist_net.serving.pool.commands import EndRequest, EvictWorker, PoolCommand, SendToNode
from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.loader_link import LoaderLink
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.reloads import Reloads
from dist_net.serving.pool.requests import Outcome, Question, Status
from dist_net.serving.pool.statistics import ModelStatistics
from dist_net.wire.messages import Alive, Heartbeat, Leave, Message, Refuse
from dist_net.wire.serving_messages import (
    BatchDone,
    Enlist,
    Enlisted,
    EnlistLoader,
    FetchArrays,
    Loaded,
    ModelPrepared,
    Retire,
)
from dist_net.wire.transport import ServerSocket

logger = logging.getLogger(__name__)

MESSAGES_A_TURN = 16  # then others of the event loop have theirs
MESSAGES_BEFORE_A_CHECK = 4096  # of all workers, since the socket takes from each in turn
IDLE_CHECK_S = 0.1  # a worker's silence is noticed although nothing else happens
STOOD_STILL_S = 0.5  # without a turn: this process was stopped, or had no core


class Gateway:
    """The `Service` of one pool, whose workers and loader speak to ``socket``.

    Of one event loop; ``start`` is called on it, and ``close`` before the socket's.
    ``loader_token`` is what its loader was given.
    """

    def __init__(
        self,
        pool: Pool,
        socket: ServerSocket,
        children: Children,
        clock: Clock,
        loader_token: bytes,
    ) -> None:
        self._pool = pool
        self._socket = socket
        self._children = children
        self._clock = clock
        self._asked: dict[int, Asked] = {}
        self._nodes: dict[int, bytes] = {}
        self._processes: dict[tuple[str, int], bytes] = {}
        self._loader = LoaderLink(loader_token, socket.send)
        self._reloads = Reloads(pool.versions_came, pool.versions_done)
        self._has_turn = False
        self._turn_s = self._timer_s = 0.0
        self._is_closed = False

    def start(self) -> None:
        """Begins to hear workers."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._receive)
        for model in self._pool.models():
            self._loader.prepare(model)
        self._turn_s = self._clock.now()
        self._timer = self._loop.call_later(0, self._want_turn)

    def close(self) -> None:
        """Hears nobody any more."""
        self._loop.remove_reader(self._socket.fileno())
        self._timer.cancel()
        self._is_closed = True  # what the loop has still to call must not touch the socket

    # What interfaces ask: see Service.

    def ask(self, question: Question) -> asyncio.Future[Outcome]:
        """The outcome, later; at once where it is refused. Cancelling the future cancels it."""
        admitted = self._pool.admit(question, self._clock.now())
        if isinstance(admitted, Outcome):
            refused: asyncio.Future[Outcome] = self._loop.create_future()
            refused.set_result(admitted)
            return refused
        future = self._asked[admitted] = Asked(loop=self._loop)
        future.abandon = partial(self._abandon, admitted)
        self._want_turn()
        return future

    def models(self) -> Mapping[str, ServedModel]:
        """Every model that is served, by name."""
        return self._pool.models()

    def description(self, model: str, version: int | None = None) -> ModelDescription | None:
        """What would answer a request for that version, or for none; None: nothing would."""
        return self._pool.description(model, version)

    def failures(self) -> list[str]:
        """Why models cannot be answered for: they could not be read, or loaded by any worker."""
        models = self._pool.models()
        return [
            f"model {name}: {reason or models[name].reason}"
            for name, reason in self._loader.unreadable.items()
            if not models[name].is_ready and (reason or self._no_worker_could_load(name))
        ]

    def _no_worker_could_load(self, model: str) -> bool:
        is_done = self._pool.versions_done(model) == self._pool.versions_came(model)
        return bool(self._nodes) and is_done

    def statistics(self, model: str) -> Mapping[int, ModelStatistics]:
        """What a model was asked and how it went, by version."""
        return self._pool.statistics(model)

    def status(self) -> dict[str, Any]:
        """The pool as it is now."""
        return self._pool.status(self._clock.now())

    @property
    def is_ready(self) -> bool:
        """Whether every model can be answered for now."""
        return self._pool.is_ready

    def reload(self, model: str) -> asyncio.Future[Outcome]:
        """Reads a model again from its source; done when workers answer with it, or it failed."""
        future = self._loop.create_future()
        if model not in self._pool.models():
            reason = f"no model {model!r} is served here; expected {', '.join(self._pool.models())}"
            future.set_result(Outcome(Status.NOT_FOUND, reason=reason))
        elif (asked := self._loader.prepare(model)) is None:
            reason = "the model loader takes no more to read now; ask again in a moment"
            future.set_result(Outcome(Status.UNAVAILABLE, reason=reason, retry_after_s=1.0))
        else:
            self._reloads.wait(model, asked, future)
        return future

    def unload(self, model: str) -> Outcome:
        """Serves a model no longer, until it is reloaded; what was admitted is answered."""
        if model not in self._pool.models():
            return Outcome(Status.NOT_FOUND, reason=f"no model {model!r} is served here")
        self._loader.unloaded.add(model)
        self._execute(self._pool.unload(model, "it was unloaded on request", self._clock.now()))
        return Outcome(Status.OK)

    # Life and death.

    def drain(self) -> None:
        """Admits nothing any more."""
        self._pool.drain(self._clock.now())

    async def drained(self, timeout_s: float, is_urgent: Callable[[], bool]) -> bool:
        """Waits until all that was admitted is answered; False if it is not in that time."""
        deadline_s = self._clock.now() + timeout_s
        while not self._pool.is_drained:
            if self._clock.now() > deadline_s or is_urgent():
                return False
            await asyncio.sleep(0.01)
        return True

    def give_up(self, reason: str) -> None:
        """Tells everybody who still waits that there will be no answer."""
        outcome = Outcome(Status.UNAVAILABLE, reason=reason)
        for future in [*self._asked.values()]:
            future.set_result(outcome)
        self._reloads.end(outcome)

    def retire_workers(self) -> None:
        """Tells every worker to leave."""
        for node in self._nodes.values():
            self._socket.send(node, Retire())

    def child_ended(self, process_id: int, host: str, reason: str) -> None:
        """A child is gone: a worker's requests go to others, now and not by its silence."""
        answer = self._loader.ended(process_id, reason)
        if answer is not None:
            self._take_in(answer)
        node = self._processes.pop((host, process_id), None)
        if node is not None:
            self._lost(node, reason)

    # The loop's turns.

    def _want_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._has_turn = False
        if self._is_closed:
            return
        now = self._clock.now()
        if now - self._turn_s > STOOD_STILL_S:
            logger.info("event=stood_still seconds=%.1f", now - self._turn_s)
            self._pool.stood_still(now - self._turn_s, now)
        self._turn_s = now
        if self._pool.is_check_due(now):
            self._hear(MESSAGES_BEFORE_A_CHECK)
        self._execute(self._pool.dispatch(now))
        if self._reloads.is_waiting:
            self._reloads.advance(self._pool.models())
        wakeup_s = self._pool.next_wakeup()
        due_s = now + IDLE_CHECK_S if wakeup_s is None else min(now + IDLE_CHECK_S, wakeup_s)
        if not now < self._timer_s <= due_s:  # a turn that comes too early does no harm
            self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, due_s - now), self._want_turn)
            self._timer_s = due_s
        if self._socket.has_message():  # a send may have used up the descriptor's notice
            self._loop.call_soon(self._receive)

    def _receive(self) -> None:
        if self._is_closed:
            return
        try:
            self._hear(MESSAGES_A_TURN)
        finally:  # or what is left would wait for ever
            self._want_turn()

    def _hear(self, most: int) -> None:
        for node, message in self._socket.waiting(most):
            try:
                self._handle(node, message)
            except Exception:
                self._socket.answer_failure(node, message)

    def _execute(self, commands: Iterable[PoolCommand]) -> None:
        for command in commands:
            match command:
                case EndRequest(request_id, outcome):
                    future = self._asked.pop(request_id, None)
                    if future is not None and not future.done():
                        future.set_result(outcome)
                case SendToNode(node, message):
                    if isinstance(message, Enlisted):
                        self._nodes[message.worker_id] = node
                    if not self._socket.send(node, message):
                        self._lost(node, "it takes no more messages")
                case EvictWorker(node, process_id, host, reason):
                    logger.warning("event=worker_given_up process=%s reason=%s", process_id, reason)
                    self._forget(node)
                    self._children.kill(process_id, host, reason)

    def _abandon(self, request_id: int) -> None:
        if self._asked.pop(request_id, None) is not None:
            self._pool.cancel(request_id, self._clock.now())

    # What workers and the loader say.

    def _handle(self, node: bytes, message: Message) -> None:
        now = self._clock.now()
        match message:
            case BatchDone():
                self._if_known(node, lambda: self._pool.done(node, message, now))
            case Heartbeat(worker_id):
                own = self._nodes.get(worker_id)
                is_known = own is not None and self._pool.heard(own, now)
                self._socket.send(node, Alive() if is_known else _unknown())
            case Enlist(name, host, process_id):
                self._processes[host, process_id] = node
                self._execute(self._pool.enlist(node, name, host, process_id, now))
            case Loaded():
                self._if_known(node, lambda: self._pool.loaded(node, message, now))
            case FetchArrays():
                self._pool.heard(node, now)
                description = self._pool.description(message.model, message.version)
                self._socket.send(node, piece_of(description, message))
            case Leave():
                self._lost(node, "it left")
            case EnlistLoader() if self._loader.enlisted(node, message):
                logger.info("event=loader_enlisted process=%d", message.process_id)
            case ModelPrepared() if self._loader.prepared(node, message):
                self._take_in(message)
            case _:
                reason = f"{type(message).__name__} is not for the workers' address of a gateway"
                self._socket.send(node, Refuse(reason, may_rejoin=False))

    def _take_in(self, message: ModelPrepared) -> None:
        if message.model in self._loader.unloaded:
            logger.info("event=version_ignored model=%s reason=unloaded", message.model)
        else:
            self._execute(self._pool.prepared(message, self._clock.now()))
        self._reloads.prepared(message)
        self._want_turn()

    def _if_known(self, node: bytes, hear: Callable[[], list[PoolCommand]]) -> None:
        if self._pool.heard(node, self._clock.now()):
            self._execute(hear())
        else:
            self._socket.send(node, _unknown())

    def _lost(self, node: bytes, reason: str) -> None:
        self._forget(node)
        self._execute(self._pool.lost(node, reason, self._clock.now()))
        self._want_turn()

    def _forget(self, node: bytes) -> None:
        self._nodes = {worker: own for worker, own in self._nodes.items() if own != node}


def _unknown() -> Refuse:
    return Refuse("the gateway does not count this worker in any more", may_rejoin=True)
