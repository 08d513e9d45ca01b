"""The inference worker's loop, between its loaded models and the gateway's socket."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from dist_net.errors import JoinRefusedError, ServerLostError, ShapeError
from dist_net.ground.clock import Clock
from dist_net.serving.pool.requests import Status
from dist_net.serving.worker.loaded_models import LoadedModels
from dist_net.wire.heartbeat import HeartbeatSender
from dist_net.wire.messages import Alive, Leave, Message, Refuse, Stop
from dist_net.wire.serving_messages import BatchDone, Drop, JoinPool, Load, PoolWelcome, RunBatch
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)

POLL_S = 0.2
LOADING_POLL_S = 0.01  # while a version is loading, to report it soon
JOIN_AGAIN_AFTER_S = 1.0
ANSWER_WITHIN_S = 10.0
SILENT_TIMEOUTS = 3  # of the gateway's heartbeat timeout, until it counts as lost
STOOD_STILL_S = 1.0
MAX_REASON = 500  # characters of an error

StartHeartbeats = Callable[[PoolWelcome], HeartbeatSender]
"""Start the heartbeats of a worker that was admitted."""


@dataclass(eq=False, repr=False)
class InferenceWorker:
    """Answer the batches of the gateway at ``_socket`` until stopped.

    The gateway must reply within ``ANSWER_WITHIN_S`` when the worker joins, and later within its
    own heartbeat timeout. With ``_bears_silence`` silence is never a timeout: the OS reports the
    gateway's exit. Once ``leave_reason`` is set, the worker must leave. ``was_stopped`` is set by
    ``stop``, not by the gateway's ``Stop``. Call ``serve``, or ``tick`` and ``handle`` as it does.
    """

    _socket: ClientSocket
    _models: LoadedModels
    _start_heartbeats: StartHeartbeats
    _join: JoinPool
    _bears_silence: bool
    _clock: Clock
    _heartbeats: HeartbeatSender | None = None
    _welcome: PoolWelcome | None = None
    _worker_id: int = 0  # since the worker last joined
    leave_reason: str | None = None
    was_stopped: bool = False

    def __post_init__(self) -> None:
        self._join_at_s = self._heard_s = self._ticked_s = self._clock.now()

    def stop(self, reason: str) -> None:
        """Leave at the next turn of the loop; safe in a signal handler."""
        self.leave_reason = reason
        self.was_stopped = True

    def close(self) -> None:
        self._stop_heartbeats()
        self._models.close()

    def serve(self) -> str:
        """Serve; return why it ended. Raise NoAnswerError, ServerLostError or JoinRefusedError."""
        while self.leave_reason is None:
            message = self._socket.receive(self.tick())
            if message is not None:
                self.handle(message)
        self.leave()
        return self.leave_reason

    def leave(self) -> None:
        if self._welcome is not None:
            self._socket.send(Leave(self._welcome.worker_id))

    def handle(self, message: Message) -> None:
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
                pass  # the gateway sends it to detect a lost connection
            case Stop(reason):
                self.leave_reason = reason
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
        try:
            done = network.answer(run)
            for given, status, outputs in zip(
                run.payloads, done.statuses, done.payloads, strict=True
            ):
                rows = 1 if run.is_image else network.description.rows_in(len(given))
                misfit = network.description.misfit(rows, len(outputs))
                if status == Status.OK and misfit:
                    raise ShapeError(f"the model returned {misfit}; expected outputs for each row")
            return done
        except MemoryError:
            raise
        except Exception as error:
            logger.exception("batch_failed model=%s version=%d", run.model, run.version)
            reason = f"{type(error).__name__}: {error}"[:MAX_REASON].encode()
        if len(run.payloads) == 1:
            return BatchDone(run.batch_id, bytes([Status.FAILED]), 0, 0, (reason,))
        alone = [self._answer(run._replace(payloads=(each,))) for each in run.payloads]
        return BatchDone(
            run.batch_id,
            b"".join(each.statuses for each in alone),
            sum(each.prepare_s for each in alone),
            sum(each.compute_s for each in alone),
            tuple(each.payloads[0] for each in alone),
        )

    def tick(self) -> float:
        """Do what is due; return the longest wait for a message before the next tick."""
        for loaded in self._models.finished():
            self._socket.send(loaded)
        now = self._clock.now()
        if now - self._ticked_s > STOOD_STILL_S:
            # This process computed, or was stopped by SIGSTOP: the gateway was not silent then.
            self._heard_s += now - self._ticked_s
        self._ticked_s = now
        if self._heartbeats is not None and self._heartbeats.answer is not None:
            answer, sent_s = self._heartbeats.answer
            self._heard_s = max(self._heard_s, sent_s)
            if isinstance(answer, Refuse):
                self._refused(answer.reason, answer.may_rejoin)
        if not self._bears_silence:
            self._require_gateway(now - self._heard_s)
        if self._welcome is None and now >= self._join_at_s:
            self._join_at_s = now + JOIN_AGAIN_AFTER_S
            self._socket.send(self._join)
        return LOADING_POLL_S if self._models.is_loading else POLL_S

    def _require_gateway(self, silent_s: float) -> None:
        if self._welcome is None:
            if silent_s > ANSWER_WITHIN_S:
                raise self._socket.no_answer(ANSWER_WITHIN_S)
        elif silent_s > SILENT_TIMEOUTS * self._welcome.heartbeat_timeout_s:
            raise ServerLostError(
                f"no message from the gateway at {self._socket.address} for {silent_s:.1f} s; "
                f"expected a reply to every heartbeat. Check that the gateway is running, then "
                f"restart this worker"
            )

    def _begin(self, welcome: PoolWelcome) -> None:
        self._stop_heartbeats()
        if welcome.worker_id != self._worker_id:
            self._worker_id = welcome.worker_id
            self._models.joined_anew()
        self._welcome = welcome
        self._heartbeats = self._start_heartbeats(welcome)
        logger.info("joined worker=%d", welcome.worker_id)

    def _refused(self, reason: str, may_rejoin: bool) -> None:
        """Join again, at once if it was a member; raise ``JoinRefusedError`` if it must not."""
        if not may_rejoin:
            raise JoinRefusedError(
                f"the gateway at {self._socket.address} refuses this worker: {reason}"
            )
        logger.warning("refused reason=%s", reason)
        pause_s = JOIN_AGAIN_AFTER_S if self._welcome is None else 0
        self._stop_heartbeats()
        self._welcome = None
        self._join_at_s = self._clock.now() + pause_s

    def _stop_heartbeats(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.stop()
            self._heartbeats = None
