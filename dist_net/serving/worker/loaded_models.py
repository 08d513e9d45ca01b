"""The versions that an inference worker has loaded, and those that it loads in a thread."""

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
"""Loads a version. It gets a loaded one of the same architecture, if there is one, which may be
closed meanwhile; and calls the last argument now and then to ask whether to go on."""

_Key = tuple[str, int]


class _Loading(NamedTuple):
    future: Future[ServedNetwork]
    is_dropped: threading.Event


class LoadedModels:
    """Belongs to the worker's thread. Only ``load`` runs in another, one version at a time, or as
    ``executor`` runs it."""

    def __init__(self, load: LoadNetwork, executor: Executor | None = None) -> None:
        self._load = load
        self._executor = executor or ThreadPoolExecutor(1, "load")
        self._networks: dict[_Key, ServedNetwork] = {}
        self._loading: dict[_Key, _Loading] = {}
        self._unclaimed: set[_Key] = set()

    @property
    def is_loading(self) -> bool:
        """Whether ``finished`` will have something to report."""
        return bool(self._loading)

    @property
    def loaded(self) -> set[tuple[str, int]]:
        """The versions that can answer."""
        return set(self._networks)

    def network(self, model: str, version: int) -> ServedNetwork | None:
        return self._networks.get((model, version))

    def joined_anew(self) -> None:
        """The gateway does not know what is loaded here, and asks for what it needs.

        That is there at once; the other versions of a model are dropped when it has one that was
        asked for.
        """
        self._unclaimed = set(self._networks)

    def begin(self, load: Load) -> None:
        """Begins to load a version, unless it is loaded already. Raises ProtocolError."""
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
        """The versions whose loading has ended since the last call, and how."""
        done = [key for key, loading in self._loading.items() if loading.future.done()]
        return [Loaded(*key, self._end(key, self._loading.pop(key).future)) for key in done]

    def drop(self, model: str, version: int) -> None:
        """Drops a version, or stops loading it."""
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
        """Drops everything, and waits for the thread, which is told to stop."""
        for key in [*self._loading, *self._networks]:
            self.drop(*key)
        self._executor.shutdown(cancel_futures=True)

    def _alike(self, description: ModelDescription) -> ServedNetwork | None:
        """The version of the same architecture that was loaded last."""
        for network in reversed(self._networks.values()):
            if network.description.plan_key == description.plan_key:
                return network
        return None

    def _end(self, key: _Key, future: Future[ServedNetwork]) -> str:
        """Keeps a version that was loaded; returns why it could not be, "" if it was."""
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
