"""A run on disk: a safetensors file, written atomically, and those of some versions before.

Each parameter and buffer is stored under its own name and shape, so that any program that reads
safetensors reads the model; an optimizer's state vector is stored as ``optimizer/NAME``.
Everything else is JSON under the keys of the file's metadata. A digest of all content is stored
with it and compared at each read.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from dist_net.errors import (
    CheckpointDamagedError,
    CheckpointMismatchError,
    CheckpointMissingError,
    CheckpointWriteError,
    NotACheckpointError,
)
from dist_net.files import HOST_DISK, Disk, replacing
from dist_net.optim import ArrayShapes
from dist_net.vector import Vector

OPTIMIZER_PREFIX = "optimizer/"
"""Precedes the names of the optimizer's vectors in the file."""

AVERAGE = "weight_average"
"""The average of the weights among the optimizer's vectors."""

FORMAT_VERSION = 2
FORMAT_KEY = "dist_net_checkpoint"
DIGEST_KEY = "sha256"
METADATA_FIELDS = {
    **{"recipe": str, "recipe_digest": str, "recipe_record": dict, "layout": list, "version": int},
    **{"settings": dict, "ledger": dict, "counters": dict},
}
UNUSABLE = CheckpointMissingError, NotACheckpointError, CheckpointDamagedError
MALFORMED = ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError
"""What JSON that is not what it should be raises where it is read."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after ``version`` updates; its arrays are its own.

    ``weights`` is the flat float32 vector of all parameters and buffers in ``layout``'s order, and
    ``optimizer_state`` holds vectors of the length of the parameters alone, the average of the
    weights among them. ``settings``,
    ``ledger`` and ``counters`` are JSON objects of the parts that they come from; so is
    ``recipe_record``, which the server does not need, but readers of the weights do. ``damage``
    is why a newer one was not read.
    """

    recipe: str
    recipe_digest: str
    layout: ArrayShapes
    version: int
    settings: dict[str, Any]
    ledger: dict[str, Any]
    counters: dict[str, Any]
    weights: Vector
    optimizer_state: dict[str, Vector]
    recipe_record: dict[str, Any] = field(default_factory=dict)
    damage: str | None = None

    @property
    def evaluated_weights(self) -> Vector:
        """The weights to evaluate and to use: their average, if the run kept one."""
        return evaluated_weights(self.weights, self.optimizer_state)

    def require_layout(self, layout: ArrayShapes) -> None:
        """Raise ``CheckpointMismatchError`` unless parameters and buffers are these."""
        for own, expected in zip_longest(self.layout, layout):
            if own != expected:
                raise CheckpointMismatchError(
                    f"the checkpoint of recipe {self.recipe!r} is of another model: it holds "
                    f"{_described(own)}, expected {_described(expected)}; "
                    f"use the recipe that it was trained with"
                )


def evaluated_weights(weights: Vector, state: Mapping[str, Vector]) -> Vector:
    """``weights``, or a copy with the average in ``state`` in the place of the parameters."""
    average = state.get(AVERAGE)
    return weights if average is None else np.concatenate([average, weights[average.size :]])


def _described(parameter: tuple[str, tuple[int, ...]] | None) -> str:
    return "no further parameter" if parameter is None else f"{parameter[0]} {parameter[1]}"


def write_checkpoint(
    path: Path,
    checkpoint: Checkpoint,
    disk: Disk = HOST_DISK,
    kept: int = 1,
    previous_version: int | None = None,
    may_replace: Callable[[], None] = lambda: None,
) -> None:
    """Write ``checkpoint``; whenever the machine stops, the file is the old one or the new one.

    With ``kept`` above 1, the file that is replaced, which holds ``previous_version``, stays beside
    the new one as ``NAME-version-VERSION``, and of these the newest ``kept`` - 1.
    Raise ``CheckpointWriteError``, and what ``may_replace`` raises, which is called when the new
    file is whole; then the old one is still there.
    """
    tensors = {OPTIMIZER_PREFIX + name: state for name, state in checkpoint.optimizer_state.items()}
    tensors |= _parameters(checkpoint.layout, checkpoint.weights)
    metadata = {name: json.dumps(getattr(checkpoint, name)) for name in METADATA_FIELDS}
    metadata[FORMAT_KEY] = json.dumps(FORMAT_VERSION)
    metadata[DIGEST_KEY] = _digest(metadata, tensors)
    header = _header(metadata, tensors)
    try:
        with replacing(path, disk) as partial:
            disk.write(partial, header, *map(_bytes_of, tensors.values()))
            may_replace()
            if kept > 1 and previous_version is not None:
                _keep(path, previous_version, disk)
    except OSError as error:
        size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
        raise CheckpointWriteError(
            f"the checkpoint {path} could not be written: {error.strerror}; expected a directory "
            f"that is writable and has {size} bytes free; the one before it is unchanged"
        ) from error
    _remove_old(path, checkpoint.version, kept, disk)


def _header(metadata: dict[str, str], tensors: dict[str, Vector]) -> bytes:
    """Return what begins a safetensors file, before the bytes of ``tensors`` in their order.

    ``safetensors.numpy.save`` would hold the GIL while it copies all of them twice.
    """
    entries: dict[str, Any] = {"__metadata__": metadata}
    begin = 0
    for name, tensor in tensors.items():
        offsets = begin, begin + tensor.nbytes
        entries[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": offsets}
        begin += tensor.nbytes
    content = json.dumps(entries).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _bytes_of(tensor: Vector) -> memoryview:
    return np.ascontiguousarray(tensor, "<f4").reshape(-1, copy=False).view(np.uint8).data


def _digest(metadata: dict[str, str], tensors: dict[str, Vector]) -> str:
    """Return the SHA-256 of all that a checkpoint holds, in hexadecimal digits."""
    names = sorted(tensors)
    shapes = [(name, tensors[name].shape) for name in names]
    facts = sorted(item for item in metadata.items() if item[0] != DIGEST_KEY)
    digest = hashlib.sha256(json.dumps([facts, shapes]).encode())
    for name in names:
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _keep(path: Path, version: int, disk: Disk) -> None:
    """Give the checkpoint at ``path`` a second name, which it keeps when it is replaced."""
    name = path.with_name(f"{path.stem}-version-{version}{path.suffix}")
    try:
        if not disk.exists(name):  # else it is what this server resumed, and ``path`` is damaged
            disk.link(path, name)
    except OSError as error:  # there are file systems without links
        logger.warning("checkpoint_not_kept path=%s error=%s", name, error)


def _remove_old(path: Path, version: int, kept: int, disk: Disk) -> None:
    """Remove kept checkpoints that are too many, or that the run has gone back behind."""
    before = 0
    for found_version, name in _kept_checkpoints(path, disk):
        before += found_version < version
        if found_version >= version or before >= kept:
            with suppress(OSError):
                disk.remove(name)


def _kept_checkpoints(path: Path, disk: Disk = HOST_DISK) -> list[tuple[int, Path]]:
    """Return the versions and paths of the checkpoints kept beside ``path``, the newest first."""
    pattern = re.compile(re.escape(f"{path.stem}-version-") + r"(\d+)" + re.escape(path.suffix))
    names = [pattern.fullmatch(name) for name in disk.names(path.parent)]
    found = [(int(name[1]), path.with_name(name[0])) for name in names if name is not None]
    return sorted(found, reverse=True)


def _parameters(layout: ArrayShapes, weights: Vector) -> dict[str, Vector]:
    parameters, start = {}, 0
    for name, shape in layout:
        stop = start + prod(shape)
        parameters[name] = weights[start:stop].reshape(shape, copy=False)
        start = stop
    return parameters


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what ``write_checkpoint`` wrote: all of it, as it was written.

    If it is damaged or missing, log a warning and read the newest one kept beside it that is not;
    its ``damage`` says why.
    Raise ``CheckpointMissingError``, ``NotACheckpointError``, ``CheckpointDamagedError`` or
    ``CheckpointMismatchError``, each with what was expected.
    """
    try:
        return _read(path)
    except UNUSABLE as error:
        try:
            kept = _kept_checkpoints(path)
        except OSError:
            kept = []
        for version, name in kept:
            with suppress(*UNUSABLE):
                damage = f"{error}. The checkpoint before it, of version {version:,}, is used"
                checkpoint = replace(_read(name), damage=damage)
                logger.warning("%s", damage)
                return checkpoint
        raise


def _read(path: Path) -> Checkpoint:
    try:
        with path.open("rb") as file:
            beginning = file.read(9)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointMissingError(
            f"no checkpoint can be read from {path}: {error.strerror or error}; "
            f"expected a file that a training run wrote"
        ) from error
    except (SafetensorError, *MALFORMED) as error:
        # A safetensors file begins with the length of its header, 8 bytes, and then the header.
        if beginning[8:] == b"{":
            raise _damaged(path, error) from error
        raise _not_a_checkpoint(path) from error
    return _checked(path, metadata, tensors)


def decode_checkpoint(path: Path, content: bytes) -> Checkpoint:
    """``read_checkpoint`` of a whole file, whose content is here."""
    try:
        tensors = load(content)
        header_bytes = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + header_bytes])["__metadata__"]
    except (SafetensorError, *MALFORMED) as error:
        raise _damaged(path, error) from error
    return _checked(path, metadata, tensors)


def _damaged(path: Path, error: Exception) -> CheckpointDamagedError:
    return CheckpointDamagedError(
        f"the checkpoint {path} is cut short or damaged ({error}); "
        f"expected the whole file: copy it again or resume from another checkpoint"
    )


def _not_a_checkpoint(path: Path) -> NotACheckpointError:
    return NotACheckpointError(
        f"{path} is not a checkpoint; expected a .safetensors file that a training run wrote"
    )


def _checked(path: Path, metadata: dict[str, str], tensors: dict[str, Vector]) -> Checkpoint:
    if FORMAT_KEY not in metadata:
        raise _not_a_checkpoint(path)
    try:
        _require_format(path, json.loads(metadata[FORMAT_KEY]), metadata, tensors)
        return _checkpoint(metadata, tensors)
    except MALFORMED as error:
        raise CheckpointDamagedError(
            f"the checkpoint {path} lacks a part, or it is damaged ({error!r:.200}); expected "
            f"what a training run wrote: resume from another checkpoint"
        ) from error


def _require_format(
    path: Path, number: Any, metadata: dict[str, str], tensors: dict[str, Vector]
) -> None:
    """Raise ``CheckpointMismatchError`` or ``ValueError`` for a file that is not as it was written.

    Format 1, of earlier releases, has no digest.
    """
    if type(number) is not int or number < 1:
        raise ValueError(f"format {number!r}")
    if number > FORMAT_VERSION:
        raise CheckpointMismatchError(
            f"the checkpoint {path} has format {number}; expected at most "
            f"{FORMAT_VERSION}: a later dist_net wrote it, so upgrade this one"
        )
    if number > 1 and metadata[DIGEST_KEY] != _digest(metadata, tensors):
        raise ValueError("its digest is not that of its content")


def _checkpoint(metadata: dict[str, str], tensors: dict[str, Vector]) -> Checkpoint:
    facts = {name: json.loads(metadata[name]) for name in METADATA_FIELDS}
    for name, kind in METADATA_FIELDS.items():
        if type(facts[name]) is not kind:
            raise ValueError(f"{name} is {facts[name]!r:.80}, no {kind.__name__}")
    if not 0 <= facts["version"] < 2**63:
        raise ValueError(f"version is {facts['version']}")
    layout: ArrayShapes = tuple((name, tuple(shape)) for name, shape in facts.pop("layout"))
    for name, shape in layout:
        if name not in tensors or tensors[name].shape != shape:
            raise ValueError(f"it does not hold {name} {shape}, as its layout says")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise ValueError(f"{name} is no array of finite float32 numbers")
    return Checkpoint(
        **facts,
        layout=layout,
        weights=np.concatenate([tensors[name].ravel() for name, _ in layout]),
        optimizer_state={
            name.removeprefix(OPTIMIZER_PREFIX): vector
            for name, vector in tensors.items()
            if name.startswith(OPTIMIZER_PREFIX)
        },
    )
