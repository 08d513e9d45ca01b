"""What a version of a model is, as the loader tells gateway and workers; pure data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod

from dist_net.errors import ProtocolError

ROW_BYTES = {"FP32": 4, "UINT8": 1}
"""Bytes of an element, by the Open Inference Protocol's name of its type."""


@dataclass(frozen=True)
class ModelDescription:
    """All that is needed to ask a version of a model, and for a worker to load it.

    ``input_shape`` is that of one row. ``labels`` is empty for a model without names for its
    classes. ``arrays_path``: the file of prepared kernels on the gateway's host, of
    ``arrays_bytes`` bytes and with ``arrays_key``.

    ``configuration``: the text of a Darknet net; else ``recipe`` is a built-in recipe's name, or
    the path of a Python file, a copy of the one at ``recipe_original``. ``recipe_files`` are the
    digests that its files must have on every host, and ``fitting`` is how it takes pictures.
    """

    name: str
    version: int
    input_datatype: str
    input_shape: tuple[int, ...]
    classes: int
    labels: tuple[str, ...]
    takes_pictures: bool
    has_logits: bool
    configuration: str
    recipe: str
    arrays_path: str
    arrays_bytes: int
    arrays_key: str
    recipe_original: str = ""
    recipe_files: Mapping[str, str] = field(default_factory=dict)
    fitting: str = "pad"

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row of its input."""
        return ROW_BYTES[self.input_datatype] * prod(self.input_shape)

    @property
    def architecture(self) -> tuple[object, ...]:
        """What versions have in common that differ in their weights alone."""
        files = tuple(sorted(self.recipe_files.items()))
        net = self.configuration, self.recipe, self.recipe_original, files, self.fitting
        return self.input_datatype, self.input_shape, self.classes, *net

    def to_json(self) -> str:
        """As a message carries it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """What ``to_json`` gave. Raises ProtocolError for anything else."""
        try:
            fields = json.loads(text)
            shape, labels = tuple(fields.pop("input_shape")), tuple(fields.pop("labels"))
            files = dict(fields.pop("recipe_files", {}))
            return cls(input_shape=shape, labels=labels, recipe_files=files, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ProtocolError(f"this describes no model: {text[:80]!r} ({error})") from error


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served now: its newest version, and all that are still answered for.

    ``description`` is None while no version has been loaded, and once it is unloaded; then
    ``reason`` says why. ``is_ready``: some worker can answer for it now.
    """

    name: str
    description: ModelDescription | None
    versions: tuple[int, ...]
    is_ready: bool
    reason: str
