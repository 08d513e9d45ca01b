"""Descriptions of a model: for the workers that load it, for interfaces, and for clients."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import prod
from typing import Any, NamedTuple, Self

import numpy as np

from dist_net.errors import ProtocolError
from dist_net.ground.json_records import record_from_json
from dist_net.nets.architecture import Architecture, architecture_from_json, architecture_to_json
from dist_net.nets.tensor_specs import Specs, record_of, to_bytes
from dist_net.wire.serving_messages import ARRAYS_KEY, MAX_REQUEST_BYTES, MODEL_NAME

MEMORY_BYTES = 1 << 30
"""The memory that reading a model, and computing with it, may take, besides the next."""
MEMORY_PER_BYTE = 12  # of the model's files: as read, exported, prepared, and in a plan


@dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """A version as a client sees it: its inputs, its outputs and its classes.

    With ``is_batched`` it computes rows, each by itself, and requests share batches; otherwise it
    computes the tensors of one request. ``labels`` is empty if the classes have no names. An answer
    less probable than ``unknown_below`` is unknown. Without ``has_classes`` the model predicts
    ``classes`` numbers for a row.
    """

    version: int
    inputs: Specs
    outputs: Specs
    classes: int
    labels: tuple[str, ...]
    takes_images: bool
    unknown_below: float = 0.0
    has_classes: bool = True
    is_batched: bool = True

    @property
    def input_datatype(self) -> str:
        """The Open Inference Protocol's name of the first input's type; "" without a version."""
        return self.inputs[0].datatype if self.inputs else ""

    def of_version(self, number: int) -> "VersionSummary | None":
        """Return the summary of a version, if this one describes it."""
        return self if number == self.version else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.inputs[0].shape if self.inputs else ()


@dataclass(frozen=True, kw_only=True)
class ModelDescription(VersionSummary):
    """One version of a model, for requests and workers; ``arrays_path``: on the gateway's host."""

    name: str
    has_logits: bool
    architecture: Architecture
    arrays_path: str
    arrays_bytes: int
    arrays_key: str
    fitting: str = "pad"

    @cached_property
    def row_bytes(self) -> int:
        return record_of(self.inputs).itemsize if self.is_batched else 0

    @cached_property
    def result_bytes(self) -> int:
        return record_of(self.outputs).itemsize if self.is_batched else 0

    def answer_bytes(self, rows: int) -> int:
        """Return the size of the outputs of ``rows``; axes of unknown length count as 0."""
        if self.is_batched:
            return rows * self.result_bytes
        return sum(max(0, prod(of.shape)) * of.dtype.itemsize for of in self.outputs)

    @cached_property
    def probe(self) -> bytes:
        """A request of zeros, free axes of length 1; empty, a bad input, if too large to send."""
        shapes = {each.name: tuple(map(abs, each.shape)) for each in self.inputs}
        sizes = [prod(shapes[each.name]) * each.dtype.itemsize for each in self.inputs]
        if sum(sizes) > MAX_REQUEST_BYTES:
            return b""
        if self.is_batched:
            return bytes(self.row_bytes)
        zeros = {each.name: np.zeros(shapes[each.name], each.dtype) for each in self.inputs}
        return bytes(to_bytes(zeros, self.inputs, self.is_batched))

    def misfit(self, rows: int, outputs_bytes: int) -> str:
        """Return why outputs of this size do not fit ``rows``; "" if they can."""
        if not self.is_batched or outputs_bytes == rows * self.result_bytes:
            return ""
        return f"{outputs_bytes} bytes for {rows} rows of {self.result_bytes} bytes"

    def rows_in(self, payload_bytes: int) -> int:
        """Return the number of rows in a payload, at least 1 unless it is empty."""
        if not self.is_batched:
            return 1
        return max(1, payload_bytes // self.row_bytes) if payload_bytes else 0

    @property
    def plan_key(self) -> tuple[object, ...]:
        """A key that is equal for versions that differ only in their weights."""
        return self.architecture, self.inputs, self.outputs, self.fitting

    @cached_property
    def summary_json(self) -> bytes:
        return json.dumps(_summary_of(self)).encode()

    def to_json(self) -> str:
        content = asdict(self) | {"architecture": architecture_to_json(self.architecture)}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the result of ``to_json``. Raise ProtocolError."""
        try:
            content = json.loads(text)
            net = architecture_from_json(content.pop("architecture"))
            description = record_from_json(cls, content, architecture=net)
            for name, pattern in ("name", MODEL_NAME), ("arrays_key", ARRAYS_KEY):
                if not pattern.fullmatch(content[name]):
                    raise ValueError(f"{name} {content[name]!r:.80}; expected {pattern.pattern}")
            return description
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ProtocolError(
                f"invalid description of a model: {text[:80]!r} ({error}); expected a reader's"
            ) from error


class EncodedImage(NamedTuple):
    """An image file in memory: its name, or the class that it shows, and its content."""

    name: str
    content: bytes | memoryview


@dataclass(frozen=True)
class ServedModel:
    """A served model: the description of its newest version, and of all versions by number.

    ``description`` is None before a version is loaded and after the model is unloaded, for
    ``reason``. ``is_ready``: a worker has loaded it. ``samples``: of its newest version.
    ``is_unloaded``: it stays unavailable until it is reloaded.
    """

    name: str
    description: ModelDescription | None
    versions: Mapping[int, ModelDescription]
    is_ready: bool
    reason: str
    samples: tuple[EncodedImage, ...] = ()
    is_unloaded: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSummary(VersionSummary):
    """A model as a client sees it: its newest version, and ``others``.

    While no version is loaded ``version`` and ``classes`` are 0, ``inputs`` is empty, and
    ``reason`` states the cause; ``is_unloaded``: see ``ServedModel``. ``versions``: the numbers of
    the served versions. A request may have ``max_batch_size`` rows.
    """

    name: str
    versions: tuple[int, ...]
    is_ready: bool
    reason: str
    max_batch_size: int
    others: tuple[VersionSummary, ...] = ()
    is_unloaded: bool = False

    def of_version(self, number: int) -> VersionSummary | None:
        known = (each for each in (self, *self.others) if each.version == number)
        return next(known, None) if number in self.versions else None


_NO_VERSION = VersionSummary(
    version=0, inputs=(), outputs=(), classes=0, labels=(), takes_images=False
)

_STATE = ("name", "versions", "is_ready", "reason", "max_batch_size", "is_unloaded")


def summary_of(model: ServedModel, max_batch_size: int) -> ModelSummary:
    state = {each: getattr(model, each) for each in ("name", "is_ready", "is_unloaded", "reason")}
    newest, versions = _summary_of(model.description or _NO_VERSION), tuple(model.versions)
    return ModelSummary(**state, **newest, versions=versions, max_batch_size=max_batch_size)


def _summary_of(version: VersionSummary) -> dict[str, Any]:
    return {each.name: getattr(version, each.name) for each in fields(VersionSummary)}


def summary_to_json(model: ServedModel, max_batch_size: int) -> bytes:
    """Return the JSON of a model's state, and of each version once, newest first."""
    summary = summary_of(model, max_batch_size)
    state = json.dumps({name: getattr(summary, name) for name in _STATE}).encode()
    newest = model.description
    versions = [] if newest is None else [newest, *model.versions.values()]
    of_each = {each.version: each.summary_json for each in versions}
    return b'{"state": %b, "described": [%b]}' % (state, b", ".join(of_each.values()))


def summary_from_json(text: bytes) -> ModelSummary:
    """Parse the result of ``summary_to_json``. Raise ProtocolError."""
    try:
        content = json.loads(text)
        versions = [record_from_json(VersionSummary, each) for each in content["described"]]
        newest, *others = versions or [_NO_VERSION]
        state = {name: content["state"][name] for name in _STATE}
        return record_from_json(ModelSummary, state, others=tuple(others), **_summary_of(newest))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProtocolError(
            f"invalid summary of a model: {text[:80]!r} ({error}); install the same release of "
            f"dist-net on both hosts"
        ) from error
