"""Networks as JSON, for the files of models. Reading it runs no code.

A layer is an object with its class as the only key, ``{"Dense": {"units": 10, ...}}``, and a
function, such as an activation, has null: ``{"relu": null}``. ``PARTS`` lists both. Anything else
becomes ``{"?": description}``, in whose place the program that loads the file passes its own.
``{"array": [dtype, shape, base64]}`` is an array.
``{"=": 3}`` is the same object as the fourth that is complete, counted from 0: layers in two places
share parameters. Initializers are left out, since the file has the weights.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from dist_net.autodiff import variable
from dist_net.autodiff.arrays import Shape, shown
from dist_net.autodiff.expression import topological_order
from dist_net.errors import DistNetError, ModelFileError, ParameterError
from dist_net.ground.checkpoint import MALFORMED
from dist_net.nn import layers, sequences
from dist_net.nn.losses import LOSS_CLASSES, LOSSES, Loss, loss_named
from dist_net.nn.parameters import Scope

FORMAT = 1
UNKNOWN, SAME, ARRAY = "?", "=", "array"
MAX_CALLS = 10_000
"""The most calls of layers, which few objects in many places could multiply."""
MAX_JSON = 1 << 20
MAX_NUMBER = 1 << 24
"""The largest integer in a file, such as a number of units."""
MAX_VALUE_BYTES = 1 << 28
"""The size of the largest value that a network computes for one sample."""

PARTS: dict[str, Any] = {
    **{
        name: part
        for module in (layers, sequences)
        for name, part in vars(module).items()
        if isinstance(part, type) and issubclass(part, layers.Described | layers.Sequential)
    },
    **layers.ACTIVATIONS,
    **LOSSES,
    **{each.__name__: each for each in LOSS_CLASSES},
}
INVALID = DistNetError, *MALFORMED, IndexError, MemoryError, ZeroDivisionError


def describe(
    network: layers.Layer, loss: Loss, inputs: Mapping[str, tuple[np.dtype[Any], Shape]]
) -> str:
    described = [(name, dtype.str, shape) for name, (dtype, shape) in inputs.items()]
    parts = {"network": to_data(network, {}), "loss": to_data(loss, {}), "inputs": described}
    return json.dumps({"format": FORMAT, **parts})


def parse(
    text: Any, network: layers.Layer | None, loss: Loss | str | None
) -> tuple[layers.Layer, Shape, Loss, np.dtype[Any]]:
    """Return a ``Model``'s arguments, with given parts replaced. Raise ModelFileError."""
    try:
        if len(text) > MAX_JSON:
            raise ValueError(f"{len(text):,} characters; expected at most {MAX_JSON:,}")
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r:.80}; expected {FORMAT}: upgrade dist_net")
        unread = found["loss"]
        if loss is None:
            # A model can be served without its loss, so only its use is an error.
            lacks_part = f'"{UNKNOWN}":' in json.dumps(unread)
            loss = (lambda *_: from_data(unread)) if lacks_part else from_data(unread)
        loss = loss_named(loss)
        network = from_data(found["network"]) if network is None else network
        shape, dtype = _inputs(found["inputs"])
        values = topological_order([network(variable("inputs", (1, *shape), dtype), Scope())])
        if (largest := max(each.nbytes for each in values)) > MAX_VALUE_BYTES:
            raise ValueError(f"a value of {largest:,} bytes; expected {MAX_VALUE_BYTES:,}")
    except INVALID as error:
        raise ModelFileError(
            f"the saved model cannot be built ({error!s:.500}); expected the file of a model that "
            f"Model.save wrote. For a run use dist_net.load"
        ) from error
    return network, shape, loss, dtype


def to_data(value: Any, seen: dict[int, int]) -> Any:
    """Return a layer, function or argument as JSON; ``seen`` numbers stored objects by id."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case np.generic():
            return value.item()
        case np.ndarray():
            return {ARRAY: [value.dtype.str, value.shape, b64encode(value.tobytes()).decode()]}
        case list() | tuple():
            return [to_data(each, seen) for each in value]
        case Mapping():
            return [[name, to_data(each, seen)] for name, each in value.items()]
    for name, part in PARTS.items():
        if value is part:
            return {name: None}
        if type(value) is part:
            if id(value) in seen:
                return {SAME: seen[id(value)]}
            arguments = [each.name for each in fields(value)] if is_dataclass(part) else ["layers"]
            kept = [each for each in arguments if not each.endswith("_initializer")]
            data = {name: {each: to_data(getattr(value, each), seen) for each in kept}}
            seen[id(value)] = len(seen)
            return data
    return {UNKNOWN: f"{shown(value):.200}"}


def from_data(data: Any) -> Any:
    """Return the value of ``to_data``. Raise ParameterError for an unknown part, or ``INVALID``."""
    return _Reader().value(data)


class _Reader:
    """Builds layers from JSON, and counts how often their calls will call layers."""

    def __init__(self) -> None:
        self._calls = 0
        self._built: list[tuple[Any, int]] = []

    def value(self, data: Any) -> Any:
        if isinstance(data, list):
            return tuple(map(self.value, data))
        if isinstance(data, int) and abs(data) > MAX_NUMBER:
            raise ValueError(f"the number {data}; expected at most {MAX_NUMBER}")
        if not isinstance(data, dict):
            return data
        ((name, arguments),) = data.items()
        if name == SAME:
            layer, calls = self._built[arguments]
            self._calls += calls
            return layer
        if name == ARRAY:
            code, shape, content = arguments
            array = np.frombuffer(b64decode(content), _numbers(code))
            return array.reshape([int(length) for length in shape], copy=False)
        if name not in PARTS:
            raise ParameterError(
                f"{arguments if name == UNKNOWN else name!r:.200} is not of dist_net.nn; pass your "
                f"own, Model.load(path, network=..., loss=...), or use what docs/layers.md lists. "
                f"To serve any network, export it to ONNX"
            )
        part, before = PARTS[name], self._calls
        if isinstance(part, type) == (arguments is None):
            raise ValueError(f"{name} with {arguments!r:.80}")
        if arguments is None:
            return part
        given = {each: self.value(argument) for each, argument in arguments.items()}
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise ValueError(f"more than {MAX_CALLS:,} calls of layers")
        is_chain = issubclass(part, layers.Sequential)
        layer = part(*given["layers"]) if is_chain else part(**given)
        self._built.append((layer, self._calls - before))
        return layer


def _inputs(data: Any) -> tuple[Shape, np.dtype[Any]]:
    """Return the shape and dtype of the inputs, which are of numbers, bools or records."""
    types = [(name, _numbers(code), from_data(shape)) for name, code, shape in data]
    whole = np.dtype(types if types[0][0] or len(types) > 1 else types[0][1:])
    if whole.itemsize > MAX_VALUE_BYTES:
        raise ValueError(f"inputs {data!r:.200}; expected at most {MAX_VALUE_BYTES:,} bytes")
    return whole.shape, whole.base


def _numbers(code: Any) -> np.dtype[Any]:
    """Return the dtype of a code; raise ValueError unless it is of numbers or bools."""
    if (dtype := np.dtype(str(code))).kind not in "biuf":
        raise ValueError(f"the dtype {code!r:.80}; expected numbers")
    return dtype
