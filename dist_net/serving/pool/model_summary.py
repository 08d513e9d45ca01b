"""What the gateway tells a client of the models that it serves; pure data.

A `Description` message carries it: a JSON array, an object for each model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from dist_net.errors import ProtocolError
from dist_net.serving.pool.description import ServedModel


@dataclass(frozen=True)
class ModelSummary:
    """All that a client needs to ask a model, and to name what it answers.

    ``input_shape`` is that of one row, and ``input_datatype`` the Open Inference Protocol's name
    of its type. While no version is loaded that is "", ``classes`` is 0, and ``reason`` says why.
    ``labels`` is empty for a model without names for its classes.
    """

    name: str
    versions: tuple[int, ...]
    is_ready: bool
    reason: str
    input_datatype: str = ""
    input_shape: tuple[int, ...] = ()
    classes: int = 0
    labels: tuple[str, ...] = ()
    takes_pictures: bool = False


DIGEST_BYTES = 8
KNOWN_BYTES = 2 * DIGEST_BYTES


def known(summary: ModelSummary) -> bytes:
    """What a client that knows this tells the gateway: the digests of the input and the labels."""
    return digest_of_input(summary.input_datatype, summary.input_shape) + digest_of_labels(
        summary.labels
    )


@lru_cache
def digest_of_input(datatype: str, shape: tuple[int, ...]) -> bytes:
    """Tells inputs of one type and shape of a row from all others."""
    return blake2b(json.dumps([datatype, shape]).encode(), digest_size=DIGEST_BYTES).digest()


@lru_cache
def digest_of_labels(labels: tuple[str, ...]) -> bytes:
    """Tells these labels from all others."""
    return blake2b(json.dumps(labels).encode(), digest_size=DIGEST_BYTES).digest()


def summary_of(model: ServedModel) -> ModelSummary:
    """Of a model as the gateway knows it."""
    own = (model.name, model.versions, model.is_ready, model.reason)
    if (described := model.description) is None:
        return ModelSummary(*own)
    return ModelSummary(
        *own,
        described.input_datatype,
        described.input_shape,
        described.classes,
        described.labels,
        described.takes_pictures,
    )


def summaries_to_json(models: Iterable[ServedModel]) -> str:
    """As a message carries them."""
    return json.dumps([asdict(summary_of(model)) for model in models])


def summaries_from_json(text: str) -> list[ModelSummary]:
    """What ``summaries_to_json`` gave. Raises ProtocolError for anything else."""
    try:
        return [_from_fields(fields) for fields in json.loads(text)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(
            f"these are no summaries of models: {text[:80]!r} ({error}); install the same release "
            f"of dist-net on both hosts"
        ) from error


def _from_fields(fields: dict[str, Any]) -> ModelSummary:
    for name in ("versions", "input_shape", "labels"):
        fields[name] = tuple(fields[name])
    return ModelSummary(**fields)
