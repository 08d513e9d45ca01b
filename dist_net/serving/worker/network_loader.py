"""Load a version in an inference worker: its arrays, perhaps from another host, and its plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dist_net.clock import Clock
from dist_net.errors import ModelLoadError, ProtocolError
from dist_net.files import replacing
from dist_net.nn.inference import Prepared
from dist_net.nn.prepared import map_prepared
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.worker.served_network import ServedNetwork, WorkerSettings
from dist_net.wire.security import PeerKeys
from dist_net.wire.serving_messages import ArraysPiece, FetchArrays
from dist_net.wire.transport import ClientSocket

ANSWER_WITHIN_S = 10.0
PIECE_BYTES = 4 << 20
VERSIONS_KEPT = 3

Fetch = Callable[[FetchArrays], ArraysPiece]
"""Request a piece from the gateway; raise a DistNetError without an answer."""


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

        def fetch(request: FetchArrays) -> ArraysPiece:
            if not may_go_on():
                raise ModelLoadError(f"{request.model} version {request.version} was dropped")
            # Not the worker's socket, which belongs to the thread that answers.
            with ClientSocket(self._address, self._keys) as connection:
                connection.send(request)
                answer = connection.receive(ANSWER_WITHIN_S)
                if answer is None:
                    raise connection.no_answer(ANSWER_WITHIN_S)
            if not isinstance(answer, ArraysPiece):
                raise ProtocolError(
                    f"the gateway answered FetchArrays by {answer!r:.80}; expected ArraysPiece"
                )
            return answer

        prepared = mapped_arrays(description, self._settings.directory, fetch)
        rebound = alike.rebound(description, prepared) if alike is not None else None
        if rebound is not None:
            return rebound
        return ServedNetwork(description, prepared, self._settings, may_go_on, self._clock)


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
    """Fetch the file of arrays to ``path``, where it appears once it is complete."""
    total = description.arrays_bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as partial, partial.open("wb") as file:
            while (offset := file.tell()) < total:
                file.write(_piece(description, offset, min(PIECE_BYTES, total - offset), fetch))
            file.flush()
    except OSError as error:
        raise ModelLoadError(
            f"cannot write the arrays of {description.name} to {path.parent}: {error.strerror}; "
            f"expected a directory with {total:,} bytes free"
        ) from error


def _piece(
    description: ModelDescription, offset: int, size: int, fetch: Fetch
) -> bytes | memoryview:
    name, version = description.name, description.version
    arrays = fetch(FetchArrays(name, version, offset, size))
    sizes = [len(each) for each in arrays.payloads]
    expected = ArraysPiece(name, version, offset, description.arrays_bytes, arrays.payloads)
    if arrays != expected or sizes != [size]:
        raise ModelLoadError(
            f"the gateway sent pieces of {sizes} bytes at {arrays.offset:,} of {arrays.total:,}, "
            f"of {arrays.model} version {arrays.version}; expected one of {size:,} at {offset:,} "
            f"of {description.arrays_bytes:,}, of {name} version {version}, which may have been "
            f"dropped"
        )
    return arrays.payloads[0]
