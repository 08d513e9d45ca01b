"""The versions that an inference worker has loaded or is loading in a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import NamedTuple

from dist_net.errors import DistNetError
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.worker.served_network import ServedNetwork
from dist_net.wire.serving_messages import Load, Loaded

logger = logging.getLogger(__name__)

LoadNetwork = Callable[[ModelDescription, ServedNetwork | None, Callable[[], bool]], ServedNetwork]
"""Loads a version. Its arguments: the description; a loaded version of the same architecture or
None, which may be closed meanwhile; and a function that returns False once loading must stop."""

_Key = tuple[str, int]


class _Loading(NamedTuple):
    future: Future[ServedNetwork]
    is_dropped: threading.Event


class LoadedModels:
    """Belongs to the worker's thread. Only ``load`` runs in another, in ``executor`` or else one
    version at a time."""

    def __init__(self, load: LoadNetwork, executor: Executor | None = None) -> None:
        self._load = load
        self._executor = executor or ThreadPoolExecutor(1, "load")
        self._networks: dict[_Key, ServedNetwork] = {}
        self._loading: dict[_Key, _Loading] = {}
        self._unclaimed: set[_Key] = set()

    @property
    def is_loading(self) -> bool:
        """Whether a version is being loaded or unreported."""
        return bool(self._loading)

    @property
    def loaded(self) -> set[tuple[str, int]]:
        """The loaded versions."""
        return set(self._networks)

    def network(self, model: str, version: int) -> ServedNetwork | None:
        return self._networks.get((model, version))

    def joined_anew(self) -> None:
        """Expect the gateway to request versions again after a new join.

        Loaded versions are reported at once. The other versions of a model are dropped once a
        requested version is loaded.
        """
        self._unclaimed = set(self._networks)

    def begin(self, load: Load) -> None:
        """Begin to load a version, unless it is loaded already. Raise ProtocolError."""
        key = load.model, load.version
        description = ModelDescription.from_json(load.description)
        self._unclaimed.discard(key)
        if key in self._loading:
            return
        is_dropped = threading.Event()
        known = self._networks.get(key)
        if known is not None and known.description == description:
            future: Future[ServedNetwork] = Future()
            future.set_result(known)
        else:
            alike = self._alike(description)
            future = self._executor.submit(
                self._load, description, alike, lambda: not is_dropped.is_set()
            )
        self._loading[key] = _Loading(future, is_dropped)

    def finished(self) -> list[Loaded]:
        """Return the results of loading since the last call."""
        done = [key for key, loading in self._loading.items() if loading.future.done()]
        return [Loaded(*key, self._end(key, self._loading.pop(key).future)) for key in done]

    def drop(self, model: str, version: int) -> None:
        """Drop a version, or stop loading it."""
        key = model, version
        self._unclaimed.discard(key)
        loading = self._loading.pop(key, None)
        if loading is not None:
            loading.is_dropped.set()
            loading.future.cancel()
            loading.future.add_done_callback(_close_result)
        network = self._networks.pop(key, None)
        if network is not None:
            network.close()

    def close(self) -> None:
        """Drop all versions, and wait for the thread to stop."""
        for key in [*self._loading, *self._networks]:
            self.drop(*key)
        self._executor.shutdown(cancel_futures=True)

    def _alike(self, description: ModelDescription) -> ServedNetwork | None:
        """Return the last loaded version of the same architecture."""
        for network in reversed(self._networks.values()):
            if network.description.plan_key == description.plan_key:
                return network
        return None

    def _end(self, key: _Key, future: Future[ServedNetwork]) -> str:
        """Keep a loaded version; return the reason of a failure, or ""."""
        error = future.exception()
        if error is not None:
            is_expected = isinstance(error, DistNetError)
            logger.error("load_failed model=%s version=%d error=%s", *key, error, exc_info=error)
            return str(error) if is_expected else f"{type(error).__name__}: {error}"
        replaced = self._networks.get(key)
        self._networks[key] = future.result()
        if replaced is not None and replaced is not self._networks[key]:
            replaced.close()
        logger.info("loaded model=%s version=%d", *key)
        for model, version in [*self._unclaimed]:
            if model == key[0]:
                self.drop(model, version)
        return ""


def _close_result(future: Future[ServedNetwork]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
