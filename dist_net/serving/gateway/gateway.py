"""The gateway: the pool's state machine on an event loop, between clients and workers.

    infer ─▶ Pool.admit ─▶ (turn) Pool.dispatch ─RunBatch─▶ worker ─BatchDone─▶ Pool.receive

Requests that arrive in one turn of the loop are dispatched together, so batches form under load.
"""

import asyncio
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dist_net.ground.clock import Clock
from dist_net.processes.launcher import RunningChild
from dist_net.serving.gateway.client_ledger import ClientLedger
from dist_net.serving.gateway.drift import DriftMonitor
from dist_net.serving.gateway.pool_processes import PoolProcesses
from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import (
    EndRequest,
    EvictWorker,
    InferenceRequest,
    PoolCommand,
    ReadModel,
    RemoveArrays,
    Result,
    SendToNode,
    Status,
)
from dist_net.serving.pool.statistics import Histogram, ModelStatistics
from dist_net.serving.pool.versions import ModelVersions
from dist_net.wire.serving_messages import ArraysPiece, FetchArrays, ModelPrepared
from dist_net.wire.transport import ServerSocket

logger = logging.getLogger(__name__)

MESSAGES_A_TURN = 16  # then other callbacks of the event loop run
MESSAGES_BEFORE_A_CHECK = 4096  # of all workers, since the socket reads from each in turn
IDLE_CHECK_S = 0.1  # between checks of the workers if nothing else happens
LARGEST_PIECE = 8 << 20  # of a file of arrays
GATHER_S = 0.005  # while a client's next requests are being read, its batch is formed


@dataclass(eq=False, repr=False)
class Gateway:
    """Runs one pool; its workers connect to ``_socket``. Never blocks.

    Belongs to one event loop: call ``start`` on it, and ``close`` before the socket's.
    """

    pool: Pool
    _socket: ServerSocket
    _processes: PoolProcesses
    _clock: Clock
    _ledger: ClientLedger
    _futures: dict[int, asyncio.Future[Result]] = field(default_factory=dict)
    unloads: Counter[str] = field(default_factory=Counter)  # by model
    ended: Counter[str] = field(default_factory=Counter)  # processes that ended, by host
    observers: list[Callable[[InferenceRequest, Result], None]] = field(default_factory=list)
    """Called with each image that was answered, and must not block."""
    drift: list[DriftMonitor] = field(default_factory=list)  # those among the observers
    lag: Histogram = field(default_factory=Histogram)  # of timers, which other work delayed
    _has_turn: bool = False
    _turn_s: float = 0.0
    _timer_s: float = math.inf  # the time of the timer; infinite without one
    _gathered: int = 0  # requests since the last dispatch
    _gathers_until_s: float = 0.0
    _is_closed: bool = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._loop.add_reader(self._socket.fileno(), self._receive)
        self._turn_s = self._clock.now()
        self._timer = self._loop.call_later(0, self._want_turn)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._timer.cancel()
        self._is_closed = True  # callbacks that are still queued must not touch the socket

    # For the HTTP server.

    def infer(self, request: InferenceRequest, more_follow: bool = False) -> asyncio.Future[Result]:
        """Return the future result; a refusal is set at once. Cancel it to cancel the request.

        If ``more_follow``, the client's next requests are about to be read, and may share a batch.
        """
        now = self._clock.now()
        future = self._future_of(self.pool.admit(request, now))
        if request.is_image:
            future.add_done_callback(partial(self._observe, request))
        self._gathered += 1
        if not more_follow or self._gathered >= 2 * self.max_batch_size:
            self._gathers_until_s = 0.0
            self._want_turn()
        elif self._gathered == 1:
            self._gathers_until_s = now + GATHER_S
            self._loop.call_later(GATHER_S, self._want_turn)
        return future

    def reload(self, model: str, share: float = 1.0) -> asyncio.Future[Result]:
        """Read a model again from its source; done when workers serve it, or it failed.

        A ``share`` below 1 begins a rollout: as many of the requests go to the new version.
        """
        self._want_turn()
        return self._future_of(self.pool.reload(model, share))

    def add(self, model: str) -> None:
        """Add a model that is unloaded until it is reloaded."""
        self.pool.catalogue.add(ModelVersions(model, is_unloaded=True))

    def end_rollout(self, model: str, outcome: str) -> int:
        """See ``ModelVersions.end_rollout``."""
        self._want_turn()
        return self.pool.end_rollout(model, outcome)

    def unload(self, model: str) -> None:
        """Stop serving a model until it is reloaded; admitted requests are answered."""
        self._want_turn()
        self.pool.unload(model)
        self.unloads[model] += 1
        logger.warning("model_unloaded model=%s", model)

    def models(self) -> Mapping[str, ServedModel]:
        return self.pool.catalogue.served()

    def description(self, model: str, version: int | None = None) -> ModelDescription | None:
        return self.pool.catalogue.description(model, version)

    def statistics(self, model: str) -> Mapping[int, ModelStatistics]:
        return self.pool.catalogue.models[model].statistics

    @property
    def max_batch_size(self) -> int:
        return self.pool.max_batch_size

    def status(self) -> dict[str, Any]:
        report, ledger = self.pool.status(self._clock.now()), self._ledger
        report["queue"] |= {"bytes": ledger.total_bytes, "byte_limit": ledger.limit_bytes}
        return report

    @property
    def is_ready(self) -> bool:
        """Whether every model is ready; False without models, and while draining."""
        return self.pool.is_ready(self._clock.now())

    # For the process.

    async def drain(self, timeout_s: float, is_urgent: asyncio.Event) -> bool:
        """Admit no more requests, answer admitted requests; return False after the timeout."""
        self.pool.drain()
        deadline_s = self._clock.now() + timeout_s
        while not self.pool.is_drained:
            if self._clock.now() > deadline_s or is_urgent.is_set():
                return False
            await asyncio.sleep(0.01)
        return True

    def give_up(self, reason: str) -> None:
        for future in [*self._futures.values()]:
            if not future.done():
                future.set_result(Result(Status.UNAVAILABLE, reason=reason))

    def retire_workers(self) -> None:
        self._execute(self.pool.retire())

    def child_ended(self, credential: str, child: RunningChild) -> None:
        """Process the exit of a child at once, without waiting for a timeout."""
        self.ended[child.host] += 1
        by_signal = (child.exit_code or 0) < 0 and not child.is_lost
        now, reason = self._clock.now(), child.last_words
        self._execute(self.pool.child_ended(credential, reason, by_signal, now))
        self._want_turn()

    def prepared(self, message: ModelPrepared) -> None:
        self._execute(self.pool.prepared(message, self._clock.now()))
        self._want_turn()

    def _future_of(self, admitted: int | Result) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = asyncio.Future(loop=self._loop)
        if isinstance(admitted, Result):
            future.set_result(admitted)
        else:
            self._futures[admitted] = future
            future.add_done_callback(partial(self._ended, admitted))
        return future

    def _observe(self, request: InferenceRequest, future: asyncio.Future[Result]) -> None:
        if not future.cancelled() and (result := future.result()).status == Status.OK:
            for observer in self.observers:
                observer(request, result)

    def _ended(self, request_id: int, future: asyncio.Future[Result]) -> None:
        if future.cancelled() and self._futures.pop(request_id, None) is not None:
            self.pool.cancel(request_id)

    # Turns of the loop.

    def _want_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._has_turn = False
        if self._is_closed:
            return
        now = self._clock.now()
        late_s = now - self._turn_s - IDLE_CHECK_S
        if late_s > 0:  # this process was stopped, or the machine is busy: workers are late, too
            self.pool.stood_still(late_s, now)
        self._turn_s = now
        if self.pool.is_check_due(now):
            self._hear(MESSAGES_BEFORE_A_CHECK)
        if now >= self._gathers_until_s:
            self._gathered = 0
            self._execute(self.pool.dispatch(now))
        wakeup_s = self.pool.next_wakeup()
        due_s = now + IDLE_CHECK_S if wakeup_s is None else min(now + IDLE_CHECK_S, wakeup_s)
        if due_s < self._timer_s:
            self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, due_s - now), self._timer_fired)
            self._timer_s = due_s
        if self._socket.has_message():  # a send may have used up the descriptor's notice
            self._loop.call_soon(self._receive)

    def _timer_fired(self) -> None:
        self.lag.observe(max(0.0, self._clock.now() - self._timer_s))
        self._timer_s = math.inf  # do not compare the clock: uvloop's timers are up to 1 ms early
        self._want_turn()

    def _receive(self) -> None:
        if self._is_closed:
            return
        try:
            self._hear(MESSAGES_A_TURN)
        finally:  # or the remaining messages would never be read
            self._want_turn()

    def _hear(self, most: int) -> None:
        for node, message in self._socket.waiting(most):
            try:
                if isinstance(message, FetchArrays):
                    self._send_piece(node, message)
                else:
                    self._execute(self.pool.receive(node, message, self._clock.now()))
            except Exception:
                self._socket.answer_failure(node, message)

    def _send_piece(self, node: bytes, request: FetchArrays) -> None:
        """Send a piece of a version's arrays: shorter at the file's end, empty without a file."""
        model, version, offset, size = request
        piece = ArraysPiece(model, version, offset, 0, ())
        known = self.pool.catalogue.models.get(model)
        found = known.versions.get(version) if known is not None else None
        if found is not None and 0 < size <= LARGEST_PIECE:
            try:
                with Path(found.description.arrays_path).open("rb") as file:
                    payloads = (os.pread(file.fileno(), size, offset),)
                piece = piece._replace(total=found.description.arrays_bytes, payloads=payloads)
            except FileNotFoundError:
                # This host's workers also request pieces once they cannot map the file.
                self.pool.catalogue.prepare_again(model)
            except OSError as error:
                logger.warning("arrays_not_read model=%s error=%s", model, error)
        self._socket.send(node, piece)

    def _execute(self, commands: Iterable[PoolCommand]) -> None:
        for command in commands:
            match command:
                case EndRequest(request_id, result):
                    future = self._futures.pop(request_id, None)
                    if future is not None and not future.done():
                        future.set_result(result)
                case SendToNode(node, message):
                    if not self._socket.send(node, message):
                        reason = "its queue of messages is full"
                        self._execute(self.pool.lost(node, reason, self._clock.now()))
                        self._want_turn()
                case EvictWorker(child, reason):
                    self._processes.kill(child, reason)
                case ReadModel() | RemoveArrays():
                    self._processes.read(command)
