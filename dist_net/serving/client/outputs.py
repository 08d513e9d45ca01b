"""The outputs of a model, and a request whose outputs are pending."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import BadRequestError
from dist_net.images.labels import Prediction, is_unknown, top_predictions
from dist_net.serving.client.connection import GatewayConnection, unexpected
from dist_net.serving.client.conversation import Exchange
from dist_net.serving.pool.description import VersionSummary
from dist_net.wire.serving_messages import Answer

OUTPUT_DTYPE = np.dtype("<f4")


@dataclass(frozen=True)
class Outputs:
    """The outputs of a version of a model.

    ``probabilities``: (rows, classes) float32, read-only; (classes,) for one image, or for one row
    without the first axis. ``queue_s``: from admission to dispatch; ``compute_s``: the network's
    time for the whole batch. ``unknown_below``: the minimum probability of a known class; 0 without
    a threshold.
    """

    probabilities: NDArray[np.float32]
    version: int
    queue_s: float
    compute_s: float
    labels: tuple[str, ...]
    unknown_below: float = 0.0

    def likeliest(self, top: int = 5, row: int = 0) -> list[Prediction]:
        """Return the ``top`` likeliest classes of a row, likeliest first."""
        return top_predictions(np.atleast_2d(self.probabilities)[row], self.labels, top)

    def is_unknown(self, row: int = 0) -> bool:
        """Return whether no class of a row is as probable as ``unknown_below``."""
        return is_unknown(self.likeliest(1, row), self.unknown_below)


class Pending:
    """A request whose result is pending."""

    __slots__ = ("_connection", "_exchange", "_is_outdated", "_known", "_rows")

    def __init__(
        self,
        connection: GatewayConnection,
        exchange: Exchange,
        rows: int | None,
        known: VersionSummary,
        is_outdated: Callable[[], None],
    ) -> None:
        """``rows``: None for an input without that axis. ``known``: the client's summary;
        ``is_outdated`` is called if the answer shows that the model has changed."""
        self._connection = connection
        self._exchange = exchange
        self._rows = rows
        self._known = known
        self._is_outdated = is_outdated

    def result(self) -> Outputs:
        """Wait for the answer; may be called again.

        Raise BadRequestError, ModelNotServedError, PoolUnavailableError, RequestExpiredError,
        RequestFailedError, RequestCancelledError, and NoAnswerError if the gateway is silent.
        """
        try:
            answer = self._connection.reply_to(self._exchange, Answer)
        except BadRequestError:
            self._is_outdated()
            raise
        try:
            probabilities = np.frombuffer(answer.payloads[0], OUTPUT_DTYPE)
            if self._rows is not None:
                probabilities = probabilities.reshape((self._rows, -1), copy=False)
            labels, unknown_below = self._known.labels, self._known.unknown_below
            if len(answer.payloads) > 1:
                others = [json.loads(bytes(each)) for each in answer.payloads[1:]]
                labels = tuple(map(str, others[0]))
                unknown_below = float(others[1]) if len(others) > 1 else 0.0
                self._is_outdated()
            times = answer.queue_s, answer.compute_s
            return Outputs(probabilities, int(answer.version), *times, labels, unknown_below)
        except (ValueError, IndexError, TypeError) as error:
            raise unexpected(answer) from error

    def cancel(self) -> None:
        """Cancel the request: it does not run if it is still queued. A received answer stays."""
        self._connection.cancel(self._exchange)
