"""What a client gets from the pool: outputs, and the promise of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.darknet.predictions import Prediction, predictions_of
from dist_net.serving.connection import GatewayConnection, unexpected
from dist_net.serving.conversation import Exchange
from dist_net.serving.model_summary import ModelSummary
from dist_net.wire.serving_messages import Answer

OUTPUT_DTYPE = np.dtype("<f4")


@dataclass(frozen=True)
class Outputs:
    """What a model answered, and by which of its versions.

    ``probabilities``: (rows, classes) float32, read-only; (classes,) for one picture, or for one
    row that was given without the axis of rows. ``queue_s``: from admission to dispatch;
    ``compute_s``: what the network took for the batch.
    """

    probabilities: NDArray[np.float32]
    version: int
    queue_s: float
    compute_s: float
    labels: tuple[str, ...]

    def likeliest(self, top: int = 5, row: int = 0) -> list[Prediction]:
        """The ``top`` likeliest classes of a row, likeliest first; see ``predictions_of``."""
        return predictions_of(np.atleast_2d(self.probabilities)[row], self.labels, top)


class Pending:
    """A question that was asked, whose answer can be waited for."""

    __slots__ = ("_connection", "_exchange", "_has_rows", "_summary")

    def __init__(
        self,
        connection: GatewayConnection,
        exchange: Exchange,
        summary: ModelSummary,
        has_rows: bool,
    ) -> None:
        self._connection = connection
        self._exchange = exchange
        self._summary = summary
        self._has_rows = has_rows

    def result(self) -> Outputs:
        """Waits for the answer; may be called again.

        Raises QuestionError, ModelNotServedError, PoolUnavailableError, RequestExpiredError,
        RequestFailedError, RequestCancelledError, and NoAnswerError if the gateway is silent.
        """
        answer = self._connection.reply_to(self._exchange, Answer)
        try:
            values = np.frombuffer(answer.payloads[0], OUTPUT_DTYPE)
            shape = (-1, self._summary.classes) if self._has_rows else (self._summary.classes,)
            probabilities, version = values.reshape(shape, copy=False), int(answer.version)
        except (ValueError, IndexError) as error:
            raise unexpected(answer) from error
        return Outputs(
            probabilities, version, answer.queue_s, answer.compute_s, self._summary.labels
        )

    def cancel(self) -> None:
        """Gives it up: if it is still queued it will not run. An answer that is there stays."""
        self._connection.cancel(self._exchange)
