"""Read and write checkpoints: the state of a run in a safetensors file, replaced atomically.

Parameters and buffers are stored by name and shape, so that other programs can read the model; an
optimizer's state vector is stored as ``optimizer/NAME``. Everything else is JSON in the file's
metadata, which also holds a digest of the content. Files of earlier versions may be kept.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dist_net.errors import CheckpointError, FileWriteError, NotACheckpointError
from dist_net.ground.files import HOST_DISK, Disk, replacing
from dist_net.ground.vector import AVERAGE, ArrayShapes, Vector, views_of

OPTIMIZER_PREFIX = "optimizer/"
"""Precedes the names of the optimizer's vectors in the file."""

FORMAT_VERSION = 2
FORMAT_KEY = "dist_net_checkpoint"
DIGEST_KEY = "sha256"
METADATA_FIELDS = {
    **{"recipe": str, "recipe_digest": str, "recipe_record": dict, "layout": list, "version": int},
    **{"settings": dict, "ledger": dict, "counters": dict},
}
PYTORCH, KERAS = "torch.onnx.export(model, (inputs,), FILE)", "model.export(FILE, format='onnx')"
SKLEARN = "skl2onnx.to_onnx(model, inputs[:1])"
CONVERSIONS = {".pt": PYTORCH, ".pth": PYTORCH, ".h5": KERAS, ".keras": KERAS, ".pkl": SKLEARN}
MALFORMED = ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError
"""The errors of reading JSON with unexpected content."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after ``version`` updates; it owns its arrays.

    ``weights`` is the flat float32 vector of all parameters and buffers in the order of ``layout``.
    ``optimizer_state`` has the other parts of the training state, see ``UpdateRule``, and the
    momentum of the server's outer steps. ``settings``, ``ledger`` and ``counters`` are JSON objects
    of the server's components. ``recipe_record`` is for readers of the weights; see
    ``RecipeRecord``. ``damage``: see ``read_resumable_checkpoint``.
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
        """Return the weights to evaluate and serve: the average, if the run keeps one."""
        return evaluated_weights(self.weights, self.optimizer_state)

    def require_layout(self, layout: ArrayShapes) -> None:
        """Raise ``CheckpointError`` unless ``layout`` is the checkpoint's."""
        for own, expected in zip_longest(self.layout, layout):
            if own != expected:
                raise CheckpointError(
                    f"the checkpoint of recipe {self.recipe!r} is of another model: it holds "
                    f"{_described(own)}, expected {_described(expected)}; "
                    f"use the recipe that it was trained with"
                )


def evaluated_weights(weights: Vector, state: Mapping[str, Vector]) -> Vector:
    """Return ``weights``, or a copy whose parameters are the average in ``state``."""
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
    """Replace the file ``path`` atomically, also if the machine stops.

    With ``kept`` above 1, the replaced file, which holds ``previous_version``, is kept as
    ``NAME-version-VERSION``, and so are the ``kept`` - 2 newest files before it. ``may_replace`` is
    called before the replacement and may raise to prevent it. Raise ``FileWriteError``.
    """
    tensors = {OPTIMIZER_PREFIX + name: state for name, state in checkpoint.optimizer_state.items()}
    tensors |= views_of(checkpoint.weights, checkpoint.layout)
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
        raise FileWriteError(
            f"the checkpoint {path} could not be written: {error.strerror}; expected a writable "
            f"directory with {size} bytes free. The previous checkpoint is unchanged"
        ) from error
    _remove_old(path, checkpoint.version, kept, disk)


def _header(metadata: dict[str, str], tensors: dict[str, Vector]) -> bytes:
    """Return the header of a safetensors file; the bytes of ``tensors`` follow, in their order.

    ``safetensors.numpy.save`` would hold the GIL while it copies all tensors twice.
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
    names = sorted(tensors)
    shapes = [(name, tensors[name].shape) for name in names]
    facts = sorted(item for item in metadata.items() if item[0] != DIGEST_KEY)
    digest = hashlib.sha256(json.dumps([facts, shapes]).encode())
    for name in names:
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _keep(path: Path, version: int, disk: Disk) -> None:
    """Link the checkpoint at ``path`` to a second name, under which it survives replacement."""
    name = path.with_name(f"{path.stem}-version-{version}{path.suffix}")
    try:
        if not disk.exists(name):  # else this server resumed from it because ``path`` is damaged
            disk.link(path, name)
    except OSError as error:  # some file systems have no links
        logger.warning("checkpoint_not_kept path=%s error=%s", name, error)


def _remove_old(path: Path, version: int, kept: int, disk: Disk) -> None:
    """Remove all but the newest kept checkpoints, and all of later versions than the run's."""
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


def read_resumable_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint from which the run of ``path`` resumes.

    If the file is damaged or missing, log a warning and return the newest usable checkpoint kept
    beside it, with the reason in ``damage``. Raise ``CheckpointError``.
    """
    try:
        return read_checkpoint(path)
    except CheckpointError as error:
        try:
            kept = _kept_checkpoints(path)
        except OSError:
            kept = []
        for version, name in kept:
            with suppress(CheckpointError):
                damage = f"{error}. The previous checkpoint, of version {version:,}, is used"
                checkpoint = replace(read_checkpoint(name), damage=damage)
                logger.warning("%s", damage)
                return checkpoint
        raise


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in the file ``path``, verified by its digest.

    Raise ``CheckpointError`` if it is damaged or missing: an earlier checkpoint is another model.
    """
    metadata: dict[str, str] | None = None
    try:
        with path.open("rb") as opened:
            beginning = opened.read(9)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        number = json.loads(metadata[FORMAT_KEY])
        if type(number) is not int or number < 1:
            raise ValueError(f"format {number!r}")
        if number > FORMAT_VERSION:
            raise CheckpointError(
                f"the checkpoint {path} has format {number}; expected at most "
                f"{FORMAT_VERSION}: a later release of dist_net wrote it, so upgrade this one"
            )
        if number > 1 and metadata[DIGEST_KEY] != _digest(metadata, tensors):
            raise ValueError("its content does not match its digest")
        return _checkpoint(metadata, tensors)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read: {error.strerror or error}; "
            f"expected a file that a training run wrote"
        ) from error
    except (SafetensorError, *MALFORMED) as error:
        # A safetensors file begins with the length of its header, 8 bytes, and the header.
        if beginning[8:] != b"{" or (metadata is not None and FORMAT_KEY not in metadata):
            usual = "expected a .safetensors file that a training run wrote"
            wanted = how_to_convert(path) or usual
            raise NotACheckpointError(f"{path} is not a checkpoint; {wanted}") from error
        raise CheckpointError(
            f"the checkpoint {path} is cut short or damaged ({error!r:.200}); "
            f"expected the whole file: copy it again, or pass another checkpoint"
        ) from error


def how_to_convert(path: Path) -> str:
    """Return how another library exports its file as ONNX; "" for other files."""
    if (call := CONVERSIONS.get(path.suffix)) is None:
        return ""
    return f"export the model to an .onnx file, with the library that wrote it: {call}"


def _checkpoint(metadata: dict[str, str], tensors: dict[str, Vector]) -> Checkpoint:
    facts = {name: json.loads(metadata[name]) for name in METADATA_FIELDS}
    for name, kind in METADATA_FIELDS.items():
        if type(facts[name]) is not kind:
            raise ValueError(f"{name} is {facts[name]!r:.80}, not a {kind.__name__}")
    if not 0 <= facts["version"] < 2**63:
        raise ValueError(f"version is {facts['version']}")
    layout: ArrayShapes = tuple((name, tuple(shape)) for name, shape in facts.pop("layout"))
    for name, shape in layout:
        if name not in tensors or tensors[name].shape != shape:
            raise ValueError(f"{name} {shape} of its layout is missing")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise ValueError(f"{name} is not an array of finite float32 numbers")
    parts = [tensors[name].ravel() for name, _ in layout]
    weights = np.concatenate([[], *parts], dtype=np.float32)
    of_optimizer = [name for name in tensors if name.startswith(OPTIMIZER_PREFIX)]
    state = {name.removeprefix(OPTIMIZER_PREFIX): tensors[name] for name in of_optimizer}
    return Checkpoint(**facts, layout=layout, weights=weights, optimizer_state=state)
