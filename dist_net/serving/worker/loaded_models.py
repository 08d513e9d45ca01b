"""The versions that an inference worker has loaded or is loading in a thread, and how it does so.

A version's arrays are a file that a host's processes share, fetched from a remote gateway.
"""

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dist_net.errors import DistNetError, ModelLoadError, ProtocolError
from dist_net.ground.files import replacing
from dist_net.nn.inference import Prepared, map_prepared
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.worker.served_network import ServedNetwork, WorkerSettings
from dist_net.wire.security import PeerKeys
from dist_net.wire.serving_messages import ArraysPiece, FetchArrays, Load, Loaded
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 10.0
PIECE_BYTES = 4 << 20
VERSIONS_KEPT = 3

Fetch = Callable[[FetchArrays], ArraysPiece]
"""Request a piece from the gateway; raise a DistNetError without an answer."""

LoadNetwork = Callable[[ModelDescription, ServedNetwork | None, Callable[[], bool]], ServedNetwork]
"""Loads a version. Its arguments: the description; a loaded version of the same architecture or
None, which may be closed meanwhile; and a function that returns False once loading must stop."""

_Key = tuple[str, int]


class _Loading(NamedTuple):
    future: Future[ServedNetwork]
    is_dropped: threading.Event


@dataclass(eq=False, repr=False)
class LoadedModels:
    """The models of the worker's thread. Only ``_load`` runs in another one, of ``executor``.

    ``limit_memory`` limits the memory that the process may reserve, except to load.
    """

    _load: LoadNetwork
    executor: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "load"))
    limit_memory: Callable[[float], None] = lambda _: None
    _networks: dict[_Key, ServedNetwork] = field(default_factory=dict)
    _loading: dict[_Key, _Loading] = field(default_factory=dict)
    _unclaimed: set[_Key] = field(default_factory=set)

    @property
    def is_loading(self) -> bool:
        return bool(self._loading)

    def network(self, model: str, version: int) -> ServedNetwork | None:
        return self._networks.get((model, version))

    def joined_anew(self) -> None:
        """Expect requests anew after a join: report loaded versions at once, drop the others."""
        self._unclaimed = set(self._networks)

    def begin(self, load: Load) -> None:
        """Begin to load a version, unless it is loaded already. Raise ProtocolError."""
        key = load.model, load.version
        description = ModelDescription.from_json(load.description)
        self._unclaimed.discard(key)
        if key in self._loading:
            return
        self.limit_memory(math.inf)
        is_dropped = threading.Event()
        known = self._networks.get(key)
        if known is not None and known.description == description:
            future: Future[ServedNetwork] = Future()
            future.set_result(known)
        else:
            key_of_plan, networks = description.plan_key, reversed(self._networks.values())
            same = (each for each in networks if each.description.plan_key == key_of_plan)
            alike = next(same, None)  # the last loaded version of the same architecture
            future = self.executor.submit(
                self._load, description, alike, lambda: not is_dropped.is_set()
            )
        self._loading[key] = _Loading(future, is_dropped)

    def finished(self) -> list[Loaded]:
        """Return the results of loading since the last call."""
        done = [key for key, loading in self._loading.items() if loading.future.done()]
        ended = [Loaded(*key, self._end(key, self._loading.pop(key).future)) for key in done]
        if done and not self._loading:
            # Computing may need more than this only for a model that is not what it seems.
            self.limit_memory(sum(each.memory_bytes for each in self._networks.values()))
        return ended

    def drop(self, model: str, version: int) -> None:
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
        for key in [*self._loading, *self._networks]:
            self.drop(*key)
        self.executor.shutdown(cancel_futures=True)

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


def load_network(
    address: str,
    keys: PeerKeys | None,
    settings: WorkerSettings,
    description: ModelDescription,
    alike: ServedNetwork | None,
    may_go_on: Callable[[], bool],
) -> ServedNetwork:
    """Return a version's network; fetch missing arrays. Raise DistNetError or a recipe's error."""

    def fetch(request: FetchArrays) -> ArraysPiece:
        if not may_go_on():
            raise ModelLoadError(f"{request.model} version {request.version} was dropped")
        # Not the worker's socket, which belongs to the thread that answers.
        with ClientSocket(address, keys) as connection:
            connection.send(request)
            answer = connection.receive(ANSWER_WITHIN_S)
            if answer is None:
                raise connection.no_answer(ANSWER_WITHIN_S)
        if not isinstance(answer, ArraysPiece):
            raise ProtocolError(
                f"the gateway answered FetchArrays by {answer!r:.80}; expected ArraysPiece"
            )
        return answer

    prepared = mapped_arrays(description, settings.directory, fetch)
    rebound = alike.rebound(description, prepared) if alike is not None else None
    if rebound is not None:
        return rebound
    return ServedNetwork(description, prepared, settings, may_go_on)


def mapped_arrays(description: ModelDescription, directory: Path, fetch: Fetch) -> Prepared:
    """Return the arrays of a version, read-only, from a file that all processes of a host share.

    The file is the gateway's own if this process can read it; else a copy in ``directory``, which
    is fetched unless another worker has done so. Raise ModelLoadError.
    """
    prepared = map_prepared(Path(description.arrays_path), description.arrays_key)
    if prepared is not None:
        return prepared
    path = directory / f"{description.name}.{description.arrays_key[:32]}.prepared"
    prepared = map_prepared(path, description.arrays_key)
    if prepared is None:
        _fetch_to(path, description, fetch)
        keep_newest(directory, description.name)
        prepared = map_prepared(path, description.arrays_key)
    if prepared is None:
        raise ModelLoadError(
            f"the gateway sent other arrays than those of version {description.version} of "
            f"{description.name}; expected the key {description.arrays_key[:12]}. The file "
            f"{description.arrays_path} has changed: reload the model"
        )
    return prepared


def keep_newest(directory: Path, name: str) -> None:
    """Remove all but the newest files of a model. Existing mappings of a file stay valid."""
    files = [path for path in directory.glob("*.prepared") if path.name.rsplit(".", 2)[0] == name]
    for path in sorted(files, key=lambda each: each.stat().st_mtime_ns)[:-VERSIONS_KEPT]:
        path.unlink(missing_ok=True)


def _fetch_to(path: Path, description: ModelDescription, fetch: Fetch) -> None:
    """Fetch the file of arrays to ``path``, which exists once it is complete."""
    name, version, total = description.name, description.version, description.arrays_bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as partial, partial.open("wb") as file:
            while (offset := file.tell()) < total:
                size = min(PIECE_BYTES, total - offset)
                found = fetch(FetchArrays(name, version, offset, size))
                sizes = [len(each) for each in found.payloads]
                if found[:4] != (name, version, offset, total) or sizes != [size]:
                    raise ModelLoadError(
                        f"the gateway sent pieces of {sizes} bytes at {found.offset:,} of "
                        f"{found.total:,}, of {found.model} version {found.version}; expected one "
                        f"of {size:,} at {offset:,} of {total:,}, of {name} version {version}, "
                        f"which may have been dropped"
                    )
                file.write(found.payloads[0])
            file.flush()
    except OSError as error:
        raise ModelLoadError(
            f"cannot write the arrays of {name} to {path.parent}: {error.strerror}; expected a "
            f"directory with {total:,} bytes free"
        ) from error
