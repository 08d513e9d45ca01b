"""What a model is: to the workers that load it, to interfaces, and to clients of the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from hashlib import blake2b
from math import prod
from struct import calcsize
from typing import Any, NamedTuple

from dist_net.errors import ProtocolError
from dist_net.nets.architecture import (
    Architecture,
    architecture_from_json,
    architecture_to_json,
)
from dist_net.wire.serving_messages import ARRAYS_KEY, MODEL_NAME

TYPE_CODES = {
    **{"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"},
    **{"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
    **{"FP16": "e", "FP32": "f", "FP64": "d"},
}
"""The code of an element for struct and for NumPy, by the Open Inference Protocol's name of its
type; little-endian with ``<`` before it."""


@dataclass(frozen=True)
class ModelDescription:
    """One version of a model: all that is needed to ask it, and for a worker to load it.

    ``input_shape`` is that of one row; ``labels`` is empty if the classes have no names.
    ``arrays_path``: the file of prepared kernels on the gateway's host, with its size and key.
    ``fitting``: how images are made to fit. An answer less probable than ``unknown_below`` is
    unknown. Without ``has_classes`` its outputs are numbers that it predicts, ``classes``
    of them for a row.
    """

    name: str
    version: int
    input_datatype: str
    input_shape: tuple[int, ...]
    classes: int
    labels: tuple[str, ...]
    takes_images: bool
    has_logits: bool
    architecture: Architecture
    arrays_path: str
    arrays_bytes: int
    arrays_key: str
    fitting: str = "pad"
    unknown_below: float = 0.0
    has_classes: bool = True

    @cached_property
    def row_bytes(self) -> int:
        return calcsize("<" + TYPE_CODES[self.input_datatype]) * prod(self.input_shape)

    @property
    def plan_key(self) -> tuple[object, ...]:
        """Return what is equal in versions that differ only in their weights."""
        inputs = self.input_datatype, self.input_shape, self.classes, self.fitting
        return self.architecture, *inputs

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"architecture": architecture_to_json(self.architecture)})

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """What ``to_json`` gave. Raises ProtocolError for anything else."""
        try:
            told = json.loads(text)
            shape, labels = tuple(told.pop("input_shape")), tuple(told.pop("labels"))
            net = architecture_from_json(told.pop("architecture"))
            description = cls(input_shape=shape, labels=labels, architecture=net, **told)
            for name, pattern in ("name", MODEL_NAME), ("arrays_key", ARRAYS_KEY):
                if not (isinstance(told[name], str) and pattern.fullmatch(told[name])):
                    raise ValueError(f"{name} {told[name]!r:.80}; expected {pattern.pattern}")
            return description
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ProtocolError(f"this describes no model: {text[:80]!r} ({error})") from error


class EncodedImage(NamedTuple):
    """An image file in memory: its name, or the class that it shows, and its content."""

    name: str
    content: bytes | memoryview


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served now: its newest version, and by number all that may be asked for.

    ``description`` is None before a version is loaded and after the model is unloaded; ``reason``
    says why. ``is_ready``: a worker can answer for it now. ``samples``: of its newest version.
    """

    name: str
    description: ModelDescription | None
    versions: Mapping[int, ModelDescription]
    is_ready: bool
    reason: str
    samples: tuple[EncodedImage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VersionSummary:
    """What a client needs to know of a version to ask it, and to name the classes it answers.

    ``input_shape`` is that of one row, ``input_datatype`` its type by the Open Inference Protocol's
    name. ``labels`` is empty if the classes have no names. An answer less probable than
    ``unknown_below`` is unknown.
    """

    version: int = 0
    input_datatype: str = ""
    input_shape: tuple[int, ...] = ()
    classes: int = 0
    labels: tuple[str, ...] = ()
    takes_images: bool = False
    unknown_below: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelSummary(VersionSummary):
    """What a client needs to know of a model: of its newest version, and of ``others``.

    While no version is loaded ``version`` and ``classes`` are 0, ``input_datatype`` is "", and
    ``reason`` says why. ``versions``: the numbers that may be asked for.
    """

    name: str
    versions: tuple[int, ...]
    is_ready: bool
    reason: str
    others: tuple[VersionSummary, ...] = ()

    def of_version(self, number: int) -> VersionSummary | None:
        """What is known of a version that may be asked for; None if there is none."""
        known = (each for each in (self, *self.others) if each.version == number)
        return next(known, None) if number in self.versions else None


DIGEST_BYTES = 8
KNOWN_BYTES = 2 * DIGEST_BYTES


def known(summary: VersionSummary) -> bytes:
    """Digests of input and classes, by which a client tells what it knows of a version."""
    return digest_of_input(summary.input_datatype, summary.input_shape) + digest_of_classes(
        summary.labels, summary.unknown_below
    )


@lru_cache
def digest_of_input(datatype: str, shape: tuple[int, ...]) -> bytes:
    """Identifies a type and a shape of one row."""
    return blake2b(json.dumps([datatype, shape]).encode(), digest_size=DIGEST_BYTES).digest()


@lru_cache
def digest_of_classes(labels: tuple[str, ...], unknown_below: float) -> bytes:
    """Identifies the names of the classes, and below which probability none of them is meant."""
    return blake2b(json.dumps([labels, unknown_below]).encode(), digest_size=DIGEST_BYTES).digest()


def summary_of(model: ServedModel) -> ModelSummary:
    """What a client is told of a model."""
    newest = model.description
    others = [one for one in model.versions.values() if newest and one.version != newest.version]
    return ModelSummary(
        name=model.name,
        versions=tuple(model.versions),
        is_ready=model.is_ready,
        reason=model.reason,
        others=tuple(VersionSummary(**_told_of(one)) for one in others),
        **(_told_of(newest) if newest else {}),
    )


def _told_of(version: ModelDescription) -> dict[str, Any]:
    """What a client is told of a version."""
    return {each.name: getattr(version, each.name) for each in fields(VersionSummary)}


def summaries_to_json(models: Iterable[ServedModel]) -> str:
    """A JSON array for a `Description` message, an object for each model."""
    return json.dumps([asdict(summary_of(model)) for model in models])


def summaries_from_json(text: str) -> list[ModelSummary]:
    """What ``summaries_to_json`` gave. Raises ProtocolError for anything else."""
    try:
        return [_from_json(told) for told in json.loads(text)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(
            f"these are no summaries of models: {text[:80]!r} ({error}); install the same release "
            f"of dist-net on both hosts"
        ) from error


def _from_json(told: dict[str, Any]) -> ModelSummary:
    others = tuple(VersionSummary(**_with_tuples(each)) for each in told.pop("others"))
    return ModelSummary(others=others, **_with_tuples(told))


def _with_tuples(told: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
