"""The inference worker's loop, between its loaded models and the gateway's socket."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from dist_net.clock import Clock, SystemClock
from dist_net.errors import (
    GatewayLostError,
    JoinRefusedError,
    ModelLoadError,
    ProtocolError,
)
from dist_net.nn.inference import Prepared
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import Status
from dist_net.serving.worker.loaded_models import LoadedModels
from dist_net.serving.worker.prepared_arrays import mapped_arrays
from dist_net.serving.worker.served_network import ServedNetwork, WorkerSettings
from dist_net.wire.heart import Heart
from dist_net.wire.messages import Leave, Message, Refuse
from dist_net.wire.security import PeerKeys
from dist_net.wire.serving_messages import (
    ArraysPiece,
    BatchDone,
    Drop,
    Enlist,
    Enlisted,
    FetchArrays,
    Load,
    Retire,
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


class InferenceWorker:
    """Answers batches for the gateway at ``address`` until it is told to leave.

    The gateway has ``ANSWER_WITHIN_S`` to let the worker join; after that its own heartbeat timeout
    counts. A child of the gateway, whose end the system reports, ``bears_silence`` of any length.
    ``was_stopped``: it leaves because of `stop`, and not because the gateway let it go.
    """

    def __init__(
        self,
        address: str,
        name: str,
        settings: WorkerSettings,
        keys: PeerKeys | None = None,
        bears_silence: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._address = address
        self._name = name
        self._settings = settings
        self._keys = keys
        self._bears_silence = bears_silence
        self._clock = clock or SystemClock()
        self._socket = ClientSocket(address, keys)
        self._models = LoadedModels(self._load)
        self._heart: Heart | None = None
        self._enlisted: Enlisted | None = None
        self._enlist_at_s = self._heard_s = self._ticked_s = self._clock.now()
        self._leave_reason: str | None = None
        self.was_stopped = False

    def stop(self, reason: str) -> None:
        """Leaves at the next turn of the loop; a signal handler may call it."""
        self._leave_reason = reason
        self.was_stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._still_heart()
        self._socket.close()
        self._models.close()

    def serve(self) -> str:
        """Returns why it left.

        Raises NoAnswerError if the gateway never answers, GatewayLostError if it falls silent, and
        JoinRefusedError if it refuses this worker.
        """
        while self._leave_reason is None:
            self._tick()  # enlists before a gateway that refuses the keys closes the connection
            wait_s = LOADING_POLL_S if self._models.is_loading else POLL_S
            message = self._socket.receive(wait_s)
            if message is not None:
                self._handle(message)
        if self._enlisted is not None:
            self._socket.send(Leave(self._enlisted.worker_id))
        return self._leave_reason

    def _handle(self, message: Message) -> None:
        self._heard_s = self._clock.now()
        match message:
            case RunBatch():
                self._socket.send(self._answer(message))
            case Load():
                self._models.begin(message)
            case Drop(model, version):
                self._models.drop(model, version)
            case Enlisted():
                self._begin(message)
            case Refuse(reason, may_rejoin):
                self._refused(reason, may_rejoin)
            case Retire():
                self._leave_reason = "the gateway let this worker go"
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
        return BatchDone(run.batch_id, *network.answer(run.payloads, run.is_picture))

    def _tick(self) -> None:
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

    def _tick_unenlisted(self, now: float) -> None:
        if now >= self._enlist_at_s:
            self._enlist_at_s = float("inf")
            self._heard_s = now
            self._socket.send(Enlist(self._name, socket.gethostname(), os.getpid()))
        elif now - self._heard_s > ANSWER_WITHIN_S:
            raise self._socket.no_answer(ANSWER_WITHIN_S)

    def _tick_enlisted(self, now: float, timeout_s: float) -> None:
        if self._heart is not None and self._heart.answer is not None:
            answer, sent_s = self._heart.answer
            self._heard_s = max(self._heard_s, sent_s)
            if isinstance(answer, Refuse):
                self._refused(answer.reason, answer.may_rejoin)
                return
        if not self._bears_silence and now - self._heard_s > SILENT_TIMEOUTS * timeout_s:
            raise GatewayLostError(
                f"the gateway at {self._address} has said nothing for {now - self._heard_s:.1f} s; "
                f"expected an answer to each heartbeat: see whether it still runs, and start this "
                f"worker again"
            )

    def _begin(self, enlisted: Enlisted) -> None:
        self._still_heart()
        self._enlisted = enlisted
        self._heart = Heart(
            self._address,
            self._keys,
            enlisted.worker_id,
            enlisted.heartbeat_interval_s,
            self._clock,
        )
        self._heart.start()
        logger.info("enlisted worker=%d", enlisted.worker_id)

    def _refused(self, reason: str, may_rejoin: bool) -> None:
        """Enlists again, at once if it had joined and after a while if not; or gives up."""
        if not may_rejoin:
            raise JoinRefusedError(f"the gateway at {self._address} refuses this worker: {reason}")
        logger.warning("refused reason=%s", reason)
        pause_s = ENLIST_AGAIN_AFTER_S if self._enlisted is None else 0
        self._still_heart()
        self._enlisted = None
        self._enlist_at_s = self._clock.now() + pause_s

    def _still_heart(self) -> None:
        if self._heart is not None:
            self._heart.stop()
            self._heart = None

    def _load(
        self,
        description: ModelDescription,
        alike: ServedNetwork | None,
        may_go_on: Callable[[], bool],
    ) -> ServedNetwork:
        """Loads a version, in another thread than the one that answers."""
        prepared = self._mapped(description, may_go_on)
        rebound = alike.rebound(description, prepared) if alike is not None else None
        if rebound is not None:
            return rebound
        return ServedNetwork(description, prepared, self._settings, may_go_on, self._clock)

    def _mapped(self, description: ModelDescription, may_go_on: Callable[[], bool]) -> Prepared:
        """The arrays of a version. They are fetched through a socket of their own, as the worker's
        belongs to the thread that answers."""
        with ExitStack() as opened:
            pieces: ClientSocket | None = None

            def fetch(request: FetchArrays) -> ArraysPiece:
                nonlocal pieces
                if not may_go_on():
                    raise ModelLoadError(f"{request.model} version {request.version} was dropped")
                if pieces is None:
                    pieces = opened.enter_context(ClientSocket(self._address, self._keys))
                pieces.send(request)
                answer = pieces.receive(ANSWER_WITHIN_S)
                if answer is None:
                    raise pieces.no_answer(ANSWER_WITHIN_S)
                if not isinstance(answer, ArraysPiece):
                    raise ProtocolError(
                        f"the gateway answered FetchArrays by {answer!r:.80}; expected Arrays"
                    )
                return answer

            return mapped_arrays(description, self._settings.directory, fetch)
