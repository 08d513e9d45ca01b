"""Layers in float64 with given parameters: values, and gradients of a weighted sum of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.autodiff import Expression

Arrays = dict[str, NDArray[Any]]


class GivenParameters(nn.Scope):
    """A scope whose parameters are expressions, by their names, such as float64 variables."""

    def __init__(self, given: dict[str, Expression]) -> None:
        super().__init__()
        self._given = given

    def parameter(self, name, shape, initializer):  # type: ignore[no-untyped-def]
        assert self._given[self.prefix + name].shape == shape
        return self._given[self.prefix + name]


class InFloat64:
    """A layer on one array or, by name, the fields of a record, with random parameters."""

    def __init__(self, layer: nn.Layer, inputs: NDArray[Any] | Arrays) -> None:
        self._layer, self._is_record = layer, isinstance(inputs, dict)
        self.inputs: Arrays = inputs if isinstance(inputs, dict) else {"x": inputs}
        random, scope = np.random.default_rng(1), nn.Scope()
        halves = {n: x.astype(np.float32) if x.dtype == "f8" else x for n, x in self.inputs.items()}
        layer(self._whole(_variables(halves)), scope)
        self.parameters: Arrays = {
            name: random.standard_normal(each.shape) * 0.5
            for name, each in scope.parameters.items()
        }

    def __call__(self, *floats: Expression) -> dict[str, Expression]:
        """The outputs by name, "" if there is one, for inputs of floats and then parameters."""
        names = [name for name, x in self.inputs.items() if x.dtype.kind == "f"]
        given = dict(zip([*names, *self.parameters], floats, strict=True))
        others = {name: ad.constant(x) for name, x in self.inputs.items() if name not in names}
        inputs = {name: given.get(name, others.get(name)) for name in self.inputs}
        parameters = {name: given[name] for name in self.parameters}
        output = self._layer(self._whole(inputs), GivenParameters(parameters))
        names = output.dtype.names or ()
        return {name: output[name] for name in names} or {"": output}

    @property
    def floats(self) -> Arrays:
        """The inputs that are floats, and the parameters."""
        return {n: x for n, x in self.inputs.items() if x.dtype.kind == "f"} | self.parameters

    def values_and_gradients(self, directions: Arrays) -> tuple[Arrays, Arrays]:
        """The outputs, and the gradients of their sum, weighted by ``directions``, by name."""
        variables = _variables(self.floats)
        outputs = self(*variables.values())
        loss = ad.constant(0.0, np.float64)
        for name, direction in directions.items():
            loss = loss + ad.sum(outputs[name] * ad.constant(direction))
        slopes = ad.gradients(loss, [*variables.values()])
        found = ad.evaluate([*outputs.values(), *slopes], **self.floats)
        values = dict(zip(outputs, found, strict=False))
        return values, dict(zip(variables, found[len(outputs) :], strict=True))

    def _whole(self, inputs: dict[str, Any]) -> Expression:
        return ad.record(**inputs) if self._is_record else inputs["x"]


def _variables(arrays: Arrays) -> dict[str, Expression]:
    return {name: ad.variable(name, each.shape, each.dtype) for name, each in arrays.items()}
