"""Load a version in an inference worker: its arrays, perhaps from another host, and its plans."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from dist_net.clock import Clock
from dist_net.errors import ModelLoadError, ProtocolError
from dist_net.nn.inference import Prepared
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.worker.prepared_arrays import mapped_arrays
from dist_net.serving.worker.served_network import ServedNetwork, WorkerSettings
from dist_net.wire.security import PeerKeys
from dist_net.wire.serving_messages import ArraysPiece, FetchArrays
from dist_net.wire.transport import ClientSocket

ANSWER_WITHIN_S = 10.0


class NetworkLoader:
    """Loads versions in a separate thread, and fetches missing arrays from the gateway."""

    def __init__(
        self, address: str, keys: PeerKeys | None, settings: WorkerSettings, clock: Clock
    ) -> None:
        self._address = address
        self._keys = keys
        self._settings = settings
        self._clock = clock

    def load(
        self,
        description: ModelDescription,
        alike: ServedNetwork | None,
        may_go_on: Callable[[], bool],
    ) -> ServedNetwork:
        """Return a version's network. Raise a DistNetError or a recipe's exception."""
        prepared = self._mapped(description, may_go_on)
        rebound = alike.rebound(description, prepared) if alike is not None else None
        if rebound is not None:
            return rebound
        return ServedNetwork(description, prepared, self._settings, may_go_on, self._clock)

    def _mapped(self, description: ModelDescription, may_go_on: Callable[[], bool]) -> Prepared:
        """Return the arrays of a version. A separate socket fetches them, since the worker's socket
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
                        f"the gateway answered FetchArrays by {answer!r:.80}; expected ArraysPiece"
                    )
                return answer

            return mapped_arrays(description, self._settings.directory, fetch)
