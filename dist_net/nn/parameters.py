"""Parameters: where layers declare them, and how they lie in one flat vector.

A network is a function of an input and a *scope*. Calling it once with a fresh scope shows which
parameters it has; in the order of that call they are laid out, end to end, in one contiguous
float32 vector, and so are their gradients. Layers hold no arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff import Expression, variable
from dist_net.errors import ParameterError
from dist_net.nn.initializers import Initializer

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Parameter:
    """A named trained array: what it is called, its shape, how it begins."""

    name: str
    shape: tuple[int, ...]
    initializer: Initializer

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class Scope:
    """What a layer is called with: the place of its parameters, and whether this is training.

    ``generator`` is where layers that draw random numbers in training take them from.
    """

    def __init__(self, training: bool = False, generator: np.random.Generator | None = None):
        self.training = training
        self.generator = generator if generator is not None else np.random.default_rng()
        self.parameters: dict[str, Parameter] = {}
        self.variables: dict[str, Expression] = {}
        self._prefix = ""
        self._children: dict[str, int] = {}

    def parameter(self, name: str, shape: tuple[int, ...], initializer: Initializer) -> Expression:
        """Declares a parameter of the current layer and gives the variable that stands for it.

        Raises ParameterError if the layer has one of that name already.
        """
        full_name = self._prefix + name
        if full_name in self.parameters:
            raise ParameterError(f"parameter {full_name!r} is declared twice; name them apart")
        self.parameters[full_name] = Parameter(full_name, shape, initializer)
        self.variables[full_name] = variable(full_name, shape)
        return self.variables[full_name]

    def child(self, name: str) -> Scope:
        """The scope of a layer inside this one: ``name``, ``name_1``, and so on."""
        count = self._children.get(name, 0)
        self._children[name] = count + 1
        inner = Scope(self.training, self.generator)
        inner.parameters = self.parameters
        inner.variables = self.variables
        inner._prefix = f"{self._prefix}{name}_{count}/" if count else f"{self._prefix}{name}/"
        return inner


class Layout:
    """Parameters end to end in one flat vector."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = tuple(parameters.values())
        self.shapes = tuple((each.name, each.shape) for each in self.parameters)
        self.size = sum(each.size for each in self.parameters)

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Each parameter's part of ``vector`` in its own shape; the memory is shared."""
        if vector.shape != (self.size,):
            raise ParameterError(
                f"a vector of shape {vector.shape} for a network of {self.size} parameters"
            )
        ends = np.cumsum([each.size for each in self.parameters])
        return {
            each.name: vector[end - each.size : end].reshape(each.shape)
            for each, end in zip(self.parameters, ends, strict=True)
        }

    def initial(self, generator: np.random.Generator) -> Vector:
        """A new vector with every parameter's first values, drawn in order."""
        vector = np.empty(self.size, np.float32)
        for parameter, view in zip(self.parameters, self.views(vector).values(), strict=True):
            view[...] = parameter.initializer(generator, parameter.shape)
        return vector
