"""What a client gets from the pool: an answer, or one that is still to come."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import QuestionError
from dist_net.pictures.labels import Prediction, predictions_of
from dist_net.serving.client.connection import GatewayConnection, unexpected
from dist_net.serving.client.conversation import Exchange
from dist_net.wire.serving_messages import Answer

OUTPUT_DTYPE = np.dtype("<f4")


@dataclass(frozen=True)
class Outputs:
    """What a model answered, and which of its versions did.

    ``probabilities``: (rows, classes) float32, read-only; (classes,) for one picture, or for one
    row that was given without that axis. ``queue_s``: from admission to dispatch; ``compute_s``:
    what the network took for the whole batch.
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
    """A request whose answer can be waited for."""

    __slots__ = ("_connection", "_exchange", "_is_outdated", "_labels", "_rows")

    def __init__(
        self,
        connection: GatewayConnection,
        exchange: Exchange,
        rows: int | None,
        labels: tuple[str, ...],
        is_outdated: Callable[[], None],
    ) -> None:
        """``rows``: None for an input without that axis. ``labels``: those of the version that the
        client knows; ``is_outdated`` is called if the answer shows that the model has changed."""
        self._connection = connection
        self._exchange = exchange
        self._rows = rows
        self._labels = labels
        self._is_outdated = is_outdated

    def result(self) -> Outputs:
        """Waits for the answer; may be called again.

        Raises QuestionError, ModelNotServedError, PoolUnavailableError, RequestExpiredError,
        RequestFailedError, RequestCancelledError, and NoAnswerError if the gateway is silent.
        """
        try:
            answer = self._connection.reply_to(self._exchange, Answer)
        except QuestionError:
            self._is_outdated()
            raise
        try:
            probabilities = np.frombuffer(answer.payloads[0], OUTPUT_DTYPE)
            if self._rows is not None:
                probabilities = probabilities.reshape((self._rows, -1), copy=False)
            version, labels = int(answer.version), self._labels
            if len(answer.payloads) > 1:
                labels = tuple(map(str, json.loads(bytes(answer.payloads[1]))))
                self._is_outdated()
        except (ValueError, IndexError, TypeError) as error:
            raise unexpected(answer) from error
        return Outputs(probabilities, version, answer.queue_s, answer.compute_s, labels)

    def cancel(self) -> None:
        """Cancels the request: it does not run if it is still queued. An answer that came stays."""
        self._connection.cancel(self._exchange)
