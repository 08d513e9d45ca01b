"""A run on disk: one safetensors file, written atomically; the only file that the server writes.

Each parameter and buffer is stored under its own name and shape, so that any program that reads
safetensors reads the model; an optimizer's state vector is stored as ``optimizer/NAME``.
Everything else is JSON under the keys of the file's metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from dist_net.errors import (
    CheckpointDamagedError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointMissingError,
    CheckpointWriteError,
    NotACheckpointError,
)
from dist_net.files import HOST_DISK, Disk, replacing
from dist_net.optim import ArrayShapes
from dist_net.parameter_server.settings import OPTIMIZER_PREFIX
from dist_net.vector import Vector

AVERAGE = "weight_average"
"""The average of the weights among the optimizer's vectors."""

FORMAT_VERSION = 1
FORMAT_KEY = "dist_net_checkpoint"
METADATA_FIELDS = (
    *("recipe", "recipe_digest", "recipe_record", "layout", "version", "settings", "ledger"),
    "counters",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after ``version`` updates; its arrays are its own.

    ``weights`` is the flat float32 vector of all parameters and buffers in ``layout``'s order, and
    ``optimizer_state`` holds vectors of the length of the parameters alone, the average of the
    weights among them. ``settings``,
    ``ledger`` and ``counters`` are JSON objects of the parts that they come from; so is
    ``recipe_record``, which the server does not need, but readers of the weights do.
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


def write_checkpoint(path: Path, checkpoint: Checkpoint, disk: Disk = HOST_DISK) -> None:
    """Write ``checkpoint``; whenever the machine stops, the file is the old one or the new one.

    Raises ``CheckpointWriteError``; then the old one is still there.
    """
    tensors = {OPTIMIZER_PREFIX + name: state for name, state in checkpoint.optimizer_state.items()}
    tensors |= _parameters(checkpoint.layout, checkpoint.weights)
    metadata = {name: json.dumps(getattr(checkpoint, name)) for name in METADATA_FIELDS}
    content = save(tensors, metadata | {FORMAT_KEY: json.dumps(FORMAT_VERSION)})
    try:
        with replacing(path, disk) as partial:
            disk.write(partial, content)
    except OSError as error:
        raise CheckpointWriteError(
            f"the checkpoint {path} could not be written: {error.strerror}; expected a directory "
            f"that is writable and has {len(content)} bytes free; the one before it is unchanged"
        ) from error


def _parameters(layout: ArrayShapes, weights: Vector) -> dict[str, Vector]:
    parameters, start = {}, 0
    for name, shape in layout:
        stop = start + prod(shape)
        parameters[name] = weights[start:stop].reshape(shape, copy=False)
        start = stop
    return parameters


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what ``write_checkpoint`` wrote.

    Raises ``CheckpointMissingError``, ``NotACheckpointError``, ``CheckpointDamagedError`` or
    ``CheckpointFormatError``, each with what was expected.
    """
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
    except SafetensorError as error:
        # A safetensors file begins with the length of its header, 8 bytes, and then the header.
        if beginning[8:] == b"{":
            raise _damaged(path, error) from error
        raise _not_a_checkpoint(path) from error
    return _checked(path, metadata, tensors)


def decode_checkpoint(path: Path, content: bytes) -> Checkpoint:
    """``read_checkpoint`` of a whole file, whose content is here."""
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise _damaged(path, error) from error
    header_bytes = int.from_bytes(content[:8], "little")
    return _checked(path, json.loads(content[8 : 8 + header_bytes])["__metadata__"], tensors)


def _damaged(path: Path, error: SafetensorError) -> CheckpointDamagedError:
    return CheckpointDamagedError(
        f"the checkpoint {path} is cut short or damaged ({error}); "
        f"expected the whole file: copy it again or resume from another checkpoint"
    )


def _checked(path: Path, metadata: dict[str, str], tensors: dict[str, Vector]) -> Checkpoint:
    if FORMAT_KEY not in metadata:
        raise _not_a_checkpoint(path)
    try:
        return _checkpoint(path, metadata, tensors)
    except (ValueError, KeyError) as error:
        raise CheckpointDamagedError(
            f"the checkpoint {path} lacks a part, or it is damaged ({error!r}); expected JSON "
            f"under {', '.join(METADATA_FIELDS)}: resume from another checkpoint"
        ) from error


def _not_a_checkpoint(path: Path) -> NotACheckpointError:
    return NotACheckpointError(
        f"{path} is not a checkpoint; expected a .safetensors file that a training run wrote"
    )


def _checkpoint(path: Path, metadata: dict[str, str], tensors: dict[str, Vector]) -> Checkpoint:
    format_version = json.loads(metadata[FORMAT_KEY])
    if format_version > FORMAT_VERSION:
        raise CheckpointFormatError(
            f"the checkpoint {path} has format {format_version}; expected at most "
            f"{FORMAT_VERSION}: a later dist_net wrote it, so upgrade this one"
        )
    facts = {name: json.loads(metadata[name]) for name in METADATA_FIELDS}
    if not isinstance(facts["recipe"], str):
        raise ValueError(f"recipe {facts['recipe']!r} is no text")
    layout: ArrayShapes = tuple((name, tuple(shape)) for name, shape in facts.pop("layout"))
    for name, shape in layout:
        if name not in tensors or tensors[name].shape != shape:
            raise CheckpointDamagedError(
                f"the checkpoint {path} does not hold {name} {shape} as its own layout says; "
                f"resume from another checkpoint"
            )
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
