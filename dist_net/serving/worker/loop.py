"""The inference worker's loop, between its loaded models and the gateway's socket."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dist_net.clock import Clock, SystemClock
from dist_net.errors import JoinRefusedError, NoAnswerError, ServerLostError
from dist_net.release import release
from dist_net.serving.pool.requests import Status
from dist_net.serving.worker.loaded_models import LoadedModels
from dist_net.serving.worker.network_loader import NetworkLoader
from dist_net.serving.worker.served_network import WorkerSettings
from dist_net.wire.heartbeat import HeartbeatSender
from dist_net.wire.messages import Alive, Leave, Message, Refuse, Stop
from dist_net.wire.security import PeerKeys
from dist_net.wire.serving_messages import (
    BatchDone,
    Drop,
    JoinPool,
    Load,
    PoolWelcome,
    RunBatch,
)
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)

POLL_S = 0.2
LOADING_POLL_S = 0.01  # until a version that is loaded is told of
ENLIST_AGAIN_AFTER_S = 1.0
ANSWER_WITHIN_S = 10.0
SILENT_TIMEOUTS = 3  # of the gateway's heartbeat timeout, until it counts as lost
STOOD_STILL_S = 1.0

StartHeart = Callable[[PoolWelcome], HeartbeatSender]
"""Begins to beat for a worker that has enlisted."""


@contextmanager
def connected_worker(
    address: str,
    name: str,
    settings: WorkerSettings,
    keys: PeerKeys | None = None,
    bears_silence: bool = False,
) -> Iterator[InferenceWorker]:
    """A context with a worker of this process for the gateway at ``address``."""
    clock = SystemClock()

    def start_heart(enlisted: PoolWelcome) -> HeartbeatSender:
        interval_s = enlisted.heartbeat_interval_s
        heart = HeartbeatSender(address, keys, enlisted.worker_id, interval_s, clock)
        heart.start()
        return heart

    models = LoadedModels(NetworkLoader(address, keys, settings, clock).load)
    enlist = JoinPool(name, socket.gethostname(), os.getpid(), release())
    with ClientSocket(address, keys) as connection:
        worker = InferenceWorker(connection, models, start_heart, enlist, bears_silence, clock)
        try:
            yield worker
        finally:
            worker.close()


class InferenceWorker:
    """Answers batches for the gateway that ``connection`` leads to until it is told to leave.

    The gateway has ``ANSWER_WITHIN_S`` to let the worker join; after that its own heartbeat timeout
    counts. A child of the gateway, whose end the system reports, ``bears_silence`` of any length.
    ``was_stopped``: it leaves because of `stop`, and not because the gateway let it go. Whoever
    does not call `serve` calls `tick` and `handle` as that does.
    """

    def __init__(
        self,
        connection: ClientSocket,
        models: LoadedModels,
        start_heart: StartHeart,
        enlist: JoinPool,
        bears_silence: bool,
        clock: Clock,
    ) -> None:
        self._socket = connection
        self._models = models
        self._start_heart = start_heart
        self._enlist = enlist
        self._bears_silence = bears_silence
        self._clock = clock
        self._heart: HeartbeatSender | None = None
        self._enlisted: PoolWelcome | None = None
        self._worker_id = 0  # of the last time that it joined
        self._enlist_at_s = self._heard_s = self._ticked_s = self._clock.now()
        self._leave_reason: str | None = None
        self.was_stopped = False

    def stop(self, reason: str) -> None:
        """Leaves at the next turn of the loop; a signal handler may call it."""
        self._leave_reason = reason
        self.was_stopped = True

    def close(self) -> None:
        self._still_heart()
        self._models.close()

    def serve(self) -> str:
        """Returns why it left.

        Raises NoAnswerError if the gateway never answers, ServerLostError if it falls silent, and
        JoinRefusedError if it refuses this worker.
        """
        while self._leave_reason is None:
            # Enlists before a gateway that refuses the keys closes the connection.
            message = self._socket.receive(self.tick())
            if message is not None:
                self.handle(message)
        self.leave()
        return self._leave_reason

    def leave(self) -> None:
        """Says goodbye, if it has joined."""
        if self._enlisted is not None:
            self._socket.send(Leave(self._enlisted.worker_id))

    @property
    def leaves(self) -> bool:
        """Whether it was told to leave."""
        return self._leave_reason is not None

    def handle(self, message: Message) -> None:
        """Does what the gateway says."""
        self._heard_s = self._clock.now()
        match message:
            case RunBatch():
                self._socket.send(self._answer(message))
            case Load():
                self._models.begin(message)
            case Drop(model, version):
                self._models.drop(model, version)
            case PoolWelcome():
                self._begin(message)
            case Refuse(reason, may_rejoin):
                self._refused(reason, may_rejoin)
            case Alive():
                pass  # by which the gateway finds out whether this connection is still there
            case Stop(reason):
                self._leave_reason = reason
            case _:
                logger.warning("unexpected_message type=%s", type(message).__name__)

    def _answer(self, run: RunBatch) -> BatchDone:
        network = self._models.network(run.model, run.version)
        if network is None:
            reason = f"this worker has no version {run.version} of {run.model}".encode()
            count = len(run.payloads)
            return BatchDone(
                run.batch_id, bytes([Status.UNAVAILABLE]) * count, 0, 0, (reason,) * count
            )
        return BatchDone(run.batch_id, *network.answer(run.payloads, run.is_image))

    def tick(self) -> float:
        """Does what is due; returns how long to wait for a message before the next tick."""
        for loaded in self._models.finished():
            self._socket.send(loaded)
        now = self._clock.now()
        if now - self._ticked_s > STOOD_STILL_S:
            # This process computed, or was stopped by SIGSTOP: the gateway was not silent then.
            self._heard_s += now - self._ticked_s
        self._ticked_s = now
        if self._enlisted is None:
            self._tick_unenlisted(now)
        else:
            self._tick_enlisted(now, self._enlisted.heartbeat_timeout_s)
        return LOADING_POLL_S if self._models.is_loading else POLL_S

    def _tick_unenlisted(self, now: float) -> None:
        if not self._bears_silence and now - self._heard_s > ANSWER_WITHIN_S:
            raise self._socket.no_answer(ANSWER_WITHIN_S)
        if now >= self._enlist_at_s:
            self._enlist_at_s = now + ENLIST_AGAIN_AFTER_S
            try:
                self._socket.send(self._enlist)
            except NoAnswerError as error:  # a gateway that refuses the keys ends the connection
                raise self._socket.no_answer(now - self._heard_s) from error

    def _tick_enlisted(self, now: float, timeout_s: float) -> None:
        if self._heart is not None and self._heart.answer is not None:
            answer, sent_s = self._heart.answer
            self._heard_s = max(self._heard_s, sent_s)
            if isinstance(answer, Refuse):
                self._refused(answer.reason, answer.may_rejoin)
                return
        if not self._bears_silence and now - self._heard_s > SILENT_TIMEOUTS * timeout_s:
            silent_s = now - self._heard_s
            raise ServerLostError(
                f"the gateway at {self._socket.address} has said nothing for {silent_s:.1f} s; "
                f"expected an answer to each heartbeat: see whether it still runs, and start this "
                f"worker again"
            )

    def _begin(self, enlisted: PoolWelcome) -> None:
        self._still_heart()
        if enlisted.worker_id != self._worker_id:
            self._worker_id = enlisted.worker_id
            self._models.joined_anew()
        self._enlisted = enlisted
        self._heart = self._start_heart(enlisted)
        logger.info("enlisted worker=%d", enlisted.worker_id)

    def _refused(self, reason: str, may_rejoin: bool) -> None:
        """Enlists again, at once if it had joined and after a while if not; or gives up."""
        if not may_rejoin:
            raise JoinRefusedError(
                f"the gateway at {self._socket.address} refuses this worker: {reason}"
            )
        logger.warning("refused reason=%s", reason)
        pause_s = ENLIST_AGAIN_AFTER_S if self._enlisted is None else 0
        self._still_heart()
        self._enlisted = None
        self._enlist_at_s = self._clock.now() + pause_s

    def _still_heart(self) -> None:
        if self._heart is not None:
            self._heart.stop()
            self._heart = None
