"""Networks as JSON, for the files of models. Reading it runs no code.

A layer is an object with its class as the only key, ``{"Dense": {"units": 10, ...}}``, and a
function, such as an activation, has null: ``{"relu": null}``. ``PARTS`` lists both. Anything else
becomes ``{"?": description}``, in whose place the program that loads the file passes its own.
Initializers are left out, since the file has the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from dist_net.autodiff.arrays import shown
from dist_net.errors import DistNetError, ParameterError
from dist_net.nn import layers, recurrent
from dist_net.nn.losses import LOSSES

FORMAT = 1
UNKNOWN = "?"
MAX_JSON = 1 << 20
MAX_NUMBER = 1 << 24
"""The largest integer in a file, such as a number of units."""
MAX_VALUE_BYTES = 1 << 28
"""The size of the largest value that a network computes for one sample."""

PARTS: dict[str, Any] = {
    **{
        name: part
        for module in (layers, recurrent)
        for name, part in vars(module).items()
        if isinstance(part, type) and issubclass(part, layers.Described | layers.Sequential)
    },
    **layers.ACTIVATIONS,
    **LOSSES,
}
INVALID = (
    *(DistNetError, ArithmeticError, AttributeError, LookupError, MemoryError),
    *(RecursionError, TypeError, ValueError),
)
"""The errors of reading unexpected JSON."""


def to_data(value: Any) -> Any:
    """Return a layer, a function, a dtype or an argument of a layer as JSON."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case list() | tuple():
            return [to_data(each) for each in value]
        case Mapping():
            return [[name, to_data(each)] for name, each in value.items()]
    for name, part in PARTS.items():
        if value is part:
            return {name: None}
        if type(value) is part:
            arguments = [each.name for each in fields(value)] if is_dataclass(part) else ["layers"]
            kept = [each for each in arguments if not each.endswith("_initializer")]
            return {name: {each: to_data(getattr(value, each)) for each in kept}}
    return {UNKNOWN: f"{shown(value):.200}"}


def from_data(data: Any) -> Any:
    """Return the value of ``to_data``; raise ParameterError for a part that is not in ``PARTS``.

    Unexpected JSON raises one of ``INVALID``.
    """
    if isinstance(data, list):
        return tuple(map(from_data, data))
    if isinstance(data, int) and abs(data) > MAX_NUMBER:
        raise ValueError(f"the number {data}; expected at most {MAX_NUMBER}")
    if not isinstance(data, dict):
        return data
    ((name, arguments),) = data.items()
    if name not in PARTS:
        raise ParameterError(
            f"{arguments if name == UNKNOWN else name!r:.200} is not of dist_net.nn; pass your "
            f"own, Model.load(path, network=..., loss=...), or use what docs/layers.md lists. To "
            f"serve any network, export it to ONNX"
        )
    part = PARTS[name]
    if isinstance(part, type) == (arguments is None):
        raise ValueError(f"{name} with {arguments!r:.80}")
    if arguments is None:
        return part
    given = {each: from_data(value) for each, value in arguments.items()}
    return part(*given["layers"]) if issubclass(part, layers.Sequential) else part(**given)


def inputs_from_data(data: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and dtype of the inputs, [name, dtype, shape] each; see ``Model``.

    Unexpected JSON raises one of ``INVALID``.
    """
    fields = [(name, np.dtype(str(code)), from_data(shape)) for name, code, shape in data]
    record = np.dtype(fields if fields[0][0] or len(fields) > 1 else fields[0][1:])
    if any(dtype.kind not in "iuf" for _, dtype, _ in fields) or record.itemsize > MAX_VALUE_BYTES:
        raise ValueError(f"inputs {data!r:.200}; expected {MAX_VALUE_BYTES:,} bytes of numbers")
    return record.shape, record.base


def parse_description(text: Any) -> Any:
    """Return the JSON of a model; raise ValueError if it is too long, or of another format."""
    if not isinstance(text, str) or len(text) > MAX_JSON:
        raise ValueError(f"expected text of at most {MAX_JSON:,} characters")
    found = json.loads(text)
    if found["format"] != FORMAT:
        raise ValueError(f"format {found['format']!r:.80}, expected {FORMAT}: use the same release")
    return found
