"""The gateway: the pool's state machine on an event loop, between clients and workers.

    ask ─▶ Pool.admit ─▶ (turn) Pool.dispatch ─RunBatch─▶ worker ─BatchDone─▶ Pool.receive ─▶ future

What arrives within one turn of the loop is dispatched together, so batches form by themselves under
load.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dist_net.clock import Clock
from dist_net.errors import ModelLoadError
from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import (
    EndRequest,
    EvictWorker,
    InferenceRequest,
    PoolCommand,
    Result,
    SendToNode,
    Status,
)
from dist_net.serving.pool.statistics import ModelStatistics
from dist_net.wire.serving_messages import ArraysPiece, FetchArrays
from dist_net.wire.transport import ServerSocket

logger = logging.getLogger(__name__)

MESSAGES_A_TURN = 16  # then other parts of the event loop have their turn
MESSAGES_BEFORE_A_CHECK = 4096  # of all workers, since the socket takes from each in turn
IDLE_CHECK_S = 0.1  # how often to look at the workers if nothing else happens
STOOD_STILL_S = 0.5  # without a turn: this process was stopped, or had no core
LARGEST_PIECE = 8 << 20  # of a file of arrays


class ResultFuture(asyncio.Future[Result]):
    """The result of a request; cancelling it cancels the request."""

    abandon: Callable[[], None]

    def cancel(self, msg: object = None) -> bool:
        is_cancelled = super().cancel(msg)
        if is_cancelled:
            self.abandon()
        return is_cancelled


class Gateway:
    """Asks one pool, whose workers and loader speak to ``socket``. Nothing here blocks.

    It belongs to one event loop: ``start`` is called on it, and ``close`` before the socket's.
    ``kill(process_id, host, reason)`` ends a worker that the pool has given up, if this host has
    started it; another takes its place.
    """

    def __init__(
        self,
        pool: Pool,
        socket: ServerSocket,
        kill: Callable[[int, str, str], None],
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._socket = socket
        self._kill = kill
        self._clock = clock
        self._futures: dict[int, ResultFuture] = {}
        self.unloads: Counter[str] = Counter()  # how often each model was unloaded
        self._has_turn = False
        self._turn_s = 0.0
        self._timer_s = math.inf  # when the timer is due; infinite if none is set
        self._is_closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins, on this event loop."""
        self._loop = loop
        self._loop.add_reader(self._socket.fileno(), self._receive)
        self._turn_s = self._clock.now()
        self._timer = self._loop.call_later(0, self._want_turn)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._timer.cancel()
        self._is_closed = True  # callbacks that are still queued must not touch the socket

    # What interfaces ask: HTTP, the desk for ZeroMQ clients, the page.

    def infer(self, request: InferenceRequest) -> asyncio.Future[Result]:
        """The result, later; at once if it is refused. Cancelling the future cancels it."""
        return self._future_of(self._pool.admit(request, self._clock.now()))

    def reload(self, model: str) -> asyncio.Future[Result]:
        """Reads a model again from its source; done when workers answer with it, or it failed."""
        return self._future_of(self._pool.reload(model))

    def unload(self, model: str) -> Result:
        """Serves a model no longer, until it is reloaded; what was admitted is answered."""
        self._want_turn()
        result = self._pool.unload(model)
        if result.status == Status.OK:
            self.unloads[model] += 1
            logger.warning("model_unloaded model=%s", model)
        return result

    def models(self) -> Mapping[str, ServedModel]:
        """Every model that is served, by name, in the order of the command line."""
        return self._pool.catalogue.served()

    def description(self, model: str, version: int | None = None) -> ModelDescription | None:
        """What would answer a request for that version, or for the newest; None if nothing."""
        return self._pool.catalogue.description(model, version)

    def statistics(self, model: str) -> Mapping[int, ModelStatistics]:
        """What a model was asked and how it went, by version."""
        return self._pool.catalogue.models[model].statistics

    def status(self) -> dict[str, Any]:
        """The pool as it is now, for people: workers, queue, models."""
        return self._pool.status(self._clock.now())

    @property
    def is_ready(self) -> bool:
        """Whether every loaded model can be answered for now; False without one, and draining."""
        return self._pool.is_ready(self._clock.now())

    # What the process around it does.

    def failures(self) -> list[ModelLoadError]:
        """Why models cannot be answered for: they could not be read, or loaded by any worker."""
        return self._pool.failures()

    async def drain(self, timeout_s: float, is_urgent: asyncio.Event) -> bool:
        """Admits nothing more, and answers what was admitted; False if that takes longer."""
        self._pool.drain()
        deadline_s = self._clock.now() + timeout_s
        while not self._pool.is_drained:
            if self._clock.now() > deadline_s or is_urgent.is_set():
                return False
            await asyncio.sleep(0.01)
        return True

    def give_up(self, reason: str) -> None:
        """Tells everybody who still waits that there will be no answer."""
        for future in [*self._futures.values()]:
            if not future.done():
                future.set_result(Result(Status.UNAVAILABLE, reason=reason))

    def retire_workers(self) -> None:
        self._execute(self._pool.retire())

    def child_ended(self, process_id: int, host: str, reason: str) -> None:
        """A child is gone: its requests go to others now, not when its silence is noticed."""
        self._execute(self._pool.child_ended(process_id, host, reason, self._clock.now()))
        self._want_turn()

    def _future_of(self, admitted: int | Result) -> ResultFuture:
        future = ResultFuture(loop=self._loop)
        if isinstance(admitted, Result):
            future.set_result(admitted)
        else:
            self._futures[admitted] = future
            future.abandon = partial(self._abandon, admitted)
            self._want_turn()
        return future

    def _abandon(self, request_id: int) -> None:
        if self._futures.pop(request_id, None) is not None:
            self._pool.cancel(request_id)

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
            logger.info("stood_still seconds=%.1f", now - self._turn_s)
            self._pool.stood_still(now - self._turn_s, now)
        self._turn_s = now
        if self._pool.is_check_due(now):
            self._hear(MESSAGES_BEFORE_A_CHECK)
        self._execute(self._pool.dispatch(now))
        wakeup_s = self._pool.next_wakeup()
        due_s = now + IDLE_CHECK_S if wakeup_s is None else min(now + IDLE_CHECK_S, wakeup_s)
        if due_s < self._timer_s:
            self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, due_s - now), self._timer_fired)
            self._timer_s = due_s
        if self._socket.has_message():  # a send may have used up the descriptor's notice
            self._loop.call_soon(self._receive)

    def _timer_fired(self) -> None:
        self._timer_s = math.inf  # the clock does not tell: uvloop's timers are up to 1 ms early
        self._want_turn()

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
                if isinstance(message, FetchArrays):
                    self._send_piece(node, message)
                else:
                    self._execute(self._pool.receive(node, message, self._clock.now()))
            except Exception:
                self._socket.answer_failure(node, message)

    def _send_piece(self, node: bytes, request: FetchArrays) -> None:
        description = self._pool.catalogue.description(request.model, request.version)
        self._socket.send(node, read_piece(description, request))
        if description is not None and not Path(description.arrays_path).exists():
            # This host's workers ask for a piece, too, once they cannot map the file.
            self._pool.catalogue.prepare_again(request.model)

    def _execute(self, commands: Iterable[PoolCommand]) -> None:
        for command in commands:
            match command:
                case EndRequest(request_id, result):
                    future = self._futures.pop(request_id, None)
                    if future is not None and not future.done():
                        future.set_result(result)
                case SendToNode(node, message):
                    if not self._socket.send(node, message):
                        reason = "it takes no more messages"
                        self._execute(self._pool.lost(node, reason, self._clock.now()))
                        self._want_turn()
                case EvictWorker(_, process_id, host, reason):
                    logger.warning("worker_given_up process=%s reason=%s", process_id, reason)
                    self._kill(process_id, host, reason)


def read_piece(description: ModelDescription | None, request: FetchArrays) -> ArraysPiece:
    """A piece of a version's file of arrays, for a worker of another host.

    Shorter at the file's end; without payload if there is no such file.
    """
    nothing = ArraysPiece(request.model, request.version, request.offset, 0, ())
    if description is None or not 0 < request.size <= LARGEST_PIECE:
        return nothing
    try:
        with Path(description.arrays_path).open("rb") as file:
            piece = os.pread(file.fileno(), request.size, request.offset)
    except OSError:
        return nothing
    return nothing._replace(total=description.arrays_bytes, payloads=(piece,))
